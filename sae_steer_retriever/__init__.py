"""See why a passage was retrieved and steer what is retrieved, by the named features of a sparse autoencoder.

Every name below is imported from its module when it is first used, so that importing the package
loads neither torch nor a vector store nor a framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_steer_retriever.attribution import Attribution, Contribution
    from sae_steer_retriever.contrast import Contrast
    from sae_steer_retriever.counterfactual import Counterfactual
    from sae_steer_retriever.embedders import (
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
    from sae_steer_retriever.explanation import Explanation
    from sae_steer_retriever.feature import Feature
    from sae_steer_retriever.feature_page import FeaturePage
    from sae_steer_retriever.features import FeatureCatalog
    from sae_steer_retriever.feedback import Feedback
    from sae_steer_retriever.policy import compose
    from sae_steer_retriever.retriever import Hit, SteeredRetriever
    from sae_steer_retriever.sae import Codes, EncoderSpec, SAEConfig, TopKSAE
    from sae_steer_retriever.steering import Add, AddRaw, Clamp, Edit, Scale, Steering, Suppress, When
    from sae_steer_retriever.store import ChromaStore

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
    "attribution": ("Attribution", "Contribution"),
    "contrast": ("Contrast",),
    "counterfactual": ("Counterfactual",),
    "embedders": (
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
    "explanation": ("Explanation",),
    "feature": ("Feature",),
    "feature_page": ("FeaturePage",),
    "features": ("FeatureCatalog",),
    "feedback": ("Feedback",),
    "policy": ("compose",),
    "retriever": ("Hit", "SteeredRetriever"),
    "sae": ("Codes", "EncoderSpec", "SAEConfig", "TopKSAE"),
    "steering": ("Add", "AddRaw", "Clamp", "Edit", "Scale", "Steering", "Suppress", "When"),
    "store": ("ChromaStore",),
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
