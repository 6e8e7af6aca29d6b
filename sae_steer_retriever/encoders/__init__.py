"""Encoders and their adapters, and the cache of embeddings."""
