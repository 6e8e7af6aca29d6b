"""One query on its way to hits: embedded, encoded where anything needs its code, searched in one space, explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.explain.hits import Hit, Hits
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.search.embedding_search import EmbeddingSearch
from sae_steer_retriever.search.latent_search import LatentSearch
from sae_steer_retriever.search.options import SearchOptions, Space, check_query
from sae_steer_retriever.search.passage_rank import explain_passage
from sae_steer_retriever.search.query_cosine import QueryCosine, query_cosine
from sae_steer_retriever.search.ranking import hits_of
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.store_reader import StoreReader


class Query(NamedTuple):
    """A question as the encoder and the SAE read it.

    Attributes:
        embedding: (d,) unit vector.
        code: (1, K) its code; None if nothing needs it.
        labels: (1, k_labels) its label latents; None with `code`.
    """

    embedding: Array
    code: Codes[NDArray[Any]] | None
    labels: Codes[NDArray[Any]] | None


class QuerySearch:
    """The path from a query to hits, over one store: every front end uses it through `SteeredRetriever`."""

    def __init__(self, store: StoreReader, embedder: Embedder, catalog: FeatureCatalog) -> None:
        """Takes the parts.

        Args:
            store: The passages.
            embedder: Embeds queries.
            catalog: Names and units of the features.
        """
        self._store = store
        self._embedder = embedder
        self._catalog = catalog

    def search(self, query: str, steering: Steering, options: SearchOptions) -> Hits:
        """Returns the hits of a query under a resolved steering; `options.steer` is not read."""
        encode = options.explain or bool(steering.edits) or options.space != "original"
        encoded = self.encode_query(query, options.embedding, encode=encode)
        searching = self.prepare(steering, encoded, options.space, options.where)
        ranking, records = searching.search(options.k, options.candidates, vectors=options.explain)
        return hits_of(ranking, records, searching.explain(ranking) if options.explain else None)

    def explain(self, query: str, hit: Hit | str, steering: Steering, options: SearchOptions) -> Explanation:
        """Returns why a passage ranks where it does; see `SteeredRetriever.explain`.

        Raises:
            TypeError: `hit` is neither a hit nor an id.
        """
        if not isinstance(hit, Hit | str):
            raise TypeError(f"hit must be a Hit or a passage's id, got {type(hit).__name__}.")
        encoded = self.encode_query(query, options.embedding)
        steered = bool(self.active_edits(steering, encoded).edits)
        searching = self.prepare(steering, encoded, options.space, options.where)
        return explain_passage(
            searching, self._store, query, hit, space=options.space, steered=steered, fetch_k=options.fetch_k
        )

    def query_cosine(self, query: str, steering: Steering, options: SearchOptions) -> QueryCosine:
        """Returns how far a steering turns a query."""
        embedding, code, _ = encoded = self.encode_query(query, options.embedding)
        if code is None:
            raise ValueError("the query has no code.")
        steering = self.active_edits(steering, encoded)
        return query_cosine(steering, embedding, code, self._store.sae, self._catalog.calibration, space=options.space)

    def encode_query(
        self, query: str, embedding: Sequence[float] | Array | None = None, *, encode: bool = True
    ) -> Query:
        """Returns a question, embedded and encoded.

        Args:
            query: Its text.
            embedding: (d,) its embedding, if it is known; scaled to unit norm.
            encode: Whether anything needs its code.

        Raises:
            TypeError: `query` is not a text.
            ValueError: The embedding has another dimension, is not finite, or is zero.
        """
        check_query(query)
        sae = self._store.sae
        q = self._embedder.embed_queries([query])[0] if embedding is None else _unit(embedding, sae.config.d)
        if not encode:
            return Query(q, None, None)
        code = sae.encode(q[None])
        return Query(q, code, code.truncate(sae.config.k_labels))

    def active_edits(self, steering: Steering, query: Query) -> Steering:
        """Returns the steering without the edits whose condition the query fails."""
        if query.labels is None or not steering.edits:
            return steering
        return steering.for_query(query.labels, self._catalog.calibration.unit)

    def prepare(
        self, steering: Steering, query: Query, space: Space, where: Metadata | None
    ) -> EmbeddingSearch | LatentSearch:
        """Returns the search of a query under a steering, ready to rank.

        Args:
            steering: The edits; their conditions are checked here.
            query: The question; with its code, unless it is neither steered, explained nor searched by it.
            space: The space that is searched.
            where: Chroma's metadata filter.
        """
        steering = self.active_edits(steering, query)
        if space == "latent" and query.code is not None:
            return LatentSearch(self._store, self._catalog, steering, query.code, where)
        reconstructed = space == "reconstructed"
        q, code = query.embedding, query.code
        return EmbeddingSearch(self._store, self._catalog, steering, q, code, where, reconstructed=reconstructed)


def _unit(embedding: Sequence[float] | Array, d: int) -> Array:
    try:
        q = np.asarray(embedding, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"embedding is no list of {d} numbers: {error}.") from error
    if q.shape != (d,) or not np.isfinite(q).all() or not q.any():
        raise ValueError(f"embedding has shape {q.shape}, expected ({d},), finite and not zero.")
    norm = float(np.linalg.norm(q))
    # Scores and their decomposition assume unit queries; rounding alone is no reason to change the given vector.
    return q if abs(norm - 1.0) < 1e-5 else np.asarray(q / norm, dtype=np.float32)
