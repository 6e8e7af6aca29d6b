"""How well a label detects its feature's passages, on text that was not used to make it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.interpret.evidence import Evidence
from sae_steer_retriever.sae import Array

_NEGATIVES = 200
# Fewer positives than this make an AUROC that says nothing.
_POSITIVES_FROM = 4


class LabelScore(NamedTuple):
    """Label detection AUROC of one feature: 0.5 says nothing, 1.0 tells every passage apart.

    Attributes:
        random: Against random passages without the feature.
        hard: Against passages of neighbouring features without it.
    """

    random: float
    hard: float


def score_label(
    feature: int, label: Array, vectors: Array, evidence: Evidence, generator: np.random.Generator
) -> LabelScore | None:
    """Embedding detection: does the cosine of label and passage separate passages with the feature from others?

    Positives are the passages in the upper half of the feature's activations.

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
    others = np.setdiff1d(np.arange(len(vectors)), rows)
    if len(misses) < _POSITIVES_FROM or len(others) < _POSITIVES_FROM:
        return None
    misses = generator.permutation(misses)[:_NEGATIVES]
    others = generator.permutation(others)[:_NEGATIVES]
    found = vectors[positives] @ label
    return LabelScore(auroc(found, vectors[others] @ label), auroc(found, vectors[misses] @ label))


def auroc(positives: NDArray[np.floating], negatives: NDArray[np.floating]) -> float:
    """The probability that a positive scores above a negative; ties count half."""
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float((below + not_above).sum() / (2 * len(positives) * len(negatives)))
