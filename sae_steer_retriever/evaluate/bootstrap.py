"""Bootstrap intervals: how far a mean over queries could have come out otherwise, had other queries been drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# 95 %: the 2.5th and the 97.5th percentile.
_PERCENTILES = (2.5, 97.5)
# Draws are made in tiles of this many places, so that many queries never need much memory.
_TILE_PLACES = 1_000_000


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


def interval(
    values: ArrayLike, reference: ArrayLike | None = None, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap 95 % interval of a mean, or of a ratio of two means over the same queries.

    Efron & Tibshirani 1993, chapter 13. Queries are drawn with replacement; for a ratio (retention: the mean of the
    altered ranking's figures over the mean of the original's) the same queries are drawn on both sides. A draw whose
    reference has a mean of 0 says nothing of the ratio and is left out.

    Args:
        values: (Q,) one figure a query.
        reference: (Q,) figures of the same queries; then it is mean(values) / mean(reference).
        draws: How many times Q queries are drawn.
        seed: Seed of the draws; the same one gives the same interval.

    Returns:
        Lower and upper end; both NaN where the ratio is not defined, because the mean of the reference is 0.

    Raises:
        ValueError: There is no value or no draw, a value is not finite, or the two differ in length.
    """
    figures = _figures(values, "values")
    base = None if reference is None else _figures(reference, "reference")
    if base is not None and len(base) != len(figures):
        raise ValueError(f"{len(figures)} values, {len(base)} of the reference: expected one of each for every query.")
    if draws < 1:
        raise ValueError(f"draws = {draws}: expected at least 1.")
    if base is not None and base.mean() == 0:
        return float("nan"), float("nan")
    drawn = _drawn(figures, base, draws, np.random.default_rng(seed))
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.percentile(drawn, _PERCENTILES)
    return float(low), float(high)


def estimate(values: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Estimate:
    """A mean with its `interval`; arguments and errors are the same."""
    low, high = interval(values, draws=draws, seed=seed)
    return Estimate(float(np.mean(np.asarray(values, dtype=np.float64))), low, high)


def difference(values: ArrayLike, others: ArrayLike, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """How much larger a mean is than another over the same queries: mean(values - others) and its `interval`.

    Returns:
        The difference, lower end, upper end.

    Raises:
        ValueError: As `interval`.
    """
    figures, base = _figures(values, "values"), _figures(others, "others")
    if len(base) != len(figures):
        raise ValueError(f"{len(figures)} values and {len(base)} others: expected one of each for every query.")
    return float((figures - base).mean()), *interval(figures - base, draws=draws, seed=seed)


def _figures(values: ArrayLike, name: str) -> NDArray[np.float64]:
    figures = np.asarray(values, dtype=np.float64)
    if figures.ndim != 1 or not len(figures) or not np.isfinite(figures).all():
        raise ValueError(f"{name} of shape {figures.shape}: expected at least one number a query, all of them finite.")
    return figures


def _drawn(
    figures: NDArray[np.float64], base: NDArray[np.float64] | None, draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The mean, or the ratio where it is defined, of every draw."""
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
