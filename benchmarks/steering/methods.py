"""Ways to steer without a dictionary: simple baselines, and an oracle as the upper bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array

from .curve import SteeringMethod, Values
from .setting import DEPTH, EXAMPLES, SteeringSetting

Rewrite = Callable[[str, str], str]
"""From a query and a concept's words to another query."""

ORACLE_NAME, ADD_NAME = "oracle", "add-embedding"
WORDS, NOTHING, LABELS = "words", "nothing", "all labels"
EXAMPLES_ONLY = f"{EXAMPLES} examples"
# Gains of the strongest passage, in mean scores of a top 10.
_GAINS = np.array([0.0, *np.geomspace(0.01, 3.0, 40)])
# Rocchio's weights of positives and negatives (Manning, Raghavan & Schuetze 2008, section 9.1.1).
_POSITIVE, _NEGATIVE = 0.75, 0.15
_SATURATED_FROM, _SATURATED_TO = 80, 99
_MMR_POOL = 100
_REGULARISATION = 1.0


@dataclass(frozen=True)
class Signal:
    """Steering by a signal of each passage for the concept: `q . x + strength * signal`.

    Attributes:
        name: Name in the table.
        needs: The input that a user has to give.
        setting: Passages, queries and concepts.
        signals: (C, N).
        start: (Q, N) scores at strength zero, if not the unsteered ones.
    """

    name: str
    needs: str
    setting: SteeringSetting
    signals: Array
    start: Array | None = None

    @property
    def strengths(self) -> Values:
        """Returns strengths at which the strongest passages gain 1 % to 300 % of a top 10's mean score."""
        reach = float((self.signals.max(axis=1) - np.median(self.signals, axis=1)).mean())
        return np.asarray(_GAINS * self.setting.level / max(reach, 1e-9))

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """Returns (N,) scores that the passages are ranked by."""
        start = self.setting.base if self.start is None else self.start
        return np.asarray(start[query] + np.float32(strength) * self.signals[concept])

    def on(self, setting: SteeringSetting) -> Signal:
        """Returns the same for other queries.

        Args:
            setting: One with the same passages and concepts.

        Raises:
            ValueError: The method has its own scores at strength zero, which belong to its queries.
        """
        if self.start is not None:
            raise ValueError(f"{self.name} has its own scores at strength zero: build it from the other setting.")
        return replace(self, setting=setting)


@dataclass(frozen=True)
class Replacement:
    """Another query in place of the given one, without a strength: `q'(query, concept) . x`.

    Attributes:
        name: Name in the table.
        needs: The input that a user has to give.
        setting: Passages, queries and concepts.
        queries: (Q, C, d) unit vectors.
    """

    name: str
    needs: str
    setting: SteeringSetting
    queries: Array

    @property
    def strengths(self) -> Values:
        """Returns one placeholder."""
        return np.ones(1)

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """Returns (N,) scores that the passages are ranked by."""
        return np.asarray(self.setting.vectors @ self.queries[query, concept])


class MaximalMarginalRelevance:
    """Diversity instead of a direction (Carbonell & Goldstein 1998): it ignores the concept."""

    name = "MMR, 1 - lambda as the strength"
    needs = NOTHING
    # 1 - lambda: weight of the difference from the passages chosen before.
    strengths: Values = np.linspace(0.0, 1.0, 11)

    def __init__(self, setting: SteeringSetting) -> None:
        """Chooses ten passages of the hundred nearest, for every query and strength.

        Args:
            setting: Passages, queries and concepts.
        """
        self._count = len(setting.vectors)
        self._chosen = [
            {strength: _diverse(setting, base, strength) for strength in self.strengths.tolist()}
            for base in setting.base
        ]

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """Returns (N,) minus the place in which a passage is chosen; the same for every concept."""
        scores = np.full(self._count, -np.inf, dtype=np.float32)
        chosen = self._chosen[query][strength]
        scores[chosen] = -np.arange(len(chosen), dtype=np.float32)
        return scores


