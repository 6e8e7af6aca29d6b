"""Encoders behind one protocol: sentence-transformers, LangChain `Embeddings`, LlamaIndex `BaseEmbedding`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from sae_steer_retriever.encoders.weights import PACKAGED_MODULE, folder_revision, load_model
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.bundled import require_bundled
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import DEFAULT_MODEL, EncoderSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Attributes of LangChain's classes that name the model.
_MODEL_NAMES = ("model_name", "model", "model_id", "deployment")


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors. Queries and documents may have different prefixes.

    Example:
        >>> from sae_steer_retriever import Embedder
        >>> isinstance(embedder, Embedder), embedder.embed_queries(["who pays for returns?"]).shape
        (True, (1, 384))
    """

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's name, dimension and prefixes."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Array:
        """Returns (batch, d) float32, L2-normalised."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> Array:
        """Returns (batch, d) float32, L2-normalised."""
        ...


def unit_rows(vectors: Any, expected_dimension: int, count: int | None = None) -> Array:  # noqa: ANN401 - as given
    """Returns vectors of any array-like type L2-normalised and checked, (count, expected_dimension) float32.

    Raises:
        MismatchError: The vectors have another shape, are not finite, or are all zero in a row.
    """
    try:
        rows = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:  # ragged, or no numbers
        raise MismatchError(f"the encoder gave no (batch, {expected_dimension}) array of numbers: {error}.") from error
    if rows.ndim != 2 or rows.shape[1] != expected_dimension:
        raise MismatchError(f"the encoder gave vectors of shape {rows.shape}, expected (batch, {expected_dimension}).")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise MismatchError("the encoder gave a vector that is zero, or not finite; check the texts it was given.")
    if count is not None and len(rows) != count:
        raise MismatchError(f"the encoder gave {len(rows)} vectors for {count} texts.")
    return np.asarray(rows / norms, dtype=np.float32)


class _WrappedEmbedder:
    """Embeds with two functions of texts, which add the prefixes. `spec` has prefixes and pooling if they are known."""

    def __init__(
        self, spec: EncoderSpec, queries: Callable[[list[str]], Any], documents: Callable[[list[str]], Any]
    ) -> None:
        self.spec, self._queries, self._documents = spec, queries, documents

    def embed_queries(self, texts: Sequence[str]) -> Array:
        """Returns (batch, d) unit vectors of queries, with the encoder's query prompt."""
        return self._unit_rows(self._queries, texts)

    def embed_documents(self, texts: Sequence[str]) -> Array:
        """Returns (batch, d) unit vectors of documents, with the encoder's document prompt."""
        return self._unit_rows(self._documents, texts)

    def _unit_rows(self, embed: Callable[[list[str]], Any], texts: Sequence[str]) -> Array:
        if not len(texts):
            return np.empty((0, self.spec.dimension), dtype=np.float32)
        return unit_rows(embed(list(texts)), self.spec.dimension, len(texts))


class SentenceTransformerEmbedder(_WrappedEmbedder):
    """An `Embedder` that wraps a sentence-transformers model, `model`, with its query and document prompts.

    Example:
        >>> from sae_steer_retriever import SentenceTransformerEmbedder
        >>> SentenceTransformerEmbedder("all-MiniLM-L6-v2").embed_documents(["We refund within 14 days."]).shape
        (1, 384)
    """

    def __init__(
        self, model: str | SentenceTransformer = DEFAULT_MODEL, *, device: str | None = None, batch_size: int = 32
    ) -> None:
        """Take a loaded model, or load one by name.

        Args:
            model: A `SentenceTransformer`, a hub name, or a folder. all-MiniLM-L6-v2 is read from the packaged weights
                of the extra `offline` if they are installed.
            device: Torch device; sentence-transformers chooses if not given.
            batch_size: Texts per forward pass.

        Raises:
            ArtifactError: The model is neither here nor on the hub, or the packaged weights were altered.
        """
        loaded = load_model(model, device) if isinstance(model, str) else model
        name = model if isinstance(model, str) else _name_of(model)
        self.model = loaded
        prompts = loaded.prompts or {}
        dimension = loaded.get_embedding_dimension()
        if dimension is None:
            dimension = len(loaded.encode("dimension"))
        spec = EncoderSpec(
            name=name,
            dimension=int(dimension),
            query_prefix=prompts.get("query") or "",
            document_prefix=prompts.get("document") or prompts.get("passage") or "",
            pooling=_pooling_of(loaded),
            revision=folder_revision(Path(name)) if isinstance(model, str) and Path(name).is_dir() else None,
        )
        lock = threading.Lock()  # fast tokenizers raise "Already borrowed" when threads share one

        def encode(prompt: str, texts: list[str]) -> Any:
            with lock:
                return loaded.encode(
                    texts, prompt=prompt, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True
                )

        super().__init__(spec, partial(encode, spec.query_prefix), partial(encode, spec.document_prefix))


class _AdaptedEmbedder(_WrappedEmbedder):
    """Embeds with two functions of another framework's object, which knows its own prefixes."""

    def __init__(self, name: str, query: Callable[[str], Any], documents: Callable[[list[str]], Any]) -> None:
        super().__init__(EncoderSpec(name, dimension=len(query("dimension"))), partial(_each, query), documents)


