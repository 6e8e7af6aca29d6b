"""Label scores: how well a label detects its feature's passages, on text that was not used to make it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.vector_rows import VectorRows
from sae_steer_retriever.features.feature import LabelScore
from sae_steer_retriever.labelling.gather_evidence import Evidence
from sae_steer_retriever.sae.codes import Array

_NEGATIVES = 200
# Rows in memory at once.
_TILE = 16_384
# With fewer positives or negatives an AUROC means nothing.
_POSITIVES_FROM = 4
# 95 % of a normal distribution lie within this many standard deviations.
_DEVIATIONS = 1.96


def score_label(feature: int, label: Array, vectors: VectorRows, evidence: Evidence, seed: int) -> LabelScore | None:
    """Returns the AUROCs of the cosine of label and passage; None where there are too few passages.

    Positives are the passages in the upper half of the feature's activations. Negatives are random passages without
    the feature, and near misses. Only these passages are read.

    Args:
        feature: Latent id.
        label: (d,) unit vector of the label.
        vectors: (N, d) unit vectors of passages that were not used for the label.
        evidence: Of those passages.
        seed: For the sample of negatives; with the feature's id, so that a score does not depend on other labels.
    """
    generator = np.random.default_rng([seed, feature])
    rows, values = evidence.passages(feature)
    positives = rows[values >= np.median(values)] if len(values) else rows
    misses = evidence.near_misses(feature)
    if min(len(positives), len(misses), len(vectors) - len(rows)) < _POSITIVES_FROM:
        return None
    misses = generator.permutation(misses)[:_NEGATIVES]
    others = sample_others(rows, len(vectors), _NEGATIVES, generator)
    found = _cosines(vectors.select(positives), label)
    random = auroc(found, _cosines(vectors.select(others), label))
    hard = auroc(found, _cosines(vectors.select(misses), label))
    intervals = auroc_interval(random, len(found), len(others)), auroc_interval(hard, len(found), len(misses))
    return LabelScore(random, hard, *intervals, len(found))


def score_labels(
    features: Iterable[int], label_embeddings: Array, vectors: VectorRows, evidence: Evidence, seed: int
) -> dict[int, LabelScore]:
    """The scores of the labels that can be scored, by feature id; `label_embeddings` is (n, d), see `score_label`."""
    found = {feature: score_label(feature, label_embeddings[feature], vectors, evidence, seed) for feature in features}
    return {feature: score for feature, score in found.items() if score is not None}


def sample_others(rows: NDArray[np.int64], count: int, most: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns up to `most` different numbers below `count` that are not among the different `rows`, equally likely.

    The time depends on the sizes of `rows` and of the sample, not on `count`.
    """
    left = count - len(rows)
    ranks = generator.choice(left, size=min(most, left), replace=False)
    # How many of the other numbers are below each row: turns a rank among them into a number.
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
    """Returns the 95 % interval of an AUROC from the numbers of positives and negatives.

    Method 5 of Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2"
    (Statistics in Medicine 25, 2006); unlike an interval by standard errors, it is not empty at 1.0.
    """
    mean = (positives + negatives) / 2

    def surprising(value: float) -> bool:
        crowding = 2 * mean - 1 - 3 * (mean - 1) / ((2 - value) * (1 + value))
        variance = value * (1 - value) * crowding / (positives * negatives)
        return (area - value) ** 2 > _DEVIATIONS**2 * variance

    return _boundary(surprising, 0.0, area), _boundary(surprising, 1.0, area)


def _boundary(surprising: Callable[[float], bool], outer: float, inner: float) -> float:
    """The boundary, by bisection, of a condition that holds at `outer` and not at `inner`."""
    for _ in range(30):
        middle = (outer + inner) / 2
        outer, inner = (middle, inner) if surprising(middle) else (outer, middle)
    return inner