def vector_methods(setting: SteeringSetting, rewrite: Rewrite | None = None) -> Iterator[SteeringMethod]:
    """Yields all methods that need no dictionary.

    Args:
        setting: Passages, queries and concepts.
        rewrite: Rewrites a query for a concept with a language model; left out if not given.
    """
    x, t = setting.vectors, setting.concepts
    cosines = np.ascontiguousarray(t @ x.T)
    positive = np.stack([examples.mean(axis=0) for examples in setting.positives])
    # As many negatives as positives.
    negative = np.stack([examples[:EXAMPLES].mean(axis=0) for examples in setting.negatives])
    yield Signal(ORACLE_NAME, LABELS, setting, setting.members.astype(np.float32))
    yield Replacement("text-append", WORDS, setting, _appended(setting))
    yield Signal(ADD_NAME, WORDS, setting, cosines)
    yield Signal("add-embedding, saturated", WORDS, setting, saturated(cosines))
    rocchio = _POSITIVE * positive - _NEGATIVE * negative
    yield Signal("Rocchio", f"{EXAMPLES} + {EXAMPLES} examples", setting, np.ascontiguousarray(rocchio @ x.T))
    yield Signal("DiffMean", EXAMPLES_ONLY, setting, np.ascontiguousarray((positive - setting.mean) @ x.T))
    logits = _probed(setting)
    yield Signal("linear probe", EXAMPLES_ONLY, setting, logits)
    yield Signal("linear probe, probability", EXAMPLES_ONLY, setting, np.asarray(1 / (1 + np.exp(-logits))))
    yield MaximalMarginalRelevance(setting)
    if rewrite is not None:
        yield Replacement("LLM rewrite", "words, a language model", setting, _rewritten(setting, rewrite))


def saturated(signals: Array) -> Array:
    """Returns (C, N) signals scaled from 0 at a concept's 80th percentile to 1 at its 99th, clipped."""
    low, high = np.percentile(signals, [_SATURATED_FROM, _SATURATED_TO], axis=1, keepdims=True)
    return np.asarray(np.clip((signals - low) / np.maximum(high - low, 1e-9), 0, 1), dtype=np.float32)


def _diverse(setting: SteeringSetting, base: Array, strength: float) -> list[int]:
    """Rows in the order of their choice."""
    pool = np.argsort(-base, kind="stable")[:_MMR_POOL]
    vectors, relevance = setting.vectors[pool], base[pool]
    alike = np.zeros(len(pool), dtype=np.float32)
    chosen: list[int] = []
    for _ in range(min(DEPTH, len(pool))):
        worth = (1 - strength) * relevance - strength * alike
        worth[chosen] = -np.inf
        best = int(worth.argmax())
        likeness = vectors @ vectors[best]
        alike = np.maximum(alike, likeness) if chosen else likeness
        chosen.append(best)
    return [int(row) for row in pool[chosen]]


def _appended(setting: SteeringSetting) -> Array:
    return _rewritten(setting, lambda question, words: f"{question} {words}")


def _rewritten(setting: SteeringSetting, rewrite: Rewrite) -> Array:
    texts = [rewrite(question, words) for question in setting.questions for words in setting.words]
    rows = setting.embedder.embed_queries(texts)
    return rows.reshape(len(setting.questions), len(setting.words), -1)


def _probed(setting: SteeringSetting) -> Array:
    """(C, N) log odds of logistic regressions, or outputs of ridge regressions if scikit-learn is not installed."""
    rows = []
    for positive, negative in zip(setting.positives, setting.negatives, strict=True):
        x = np.concatenate([positive, negative])
        y = np.arange(len(x)) < len(positive)
        weights, bias = _fit_probe(x, y)
        rows.append(setting.vectors @ weights + bias)
    return np.asarray(rows, dtype=np.float32)


def _fit_probe(x: Array, y: NDArray[np.bool_]) -> tuple[Array, float]:
    """(d,) weights and the bias; both classes have the same weight."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
        centre = weight @ x
        centred = (x - centre) * np.sqrt(weight)[:, None]
        target = np.where(y, 1.0, -1.0) * np.sqrt(weight)
        regular = 0.01 * np.eye(x.shape[1])
        found = np.linalg.solve(centred.T @ centred + regular, centred.T @ target)
        return found.astype(np.float32), float(-centre @ found)
    model = LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=1000).fit(x, y)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])
