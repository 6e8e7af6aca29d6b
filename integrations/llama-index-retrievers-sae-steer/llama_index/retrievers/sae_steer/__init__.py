"""The LlamaIndex classes of `sae_steer_retriever`, under the name LlamaIndex users search for."""

from sae_steer_retriever.integrations.llama_index import SAESteeredRetriever, SAESteerPostprocessor, SteeredQuery

__all__ = ["SAESteerPostprocessor", "SAESteeredRetriever", "SteeredQuery"]
