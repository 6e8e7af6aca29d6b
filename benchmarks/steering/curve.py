"""Share of the wanted concept against score loss, over strengths: the curve, its values and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array

from .setting import SteeringSetting, top_ten

LOSSES = (0.02, 0.05, 0.10)
"""Score losses at which the curves are compared."""
OPERATING_LOSS = 0.05
_AREA_TO = 0.10
_GRID = np.linspace(0.0, _AREA_TO, 101)

Values = NDArray[np.float64]


class SteeringMethod(Protocol):
    """A way to steer a query towards a concept."""

    @property
    def name(self) -> str:
        """Returns its name in the table."""

    @property
    def needs(self) -> str:
        """Returns the input that a user has to give, e.g. "words" or "10 labelled examples"."""

    @property
    def strengths(self) -> Values:
        """Returns (S,) strengths to try, ascending; a method without a strength has one entry."""

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """Returns (N,) scores that the passages are ranked by."""


@dataclass(frozen=True)
class DerivedMethod:
    """A method with the name and needs of another one and every other of its strengths.

    Attributes:
        method: The other method.
    """

    method: SteeringMethod

    @property
    def name(self) -> str:
        """Returns that of the method."""
        return self.method.name

    @property
    def needs(self) -> str:
        """Returns that of the method."""
        return self.method.needs

    @property
    def strengths(self) -> Values:
        """Returns every other strength of the method."""
        return self.method.strengths[::2]


class Outcomes(NamedTuple):
    """The result of a method for every query, concept and strength.

    Attributes:
        share: (Q, C, S) share of the top 10 that carries the concept's label.
        loss: (Q, C, S) score loss: 1 - (mean q.x of the top 10) / (the same of the unsteered top 10).
        strengths: (S,).
    """

    share: Values
    loss: Values
    strengths: Values

    def of(self, queries: NDArray[np.int64], concepts: NDArray[np.int64]) -> Outcomes:
        """Returns the outcomes of some queries and concepts."""
        chosen = np.ix_(queries, concepts)
        return Outcomes(self.share[chosen], self.loss[chosen], self.strengths)

    @property
    def curve(self) -> tuple[Values, Values]:
        """Returns (S,) mean loss and mean share over all pairs of a query and a concept."""
        return self.loss.mean(axis=(0, 1)), self.share.mean(axis=(0, 1))


def outcomes(
    method: SteeringMethod, setting: SteeringSetting, queries: Sequence[int], concepts: Sequence[int]
) -> Outcomes:
    """Returns the outcomes of exact rankings of all passages, for every pair at every strength.

    Args:
        method: The way to steer.
        setting: Passages, queries and concepts.
        queries: Q rows of the setting's queries.
        concepts: C rows of its concepts.
    """
    shape = (len(queries), len(concepts), len(method.strengths))
    share, loss = np.zeros(shape), np.zeros(shape)
    # Concept by concept: most methods add the same to the passages for every query.
    for column, concept in enumerate(concepts):
        members = setting.members[concept]
        for row, query in enumerate(queries):
            base = setting.base[query]
            found = setting.plain[query]
            level = float(base[found].mean())
            for place, strength in enumerate(method.strengths.tolist()):
                found = top_ten(method.scores(query, concept, strength), base, found)
                share[row, column, place] = members[found].mean()
                loss[row, column, place] = 1.0 - float(base[found].mean()) / level
    return Outcomes(share, loss, method.strengths)


def read_off(loss: Values, share: Values, at: Sequence[float] | Values) -> Values:
    """Returns the shares at given losses, interpolated along a curve.

    Beyond the end of the curve its last share counts: the largest strength costs no more. Before the start of the curve
    the share is NaN: the method loses more even at strength zero.

    Args:
        loss: (S,) in the order of strengths; where it falls, the largest so far counts.
        share: (S,).
        at: Losses.
    """
    along = np.maximum.accumulate(loss)
    found = np.interp(at, along, share)
    return np.where(np.asarray(at) < along[0] - 1e-9, np.nan, found)


def area(loss: Values, share: Values) -> float:
    """Returns the mean share over losses from 0 to 10 %; NaN for a curve that starts later."""
    return float(read_off(loss, share, _GRID).mean()) if len(loss) > 1 else float("nan")


def chosen_strength(found: Outcomes, at: float = OPERATING_LOSS) -> int | None:
    """Returns the place of the strength with the best share at no more than this mean loss; None if all lose more."""
    loss, share = found.curve
    allowed = np.flatnonzero(loss <= at)
    return int(allowed[np.argmax(share[allowed])]) if len(allowed) else None


class Draws(NamedTuple):
    """Bootstrap draws of queries and concepts, with replacement; the same for all methods.

    Attributes:
        queries: (B, Q) shares that sum to 1.
        concepts: (B, C) shares that sum to 1.
    """

    queries: Values
    concepts: Values

    @classmethod
    def make(cls, queries: int, concepts: int, *, draws: int = 2000, seed: int = 0) -> Draws:
        """Returns both, drawn by the seed."""
        generator = np.random.default_rng(seed)
        parts = [
            generator.multinomial(count, np.full(count, 1 / count), size=draws) / count for count in (queries, concepts)
        ]
        return cls(*parts)

    def curves(self, found: Outcomes) -> tuple[Values, Values]:
        """Returns (B, S) mean losses and mean shares of every draw."""
        return self._mean(found.loss), self._mean(found.share)

    def _mean(self, values: Values) -> Values:
        count, concepts, strengths = values.shape
        by_query = (self.queries @ values.reshape(count, -1)).reshape(-1, concepts, strengths)
        return np.asarray(np.einsum("bc,bcs->bs", self.concepts, by_query))
