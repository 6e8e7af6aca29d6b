"""Unit directions that need no fit: at random, near data points, or the centres of spherical k-means."""

from __future__ import annotations

import torch
from torch import Tensor

_ITERATIONS = 12
_TILE = 4096
# Shares of noise: data points that are drawn twice part, and k-means does not start with two equal centres.
_NOISE_OF_DATA, _NOISE_OF_CENTRES = 0.2, 0.05


def random_directions(n: int, d: int, generator: torch.Generator) -> Tensor:
    """(n, d) unit rows in Gaussian directions."""
    return _unit(torch.randn((n, d), generator=generator))


def data_directions(centred: Tensor, n: int, generator: torch.Generator, noise: float = _NOISE_OF_DATA) -> Tensor:
    """(n, d) unit rows near data points, each point drawn once before any is drawn twice.

    Args:
        centred: (N, d) embeddings less their mean.
        n: Number of directions.
        generator: Source of randomness.
        noise: Share of a random direction in each.
    """
    added = random_directions(n, centred.shape[1], generator)
    repeats = -(-n // len(centred))
    order = torch.cat([torch.randperm(len(centred), generator=generator) for _ in range(repeats)])[:n]
    return _unit((1 - noise) * _unit(centred[order]) + noise * added)


def kmeans_directions(centred: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n, d) unit rows: the centres of spherical k-means, started near data points.

    Args:
        centred: (N, d) embeddings less their mean.
        n: Number of centres.
        generator: Source of randomness.
    """
    return spherical_kmeans(_unit(centred), data_directions(centred, n, generator, _NOISE_OF_CENTRES))


def spherical_kmeans(points: Tensor, centres: Tensor) -> Tensor:
    """Centres that maximise the sum of cosines, by matrix products; an empty cluster takes the worst-fit point.

    Args:
        points: (N, d) unit rows.
        centres: (n, d) unit rows to start from.
    """
    n = len(centres)
    for _ in range(_ITERATIONS):
        nearest = torch.empty(len(points), dtype=torch.int64)
        fit = torch.empty(len(points))
        for start in range(0, len(points), _TILE):
            best = (points[start : start + _TILE] @ centres.T).max(dim=1)
            nearest[start : start + _TILE], fit[start : start + _TILE] = best.indices, best.values
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        empty = torch.nonzero(torch.bincount(nearest, minlength=n) == 0).reshape(-1)
        if len(empty):
            worst = torch.argsort(fit, stable=True)[: len(empty)]
            sums[empty[: len(worst)]] = points[worst]
        centres = _unit(sums)
    return centres


def _unit(rows: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(1e-8)
