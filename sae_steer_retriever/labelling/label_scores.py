"""How well a label detects its feature's passages, on text that was not used to make it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.vector_rows import VectorRows
from sae_steer_retriever.features.feature import LabelScore
from sae_steer_retriever.labelling.gather_evidence import Evidence
from sae_steer_retriever.sae.codes import Array

_NEGATIVES = 200
# Rows in memory at once.
_TILE = 16_384
# Fewer positives than this make an AUROC that says nothing.
_POSITIVES_FROM = 4
# 95 % of a normal distribution lie within so many deviations.
_DEVIATIONS = 1.96


def score_label(
    feature: int, label: Array, vectors: VectorRows, evidence: Evidence, generator: np.random.Generator
) -> LabelScore | None:
    """Embedding detection: does the cosine of label and passage separate passages with the feature from others?

    Positives are the passages in the upper half of the feature's activations. Only they and the negatives are read.

    Args:
        feature: Latent id.
        label: (d,) unit vector of the label.
        vectors: (N, d) unit vectors of passages that were not used for the label.
        evidence: Of those passages.
        generator: For the sample of negatives.

    Returns:
        The two AUROCs, or None where there are too few passages for either.
    """
    rows, values = evidence.passages(feature)
    positives = rows[values >= np.median(values)] if len(values) else rows
    if len(positives) < _POSITIVES_FROM:
        return None
    misses = evidence.near_misses(feature)
    if len(misses) < _POSITIVES_FROM or len(vectors) - len(rows) < _POSITIVES_FROM:
        return None
    misses = generator.permutation(misses)[:_NEGATIVES]
    others = sample_others(rows, len(vectors), _NEGATIVES, generator)
    found = _cosines(vectors.select(positives), label)
    random = auroc(found, _cosines(vectors.select(others), label))
    hard = auroc(found, _cosines(vectors.select(misses), label))
    return LabelScore(
        random,
        hard,
        auroc_interval(random, len(found), len(others)),
        auroc_interval(hard, len(found), len(misses)),
        len(found),
    )


def sample_others(rows: NDArray[np.int64], count: int, most: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Up to `most` different numbers below `count` that are not among `rows`, each equally likely.

    What it costs depends on `rows` and `most`, not on `count`: the sample is of the others' ranks, and the rows below
    it make a rank a number.

    Args:
        rows: Different numbers below `count`, in any order.
        count: How many numbers there are.
        most: Size of the sample; all the others where there are no more.
        generator: For the sample.
    """
    left = count - len(rows)
    ranks = generator.choice(left, size=min(most, left), replace=False)
    # Of the others, so many are below each of the rows.
    below = np.sort(rows) - np.arange(len(rows))
    return ranks + np.searchsorted(below, ranks, side="right")


def _cosines(vectors: VectorRows, label: Array) -> Array:
    return np.concatenate([batch @ label for batch in vectors.batches(_TILE)])


def auroc(positives: NDArray[np.floating], negatives: NDArray[np.floating]) -> float:
    """The probability that a positive scores above a negative; ties count half."""
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float((below + not_above).sum() / (2 * len(positives) * len(negatives)))


def auroc_interval(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval of an AUROC: all values from which the one that was found is no surprise.

    Method 5 of Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2"
    (Statistics in Medicine 25, 2006): unlike an interval of so many standard errors it is not empty at 1.0.

    Args:
        area: The AUROC, in [0, 1].
        positives: How many positives.
        negatives: How many negatives.
    """
    mean = (positives + negatives) / 2

    def surprising(value: float) -> bool:
        crowding = 2 * mean - 1 - 3 * (mean - 1) / ((2 - value) * (1 + value))
        variance = value * (1 - value) * crowding / (positives * negatives)
        return (area - value) ** 2 > _DEVIATIONS**2 * variance

    return _boundary(surprising, 0.0, area), _boundary(surprising, 1.0, area)


def _boundary(surprising: Callable[[float], bool], outer: float, inner: float) -> float:
    """Where a condition that holds at `outer` and not at `inner` ends, by bisection."""
    for _ in range(30):
        middle = (outer + inner) / 2
        if surprising(middle):
            outer = middle
        else:
            inner = middle
    return inner
