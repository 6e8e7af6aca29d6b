"""See why a passage was retrieved and steer what is retrieved, by the named features of a sparse autoencoder.

Every name below is imported from its module when it is first used, so that importing the package
loads neither torch nor a vector store nor a framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_steer_retriever.encoders.embedders import (
        Embedder,
        LangChainEmbedder,
        LlamaIndexEmbedder,
        SentenceTransformerEmbedder,
        as_embedder,
    )
    from sae_steer_retriever.errors import (
        AmbiguousFeatureError,
        ArtifactError,
        CorpusError,
        MismatchError,
        MissingExtraError,
        SAESteerError,
        SteeringError,
        StoreError,
        UnknownFeatureError,
    )
    from sae_steer_retriever.explain.attribution import Attribution, Contribution
    from sae_steer_retriever.explain.explanation import Explanation
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.features.feature import Feature
    from sae_steer_retriever.features.feature_card import FeaturePage
    from sae_steer_retriever.retriever import Hit, SteeredRetriever
    from sae_steer_retriever.sae.codes import Codes
    from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig
    from sae_steer_retriever.sae.topk_sae import TopKSAE
    from sae_steer_retriever.search.counterfactual import Counterfactual
    from sae_steer_retriever.search.feedback import Feedback
    from sae_steer_retriever.steering.compose import compose
    from sae_steer_retriever.steering.from_examples import Contrast
    from sae_steer_retriever.steering.policy import Add, AddRaw, Clamp, Edit, Scale, Steering, Suppress, When
    from sae_steer_retriever.store.chroma_store import ChromaStore

__version__ = "0.1.0"

# A literal list, because type checkers and linters read `__all__` without running it.
__all__ = [
    "Add",
    "AddRaw",
    "AmbiguousFeatureError",
    "ArtifactError",
    "Attribution",
    "ChromaStore",
    "Clamp",
    "Codes",
    "Contrast",
    "Contribution",
    "CorpusError",
    "Counterfactual",
    "Edit",
    "Embedder",
    "EncoderSpec",
    "Explanation",
    "Feature",
    "FeatureCatalog",
    "FeaturePage",
    "Feedback",
    "Hit",
    "LangChainEmbedder",
    "LlamaIndexEmbedder",
    "MismatchError",
    "MissingExtraError",
    "SAEConfig",
    "SAESteerError",
    "Scale",
    "SentenceTransformerEmbedder",
    "SteeredRetriever",
    "Steering",
    "SteeringError",
    "StoreError",
    "Suppress",
    "TopKSAE",
    "UnknownFeatureError",
    "When",
    "as_embedder",
    "compose",
]

_EXPORTS = {
    "explain.attribution": ("Attribution", "Contribution"),
    "steering.from_examples": ("Contrast",),
    "search.counterfactual": ("Counterfactual",),
    "encoders.embedders": (
        "Embedder",
        "LangChainEmbedder",
        "LlamaIndexEmbedder",
        "SentenceTransformerEmbedder",
        "as_embedder",
    ),
    "errors": (
        "AmbiguousFeatureError",
        "ArtifactError",
        "CorpusError",
        "MismatchError",
        "MissingExtraError",
        "SAESteerError",
        "SteeringError",
        "StoreError",
        "UnknownFeatureError",
    ),
    "explain.explanation": ("Explanation",),
    "features.feature": ("Feature",),
    "features.feature_card": ("FeaturePage",),
    "features.catalog": ("FeatureCatalog",),
    "search.feedback": ("Feedback",),
    "steering.compose": ("compose",),
    "retriever": ("Hit", "SteeredRetriever"),
    "sae.codes": ("Codes",),
    "sae.config": ("EncoderSpec", "SAEConfig"),
    "sae.topk_sae": ("TopKSAE",),
    "steering.policy": ("Add", "AddRaw", "Clamp", "Edit", "Scale", "Steering", "Suppress", "When"),
    "store.chroma_store": ("ChromaStore",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}


def __getattr__(name: str) -> object:
    """Import an exported name from its module on first use (PEP 562).

    Raises:
        ImportError: `SAESteeredRetriever` was asked for; the message names the two modules that have it.
        AttributeError: The package exports no such name.
    """
    if name == "SAESteeredRetriever":
        raise ImportError(
            "SAESteeredRetriever exists once for each framework: import it from "
            "sae_steer_retriever.integrations.langchain or from sae_steer_retriever.integrations.llama_index. "
            "Without a framework use sae_steer_retriever.SteeredRetriever."
        )
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    """The exported names, loaded or not, beside what the module holds already."""
    return sorted(set(globals()) | set(__all__))
