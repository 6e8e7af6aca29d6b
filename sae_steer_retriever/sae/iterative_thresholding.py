"""Refinement of codes by iterative hard thresholding.

A linear encoder computes a code in one product. On unseen queries its codes lose one and a half to three times as much
variance as the decoder's best codes. A few gradient steps on the squared error, each followed by TopK, recover most of
that with the same decoder.

A step costs the product of a row's residual with its candidates' directions. A few hundred directions fit into a core's
cache, and all of a large dictionary do not. So few rows take their steps one by one on NumPy arrays, each on a copy of
its own directions, and wait for no other core. Many rows take them together on tensors, with one product on all cores.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

FEW_ROWS = 32
"""Rows whose products one core computes sooner than several, which have to be woken up."""

_LONGEST_STEP = 3.0
_SHORTEST = 1e-12
# Candidates of all rows together, up to which one core takes the steps sooner than several.
_FEW_CANDIDATES = 16_384
# Numbers in a matrix up to which BLAS libraries multiply it on the calling thread.
_ON_ONE_CORE = 8192
# How many more directions a core multiplies in the time of a row's own, if many rows share the product.
_SHARED = 8


@torch.no_grad()
def refine(
    x: Tensor, decoder: Tensor, indices: Tensor, values: Tensor, steps: int, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns codes of at most K positive latents with a lower error `|x - decoder^T h|^2` than the given ones.

    `h <- TopK(h + mu decoder (x - decoder^T h))`, normalised iterative hard thresholding (Blumensath & Davies,
    IEEE J. Sel. Topics Signal Process. 4(2), 2010): mu is the best step along the gradient on the present latents. A
    row keeps a step only if its error falls, and otherwise tries half of it, which coherent decoders need.

    Latents are ordered by `<decoder_i, x>`, so that the first ones, the label latents, point to x itself. Some latents
    only correct others: they may have large values and say nothing about x.

    Args:
        x: (B, d) rows less the decoder's bias.
        decoder: (n, d), unit rows.
        indices: (B, K) int64, the latents to start from.
        values: (B, K), >= 0.
        steps: Number of steps; each costs one product of every row with its candidates.
        candidates: (B, M) int64, the latents that a row's code may have, each once and `indices` first; all if None.

    Returns:
        Indices and values, (B, K) each; empty places come last.
    """
    if x.device.type != "cpu" or _share_product(len(x), len(decoder), candidates):
        return _refine_together(x, decoder, indices, values, steps, candidates)
    found, refined = np.empty(indices.shape, np.int64), np.empty(values.shape, np.float32)
    every, first = decoder.numpy(), np.arange(indices.shape[1])
    directions = every if candidates is None else np.empty((candidates.shape[1], x.shape[1]), np.float32)
    for row, (vector, start) in enumerate(zip(x.numpy(), values.numpy(), strict=True)):
        if candidates is None:
            found[row], refined[row] = _refine_row(vector, directions, indices[row].numpy(), start, steps)
            continue
        own = candidates[row].numpy()
        every.take(own, 0, out=directions, mode="clip")  # other modes copy twice
        places, refined[row] = _refine_row(vector, directions, first, start, steps)
        found[row] = own.take(places)
    return torch.from_numpy(found), torch.from_numpy(refined)


def products(rows: NDArray[Any], directions: NDArray[Any]) -> NDArray[Any]:
    """Returns (B, n) dot products of up to `FEW_ROWS` rows, (B, d), with (n, d) directions, on one core.

    A large product wakes the BLAS library's threads. If the cores have other work, waiting for these takes many times
    as long as the product. Small ones, one after the other, wake none.
    """
    n, d = directions.shape
    blocks: NDArray[Any] = rows @ directions.reshape(-1, _block(n, d), d).transpose(0, 2, 1)
    return blocks.transpose(1, 0, 2).reshape(len(rows), n)


def _combine(values: NDArray[Any], directions: NDArray[Any]) -> NDArray[Any]:
    """`directions^T values`, (d,), on one core."""
    k, d = directions.shape
    blocks: NDArray[Any] = values @ directions.reshape(k, -1, _block(d, k)).transpose(1, 0, 2)
    return blocks.reshape(d)


@cache
def _block(length: int, width: int) -> int:
    """The length of equal blocks, `width` wide, that are multiplied on one core."""
    return math.gcd(length, 2 ** int(math.log2(max(_ON_ONE_CORE // width, 1))))


def _share_product(rows: int, n: int, candidates: Tensor | None) -> bool:
    among = n if candidates is None else candidates.shape[1]
    return rows * among > _FEW_CANDIDATES and n <= _SHARED * among * torch.get_num_threads()


def _refine_row(
    x: NDArray[Any], directions: NDArray[Any], places: NDArray[Any], values: NDArray[Any], steps: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Refines one code: the places of its latents among the (M, d) directions of the candidates, and values."""
    m, k = len(directions), len(values)
    own = directions.take(places, 0)
    residual = x - _combine(values, own)
    error, share = residual.dot(residual), 1.0
    for _ in range(steps):
        gradient = products(residual[None], directions)[0]
        present = gradient.take(places)
        reached = _combine(present, own)
        gradient *= min(present.dot(present) / max(reached.dot(reached), _SHORTEST), _LONGEST_STEP) * share
        gradient[places] += values
        tried_places = gradient.argpartition(m - k)[m - k :]
        tried, tried_own = np.maximum(gradient.take(tried_places), 0), directions.take(tried_places, 0)
        left = x - _combine(tried, tried_own)
        lost = left.dot(left)
        if lost < error:
            places, values, own, residual, error = tried_places, tried, tried_own, left, lost
        else:
            share /= 2
    order = np.where(values > 0, -products(x[None], own)[0], np.inf).argsort(kind="stable")
    return places[order], values[order]


def _refine_together(
    x: Tensor, decoder: Tensor, indices: Tensor, values: Tensor, steps: int, candidates: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Refines the codes of all rows with one product of them and all directions a step."""

    def decode(places: Tensor, values: Tensor) -> Tensor:
        return functional.embedding_bag(latents(places), decoder, per_sample_weights=values, mode="sum")

    def latents(places: Tensor) -> Tensor:
        return places if candidates is None else candidates.gather(1, places)

    def matches(vectors: Tensor) -> Tensor:
        every = vectors @ decoder.T
        return every if candidates is None else every.gather(1, candidates)

    # A place is the position of a latent among its row's candidates.
    places = indices if candidates is None else torch.arange(indices.shape[1], device=x.device).expand_as(indices)
    residual = x - decode(places, values)
    error = residual.square().sum(1, keepdim=True)
    share = torch.ones_like(error)
    for _ in range(steps):
        gradient = matches(residual)
        present = gradient.gather(1, places)
        reached = decode(places, present).square().sum(1, keepdim=True).clamp(min=_SHORTEST)
        step = (present.square().sum(1, keepdim=True) / reached).clamp(max=_LONGEST_STEP) * share
        top = gradient.mul_(step).scatter_add_(1, places, values).topk(values.shape[1], dim=1, sorted=False)
        tried = top.values.relu_()
        left = x - decode(top.indices, tried)
        lost = left.square().sum(1, keepdim=True)
        better = lost < error
        places, values = torch.where(better, top.indices, places), torch.where(better, tried, values)
        residual, error = torch.where(better, left, residual), torch.where(better, lost, error)
        share = torch.where(better, share, share / 2)
    match = matches(x).gather(1, places).masked_fill_(values <= 0, -torch.inf)
    order = match.argsort(dim=1, descending=True, stable=True)
    return latents(places.gather(1, order)), values.gather(1, order)
