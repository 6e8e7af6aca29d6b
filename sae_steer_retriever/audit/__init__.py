"""The audit: a report on the topics, the retrieval and the steerability of an existing RAG store."""
