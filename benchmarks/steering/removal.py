"""Negative strengths: the share of an unwanted concept left in the top 10, and the score loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.sae.codes import Array

from .curve import (
    OPERATING_LOSS,
    DerivedMethod,
    Outcomes,
    SteeringMethod,
    Values,
    outcomes,
)
from .setting import SteeringSetting

# Pairs with a smaller share of the concept in the unsteered top 10 are left out.
PRESENT_FROM = 0.3
_QUESTIONS = 3
_DRAWS = 2000
_PERCENTILES = (2.5, 97.5)


class Movable(SteeringMethod, Protocol):
    """A method that can steer other queries over the same passages."""

    def on(self, setting: SteeringSetting) -> SteeringMethod:
        """Returns the same for another setting."""


@dataclass(frozen=True)
class Away(DerivedMethod):
    """A method with negated strengths."""

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """Returns (N,) scores that the passages are ranked by."""
        return self.method.scores(query, concept, -strength)


class Removal(NamedTuple):
    """The result of steering away from a concept.

    Attributes:
        name: Name of the method.
        queries: "ambiguous" for questions that happen to find the concept, "ask for it" for questions that name it.
        perspectives: Number of concepts reported.
        before: Mean share of the concept in the unsteered top 10.
        after: The same at the largest strength with at most 5 % mean score loss on the other half.
        loss: Score loss at that strength.
        left: Median over concepts of after / before.
        left_at_best: The same at each concept's own best strength with at most 5 % score loss.
    """

    name: str
    queries: str
    perspectives: int
    before: float
    after: float
    loss: float
    left: Estimate
    left_at_best: Estimate


def removals(methods: Sequence[Movable], setting: SteeringSetting, questions: int = _QUESTIONS) -> list[Removal]:
    """Returns the results of steering away from concepts of the unsteered top 10.

    Args:
        methods: Ways to steer; their strengths are negated.
        setting: Passages, queries and concepts.
        questions: Number of its questions that are asked again after each concept's words.
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
    """A setting whose queries name a concept: `count` questions for each, concept by concept."""
    texts = tuple(f"{words}: {question}" for words in setting.words for question in setting.questions[:count])
    return replace(setting, questions=texts, queries=setting.embedder.embed_queries(texts))


def _joined(parts: Sequence[Outcomes], strengths: Values) -> Outcomes:
    return Outcomes(
        np.concatenate([part.share for part in parts], axis=1),
        np.concatenate([part.loss for part in parts], axis=1),
        strengths,
    )


def _removal(name: str, queries: str, found: Outcomes) -> Removal | None:
    """The result on every other concept, at the strength chosen on the rest; None for fewer than two concepts."""
    present = found.share[:, :, 0] >= PRESENT_FROM
    concepts = np.flatnonzero(present.any(axis=0))
    if len(concepts) < 2:
        return None
    # (C, S) means over the queries that find the concept.
    weight = (present / np.maximum(present.sum(axis=0), 1))[:, concepts, None]
    share, loss = ((values[:, concepts] * weight).sum(axis=0) for values in (found.share, found.loss))
    chosen, reported = np.arange(len(concepts))[::2], np.arange(len(concepts))[1::2]
    allowed = np.flatnonzero(loss[chosen].mean(axis=0) <= OPERATING_LOSS)
    place = int(allowed[-1])
    left = share[reported, place] / share[reported, 0]
    within = np.where(loss[reported] <= OPERATING_LOSS, share[reported], np.inf)
    best = within.min(axis=1) / share[reported, 0]
    return Removal(
        name,
        queries,
        len(reported),
        float(share[reported, 0].mean()),
        float(share[reported, place].mean()),
        float(loss[reported, place].mean()),
        _median(left),
        _median(best),
    )


def _median(values: Values) -> Estimate:
    """The median with a bootstrap interval over concepts."""
    drawn = np.random.default_rng(0).integers(len(values), size=(_DRAWS, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), _PERCENTILES)
    return Estimate(float(np.median(values)), float(low), float(high))
