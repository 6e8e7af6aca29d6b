"""A median over features, with its uncertainty."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

_DRAWS = 2000
# Resampled values held at a time.
_TILE = 2**21


@dataclasses.dataclass(frozen=True)
class Median:
    """A median, and the 95 % interval of its percentile bootstrap over features.

    Attributes:
        value: NaN if there is none.
        low: 2.5th percentile of the resampled medians.
        high: 97.5th percentile.
        features: How many values there are, one a feature.
    """

    value: float
    low: float
    high: float
    features: int


def bootstrap_median(values: NDArray[np.floating], seed: int = 0) -> Median:
    """The median of some values, with a bootstrap of 2,000 draws.

    Args:
        values: (features,) one figure a feature.
        seed: Of the draws.
    """
    count = len(values)
    if not count:
        return Median(float("nan"), float("nan"), float("nan"), 0)
    generator = np.random.default_rng(seed)
    tile = max(1, _TILE // count)
    medians = [
        np.median(values[generator.integers(0, count, (min(tile, _DRAWS - start), count))], axis=1)
        for start in range(0, _DRAWS, tile)
    ]
    low, high = np.percentile(np.concatenate(medians), [2.5, 97.5])
    return Median(float(np.median(values)), float(low), float(high), count)
