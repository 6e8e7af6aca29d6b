"""How often features occur: the dead, the rare, and the hubs that are in every other passage."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Codes

_RARE = 5
_FREQUENT = 0.1
_QUANTILES = (5, 25, 50, 75, 95)


@dataclasses.dataclass(frozen=True)
class Frequencies:
    """In which share of the passages the features of a dictionary are active.

    Attributes:
        dead: Share of the features that are active in no passage.
        rare: Share of the features in fewer than five passages, the dead included.
        frequent: Share of the features in more than a tenth of the passages.
        maximum: Document frequency of the most frequent feature, a share of the passages.
        quantiles: Of the features' document frequency, by "q05", "q25", "q50", "q75" and "q95".
        l0: Mean number of active features per passage.
    """

    dead: float
    rare: float
    frequent: float
    maximum: float
    quantiles: dict[str, float]
    l0: float


def passage_counts(codes: Codes[NDArray[Any]], n: int) -> NDArray[np.int64]:
    """(n,) in how many passages each latent is active.

    Args:
        codes: (N, K) codes of the passages.
        n: Number of latents.
    """
    return np.bincount(codes.indices[codes.values > 0], minlength=n)


def measure_frequencies(codes: Codes[NDArray[Any]], n: int) -> Frequencies:
    """The distribution of document frequency over all features, dead ones included.

    Args:
        codes: (N, K) codes of the passages, at the reading that is to be described.
        n: Number of latents.
    """
    passages = len(codes.indices)
    count = passage_counts(codes, n)
    frequency = count / passages
    quantiles = np.percentile(frequency, _QUANTILES)
    return Frequencies(
        dead=float((count == 0).mean()),
        rare=float((count < _RARE).mean()),
        frequent=float((frequency > _FREQUENT).mean()),
        maximum=float(frequency.max()),
        quantiles={f"q{q:02d}": float(value) for q, value in zip(_QUANTILES, quantiles, strict=True)},
        l0=float(count.sum() / passages),
    )
