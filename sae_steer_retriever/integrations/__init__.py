"""The retriever in the types of each framework: `langchain` and `llama_index`, imported only when asked for."""
