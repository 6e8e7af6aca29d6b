"""Two concepts at once: are both in the top 10, or does one of them take it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.evaluate.steering_curve import (
    OPERATING_DRIFT,
    DerivedMethod,
    Outcomes,
    SteeringMethod,
    outcomes,
    read_off,
)
from sae_steer_retriever.evaluate.steering_setting import SteeringSetting
from sae_steer_retriever.sae.codes import Array

_PAIRS = 20


@dataclass(frozen=True)
class Together(DerivedMethod):
    """A method that steers towards two concepts with the same strength; what it adds to a score is added up.

    Attributes:
        setting: What is steered.
        pairs: Of concepts; `scores` takes a place in it as its concept.
    """

    setting: SteeringSetting
    pairs: tuple[tuple[int, int], ...]

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """(N,) what passages are ranked by."""
        one, other = (self.method.scores(query, each, strength) for each in self.pairs[concept])
        return np.asarray(one + other - self.setting.base[query])


class Combination(NamedTuple):
    """What steering towards two concepts at once gives, at 5 % drift, mean over pairs and queries.

    Attributes:
        name: Of the method.
        pairs: How many pairs of concepts.
        before: Share of the unsteered top 10 that carries either.
        either: Share that carries either.
        weaker: Share of the concept that has less.
    """

    name: str
    pairs: int
    before: float
    either: float
    weaker: float


def combined(methods: Sequence[SteeringMethod], setting: SteeringSetting, *, seed: int = 0) -> list[Combination]:
    """Steer towards pairs of concepts.

    Args:
        methods: The ways to steer, all of which add to the unsteered scores.
        setting: What is steered.
        seed: Of the draw of pairs, of which there are at most 20.
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
        drift = either.curve[0]
        weaker = np.minimum(first.share, second.share).mean(axis=(0, 1))
        at = [OPERATING_DRIFT]
        found.append(
            Combination(
                method.name,
                len(pairs),
                float(either.share[:, :, 0].mean()),
                float(read_off(drift, either.curve[1], at)[0]),
                float(read_off(drift, weaker, at)[0]),
            )
        )
    return found


def _counted(method: Together, setting: SteeringSetting) -> Outcomes:
    return outcomes(method, setting, range(len(setting.questions)), range(len(method.pairs)))
