"""Negative strengths: does a perspective that is not wanted leave the top 10, and what does that cost?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.steering_curve import (
    OPERATING_DRIFT,
    DerivedMethod,
    Outcomes,
    SteeringMethod,
    Values,
    outcomes,
)
from sae_steer_retriever.evaluate.steering_setting import SteeringSetting
from sae_steer_retriever.sae.codes import Array

# What is hardly there need not be removed.
PRESENT_FROM = 0.3
_QUESTIONS = 3
_DRAWS = 2000
_PERCENTILES = (2.5, 97.5)


class Movable(SteeringMethod, Protocol):
    """A method that can steer other queries over the same passages."""

    def on(self, setting: SteeringSetting) -> SteeringMethod:
        """The same for them."""


@dataclass(frozen=True)
class Away(DerivedMethod):
    """A method with its strengths turned round."""

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """(N,) what passages are ranked by."""
        return self.method.scores(query, concept, -strength)


class Removal(NamedTuple):
    """What steering away from a concept leaves of it.

    Attributes:
        name: Of the method.
        queries: Which queries: "ambiguous" ones that happen to find the concept, or ones that "ask for it".
        perspectives: How many concepts are reported.
        before: Mean share of the concept in the unsteered top 10.
        after: The same, at the largest strength with at most 5 % mean drift on the other half.
        drift: What that loses.
        left: Median over concepts of after / before.
        left_at_best: The same at each concept's own best strength with at most 5 % drift.
    """

    name: str
    queries: str
    perspectives: int
    before: float
    after: float
    drift: float
    left: Estimate
    left_at_best: Estimate


def removals(methods: Sequence[Movable], setting: SteeringSetting, questions: int = _QUESTIONS) -> list[Removal]:
    """Steer away from what the unsteered top 10 has.

    Args:
        methods: The ways to steer; strengths are turned round.
        setting: What is steered.
        questions: How many of its questions are asked with each concept's words ahead.
    """
    asking = _asking(setting, questions)
    columns = range(len(setting.words))
    found = []
    for method in methods:
        ambiguous = outcomes(Away(method), setting, range(len(setting.questions)), columns)
        moved = Away(method.on(asking))
        asked = _joined(
            [outcomes(moved, asking, range(c * questions, (c + 1) * questions), [c]) for c in columns], moved.strengths
        )
        found += [_removal(method.name, "ambiguous", ambiguous), _removal(method.name, "ask for it", asked)]
    return [removal for removal in found if removal is not None]


def _asking(setting: SteeringSetting, count: int) -> SteeringSetting:
    """Queries that name a concept: `count` questions for each, concept by concept."""
    texts = tuple(f"{words}: {question}" for words in setting.words for question in setting.questions[:count])
    return replace(setting, questions=texts, queries=setting.embedder.embed_queries(texts))


def _joined(parts: Sequence[Outcomes], strengths: Values) -> Outcomes:
    return Outcomes(
        np.concatenate([part.share for part in parts], axis=1),
        np.concatenate([part.drift for part in parts], axis=1),
        strengths,
    )


def _removal(name: str, queries: str, found: Outcomes) -> Removal | None:
    """Strengths of every other concept with the concept in its top 10, reported of those between; None without any."""
    present = found.share[:, :, 0] >= PRESENT_FROM
    concepts = np.flatnonzero(present.any(axis=0))
    if len(concepts) < 2:
        return None
    # (C, S) means over the queries that find the concept.
    weight = (present / np.maximum(present.sum(axis=0), 1))[:, concepts, None]
    share, drift = ((values[:, concepts] * weight).sum(axis=0) for values in (found.share, found.drift))
    chosen, reported = np.arange(len(concepts))[::2], np.arange(len(concepts))[1::2]
    allowed = np.flatnonzero(drift[chosen].mean(axis=0) <= OPERATING_DRIFT)
    place = int(allowed[-1])
    left = share[reported, place] / share[reported, 0]
    within = np.where(drift[reported] <= OPERATING_DRIFT, share[reported], np.inf)
    best = within.min(axis=1) / share[reported, 0]
    return Removal(
        name,
        queries,
        len(reported),
        float(share[reported, 0].mean()),
        float(share[reported, place].mean()),
        float(drift[reported, place].mean()),
        _median(left),
        _median(best),
    )


def _median(values: Values) -> Estimate:
    """With a bootstrap interval over concepts."""
    drawn = np.random.default_rng(0).integers(len(values), size=(_DRAWS, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), _PERCENTILES)
    return Estimate(float(np.median(values)), float(low), float(high))
