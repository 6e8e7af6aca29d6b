"""What a steering gains against what it loses, over strengths: the curve, what is read off it, and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.evaluate.steering_setting import SteeringSetting, top_ten
from sae_steer_retriever.sae.codes import Array

DRIFTS = (0.02, 0.05, 0.10)
"""Drifts that the curves are read off at."""
OPERATING_DRIFT = 0.05
_AREA_TO = 0.10
_GRID = np.linspace(0.0, _AREA_TO, 101)

Values = NDArray[np.float64]


class SteeringMethod(Protocol):
    """A way to steer a query towards a concept."""

    @property
    def name(self) -> str:
        """For the table."""

    @property
    def needs(self) -> str:
        """What a user has to give, e.g. "words" or "10 labelled examples"."""

    @property
    def strengths(self) -> Values:
        """(S,) ascending, the ones it is tried at; a method that has none has one."""

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """(N,) what passages are ranked by."""


@dataclass(frozen=True)
class DerivedMethod:
    """What is done with another method's scores: called and fed as it is, tried at every other of its strengths.

    Attributes:
        method: Which one.
    """

    method: SteeringMethod

    @property
    def name(self) -> str:
        """The method's."""
        return self.method.name

    @property
    def needs(self) -> str:
        """The method's."""
        return self.method.needs

    @property
    def strengths(self) -> Values:
        """Every other one of the method's."""
        return self.method.strengths[::2]


class Outcomes(NamedTuple):
    """What became of every query, concept and strength.

    Attributes:
        share: (Q, C, S) share of the top 10 that carries the concept's label.
        drift: (Q, C, S) `1 - mean q.x of the top 10 / that of the unsteered top 10`.
        strengths: (S,).
    """

    share: Values
    drift: Values
    strengths: Values

    def of(self, queries: NDArray[np.int64], concepts: NDArray[np.int64]) -> Outcomes:
        """Those of some queries and concepts."""
        chosen = np.ix_(queries, concepts)
        return Outcomes(self.share[chosen], self.drift[chosen], self.strengths)

    @property
    def curve(self) -> tuple[Values, Values]:
        """(S,) mean drift and mean share over all pairs of a query and a concept."""
        return self.drift.mean(axis=(0, 1)), self.share.mean(axis=(0, 1))


def outcomes(
    method: SteeringMethod, setting: SteeringSetting, queries: Sequence[int], concepts: Sequence[int]
) -> Outcomes:
    """Rank all passages for every pair at every strength, exactly.

    Args:
        method: How to steer.
        setting: What is steered.
        queries: Q rows of the setting's queries.
        concepts: C of its concepts.
    """
    shape = (len(queries), len(concepts), len(method.strengths))
    share, drift = np.zeros(shape), np.zeros(shape)
    # Concept by concept: what a method adds to the passages is mostly the same for every query.
    for column, concept in enumerate(concepts):
        members = setting.members[concept]
        for row, query in enumerate(queries):
            base = setting.base[query]
            found = setting.plain[query]
            level = float(base[found].mean())
            for place, strength in enumerate(method.strengths.tolist()):
                found = top_ten(method.scores(query, concept, strength), base, found)
                share[row, column, place] = members[found].mean()
                drift[row, column, place] = 1.0 - float(base[found].mean()) / level
    return Outcomes(share, drift, method.strengths)


def read_off(drift: Values, share: Values, at: Sequence[float] | Values) -> Values:
    """Shares at given drifts, interpolated along a curve.

    Past the curve's end its last share stands: the largest strength costs no more than that. Before its begin there
    is none (NaN): a method that loses more than that even at strength zero.

    Args:
        drift: (S,) in the order of strengths; where it falls, the largest so far counts.
        share: (S,).
        at: Drifts.
    """
    along = np.maximum.accumulate(drift)
    found = np.interp(at, along, share)
    return np.where(np.asarray(at) < along[0] - 1e-9, np.nan, found)


def area(drift: Values, share: Values) -> float:
    """Mean share over drifts from 0 to 10 %; NaN for a curve that begins later."""
    return float(read_off(drift, share, _GRID).mean()) if len(drift) > 1 else float("nan")


def chosen_strength(found: Outcomes, at: float = OPERATING_DRIFT) -> int | None:
    """The place of the strength with the best share among those of at most this mean drift; None if all lose more."""
    drift, share = found.curve
    allowed = np.flatnonzero(drift <= at)
    return int(allowed[np.argmax(share[allowed])]) if len(allowed) else None


class Draws(NamedTuple):
    """How often each query and each concept is drawn, with replacement; the same for all methods.

    Attributes:
        queries: (B, Q) shares that sum to 1.
        concepts: (B, C) shares that sum to 1.
    """

    queries: Values
    concepts: Values

    @classmethod
    def make(cls, queries: int, concepts: int, *, draws: int = 2000, seed: int = 0) -> Draws:
        """Draw both."""
        generator = np.random.default_rng(seed)
        parts = [
            generator.multinomial(count, np.full(count, 1 / count), size=draws) / count for count in (queries, concepts)
        ]
        return cls(*parts)

    def curves(self, found: Outcomes) -> tuple[Values, Values]:
        """(B, S) mean drifts and mean shares of every draw."""
        return self._mean(found.drift), self._mean(found.share)

    def _mean(self, values: Values) -> Values:
        count, concepts, strengths = values.shape
        by_query = (self.queries @ values.reshape(count, -1)).reshape(-1, concepts, strengths)
        return np.asarray(np.einsum("bc,bcs->bs", self.concepts, by_query))
