"""Unit directions without a fit: at random, near data points, or the centres of spherical k-means."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_steer_retriever.sae.codes import Array

_ITERATIONS = 12
_TILE = 4096
# Scores of points against centres in memory at once: 256 MiB, which up to 16,384 centres is a whole tile.
_SCORES = 2**26
# Points of a k-means, per centre and at least: more would only make it slower.
_POINTS_PER_CENTRE, _POINTS = 8, 65_536
# Points from which the first centres are drawn, and how many are tried for each centre.
_SEEDS_FROM, _CANDIDATES = 32_768, 6
# Shares of noise: points that are drawn twice separate, and k-means does not start with two equal centres.
_NOISE_OF_DATA, _NOISE_OF_CENTRES = 0.2, 0.05


def random_directions(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Returns (n, d) unit rows in Gaussian directions."""
    return _unit(torch.randn((n, d), generator=generator))


def data_directions(centred: Tensor, n: int, generator: torch.Generator, noise: float = _NOISE_OF_DATA) -> Tensor:
    """Returns (n, d) unit rows near data points; no point is drawn twice before every point is drawn once.

    `centred` are (N, d) embeddings less their mean; `noise` is the share of a random direction in each row.
    """
    added = random_directions(n, centred.shape[1], generator)
    repeats = -(-n // len(centred))
    order = torch.cat([torch.randperm(len(centred), generator=generator) for _ in range(repeats)])[:n]
    return _unit((1 - noise) * _unit(centred[order]) + noise * added)


def kmeans_directions(centred: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Returns (n, d) unit rows: the centres of spherical k-means, started by k-means++.

    `centred` are (N, d) embeddings less their mean; of more than 65,536, or 8 n, a sample is taken.
    """
    points = _unit(_sampled(centred, max(_POINTS, _POINTS_PER_CENTRE * n), generator))
    seeds = spread_points(_sampled(points, max(_SEEDS_FROM, n), generator), n, generator)
    noise = random_directions(n, centred.shape[1], generator)  # no two centres may start equal
    return spherical_kmeans(points, _unit((1 - _NOISE_OF_CENTRES) * seeds + _NOISE_OF_CENTRES * noise))


def spread_points(points: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Returns n of the (N, d) unit points, far from each other, (n, d): greedy k-means++ by cosine.

    For each next one, six candidates are drawn with probabilities proportional to 1 - cosine with the nearest chosen
    point, and the one that brings all points nearest is chosen. k-means that starts from these finds the same centres
    on other text more often than k-means that starts from evenly drawn points. Points repeat once all are taken.
    """
    chosen = torch.empty(n, dtype=torch.int64)
    chosen[0] = torch.randint(len(points), (1,), generator=generator)
    nearest = points @ points[chosen[0]]
    for number in range(1, n):
        distance = (1 - nearest).clamp_min(1e-6)
        drawn = torch.multinomial(distance, _CANDIDATES, replacement=True, generator=generator)
        after = torch.maximum(nearest[:, None], points @ points[drawn].T)
        best = int(after.sum(dim=0).argmax())
        chosen[number], nearest = drawn[best], after[:, best].contiguous()
    return points[chosen]


def _sampled(rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    return rows if len(rows) <= most else rows[torch.randperm(len(rows), generator=generator)[:most]]


def spherical_kmeans(points: Tensor, centres: Tensor) -> Tensor:
    """Returns (n, d) centres that maximise the sum of cosines with (N, d) unit points, from (n, d) unit rows.

    An empty cluster takes the point that fits worst.
    """
    n = len(centres)
    for _ in range(_ITERATIONS):
        fit, nearest = _nearest_rows(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        empty = torch.nonzero(torch.bincount(nearest, minlength=n) == 0).reshape(-1)
        if len(empty):
            worst = torch.argsort(fit, stable=True)[: len(empty)]
            sums[empty[: len(worst)]] = points[worst]
        centres = _unit(sums)
    return centres


def _nearest_rows(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """For each of N points, the largest dot product with one of n rows and that row's number, (N,) each."""
    tile = max(1, min(_TILE, _SCORES // len(rows)))
    best = [(part @ rows.T).max(dim=1) for part in torch.split(points, tile)]
    return torch.cat([found.values for found in best]), torch.cat([found.indices for found in best])


def unit_rows(rows: NDArray[Any]) -> Array:
    """Returns rows divided by their norms; a row of zeros stays as it is."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)


def _unit(rows: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(1e-8)
