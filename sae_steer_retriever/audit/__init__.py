"""What a RAG store is about, what its retrieval cannot explain, what steering would change: `sae-steer audit`."""
