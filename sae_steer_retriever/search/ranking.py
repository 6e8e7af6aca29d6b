"""Scores of candidates under a steering, the terms that make them up, and their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.explain.attribution import Attribution, SteeringTerm
from sae_steer_retriever.explain.hits import Hit, Hits, ReadOn
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.probes import Boost, Probes
from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.steering.plan import SUPPRESSED_FROM, Plan
from sae_steer_retriever.store.documents import Record

Explain = Callable[[int, Record], Attribution]
"""From a place in a ranking and its stored row to the parts of its score."""


# A shift is along a direction if no coordinate is further from it: rounding of float32.
_ALONG = 1e-6


class Ranking(NamedTuple):
    """Candidates in their final order.

    Attributes:
        ids: Passage ids.
        scores: (N,) the scores that rank them.
        base_scores: (N,) their scores without steering.
        base_ranks: Their ranks without steering, from 1, where known.
        terms: The terms that the edits add to each score.
        vectors: (N, d) the vectors that were scored, for explanations; empty if the search did not read them.
        read_on: The vectors on which the terms of each were read; None without terms.
        packed: Their codes as the sidecar packs them, where codes explain the scores; empty otherwise.
        certified: Whether no other passage belongs among them, as far as the store's own neighbours are exact.
    """

    ids: list[str]
    scores: NDArray[np.float64]
    base_scores: NDArray[np.float64]
    base_ranks: list[int | None]
    terms: list[tuple[SteeringTerm, ...]]
    vectors: NDArray[np.floating[Any]]
    read_on: list[ReadOn | None]
    packed: list[str]
    certified: bool

    @classmethod
    def plain(cls, ids: list[str], scores: NDArray[np.float64]) -> Ranking:
        """Returns the ranking of an unsteered search."""
        count = len(ids)
        ranks: list[int | None] = list(range(1, count + 1))
        return cls(ids, scores, scores, ranks, [()] * count, np.empty((count, 0)), [None] * count, [], True)

    def only(self, row: int) -> Ranking:
        """Returns the ranking of one of the passages alone."""
        own = slice(row, row + 1)
        parts = {name: part[own] for name, part in self._asdict().items() if name != "certified"}
        return self._replace(**parts)


class Scored(NamedTuple):
    """The scores of N candidates.

    Attributes:
        scores: (N,) with the steering's terms.
        base_scores: (N,) without them.
        terms: (terms, N) what each edit adds on each side.
        kept: (N,) whether a passage is left in.
    """

    scores: NDArray[np.float64]
    base_scores: NDArray[np.float64]
    terms: NDArray[np.float64]
    kept: NDArray[np.bool_]

    def where(self, chosen: NDArray[np.bool_], other: Scored) -> Scored:
        """Returns these scores with those of `other` where `chosen` (N,) says so."""
        return Scored(*(np.where(chosen, new, old) for new, old in zip(other, self, strict=True)))

    def take(self, rows: NDArray[np.int64]) -> Scored:
        """Returns the scores of some candidates."""
        return Scored(self.scores[rows], self.base_scores[rows], self.terms[:, rows], self.kept[rows])


class Scorer:
    """The score of any candidates that have vectors: `query . x + offset + v . y + sum_i a_i S_i(y)`, in float64.

    `x` is the vector that is searched, `v` the query shift, `a_i S_i` the document boosts (`FeatureMatch`). The terms
    are read on `y`: the same vector, or the passage's reconstruction.
    """

    def __init__(
        self,
        sae: TopKSAE,
        plan: Plan,
        unit: Array,
        query: Array,
        *,
        vectors: float = 1.0,
        reconstructions: tuple[float, float] = (1.0, 1.0),
        normalised: bool = False,
    ) -> None:
        """Prepares the score of one query.

        Args:
            sae: The dictionary.
            plan: The plan of the query.
            unit: (n,) the features' units, matches of unit vectors.
            query: (d,) the query before its shift.
            vectors: The typical length of the vectors that are searched.
            reconstructions: The typical length of reconstructions that `y` is scaled to from `x` (1 if it is not), and
                how large their matches are in relation to those of unit vectors.
            normalised: Whether scores are cosines with the shifted query: query and shift are divided by its length.
        """
        q = query.astype(np.float64)
        self.shift = plan.total_shift(len(q)).astype(np.float64)
        length = float(np.linalg.norm(q + self.shift)) if normalised else 1.0
        self.plain = q / np.linalg.norm(q) if normalised else q
        self.query = q / length
        self.shift /= length
        self._shifts = [(one.name, one.vector.astype(np.float64) / length) for one in plan.shifts if one.vector.any()]
        # Score units grow with the length of the vectors, as products with the query do.
        self._length = vectors
        self._boosts = [(boost.name, boost.amount * vectors, boost) for boost in plan.boosts]
        matches = [*plan.boosts, *plan.excluded]
        self._on_vectors = [
            FeatureMatch.of_features(sae, unit, boost.features, boost.weights, scale=vectors) for boost in matches
        ]
        length_of_x_hat, match = reconstructions
        self._on_reconstructions = [
            FeatureMatch.of_features(sae, unit * np.float32(match), boost.features, boost.weights) for boost in matches
        ]
        if normalised:
            self._on_vectors = [
                FeatureMatch(one.direction * length_of_x_hat, one.constant) for one in self._on_reconstructions
            ]

    def score(self, vectors: Array, offsets: Array, x_hat: Array | None = None) -> Scored:
        """Returns the scores of candidates.

        Args:
            vectors: (N, d) in score space.
            offsets: (N,) see `Record`.
            x_hat: (N, d) their reconstructions, if the terms are read on these.
        """
        x = y = vectors.astype(np.float64)
        matches, length = self._on_vectors, 1.0
        if x_hat is not None:  # shifts count by the length of vectors, as they do for `x`
            y, matches, length = x_hat.astype(np.float64), self._on_reconstructions, self._length
        count = len(self._boosts)
        base = x @ self.plain + offsets
        terms = np.array(
            [
                *(length * (y @ vector) for _, vector in self._shifts),
                *(amount * one.of(y) for (_, amount, _), one in zip(self._boosts, matches, strict=False)),
            ]
        ).reshape(len(self._shifts) + count, len(x))
        kept = np.ones(len(x), dtype=bool)
        for one in matches[count:]:
            kept &= one.of(y) < SUPPRESSED_FROM
        return Scored(x @ self.query + offsets + terms.sum(axis=0), base, terms, kept)

    def probes(self, large: float) -> Probes:
        """Returns the nearest-neighbour queries that find the best passages, terms read on vectors; see `Probes`."""
        count = len(self._boosts)
        shifts, boosts = list(self._shifts), []
        for (name, amount, _), match in zip(self._boosts, self._on_vectors, strict=False):
            along = 0.0
            for place, (other, vector) in enumerate(shifts):
                # An edit on both sides shifts the query along its match's direction.
                along = float(vector @ match.direction / (match.direction @ match.direction))
                if other == name and np.allclose(vector, along * match.direction, atol=_ALONG) and along * amount > 0:
                    del shifts[place]
                    break
                along = 0.0
            boosts.append(Boost(amount, along, match))
        rest = np.sum([vector for _, vector in shifts], axis=0) if shifts else 0.0
        return Probes(self.query + rest, boosts, self._on_vectors[count:], large)

    def named(self, values: NDArray[np.float64]) -> tuple[SteeringTerm, ...]:
        """Returns the terms of one passage, (terms,) values in the order of `Scored.terms`."""
        sides = [(name, "query") for name, _ in self._shifts] + [(name, "document") for name, _, _ in self._boosts]
        return tuple(SteeringTerm(*side, value) for side, value in zip(sides, values.tolist(), strict=True))


def in_order(ids: Sequence[str], scored: Scored) -> list[int]:
    """Returns the rows of the kept candidates, best first; ties in the order of plain scores, then of ids."""
    rows = np.nonzero(scored.kept)[0]
    names = np.asarray(ids)[rows]
    order: list[int] = rows[np.lexsort((names, -scored.base_scores[rows], -scored.scores[rows]))].tolist()
    return order


def hits_of(ranking: Ranking, records: Mapping[str, Record], explain: Explain | None) -> Hits:
    """Returns the hits of a ranking.

    Args:
        ranking: The passages, best first.
        records: Their stored rows. A passage without one was deleted since the search, and is left out.
        explain: Decomposes a score; None leaves the attributions out.
    """
    hits = Hits(certified=ranking.certified)
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
                    read_on=ranking.read_on[row],
                )
            )
    return hits
