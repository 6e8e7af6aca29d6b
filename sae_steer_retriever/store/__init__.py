"""Chroma: the documents, and the sidecar collection beside them."""
