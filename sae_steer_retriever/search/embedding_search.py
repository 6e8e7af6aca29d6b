"""One query in the spaces of embeddings: the documents' own, or their reconstructions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.explain.attribution import Attribution, Explainer
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.search.candidates import CandidateSearch
from sae_steer_retriever.search.ranking import Explain, Ranker, Ranking
from sae_steer_retriever.steering.plan import plan
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.documents import Record
from sae_steer_retriever.store.store_reader import StoreReader

# Two ways to work out one score differ by no more than this.
_SAME = 1e-5


class EmbeddingSearch:
    """Ranks by `q . x`, or by the cosine of the reconstructions, plus the steering's terms."""

    def __init__(
        self,
        store: StoreReader,
        catalog: FeatureCatalog,
        steering: Steering,
        q: Array,
        h_q: Codes[NDArray[Any]] | None,
        where: Metadata | None,
        *,
        reconstructed: bool,
    ) -> None:
        """Plans the query.

        Args:
            store: The passages.
            catalog: Names and units of the features.
            steering: The edits.
            q: (d,) the query's embedding.
            h_q: (1, K) its code; None if the query is neither steered, explained nor reconstructed.
            where: Chroma's metadata filter.
            reconstructed: Whether to search the reconstructions.
        """
        self._store = store
        self._catalog = catalog
        self._h_q = h_q
        self._where = where
        self._reconstructed = reconstructed
        self._vector = store.sae.decode(h_q)[0] if reconstructed and h_q is not None else q
        self._plan = None
        if steering.edits and h_q is not None:
            self._plan = plan(steering, self._vector, h_q, store.sae, catalog.calibration)

    def search(self, k: int, fetch_k: int, *, vectors: bool) -> tuple[Ranking, dict[str, Record]]:
        """Returns the best `k` and their stored rows.

        Args:
            k: The number of hits.
            fetch_k: Candidates that each source gives at first.
            vectors: Whether `explain` needs their vectors.
        """
        if not self._reconstructed and (self._plan is None or self._plan.is_empty):
            neighbours, records = self._store.nearest_records(self._vector, k, self._where, vectors=vectors)
            return Ranking.plain(*neighbours), records
        ranking = self.ranking(k, fetch_k)
        records = self._records(ranking, vectors and not self._reconstructed)
        if len(records) < len(ranking.ids):  # another tool has deleted some of them
            ranking = self.ranking(k, fetch_k, verified=True)
            records = self._store.find(ranking.ids)
        return ranking, records

    def _records(self, ranking: Ranking, vectors: bool) -> dict[str, Record]:
        """Returns the stored rows of the hits, with vectors of the local copy where these give the store's scores."""
        if not vectors:
            return self._store.find(ranking.ids, vectors=False)
        index = self._store.index
        rows = index.rows_of(ranking.ids)
        if (rows < 0).any() or not np.allclose(index.scores(rows, self._vector), ranking.base_scores, atol=_SAME):
            return self._store.find(ranking.ids)
        stored = dict(zip(ranking.ids, zip(*index.vectors(rows), strict=True), strict=True))
        return {
            name: record._replace(vector=stored[name][0], offset=float(stored[name][1]))
            for name, record in self._store.find(ranking.ids, vectors=False).items()
        }

    def ranking(self, k: int, fetch_k: int, *, verified: bool = False) -> Ranking:
        """Returns the best `k`.

        Args:
            k: The number of hits.
            fetch_k: Candidates that each source gives at first.
            verified: Whether to ask the store if every candidate is still there.
        """
        if self._plan is None or self._plan.is_empty:
            search = self._store.nearest_reconstructed if self._reconstructed else self._store.nearest
            return Ranking.plain(*search(self._vector, k, self._where))
        unit = self._catalog.calibration.match_unit
        ranker = Ranker(self._store.sae, unit, self._plan, self._vector, self._reconstructed)
        return CandidateSearch(self._store, ranker, self._where, verified=verified).ranking(k, fetch_k)

    def explain(self, ranking: Ranking) -> Explain:
        """Returns a function that decomposes the scores of a ranking; needs the query's code."""
        sae, vector, h_q = self._store.sae, self._vector, self._h_q
        if h_q is None:
            raise ValueError("a search without the query's code cannot be explained.")
        explainer = Explainer(vector, h_q, sae, self._catalog.name)
        if not self._reconstructed:
            return lambda row, record: explainer.explain(record.vector, ranking.terms[row], offset=record.offset)
        x_hat = sae.decode(self._store.codes(ranking.ids))
        shift = self._plan.total_shift(len(vector)) if self._plan is not None else np.zeros_like(vector)
        length = float(np.linalg.norm(vector + shift))

        def reconstructed(row: int, record: Record) -> Attribution:
            scale = 1.0 / (float(np.linalg.norm(x_hat[row])) * length)
            return explainer.explain(x_hat[row], ranking.terms[row], scale=scale)

        return reconstructed
