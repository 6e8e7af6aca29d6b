"""One query on its way to hits: embedded, encoded where anything needs its code, searched in one space, explained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.explain.hits import Hit, Hits
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import NO_CODE, Array
from sae_steer_retriever.search.embedding_search import OriginalSearch, SidecarSearch
from sae_steer_retriever.search.encoded_query import Query
from sae_steer_retriever.search.latent_search import LatentSearch
from sae_steer_retriever.search.options import SearchOptions, check_query
from sae_steer_retriever.search.passage_rank import explain_passage
from sae_steer_retriever.search.query_cosine import QueryCosine, query_cosine
from sae_steer_retriever.search.ranking import hits_of
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.store_reader import StoreReader


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
        # The SAE encodes the query while the store is asked for neighbours.
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="encode")

    def search(self, query: str, steering: Steering, options: SearchOptions) -> Hits:
        """Returns the hits of a query under a resolved steering; `options.steer` is not read."""
        encoded = self.encode_query(query, options.embedding, ahead=options.explain)
        searching = self.prepare(steering, encoded, options)
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
        searching = self.prepare(steering, encoded, options)
        return explain_passage(
            searching,
            self._store,
            query,
            hit,
            space=options.space,
            latent_score=options.latent_score,
            steered=steered,
            fetch_k=options.fetch_k,
            k=options.k,
        )

    def query_cosine(self, query: str, steering: Steering, options: SearchOptions) -> QueryCosine:
        """Returns how far a steering turns a query."""
        encoded = self.encode_query(query, options.embedding)
        steering = self.active_edits(steering, encoded)
        sae, calibration, score = self._store.sae, self._catalog.calibration, options.latent_score
        return query_cosine(
            steering, encoded.embedding, encoded.code, sae, calibration, space=options.space, latent_score=score
        )

    def encode_query(
        self, query: str, embedding: Sequence[float] | Array | None = None, *, ahead: bool = False
    ) -> Query:
        """Returns a question, embedded.

        Args:
            query: Its text.
            embedding: (d,) its embedding, if it is known; scaled to unit norm.
            ahead: Whether to work out its code meanwhile, in another thread.

        Raises:
            TypeError: `query` is not a text.
            ValueError: The embedding has another dimension, is not finite, or is zero.
        """
        check_query(query)
        sae = self._store.sae
        q = self._embedder.embed_queries([query])[0] if embedding is None else _unit(embedding, sae.config.d)
        return Query(q, sae, self._pool if ahead else None)

    def active_edits(self, steering: Steering, query: Query) -> Steering:
        """Returns the steering without the edits whose condition the query fails."""
        conditional = any(edit.condition is not None for edit in steering.edits)
        return steering.for_query(query.labels if conditional else NO_CODE, self._catalog.calibration.unit)

    def prepare(
        self, steering: Steering, query: Query, options: SearchOptions
    ) -> OriginalSearch | SidecarSearch | LatentSearch:
        """Returns the search of a query under a steering, ready to rank.

        Args:
            steering: The edits; their conditions are checked here.
            query: The question.
            options: `space`, `latent_score`, `where` and `read_on` are read.
        """
        steering = self.active_edits(steering, query)
        store, catalog, where = self._store, self._catalog, options.where or None
        if options.space == "original":
            return OriginalSearch(store, catalog, steering, query, where, options.read_on)
        if options.space == "latent" and options.latent_score != "match":
            return LatentSearch(store, store.code_matrix(), catalog, steering, query.code, where, options.latent_score)
        q, code = query.embedding, query.code
        return SidecarSearch(store, catalog, steering, q, code, where, decoded=options.space == "reconstructed")


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
