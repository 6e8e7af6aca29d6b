"""Candidates for a ranking: the plain neighbours, and passages that a steering could lift among the hits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.search.ranking import Ranker, Ranking, Survey
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.code_index import CodeIndex
from sae_steer_retriever.store.documents import Neighbours
from sae_steer_retriever.store.store_reader import StoreReader

# The widest plain search, in multiples of its first breadth.
_WIDEST = 16
# A shift that depends on the query is projected on every passage up to this many activations (passages times K).
_SURVEYED = 4_000_000


class CandidateSearch:
    """Searches a store for one query under one plan.

    A passage that the plain search has not found scores at most as much as the last one found, plus its gain. In the
    original space the gains of all passages follow from their codes, so the ranking is that of all passages. In the
    reconstructed space, and for shifts that depend on the query over large stores, the candidates are the neighbours of
    the shifted query and the passages that have a rewarded feature.
    """

    def __init__(self, store: StoreReader, ranker: Ranker, where: Metadata | None, *, verified: bool = False) -> None:
        """Takes the parts.

        Args:
            store: The passages.
            ranker: Scores and orders them.
            where: Chroma's metadata filter.
            verified: Whether to ask the store if every candidate is still there; the local copy of the codes may
                hold passages that another tool has deleted.
        """
        self._store = store
        self._ranker = ranker
        self._where = where
        self._verified = verified or where is not None

    def ranking(self, k: int, fetch_k: int) -> Ranking:
        """Returns the best `k`.

        Args:
            k: The number of hits.
            fetch_k: Candidates that each source gives at first.
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
            if survey is None or not self._store.has_all_codes:  # a passage without a code cannot be surveyed
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
        """Adds passages with their plain scores, without filtered and deleted ones."""
        new = [name for name in ids if name not in found]
        search = self._store.scores_reconstructed if self._ranker.reconstructed else self._store.scores
        scored = search(self._ranker.vector, new, self._where)
        found |= dict(zip(scored.ids, scored.scores.tolist(), strict=True))

    def _with_lifted(
        self, found: dict[str, float], ranking: Ranking, base: Neighbours, index: CodeIndex, survey: Survey, k: int
    ) -> Ranking:
        """Returns the ranking with all passages whose gain lifts them among the best `k`; they are added to `found`.

        Their plain scores come from the local copy of the vectors. Where deletions or a filter matter, the store is
        asked about the passages that reach the best `k`.
        """
        bar = ranking.scores[k - 1] - base.scores[-1] if len(ranking.ids) >= k else -np.inf
        lifted = survey.kept & (survey.gains > bar)
        known = index.rows_of(list(found))
        lifted[known[known >= 0]] = False
        rows = np.nonzero(lifted)[0]
        scores = index.scores(rows, self._ranker.vector) + survey.gains[rows]
        # The score of a deleted passage is NaN, which compares as false.
        reaching = scores >= (ranking.scores[k - 1] if len(ranking.ids) >= k else -np.inf)
        rows, scores = rows[reaching], scores[reaching]
        order = np.argsort(-scores, kind="stable")
        # A filter may leave out any share of them: continue until enough have passed it.
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
        """Adds the neighbours of the shifted query, and the best passages that have a rewarded feature."""
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
        # A filter may leave out any share of them: continue until enough have passed it.
        while begin < len(best):
            self._add(found, best[begin:end])
            if sum(name in found for name in best[:end]) >= limit:
                return
            begin, end = end, 4 * end
