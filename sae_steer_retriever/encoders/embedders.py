"""Encoders behind one protocol: sentence-transformers, LangChain `Embeddings`, LlamaIndex `BaseEmbedding`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors. Queries and documents may be prefixed differently."""

    @property
    def spec(self) -> EncoderSpec:
        """Which encoder this is."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Array:
        """(batch, d) float32, L2-normalised."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> Array:
        """(batch, d) float32, L2-normalised."""
        ...


def unit_rows(vectors: Any, expected_dimension: int | None = None) -> Array:  # noqa: ANN401 - whatever an encoder returns
    """L2-normalise rows and check them.

    Args:
        vectors: (batch, d), anything NumPy can read.
        expected_dimension: `d`, where it is known.

    Raises:
        MismatchError: The vectors are not (batch, d), not finite, or all zero in a row.
    """
    try:
        rows = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:  # ragged, or no numbers
        raise MismatchError(f"the encoder gave no (batch, {expected_dimension}) array of numbers: {error}.") from error
    if rows.ndim != 2 or (expected_dimension is not None and rows.shape[1] != expected_dimension):
        raise MismatchError(f"the encoder gave vectors of shape {rows.shape}, expected (batch, {expected_dimension}).")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise MismatchError("the encoder gave a vector that is zero, or not finite; check the texts it was given.")
    return np.asarray(rows / norms, dtype=np.float32)


def _one_each(vectors: Array, texts: Sequence[str]) -> Array:
    if len(vectors) != len(texts):
        raise MismatchError(f"the encoder gave {len(vectors)} vectors for {len(texts)} texts.")
    return vectors


class SentenceTransformerEmbedder:
    """A sentence-transformers model, with its query and document prompts."""

    def __init__(
        self, model: str | SentenceTransformer = DEFAULT_MODEL, *, device: str | None = None, batch_size: int = 32
    ) -> None:
        """Take a loaded model, or load one by name.

        Args:
            model: A `SentenceTransformer`, a hub name, or a folder. all-MiniLM-L6-v2 is read from the `offline`
                extra's packaged weights where these are installed.
            device: Torch device; sentence-transformers chooses if not given.
            batch_size: Texts per forward pass.

        Raises:
            ArtifactError: The model can neither be found nor downloaded, or the packaged weights were altered.
        """
        if isinstance(model, str):
            self._model, name = load_model(model, device), model
        else:
            self._model, name = model, _name_of(model)
        self._batch_size = batch_size
        # Fast tokenizers raise "Already borrowed" when threads share one.
        self._lock = threading.Lock()
        prompts = self._model.prompts or {}
        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            dimension = len(self._model.encode("dimension"))
        self._spec = EncoderSpec(
            name=name,
            dimension=int(dimension),
            query_prefix=prompts.get("query") or "",
            document_prefix=prompts.get("document") or prompts.get("passage") or "",
            pooling=_pooling_of(self._model),
            revision=folder_revision(Path(name)) if isinstance(model, str) and Path(name).is_dir() else None,
        )

    @property
    def spec(self) -> EncoderSpec:
        """Name, dimension, prompts and pooling of the model."""
        return self._spec

    @property
    def model(self) -> SentenceTransformer:
        """The sentence-transformers model itself."""
        return self._model

    def embed_queries(self, texts: Sequence[str]) -> Array:
        """(batch, d) unit vectors of queries, with the model's query prompt."""
        return self._embed(texts, self._spec.query_prefix)

    def embed_documents(self, texts: Sequence[str]) -> Array:
        """(batch, d) unit vectors of documents, with the model's document prompt."""
        return self._embed(texts, self._spec.document_prefix)

    def _embed(self, texts: Sequence[str], prefix: str) -> Array:
        if not len(texts):
            return np.empty((0, self._spec.dimension), dtype=np.float32)
        with self._lock:
            vectors = self._model.encode(
                list(texts), prompt=prefix, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True
            )
        return unit_rows(vectors, self._spec.dimension)


