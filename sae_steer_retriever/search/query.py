"""One query on its way into a search: embedded, encoded where anything needs that, and searched in some space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.search.embedding_search import EmbeddingSearch
from sae_steer_retriever.search.latent_search import LatentSearch
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.chroma_store import ChromaStore

Space = Literal["original", "reconstructed", "latent"]
SPACES: tuple[Space, ...] = ("original", "reconstructed", "latent")


class Query(NamedTuple):
    """A question as the encoder and the SAE read it.

    Attributes:
        embedding: (d,) unit vector.
        code: (1, K) its code; None if nothing needs it.
        names: (1, k_labels) its label latents; None with `code`.
    """

    embedding: Array
    code: Codes[NDArray[Any]] | None
    names: Codes[NDArray[Any]] | None


class QuerySearch:
    """Reads queries, and makes their searches."""

    def __init__(self, store: ChromaStore, embedder: Embedder, catalog: FeatureCatalog) -> None:
        """Take the parts.

        Args:
            store: The passages.
            embedder: Embeds queries.
            catalog: Names and units of the features.
        """
        self._store = store
        self._embedder = embedder
        self._catalog = catalog

    def encode_query(
        self, query: str, embedding: Sequence[float] | Array | None = None, *, encode: bool = True
    ) -> Query:
        """A question, read.

        Args:
            query: Its text.
            embedding: (d,) its embedding, if it was made already; scaled to unit norm if it is not.
            encode: Whether anything needs its code.

        Raises:
            ValueError: The embedding is of another dimension, not finite, or zero.
        """
        sae = self._store.sae
        q = self._embedder.embed_queries([query])[0] if embedding is None else _unit(embedding, sae.config.d)
        if not encode:
            return Query(q, None, None)
        code = sae.encode(q[None])
        return Query(q, code, code.truncate(sae.config.k_labels))

    def active_edits(self, steering: Steering, query: Query) -> Steering:
        """What a steering asks of this query: without edits whose condition it fails."""
        if query.names is None or not steering.edits:
            return steering
        return steering.for_query(query.names, self._catalog.calibration.unit)

    def prepare(
        self, steering: Steering, query: Query, space: Space, where: Metadata | None
    ) -> EmbeddingSearch | LatentSearch:
        """The search of a query under a steering, ready to rank.

        Args:
            steering: The edits; their conditions are looked at here.
            query: The question; with its code, unless it is neither steered, explained nor searched by it.
            space: What is searched.
            where: Chroma's metadata filter.
        """
        steering = self.active_edits(steering, query)
        if space == "latent" and query.code is not None:
            return LatentSearch(self._store, self._catalog, steering, query.code, where)
        reconstructed = space == "reconstructed"
        q, code = query.embedding, query.code
        return EmbeddingSearch(self._store, self._catalog, steering, q, code, where, reconstructed=reconstructed)


def check_query(query: str, space: Space) -> None:
    """Refuse a query that is no text, and a space that there is not.

    Raises:
        TypeError: `query` is not a text.
        ValueError: There is no such space.
    """
    if not isinstance(query, str):
        raise TypeError(f"query must be a text, got {type(query).__name__}.")
    if space not in SPACES:
        raise ValueError(f"space is {space!r}, expected one of {', '.join(SPACES)}.")


def check_count(name: str, value: int) -> int:
    """A number of at least 1.

    Raises:
        ValueError: It is none; the error calls it `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1.")
    return int(value)


def _unit(embedding: Sequence[float] | Array, d: int) -> Array:
    try:
        q = np.asarray(embedding, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"embedding is no list of {d} numbers: {error}.") from error
    if q.shape != (d,) or not np.isfinite(q).all() or not q.any():
        raise ValueError(f"embedding has shape {q.shape}, expected ({d},), finite and not zero.")
    norm = float(np.linalg.norm(q))
    # Scores and their decomposition assume unit queries; rounding alone is no reason to touch what was given.
    return q if abs(norm - 1.0) < 1e-5 else np.asarray(q / norm, dtype=np.float32)


__all__ = ["SPACES", "Query", "QuerySearch", "Space", "check_count", "check_query"]
