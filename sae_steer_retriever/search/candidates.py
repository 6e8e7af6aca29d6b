"""Which passages are worth ranking: the plain neighbours, and those that a steering could lift among the hits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.search.ranking import Ranker, Ranking, Survey
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.code_index import CodeIndex
from sae_steer_retriever.store.documents import Neighbours

# How far the plain search may be widened, in times its first breadth.
_WIDEST = 16
# A query shift that depends on the query is projected on every passage at up to this many activations (passages times
# K).
_SURVEYED = 4_000_000


class CandidateSearch:
    """Searches a store for one query under one plan.

    A passage that the plain search has not found scores at most as much as the last it has found, plus its gain.
    In the original space the gains of all passages follow from their codes, so the ranking of what was found and of
    every other passage whose gain could suffice is the ranking of all. Query shifts by what the query itself has over
    large
    stores, and the reconstructed space, make do with the neighbours of the shifted query and the passages that have a
    rewarded feature.
    """

    def __init__(self, store: ChromaStore, ranker: Ranker, where: Metadata | None, *, verified: bool = False) -> None:
        """Take the parts.

        Args:
            store: The passages.
            ranker: Scores and orders them.
            where: Chroma's metadata filter.
            verified: Whether the store is asked if every candidate is still there; the local copy of the codes may
                not know yet what another tool has deleted.
        """
        self._store = store
        self._ranker = ranker
        self._where = where
        self._verified = verified or where is not None

    def ranking(self, k: int, fetch_k: int) -> Ranking:
        """The best `k`.

        Args:
            k: How many.
            fetch_k: How many candidates each source gives at first.
        """
        index = self._store.index
        survey = None
        if not self._ranker.reconstructed:
            known = all(shift.direction is not None for shift in self._ranker.plan.shifts)
            if known or len(index) * self._store.sae.config.k <= _SURVEYED:
                survey = self._ranker.survey(index)
        widest = fetch_k * _WIDEST
        while True:
            base = self._nearest(self._ranker.vector, fetch_k)
            found = dict(zip(base.ids, base.scores.tolist(), strict=True))
            if survey is None or not self._store.has_all_codes:  # what has no codes cannot be surveyed
                self._add_neighbours(found, index, fetch_k)
            ranking = self._rank(found, base, k, index, survey)
            if len(base.ids) < fetch_k:
                return ranking
            if survey is not None:
                return self._with_lifted(found, ranking, base, index, survey, k)
            if fetch_k >= widest or not self._ranker.may_miss(ranking, base.scores, k):
                return ranking
            fetch_k = min(2 * fetch_k, widest)

    def _rank(
        self, found: dict[str, float], base: Neighbours, k: int, index: CodeIndex, survey: Survey | None
    ) -> Ranking:
        ids = list(found)
        scores = np.array([found[name] for name in ids])
        if survey is not None:
            rows = index.rows_of(ids)
            if (rows >= 0).all():
                return self._ranker.rank_surveyed(ids, scores, survey, rows, base.ids, k)
        return self._ranker.rank(ids, scores, self._store.codes(ids), base.ids, k)

    def _nearest(self, vector: Array, k: int) -> Neighbours:
        search = self._store.nearest_reconstructed if self._ranker.reconstructed else self._store.nearest
        return search(vector, k, self._where)

    def _add(self, found: dict[str, float], ids: Sequence[str]) -> None:
        """Passages with their plain scores, without those that the filter leaves out or that are gone."""
        new = [name for name in ids if name not in found]
        search = self._store.scores_reconstructed if self._ranker.reconstructed else self._store.scores
        scored = search(self._ranker.vector, new, self._where)
        found |= dict(zip(scored.ids, scored.scores.tolist(), strict=True))

    def _with_lifted(
        self, found: dict[str, float], ranking: Ranking, base: Neighbours, index: CodeIndex, survey: Survey, k: int
    ) -> Ranking:
        """The ranking with all passages whose gain lifts them among the best `k`; they join what was `found`.

        Their plain scores are worked out here, from the local copy of the vectors. Where that does not suffice the
        store is asked about those that do reach the best `k`: it knows what is gone and what a filter leaves out.
        """
        bar = ranking.scores[k - 1] - base.scores[-1] if len(ranking.ids) >= k else -np.inf
        lifted = survey.kept & (survey.gains > bar)
        known = index.rows_of(list(found))
        lifted[known[known >= 0]] = False
        rows = np.nonzero(lifted)[0]
        scores = index.scores(rows, self._ranker.vector) + survey.gains[rows]
        # NaN, a passage that is gone, compares as false.
        reaching = scores >= (ranking.scores[k - 1] if len(ranking.ids) >= k else -np.inf)
        rows, scores = rows[reaching], scores[reaching]
        order = np.argsort(-scores, kind="stable")
        # A filter may leave out any share of them: look further until enough have passed it.
        begin, end = 0, k
        while begin < len(order):
            chosen = order[begin:end]
            ids = [index.ids[row] for row in rows[chosen].tolist()]
            if self._verified:
                self._add(found, ids)
            else:
                found |= dict(zip(ids, (scores[chosen] - survey.gains[rows[chosen]]).tolist(), strict=True))
            ranking = self._rank(found, base, k, index, survey)
            if len(ranking.ids) >= k and (end >= len(order) or ranking.scores[k - 1] > scores[order[end]]):
                break
            begin, end = end, 4 * end
        return ranking

    def _add_neighbours(self, found: dict[str, float], index: CodeIndex, limit: int) -> None:
        """The neighbours of the shifted query, and the best of the passages that have a rewarded feature."""
        shift = self._ranker.plan.total_shift(len(self._ranker.vector))
        if shift.any():
            self._add(found, self._nearest(self._ranker.vector + shift, limit).ids)
        rewarded = sorted(
            {latent for boost in self._ranker.plan.boosts if boost.amount > 0 for latent in boost.features}
        )
        if not rewarded:
            return
        rows = np.unique(np.concatenate([index.posting(latent) for latent in rewarded]))
        best = [index.ids[row] for row in rows[np.argsort(-self._ranker.estimate(index.take(rows)), kind="stable")]]
        begin, end = 0, limit
        # A filter may leave out any share of them: look further until enough have passed it.
        while begin < len(best):
            self._add(found, best[begin:end])
            if sum(name in found for name in best[:end]) >= limit:
                return
            begin, end = end, 4 * end
