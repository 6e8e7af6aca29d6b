"""Refinement of codes by iterative hard thresholding.

A linear encoder computes a code in one product. On unseen queries its codes lose one and a half to three times as much
variance as the decoder's best codes. A few gradient steps on the squared error, each followed by TopK, recover most of
that with the same decoder.

Steps over the whole decoder would take most of a query's encoding time. Steps among the few hundred latents that the
encoder ranks first take little, and most of that is the overhead of tensor calls. So few rows take their steps one by
one on NumPy arrays, and many rows take them together on tensors.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import functional

_LONGEST_STEP = 3.0
_SHORTEST = 1e-6

_Rows = TypeVar("_Rows", "_Together", "_Alone")


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
    # Copies of many rows' directions would be larger than the decoder: one product with all of it is faster then.
    if candidates is None or candidates.numel() > len(decoder) or x.device.type != "cpu":
        together = _Together(x, decoder, candidates)
        places, values = _descend(together, together.places(indices), values, steps)
        return together.latents(places), values
    found, refined = torch.empty_like(indices), torch.empty_like(values)
    first = np.arange(indices.shape[1])
    for row, own in enumerate(candidates):
        chosen, active = _descend(_Alone(x[row], decoder, own), first, values[row].numpy(), steps)
        found[row], refined[row] = own.take(torch.from_numpy(chosen)), torch.from_numpy(active)
    return found, refined


def dots(directions: NDArray[Any], vector: NDArray[Any]) -> NDArray[Any]:
    """Returns (M,) dot products of (M, d) directions with a (d,) vector, one after the other.

    A matrix product may wake the BLAS library's threads. If the cores have other work, waiting for these takes several
    times as long as the product.
    """
    products: NDArray[Any] = directions[:, None, :] @ vector[:, None]
    return products[:, 0, 0]


def _descend(rows: _Rows, places: Any, values: Any, steps: int) -> tuple[Any, Any]:
    """Takes the steps, for many rows (tensors) or for one (arrays without the first axis, B)."""
    residual = rows.x - rows.decode(places, values)
    error = rows.norm(residual)
    share = error**0  # ones, of either type of array
    for _ in range(steps):
        gradient = rows.matches(residual)
        present = rows.at(gradient, places)
        length = rows.within(rows.norm(rows.decode(places, present)), _SHORTEST, math.inf)
        step = rows.within((rows.norm(present) / length) ** 2, 0.0, _LONGEST_STEP) * share
        tried_places, tried = rows.move(places, values, gradient, step)
        left = rows.x - rows.decode(tried_places, tried)
        lost = rows.norm(left)
        better = lost < error
        places, values = rows.choose(better, tried_places, places), rows.choose(better, tried, values)
        residual, error = rows.choose(better, left, residual), rows.choose(better, lost, error)
        share = rows.choose(better, share, share / 2)
    return rows.order(rows.matches_of(places), places, values)


class _Together:
    """Rows as tensors: one product of all of them with all directions.

    A place is the position of a latent among the M candidates of its row.
    """

    def __init__(self, x: Tensor, decoder: Tensor, candidates: Tensor | None) -> None:
        self.x, self._decoder, self._candidates = x, decoder, candidates

    def places(self, first: Tensor) -> Tensor:
        """The places of a row's first candidates; if all latents are candidates, their ids."""
        if self._candidates is None:
            return first
        return torch.arange(first.shape[1], device=first.device).expand_as(first)

    def latents(self, places: Tensor) -> Tensor:
        return places if self._candidates is None else self._candidates.gather(1, places)

    def decode(self, places: Tensor, values: Tensor) -> Tensor:
        """`decoder^T h`, (B, d)."""
        return functional.embedding_bag(self.latents(places), self._decoder, per_sample_weights=values, mode="sum")

    def matches(self, residual: Tensor) -> Tensor:
        """`<decoder_i, residual>`, (B, M), a new array."""
        every = residual @ self._decoder.T
        return every if self._candidates is None else every.gather(1, self._candidates)

    def matches_of(self, places: Tensor) -> Tensor:
        """`<decoder_i, x>` at some places, (B, K)."""
        if places.numel() > len(self._decoder):
            return self.at(self.matches(self.x), places)
        return torch.bmm(functional.embedding(self.latents(places), self._decoder), self.x[:, :, None])[:, :, 0]

    def at(self, matches: Tensor, places: Tensor) -> Tensor:
        return matches.gather(1, places)

    def norm(self, vectors: Tensor) -> Tensor:
        norms: Tensor = vector_norm(vectors, dim=1)
        return norms

    def within(self, numbers: Tensor, low: float, high: float) -> Tensor:
        return numbers.clamp(low, high)

    def move(self, places: Tensor, values: Tensor, gradient: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """`TopK(h + step gradient)`, places and values, (B, K) each; `gradient` is overwritten."""
        top = gradient.mul_(step[:, None]).scatter_add_(1, places, values).topk(values.shape[1], dim=1)
        return top.indices, top.values.relu_()

    def choose(self, better: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(better if new.ndim == 1 else better[:, None], new, old)

    def order(self, by: Tensor, places: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A code, the highest first and empty places last."""
        order = by.masked_fill(values <= 0, -torch.inf).argsort(dim=1, descending=True, stable=True)
        return places.gather(1, order), values.gather(1, order)


class _Alone:
    """One row as NumPy arrays, with a copy of its candidates' directions that fits in the processor's cache."""

    def __init__(self, x: Tensor, decoder: Tensor, candidates: Tensor) -> None:
        self.x: NDArray[Any] = x.numpy()
        self._own: NDArray[Any] = decoder.numpy().take(candidates.numpy(), 0)
        self._present: tuple[NDArray[Any], NDArray[Any]] | None = None

    def decode(self, places: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        reached: NDArray[Any] = values @ self._directions(places)
        return reached

    def matches(self, residual: NDArray[Any]) -> NDArray[Any]:
        return dots(self._own, residual)

    def matches_of(self, places: NDArray[Any]) -> NDArray[Any]:
        return dots(self._directions(places), self.x)

    def at(self, matches: NDArray[Any], places: NDArray[Any]) -> NDArray[Any]:
        return matches.take(places)

    def norm(self, vectors: NDArray[Any]) -> Any:
        return math.sqrt(vectors.dot(vectors))

    def within(self, numbers: Any, low: float, high: float) -> Any:
        return min(max(numbers, low), high)

    def move(
        self, places: NDArray[Any], values: NDArray[Any], gradient: NDArray[Any], step: Any
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        gradient *= step
        gradient[places] += values
        top = gradient.argpartition(len(gradient) - len(places))[-len(places) :]
        return top, np.maximum(gradient.take(top), 0)

    def choose(self, better: Any, new: Any, old: Any) -> Any:
        return new if better else old

    def order(self, by: NDArray[Any], places: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        order = np.where(values > 0, -by, np.inf).argsort(kind="stable")
        return places[order], values[order]

    def _directions(self, places: NDArray[Any]) -> NDArray[Any]:
        if self._present is None or self._present[0] is not places:  # the next step mostly starts where this one ends
            self._present = places, self._own.take(places, 0)
        return self._present[1]
