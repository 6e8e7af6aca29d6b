"""Nearest-neighbour queries that find the best passages of a steered query, and a bound on all other passages.

The score of a passage x is `p . x + sum_i f_i(x)`. An edit adds `f_i(x) = s_i c_i . x + a_i S_i(x)`: a query shift
along its direction and a document boost. `S_i(x) = clip(L_i(x), 0, 1)` is the feature match, with
`L_i(x) = c_i . x + k_i`. A probe replaces each `f_i` by a line and asks the store for the neighbours of one vector.
docs/design.md derives the bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.steering.plan import SUPPRESSED_FROM

# Up to this many edits all subsets are asked for: eight probes. More are asked for one by one and together, without a
# bound.
_ALL_SUBSETS = 3
# Shares of a large boost that probes follow in between. Past the end of the ramp they find the passages that match in
# full and are nearest to the query, and those that a large penalty leaves nearest to it.
_BETWEEN = (0.25, 0.5)
# Penalties for excluded matches, as shares of a large boost. The best passages that are kept lie just outside of what
# is excluded, and which penalty finds them depends on the query.
_PENALTIES = (0.1, 0.2, 0.4)
# Neighbours of each probe, at least: for one edit, for several, and where passages are left out.
_FEWEST, _FEWEST_OF_SEVERAL, _FEWEST_KEPT = 25, 50, 100


class Boost(NamedTuple):
    """One edit as the bound needs it.

    Attributes:
        amount: a, what a full match adds, in score units.
        shift: s, the query shift in multiples of the match's direction; of the same sign.
        match: c and k.
    """

    amount: float
    shift: float
    match: FeatureMatch


class Probe(NamedTuple):
    """One nearest-neighbour query.

    Attributes:
        vector: (d,) the vector whose neighbours are asked for.
        on: (edits,) the share of each boost that it follows, from 0 to 1.
        follows: (edits,) whether it follows each shift.
        constant: What is added to `vector . x` to compare it with scores.
    """

    vector: NDArray[np.float64]
    on: NDArray[np.float64]
    follows: NDArray[np.bool_]
    constant: float


class Probes:
    """The probes of one steered query.

    Attributes:
        probes: At least one; the first follows no edit.
        certifiable: Whether they bound the scores of all other passages.
        strong: Whether some boost is large.
        fewest: How many neighbours of each probe a search needs at least.
    """

    def __init__(
        self, query: NDArray[np.float64], boosts: Sequence[Boost], excluded: Sequence[FeatureMatch], large: float
    ) -> None:
        """Chooses the probes.

        Args:
            query: (d,) p, the query with the shifts that belong to no boost.
            boosts: The edits with a document boost.
            excluded: Matches that a passage must have less than half of (`Suppress`).
            large: Boosts of this many score units or more get probes in between. Penalties for excluded matches are
                shares of it.
        """
        self._amounts = np.array([boost.amount for boost in boosts], dtype=np.float64)
        self._shifts = np.array([boost.shift for boost in boosts], dtype=np.float64)
        directions = np.array([boost.match.direction for boost in boosts]).reshape(len(boosts), len(query))
        self._constants = np.array([boost.match.constant for boost in boosts], dtype=np.float64)
        self.strong = bool((np.abs(self._amounts) >= large).any())
        self.certifiable = len(boosts) <= _ALL_SUBSETS
        self.fewest = _FEWEST if len(boosts) < 2 else _FEWEST_OF_SEVERAL
        if excluded:
            self.fewest = _FEWEST_KEPT
        self.probes: list[Probe] = []
        for on, follows in self._lines(large):
            slopes = follows * self._shifts + on * self._amounts
            vector, constant = query + slopes @ directions, float((on * self._amounts) @ self._constants)
            self.probes.append(Probe(vector, on, follows, constant))
            for penalties in large * _penalties(len(excluded)):
                # A kept passage has L < 1/2 for each excluded match, so `penalty (1/2 - L)` is not below 0.
                pairs = list(zip(penalties.tolist(), excluded, strict=True))
                away = np.sum([penalty * one.direction for penalty, one in pairs], axis=0)
                room = sum(penalty * (SUPPRESSED_FROM - one.constant) for penalty, one in pairs)
                self.probes.append(Probe(vector - away, on, follows, constant + room))

    def _lines(self, large: float) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """Yields the shares of boosts that each probe follows, and whether it follows the shifts."""
        count = len(self._amounts)
        if self.certifiable:
            subsets = [np.array(subset, dtype=np.float64) for subset in itertools.product((0.0, 1.0), repeat=count)]
        else:
            subsets = [np.zeros(count), *np.eye(count), np.ones(count)]
        for subset in subsets:
            yield subset, subset > 0
        strong = np.abs(self._amounts) >= large
        if strong.any():
            for share in _BETWEEN:
                # What a penalty leaves nearest to the query has little of the match, however large the penalty is.
                shares = np.where(self._amounts > 0, share, share * large / np.maximum(np.abs(self._amounts), large))
                on = np.where(strong, shares, (self._amounts > 0).astype(np.float64))
                yield on, on > 0

    @property
    def vectors(self) -> NDArray[np.float64]:
        """(probes, d) the vectors to ask for."""
        return np.array([probe.vector for probe in self.probes])

    def bound(self, last: NDArray[np.float64]) -> float:
        """Returns a score that no passage outside all lists exceeds; infinity if there is no bound.

        Args:
            last: (probes,) for each probe a number that `vector . x` of no passage outside its list exceeds.
        """
        if not self.certifiable:
            return np.inf
        reached = last + [probe.constant for probe in self.probes]
        on, follows = (np.array([probe[part] for probe in self.probes]) for part in (1, 2))
        rewarded = self._amounts > 0
        # What an edit adds at most where a probe does not follow it: below the ramp for rewards, past it for penalties.
        edges = np.where(rewarded, -self._shifts * self._constants, self._shifts * (1 - self._constants))
        worst = -np.inf
        for inside in itertools.product((False, True), repeat=len(self._amounts)):
            # Inside: a rewarded match is above 0, a penalised one below 1. Such an edit is bounded by a line that
            # follows its shift. Outside it adds no boost, or takes away all of it.
            case = np.array(inside, dtype=bool)
            usable = (follows | ~case | (self._shifts == 0)).all(axis=1) & ~(on[:, ~case] > 0).any(axis=1)
            rest = (
                (1 - on[usable]) @ np.where(case & rewarded, self._amounts, 0.0)
                + np.where(~case & ~rewarded, self._amounts, 0.0).sum()
                + np.where(follows[usable], 0.0, edges) @ (~case).astype(np.float64)
            )
            worst = max(worst, float((reached[usable] + rest).min(initial=np.inf)))
        return worst


def _penalties(count: int) -> NDArray[np.float64]:
    """Returns (combinations, count) penalties for excluded matches: for all of them, and for one at a time."""
    if not count:
        return np.empty((0, 0))
    alone = _PENALTIES[1] * np.eye(count) if count > 1 else np.empty((0, 1))
    return np.vstack([np.outer(_PENALTIES, np.ones(count)), alone])
