"""Where the decoder starts: at random, at data points, or at the directions of spherical k-means."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_steer_retriever.train.config import InitName

_ITERATIONS = 12
_TILE = 4096


def initial_directions(name: InitName, centred: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n, d) unit rows.

    Args:
        name: "random", "data" (data points with a fifth of noise) or "kmeans" (spherical k-means of the data).
        centred: (N, d) embeddings less their mean.
        n: Number of latents.
        generator: Source of randomness.
    """
    d = centred.shape[1]
    noise = _unit(torch.randn((n, d), generator=generator))
    if name == "random":
        return noise
    points = _unit(centred)
    repeats = -(-n // len(points))
    order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(repeats)])[:n]
    chosen = points[order]
    if name == "data":
        return _unit(0.8 * chosen + 0.2 * noise)
    return spherical_kmeans(points, _unit(0.95 * chosen + 0.05 * noise))


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
