"""One query in the latent space: passages by the cosine of their power-normalised codes with the edited query's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.explain.attribution import Attribution, CodeExplainer
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array, Codes, power_normalised
from sae_steer_retriever.search.ranking import Explain, Ranker, Ranking
from sae_steer_retriever.steering.plan import plan_code
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.code_index import CodeIndex
from sae_steer_retriever.store.documents import Record
from sae_steer_retriever.store.latent_index import best, lengths
from sae_steer_retriever.store.store_reader import StoreReader


@dataclasses.dataclass(frozen=True)
class LatentRanker(Ranker):
    """A `Ranker` in the latent space: `cos(p(z_q) + v, p(z_d)) + document boosts`, with p the power normalisation.

    It takes codes as the SAE gives them, and document boosts read those. `vector` and the plan's shifts are
    power-normalised.

    Attributes:
        latents: (m,) the latents that the coordinates of `vector` and of the plan's shifts stand for.
    """

    latents: NDArray[np.int32]

    def cosines(self, codes: Codes[NDArray[Any]]) -> NDArray[np.float64]:
        """Returns (N,) cosines of passages' power-normalised codes with the query's, before its edits."""
        norms = np.maximum(self._lengths(codes) * np.linalg.norm(self.vector), np.finfo(np.float32).tiny)
        return self._projections(codes, self.vector) / norms

    def _projections(self, codes: Codes[NDArray[Any]], vector: Array) -> Array:
        along = np.zeros(self.sae.config.n, dtype=np.float32)
        along[self.latents] = vector
        return np.asarray((power_normalised(codes).values * along[codes.indices]).sum(axis=1), dtype=np.float32)

    def _lengths(self, codes: Codes[NDArray[Any]]) -> NDArray[np.float64]:
        return lengths(power_normalised(codes)).astype(np.float64)


class LatentSearch:
    """Ranks by `z_q . z_d / (|z_q| |z_d|)` of power-normalised codes, plus the document boosts.

    It finds only passages that share a latent with the query, or with the edited query, and have a code in the sidecar
    collection. The ranking is exact.
    """

    def __init__(
        self,
        store: StoreReader,
        catalog: FeatureCatalog,
        steering: Steering,
        h_q: Codes[NDArray[Any]],
        where: Metadata | None,
    ) -> None:
        """Plans the query.

        Args:
            store: The passages.
            catalog: Names and units of the features.
            steering: The edits of the query's code.
            h_q: (1, K) the code, as the SAE gives it.
            where: Chroma's metadata filter.
        """
        self._store = store
        self._catalog = catalog
        self._h_q = h_q
        self._where = where
        latents, vector, plan_ = plan_code(steering, h_q, catalog.calibration)
        self._ranker = LatentRanker(store.sae, catalog.calibration.match_unit, plan_, vector, True, latents)
        self._edited = vector + plan_.total_shift(len(vector))

    def search(self, k: int, fetch_k: int, *, vectors: bool) -> tuple[Ranking, dict[str, Record]]:
        """Returns the best `k` and their stored rows.

        Args:
            k: The number of hits.
            fetch_k: Candidates that each source gives at first.
            vectors: Not used: codes explain the scores.
        """
        ranking = self.ranking(k, fetch_k)
        return ranking, self._store.find(ranking.ids, vectors=False)

    def ranking(self, k: int, fetch_k: int) -> Ranking:
        """Returns the best `k`.

        Args:
            k: The number of hits.
            fetch_k: Candidates that each source gives at first.
        """
        index = self._store.index
        allowed = None
        if self._where:
            allowed = np.zeros(len(index), dtype=bool)
            rows = index.rows_of(self._store.existing(where=self._where))
            allowed[rows[rows >= 0]] = True
        steered = not self._ranker.plan.is_empty
        limit = fetch_k if steered else k
        while True:
            base, lifted = self._candidates(index, limit, allowed, steered)
            rows = np.union1d(base, lifted)
            exhausted = len(lifted) < limit
            if allowed is None:  # other tools may have deleted documents and left their codes
                there = set(self._store.existing([index.ids[row] for row in rows.tolist()]))
                base, lifted, rows = (
                    np.array([row for row in part.tolist() if index.ids[row] in there], dtype=np.int64)
                    for part in (base, lifted, rows)
                )
            if len(lifted) >= k or exhausted:
                return self._rank(index, rows if steered else base[:k], base, k)
            limit *= 4

    def explain(self, ranking: Ranking) -> Explain:
        """Returns a function that decomposes the scores of a ranking."""
        codes = power_normalised(self._store.codes(ranking.ids))
        scales = 1.0 / np.maximum(lengths(codes).astype(np.float64) * _length(self._edited), np.finfo(np.float32).tiny)
        explainer = CodeExplainer(power_normalised(self._h_q), self._catalog.name)

        def shared(row: int, record: Record) -> Attribution:
            code: Codes[NDArray[Any]] = Codes(codes.indices[row : row + 1], codes.values[row : row + 1])
            return explainer.explain(code, ranking.terms[row], scale=float(scales[row]))

        return shared

    def _candidates(
        self, index: CodeIndex, limit: int, allowed: NDArray[np.bool_] | None, steered: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the best rows without steering and with it, at most `limit` of each, best first."""
        latents, query = self._ranker.latents, _unit(self._ranker.vector)
        engine = index.latent_index(self._store.sae.config.n)
        plain = engine.scores(latents, query)
        if allowed is not None:
            plain[~allowed] = 0.0
        base = best(plain, limit).rows
        if not steered:
            return base, base
        scores = engine.scores(latents, _unit(self._edited)) + self._ranker.boost_gains(index)
        # A passage that a steering pushes below zero still answers the query.
        eligible = ((plain > 0) | (scores > 0)) & self._ranker.kept(index)
        if allowed is not None:
            eligible &= allowed
        return base, best(np.where(eligible, scores, -np.inf).astype(np.float32), limit, above=-np.inf).rows

    def _rank(self, index: CodeIndex, rows: NDArray[np.int64], base: NDArray[np.int64], k: int) -> Ranking:
        ids, codes = [index.ids[row] for row in rows.tolist()], index.take(rows)
        scores = self._ranker.cosines(codes)
        if self._ranker.plan.is_empty:
            order = np.lexsort((rows, -scores))
            return Ranking.plain([ids[place] for place in order.tolist()], scores[order])
        return self._ranker.rank(ids, scores, codes, [index.ids[row] for row in base.tolist()], k)


def _length(vector: Array) -> float:
    return float(np.linalg.norm(vector))


def _unit(vector: Array) -> Array:
    return vector / np.float32(max(_length(vector), 1e-12))
