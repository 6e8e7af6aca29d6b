"""Steering towards two concepts at once: the share of either, and of the weaker one, in the top 10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.sae.codes import Array

from .curve import (
    OPERATING_LOSS,
    DerivedMethod,
    Outcomes,
    SteeringMethod,
    outcomes,
    read_off,
)
from .setting import SteeringSetting

_PAIRS = 20


@dataclass(frozen=True)
class Together(DerivedMethod):
    """A method that steers towards two concepts with the same strength, and adds both additions to a score.

    Attributes:
        setting: Passages, queries and concepts.
        pairs: Pairs of concepts; `scores` takes a place in it as its concept.
    """

    setting: SteeringSetting
    pairs: tuple[tuple[int, int], ...]

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """Returns (N,) scores that the passages are ranked by."""
        one, other = (self.method.scores(query, each, strength) for each in self.pairs[concept])
        return np.asarray(one + other - self.setting.base[query])


class Combination(NamedTuple):
    """The result of steering towards two concepts at once, at 5 % score loss; means over pairs and queries.

    Attributes:
        name: Name of the method.
        pairs: Number of pairs of concepts.
        before: Share of the unsteered top 10 with either label.
        either: Share of the steered top 10 with either label.
        weaker: Share of the steered top 10 with the rarer label of the two.
    """

    name: str
    pairs: int
    before: float
    either: float
    weaker: float


def combined(methods: Sequence[SteeringMethod], setting: SteeringSetting, *, seed: int = 0) -> list[Combination]:
    """Returns the result of each method for at most 20 pairs of concepts.

    Args:
        methods: Ways to steer that add to the unsteered scores.
        setting: Passages, queries and concepts.
        seed: Seed of the draw of pairs.
    """
    every = list(combinations(range(len(setting.words)), 2))
    drawn = np.random.default_rng(seed).choice(len(every), min(_PAIRS, len(every)), replace=False)
    pairs = tuple(every[place] for place in np.sort(drawn))
    one, other = (setting.members[[pair[side] for pair in pairs]] for side in (0, 1))
    words = tuple(f"{setting.words[a]} + {setting.words[b]}" for a, b in pairs)
    found = []
    for method in methods:
        joint = Together(method, setting, pairs)
        # The same rankings, counted in three ways.
        either, first, second = (
            _counted(joint, replace(setting, members=members, words=words)) for members in (one | other, one, other)
        )
        loss, share = either.curve
        weaker = np.minimum(first.share, second.share).mean(axis=(0, 1))
        at = [OPERATING_LOSS]
        found.append(
            Combination(
                method.name,
                len(pairs),
                float(either.share[:, :, 0].mean()),
                float(read_off(loss, share, at)[0]),
                float(read_off(loss, weaker, at)[0]),
            )
        )
    return found


def _counted(method: Together, setting: SteeringSetting) -> Outcomes:
    return outcomes(method, setting, range(len(setting.questions)), range(len(method.pairs)))
