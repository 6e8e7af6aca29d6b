"""Bootstrap intervals: the spread of a mean over queries, or of a median over features, under resampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# 95 %: the 2.5th and the 97.5th percentile.
_PERCENTILES = (2.5, 97.5)
# Draws are made in tiles of this many places, so that many queries never need much memory.
_TILE_PLACES = 1_000_000
_MEDIAN_DRAWS = 2000
_MEDIAN_TILE = 2**21


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap 95 % interval.

    Attributes:
        value: The figure.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Median(Estimate):
    """A median over features with its bootstrap 95 % interval; all three are NaN if there are no features.

    Attributes:
        features: Number of values, one a feature.
    """

    features: int


def interval(
    values: ArrayLike, reference: ArrayLike | None = None, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile bootstrap 95 % interval of a mean, or of a ratio of two means over the same queries.

    Efron & Tibshirani 1993, chapter 13. Queries are drawn with replacement. For a ratio (retention: the mean of the
    altered ranking's figures over the mean of the original's), both sides use the same drawn queries. A draw whose
    reference has a mean of 0 has no ratio and is left out.

    Args:
        values: (Q,) one figure a query.
        reference: (Q,) figures of the same queries; then the ratio is mean(values) / mean(reference). Both ends are NaN
            where it is undefined because the mean of the reference is 0.
        draws: How many times Q queries are drawn.
        seed: Seed of the draws; the same seed gives the same interval.

    Raises:
        ValueError: There is no value or no draw, a value is not finite, or the two differ in length.
    """
    figures = _figures(values, "values")
    base = None if reference is None else _figures(reference, "reference")
    if base is not None and len(base) != len(figures):
        raise ValueError(f"{len(figures)} values, {len(base)} of the reference: expected one of each for every query.")
    if draws < 1:
        raise ValueError(f"draws = {draws}: expected at least 1.")
    undefined = base is not None and base.mean() == 0
    drawn = np.empty(0) if undefined else _drawn(figures, base, draws, np.random.default_rng(seed))
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.percentile(drawn, _PERCENTILES)
    return float(low), float(high)


def estimate(values: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Returns a mean with its `interval`; arguments and errors are the same."""
    low, high = interval(values, draws=draws, seed=seed)
    return Estimate(float(np.mean(np.asarray(values, dtype=np.float64))), low, high)


def difference(values: ArrayLike, others: ArrayLike, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Returns mean(values - others) over the same queries, and the lower and upper end of its `interval`.

    Raises:
        ValueError: As `interval`.
    """
    figures, base = _figures(values, "values"), _figures(others, "others")
    if len(base) != len(figures):
        raise ValueError(f"{len(figures)} values and {len(base)} others: expected one of each for every query.")
    return float((figures - base).mean()), *interval(figures - base, draws=draws, seed=seed)


def bootstrap_median(values: NDArray[np.floating], seed: int = 0) -> Median:
    """Returns the median of (features,) values with a bootstrap of 2,000 draws."""
    count = len(values)
    if not count:
        return Median(float("nan"), float("nan"), float("nan"), 0)
    generator = np.random.default_rng(seed)
    tile = max(1, _MEDIAN_TILE // count)
    medians = [
        np.median(values[generator.integers(0, count, (min(tile, _MEDIAN_DRAWS - start), count))], axis=1)
        for start in range(0, _MEDIAN_DRAWS, tile)
    ]
    low, high = np.percentile(np.concatenate(medians), _PERCENTILES)
    return Median(float(np.median(values)), float(low), float(high), count)


def _figures(values: ArrayLike, name: str) -> NDArray[np.float64]:
    figures = np.asarray(values, dtype=np.float64)
    if figures.ndim != 1 or not len(figures) or not np.isfinite(figures).all():
        raise ValueError(f"{name} of shape {figures.shape}: expected at least one number a query, all of them finite.")
    return figures


def _drawn(
    figures: NDArray[np.float64], base: NDArray[np.float64] | None, draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The mean of every draw, or its ratio where that is defined."""
    count = len(figures)
    tile = max(1, _TILE_PLACES // count)
    parts = []
    for start in range(0, draws, tile):
        places = generator.integers(count, size=(min(tile, draws - start), count))
        means = figures[places].mean(axis=1)
        if base is not None:
            below = base[places].mean(axis=1)
            means = means[below != 0] / below[below != 0]
        parts.append(means)
    return np.concatenate(parts)