class LangChainEmbedder(_AdaptedEmbedder):
    """An `Embedder` that wraps a LangChain `Embeddings` object.

    Example:
        >>> from langchain_core.embeddings import DeterministicFakeEmbedding
        >>> from sae_steer_retriever import LangChainEmbedder
        >>> LangChainEmbedder(DeterministicFakeEmbedding(size=384), name="all-MiniLM-L6-v2").spec.dimension
        384
    """

    def __init__(self, embeddings: Any, *, name: str | None = None) -> None:  # noqa: ANN401 - no framework import here
        """Adapt `embeddings`.

        Args:
            embeddings: Any object with `embed_query(text)` and `embed_documents(texts)`.
            name: The encoder's name; read from `model_name` or `model` if not given, else the class's name.
        """
        name = name or _text_attribute(embeddings, *_MODEL_NAMES) or f"langchain:{type(embeddings).__name__}"
        super().__init__(name, embeddings.embed_query, embeddings.embed_documents)


class LlamaIndexEmbedder(_AdaptedEmbedder):
    """An `Embedder` that wraps a LlamaIndex `BaseEmbedding` object.

    Example:
        >>> from llama_index.core import MockEmbedding
        >>> from sae_steer_retriever import LlamaIndexEmbedder
        >>> LlamaIndexEmbedder(MockEmbedding(embed_dim=384), name="all-MiniLM-L6-v2").spec.dimension
        384
    """

    def __init__(self, embed_model: Any, *, name: str | None = None) -> None:  # noqa: ANN401 - no framework import here
        """Adapt `embed_model`.

        Args:
            embed_model: Any object with `get_query_embedding(text)` and `get_text_embedding_batch(texts)`.
            name: The encoder's name; read from `model_name` if not given.
        """
        given = getattr(embed_model, "model_name", None)
        given = None if given == "unknown" else given  # BaseEmbedding's own default
        name = name or given or f"llama_index:{type(embed_model).__name__}"
        super().__init__(name, embed_model.get_query_embedding, embed_model.get_text_embedding_batch)


def as_embedder(source: Any) -> Embedder:  # noqa: ANN401 - the point of this function
    """Returns an `Embedder` for a model's name or for any framework's embedding object.

    Args:
        source: An `Embedder`, a model name or folder, a `SentenceTransformer`, a LangChain `Embeddings`, a
            LlamaIndex `BaseEmbedding`, or None for all-MiniLM-L6-v2.

    Raises:
        TypeError: The source is none of these.

    Example:
        >>> from sae_steer_retriever import as_embedder
        >>> as_embedder("all-MiniLM-L6-v2").spec.name
        'all-MiniLM-L6-v2'
    """
    if source is None:
        return SentenceTransformerEmbedder()
    if isinstance(source, str | Path):
        return SentenceTransformerEmbedder(str(source))
    if isinstance(source, Embedder):
        return source
    if hasattr(source, "get_text_embedding_batch") and hasattr(source, "get_query_embedding"):
        return LlamaIndexEmbedder(source)
    if hasattr(source, "embed_query") and hasattr(source, "embed_documents"):
        return LangChainEmbedder(source)
    if hasattr(source, "encode") and hasattr(source, "get_embedding_dimension"):
        return SentenceTransformerEmbedder(source)
    raise TypeError(
        f"embedding is a {type(source).__name__}: expected a model name, a SentenceTransformer, a LangChain "
        "Embeddings, a LlamaIndex BaseEmbedding, or an object with spec, embed_queries and embed_documents."
    )


def bundled_for(embedding: Any = None) -> Path:  # noqa: ANN401 - see as_embedder
    """Returns the folder of the bundled SAE for an encoder, anything that `as_embedder` takes; None: all-MiniLM-L6-v2.

    Raises:
        ArtifactError: No SAE is bundled for it.
    """
    if embedding is None:
        return require_bundled(DEFAULT_MODEL)
    # A name is looked up before a model is loaded.
    return require_bundled(str(embedding) if isinstance(embedding, str | Path) else as_embedder(embedding).spec.name)


def _each(embed: Callable[[str], Any], texts: list[str]) -> list[Any]:
    return [embed(text) for text in texts]


def _name_of(model: SentenceTransformer) -> str:
    name = _text_attribute(getattr(model, "model_card_data", None), "base_model", "model_id")
    path = getattr(getattr(model[0], "auto_model", None), "name_or_path", "") or type(model).__name__
    return name or (DEFAULT_MODEL if Path(path).parent.name == PACKAGED_MODULE else str(path))


def _pooling_of(model: SentenceTransformer) -> str | None:
    for module in model:
        mode = getattr(module, "pooling_mode", None)
        if isinstance(mode, str):
            return mode
        describe = getattr(module, "get_pooling_mode_str", None)
        if callable(describe):
            return str(describe())
    return None


def _text_attribute(owner: Any, *names: str) -> str | None:  # noqa: ANN401 - any framework's object
    """Returns the first of some attributes that is a text."""
    return next((value for name in names if isinstance(value := getattr(owner, name, None), str) and value), None)
