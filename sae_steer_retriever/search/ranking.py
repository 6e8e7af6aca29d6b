"""Ranking candidates: the terms that a steering adds to their scores, and their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.explain.attribution import Attribution, SteeringTerm
from sae_steer_retriever.explain.hits import Hit, Hits
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.steering.plan import SUPPRESSED_FROM, DocumentBoost, Plan, QueryShift
from sae_steer_retriever.store.code_index import CodeIndex
from sae_steer_retriever.store.documents import Record

Explain = Callable[[int, Record], Attribution]
"""From a place in a ranking and its stored row to the parts of its score."""
# A length to divide by where a vector has none.
_SMALLEST = 1e-12


class Ranking(NamedTuple):
    """Candidates in their final order.

    Attributes:
        ids: Passage ids.
        scores: (N,) the scores that rank them.
        base_scores: (N,) their scores without steering.
        base_ranks: Their ranks without steering, from 1, where known.
        terms: The terms that the edits add to each score.
    """

    ids: list[str]
    scores: NDArray[np.float64]
    base_scores: NDArray[np.float64]
    base_ranks: list[int | None]
    terms: list[tuple[SteeringTerm, ...]]

    @classmethod
    def plain(cls, ids: list[str], scores: NDArray[np.float64]) -> Ranking:
        """Returns the ranking of an unsteered search."""
        return cls(ids, scores, scores, list(range(1, len(ids) + 1)), [()] * len(ids))


class Column(NamedTuple):
    """The term of one edit on one side, for some passages.

    Attributes:
        name: The edit's name.
        side: "query" or "document".
        values: (N,) in score units.
    """

    name: str
    side: str
    values: NDArray[np.floating[Any]]


class Survey(NamedTuple):
    """The effect of a plan on every passage of an index in the original space, from codes alone.

    Attributes:
        columns: The edits' terms; exact.
        gains: (N,) their sum.
        kept: (N,) whether the plan keeps a passage.
    """

    columns: tuple[Column, ...]
    gains: Array
    kept: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Ranker:
    """Scores and orders candidates of one query under one plan.

    Original space: `base + v . x_hat + document boosts`. Reconstructed: `cos(q_hat + v, x_hat) + document boosts`.

    Attributes:
        sae: The dictionary.
        unit: (n,) the features' units of match.
        plan: The plan of the query.
        vector: (d,) the query in the space that is searched, before the query shift.
        reconstructed: Whether the search is in the reconstructed space.
    """

    sae: TopKSAE
    unit: Array
    plan: Plan
    vector: Array
    reconstructed: bool

    def rank(
        self,
        ids: Sequence[str],
        base_scores: NDArray[np.float64],
        codes: Codes[NDArray[Any]],
        base_order: Sequence[str],
        k: int | None = None,
    ) -> Ranking:
        """Returns the best `k` candidates in steered order, without the excluded ones.

        Args:
            ids: The candidates.
            base_scores: (N,) their plain scores.
            codes: (N, K) their codes.
            base_order: The plain search's hits, best first, for the ranks before steering.
            k: How many; all if not given.
        """
        scaled, columns = self._columns(codes, base_scores)
        kept = np.ones(len(ids), dtype=bool)
        for boost in self.plan.excluded:
            kept &= self._feature_match(boost, codes) < SUPPRESSED_FROM
        return _ordered(ids, base_scores, scaled, columns, kept, base_order, k)

    def rank_surveyed(
        self,
        ids: Sequence[str],
        base_scores: NDArray[np.float64],
        survey: Survey,
        rows: NDArray[np.int64],
        base_order: Sequence[str],
        k: int | None = None,
    ) -> Ranking:
        """Returns the same from a survey of the passages.

        Args:
            ids: The candidates.
            base_scores: (N,) their plain scores.
            survey: The survey of the index.
            rows: (N,) their rows in it.
            base_order: See `rank`.
            k: See `rank`.
        """
        columns = [column._replace(values=column.values[rows]) for column in survey.columns]
        return _ordered(ids, base_scores, base_scores, columns, survey.kept[rows], base_order, k)

    def survey(self, index: CodeIndex) -> Survey:
        """Returns the effect of the plan on every passage of `index`."""
        columns = [
            Column(shift.name, "query", self._shift_gains(index, shift))
            for shift in self.plan.shifts
            if shift.vector.any()
        ]
        columns += [
            Column(boost.name, "document", boost.amount * self._match_everywhere(boost, index))
            for boost in self.plan.boosts
        ]
        gains = np.zeros(len(index), dtype=np.float32)
        for column in columns:
            gains += column.values
        return Survey(tuple(columns), gains, self.kept(index))

    def _shift_gains(self, index: CodeIndex, shift: QueryShift) -> Array:
        if shift.direction is None:
            return self._projected(index, shift.vector)
        return np.asarray(shift.amount * self._remembered(index, shift.direction), dtype=np.float32)

    def _remembered(self, index: CodeIndex, direction: Array) -> Array:
        key = (self.sae.fingerprint, direction.tobytes())
        return index.remembered(key, lambda: self._projected(index, direction))

    def _projected(self, index: CodeIndex, vector: Array) -> Array:
        """Returns (N,) `x_hat . vector` of every passage."""
        along = index.project(self.sae.decoder @ vector[:, None])[:, 0]
        return np.asarray(along + self.sae.bias @ vector, dtype=np.float32)

    def boost_gains(self, index: CodeIndex) -> Array:
        """Returns (N,) the sum of the document boosts of every passage of `index`."""
        gains = np.zeros(len(index), dtype=np.float32)
        for boost in self.plan.boosts:
            gains += boost.amount * self._match_everywhere(boost, index)
        return gains

    def kept(self, index: CodeIndex) -> NDArray[np.bool_]:
        """Returns (N,) whether the plan keeps each passage of `index`."""
        kept = np.ones(len(index), dtype=bool)
        for boost in self.plan.excluded:
            kept &= self._match_everywhere(boost, index) < SUPPRESSED_FROM
        return kept

    def estimate(self, codes: Codes[NDArray[Any]]) -> Array:
        """Returns (N,) steered scores from codes alone, without the unreconstructed part of a passage."""
        shifted = self.vector + self.plan.total_shift(len(self.vector))
        scores = self._projections(codes, shifted)
        if self.reconstructed:
            lengths = np.maximum(self._lengths(codes) * float(np.linalg.norm(shifted)), _SMALLEST)
            scores = np.asarray(scores / lengths, dtype=np.float32)
        for boost in self.plan.boosts:
            scores = scores + boost.amount * self._feature_match(boost, codes)
        return scores

    def may_miss(self, ranking: Ranking, base_scores: NDArray[np.float64], k: int) -> bool:
        """Returns whether a passage beyond the plain candidates could outrank the last hit.

        This concerns only steerings that take away: an unseen passage without a reward scores at most as much as the
        last plain candidate.

        Args:
            ranking: The ranked candidates.
            base_scores: The scores of the plain search's hits, best first.
            k: The number of hits.
        """
        takes_away = bool(self.plan.excluded) or any(boost.amount < 0 for boost in self.plan.boosts)
        if not takes_away or not len(base_scores):
            return False
        return len(ranking.ids) < k or bool(ranking.scores[k - 1] < base_scores[-1])

    def _columns(
        self, codes: Codes[NDArray[Any]], base_scores: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], list[Column]]:
        """Returns plain scores on the scale of the shifted query, and the terms added to them."""
        scale: NDArray[np.float64] = np.ones(len(base_scores))
        if self.reconstructed:
            before = np.linalg.norm(self.vector)
            after = max(float(np.linalg.norm(self.vector + self.plan.total_shift(len(self.vector)))), _SMALLEST)
            scale = 1.0 / (self._lengths(codes) * after)
            base_scores = base_scores * float(before / after)
        columns = [
            Column(shift.name, "query", self._projections(codes, shift.vector) * scale)
            for shift in self.plan.shifts
            if shift.vector.any()
        ]
        columns += [
            Column(boost.name, "document", boost.amount * self._feature_match(boost, codes).astype(np.float64))
            for boost in self.plan.boosts
        ]
        return base_scores, columns

    def _lengths(self, codes: Codes[NDArray[Any]]) -> NDArray[np.float64]:
        """Returns (N,) norms of the vectors that are searched."""
        return np.asarray(np.linalg.norm(self.sae.decode(codes), axis=1), dtype=np.float64)

    def _feature_match(self, boost: DocumentBoost, codes: Codes[NDArray[Any]]) -> Array:
        return FeatureMatch(self.sae, self.unit, boost.features, boost.weights).of(codes)

    def _match_everywhere(self, boost: DocumentBoost, index: CodeIndex) -> Array:
        return FeatureMatch(self.sae, self.unit, boost.features, boost.weights).everywhere(index)

    def _projections(self, codes: Codes[NDArray[Any]], vector: Array) -> Array:
        """Returns (N,) `x_hat . vector` from codes, without decoding: one dot product a latent, then K a passage."""
        along = self.sae.decoder @ vector
        return np.asarray((codes.values * along[codes.indices]).sum(axis=1) + self.sae.bias @ vector, dtype=np.float32)


def _ordered(
    ids: Sequence[str],
    base_scores: NDArray[np.float64],
    scaled: NDArray[np.float64],
    columns: Sequence[Column],
    kept: NDArray[np.bool_],
    base_order: Sequence[str],
    k: int | None,
) -> Ranking:
    """Returns the best `k` of the kept passages, by scaled plain scores and the terms added to them."""
    scores = scaled.copy()
    for column in columns:
        scores += column.values
    # Ties keep the plain order, then the id's, so that a ranking is the same on every machine.
    order = [row for row in np.lexsort((np.asarray(ids), -base_scores, -scores)).tolist() if kept[row]][:k]
    rank_of = {name: rank for rank, name in enumerate(base_order, start=1)}
    return Ranking(
        [ids[row] for row in order],
        scores[order],
        base_scores[order],
        [rank_of.get(ids[row]) for row in order],
        [tuple(SteeringTerm(name, side, float(values[row])) for name, side, values in columns) for row in order],
    )


def hits_of(ranking: Ranking, records: Mapping[str, Record], explain: Explain | None) -> Hits:
    """Returns the hits of a ranking.

    Args:
        ranking: The passages, best first.
        records: Their stored rows. A passage without one was deleted since the search, and is left out.
        explain: Decomposes a score; None leaves the attributions out.
    """
    hits = Hits()
    for row, name in enumerate(ranking.ids):
        record = records.get(name)
        if record is not None:
            hits.append(
                Hit(
                    id=name,
                    text=record.text,
                    metadata=record.metadata,
                    score=float(ranking.scores[row]),
                    base_score=float(ranking.base_scores[row]),
                    base_rank=ranking.base_ranks[row],
                    attribution=None if explain is None else explain(row, record),
                )
            )
    return hits