class LangChainEmbedder:
    """A LangChain `Embeddings` object, seen as an `Embedder`."""

    def __init__(self, embeddings: Any, *, name: str | None = None) -> None:  # noqa: ANN401 - no framework import here
        """Adapt `embeddings`.

        Args:
            embeddings: Any object with `embed_query(text)` and `embed_documents(texts)`.
            name: The encoder's name; read from `model_name` or `model` if not given, else the class's name.
        """
        self._embeddings = embeddings
        name = name or _attribute_name(embeddings) or f"langchain:{type(embeddings).__name__}"
        self._spec = EncoderSpec(name=name, dimension=len(embeddings.embed_query("dimension")))

    @property
    def spec(self) -> EncoderSpec:
        """Name and dimension; prefixes are the wrapped object's own business."""
        return self._spec

    def embed_queries(self, texts: Sequence[str]) -> Array:
        """(batch, d) unit vectors of queries."""
        if not len(texts):
            return np.empty((0, self._spec.dimension), dtype=np.float32)
        return unit_rows([self._embeddings.embed_query(text) for text in texts], self._spec.dimension)

    def embed_documents(self, texts: Sequence[str]) -> Array:
        """(batch, d) unit vectors of documents."""
        if not len(texts):
            return np.empty((0, self._spec.dimension), dtype=np.float32)
        return _one_each(unit_rows(self._embeddings.embed_documents(list(texts)), self._spec.dimension), texts)


class LlamaIndexEmbedder:
    """A LlamaIndex `BaseEmbedding` object, seen as an `Embedder`."""

    def __init__(self, embed_model: Any, *, name: str | None = None) -> None:  # noqa: ANN401 - no framework import here
        """Adapt `embed_model`.

        Args:
            embed_model: Any object with `get_query_embedding(text)` and `get_text_embedding_batch(texts)`.
            name: The encoder's name; read from `model_name` if not given.
        """
        self._embed_model = embed_model
        given = getattr(embed_model, "model_name", None)
        # BaseEmbedding's own default says nothing about the encoder.
        given = None if given == "unknown" else given
        name = name or given or f"llama_index:{type(embed_model).__name__}"
        self._spec = EncoderSpec(name=name, dimension=len(embed_model.get_query_embedding("dimension")))

    @property
    def spec(self) -> EncoderSpec:
        """Name and dimension; instructions are the wrapped object's own business."""
        return self._spec

    def embed_queries(self, texts: Sequence[str]) -> Array:
        """(batch, d) unit vectors of queries."""
        if not len(texts):
            return np.empty((0, self._spec.dimension), dtype=np.float32)
        return unit_rows([self._embed_model.get_query_embedding(text) for text in texts], self._spec.dimension)

    def embed_documents(self, texts: Sequence[str]) -> Array:
        """(batch, d) unit vectors of documents."""
        if not len(texts):
            return np.empty((0, self._spec.dimension), dtype=np.float32)
        return _one_each(
            unit_rows(self._embed_model.get_text_embedding_batch(list(texts)), self._spec.dimension), texts
        )


def as_embedder(source: Any) -> Embedder:  # noqa: ANN401 - the point of this function
    """An `Embedder` from whatever a user has at hand.

    Args:
        source: An `Embedder`, a model name or folder, a `SentenceTransformer`, a LangChain `Embeddings`, a
            LlamaIndex `BaseEmbedding`, or None for all-MiniLM-L6-v2.

    Raises:
        TypeError: None of these.
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
    """The folder of the bundled SAE for an encoder; that of all-MiniLM-L6-v2 if None is given.

    Args:
        embedding: Anything `as_embedder` takes.

    Raises:
        ArtifactError: None ships for it.
    """
    if embedding is None:
        return require_bundled(DEFAULT_MODEL)
    # By its name where that is known, before what it names is loaded.
    return require_bundled(str(embedding) if isinstance(embedding, str | Path) else as_embedder(embedding).spec.name)


def _name_of(model: SentenceTransformer) -> str:
    card = getattr(model, "model_card_data", None)
    for name in (getattr(card, "base_model", None), getattr(card, "model_id", None)):
        if isinstance(name, str) and name:
            return name
    first = model[0]
    path = getattr(getattr(first, "auto_model", None), "name_or_path", "") or type(model).__name__
    if Path(path).parent.name == PACKAGED_MODULE:
        return DEFAULT_MODEL
    return str(path)


def _pooling_of(model: SentenceTransformer) -> str | None:
    for module in model:
        mode = getattr(module, "pooling_mode", None)
        if isinstance(mode, str):
            return mode
        describe = getattr(module, "get_pooling_mode_str", None)
        if callable(describe):
            return str(describe())
    return None


def _attribute_name(embeddings: Any) -> str | None:  # noqa: ANN401 - see LangChainEmbedder
    for attribute in ("model_name", "model", "model_id", "deployment"):
        value = getattr(embeddings, attribute, None)
        if isinstance(value, str) and value:
            return value
    return None
