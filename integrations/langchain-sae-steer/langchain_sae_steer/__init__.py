"""The LangChain retriever of `sae_steer_retriever`, under the name LangChain users search for."""

from sae_steer_retriever.integrations.langchain import SAESteeredRetriever

__all__ = ["SAESteeredRetriever"]
