"""Sparse encoder and decoder with gradients: one dense product finds a row's K latents, the rest works on those K.

For row t with latents S_t: u_t = sum_{i in S_t} z_ti d_i + b. With G_t = dL/du_t:
dD_i = sum_t z_ti G_t, dz_ti = <G_t, d_i> where z_ti > 0, dW_i = sum_t dz_ti x_t, dc_i = sum_t dz_ti.

Every weighted sum over latents or over rows is an `embedding_bag`: it reads B K vectors and materialises none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Where embedding_bag sums with weights, forwards and backwards; elsewhere scattered dense products do the same.
_WITH_BAGS = ("cpu", "cuda")
# Pre-activations held at a time (128 MB in float32): wide enough for GEMM, whatever the dictionary's width.
_TILE_ELEMENTS = 2**25


def largest(a: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest of each row of (B, n) and their indices, (B, k) each, largest first: a faster exact topk.

    A row is cut into m groups. An entry among the k largest lies in one of the k groups with the largest maxima, so
    one selection of k in n becomes two: of k in m maxima, and of k in the k n/m entries of those groups. It is faster
    on CPUs, where a selection costs by the entry.
    """
    batch, n = a.shape
    group = 2 ** round(math.log2(max(1.0, math.sqrt(n / max(1, k)))))
    if a.device.type != "cpu" or group < 2 or n % group or batch == 0:
        top = a.topk(k, dim=1)
        return top.values, top.indices
    groups = n // group
    # Members of a group lie `groups` apart: the maxima are then taken over whole vectors.
    chosen = a.view(batch, group, groups).amax(dim=1).topk(k, dim=1, sorted=False).indices
    members = torch.arange(0, n, groups, device=a.device).view(1, group, 1)
    candidates = (chosen.unsqueeze(1) + members).view(batch, group * k)
    top = a.gather(1, candidates).topk(k, dim=1)
    return top.values, candidates.gather(1, top.indices)


def accumulate_rows(indices: Tensor, values: Tensor, rows: Tensor, n: int, places: Tensor | None = None) -> Tensor:
    """Returns (n, d) sums `out_i = sum_tj values_tj rows_t` over the places where `indices_tj == i`.

    `indices` and `values` are (B, K), `rows` is (B, d). With `places`, also (B, K), `rows` is (R, d), and each entry
    takes the row that `places` gives.
    """
    k = indices.shape[1]
    flat, weights = indices.reshape(-1), values.reshape(-1)
    if rows.device.type not in _WITH_BAGS:
        own_rows = torch.arange(len(indices), device=indices.device).unsqueeze(1).expand(indices.shape)
        rows_of = own_rows if places is None else places
        dense = torch.zeros(n * len(rows), dtype=values.dtype, device=values.device)
        dense.scatter_add_(0, flat * len(rows) + rows_of.reshape(-1), weights)
        return dense.view(n, len(rows)) @ rows
    order = flat.to(torch.int32).argsort(stable=True)
    starts = functional.pad(torch.bincount(flat, minlength=n).cumsum(0), (1, 0))
    rows_of = order // max(1, k) if places is None else places.reshape(-1)[order]
    return functional.embedding_bag(
        rows_of, rows, starts, per_sample_weights=weights[order], mode="sum", include_last_offset=True
    )


class SelectedPreactivations(torch.autograd.Function):
    """The K largest entries of W x + c, largest first, and their indices; negative ones pass gradients too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401, D102
        tile = max(1, _TILE_ELEMENTS // max(1, len(W)))
        parts = [largest(functional.linear(some, W, c), k) for some in torch.split(x, tile)]
        values, indices = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        ctx.save_for_backward(x, indices)
        ctx.n = len(W)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401, D102
        x, indices = ctx.saved_tensors
        da = gradients[0]
        dW = accumulate_rows(indices, da, x, ctx.n)
        dc = torch.zeros(ctx.n, dtype=da.dtype, device=da.device).scatter_add_(0, indices.reshape(-1), da.reshape(-1))
        # The rows are data: they need no gradient.
        return None, dW, dc, None


class SparseDecode(torch.autograd.Function):
    """(B, S, d) sums of z_i d_i over S consecutive stretches of a row's latents, which end at `ends`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, D: Tensor, ends: tuple[int, ...]) -> Tensor:  # noqa: ANN401, D102
        batch, k = indices.shape
        rows = torch.arange(batch, device=indices.device).unsqueeze(1)
        begins = torch.tensor([0, *ends[:-1]], device=indices.device)
        stretch = (torch.arange(k, device=indices.device).unsqueeze(1) >= begins[1:]).sum(dim=1)
        ctx.save_for_backward(values, indices, D, rows * len(ends) + stretch)
        if D.device.type not in _WITH_BAGS:
            dense = torch.zeros((batch, len(ends), len(D)), dtype=values.dtype, device=values.device)
            places = stretch * len(D) + indices
            return dense.view(batch, len(ends) * len(D)).scatter_(1, places, values).view(dense.shape) @ D
        # Torch's own graph holds the products with selected rows that the backward needs.
        with torch.enable_grad():
            ctx.weights = values.detach().reshape(-1).requires_grad_()
            ctx.sums = functional.embedding_bag(
                indices.reshape(-1),
                D.detach().requires_grad_(),
                (rows * k + begins).reshape(-1),
                per_sample_weights=ctx.weights,
                mode="sum",
            )
        sums: Tensor = ctx.sums.detach().view(batch, len(ends), D.shape[1])
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401, D102
        values, indices, D, places = ctx.saved_tensors
        G = gradients[0].reshape(-1, D.shape[1])
        if D.device.type not in _WITH_BAGS:
            dz = (G @ D.T).view(-1).gather(0, (places * len(D) + indices).view(-1))
        else:
            (dz,) = torch.autograd.grad(ctx.sums, ctx.weights, G, retain_graph=True)
        return dz.view(values.shape), None, accumulate_rows(indices, values, G, len(D), places), None


def sparse_encode(x: Tensor, W: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Code relu(TopK(W x + c)) of (B, d) rows: values and indices, (B, k), largest first; gradients reach W and c."""
    values, indices = SelectedPreactivations.apply(x, W, c, k)  # type: ignore[no-untyped-call]
    return values.relu(), indices


def sparse_decode_prefixes(values: Tensor, indices: Tensor, D: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Returns (B, d) reconstructions from the first `length` latents of each row, for each length, in one pass.

    `values` and `indices` are (B, K), `D` is (n, d). Gradients reach `values` and `D`.

    Raises:
        ValueError: `lengths` is empty or does not ascend from 1 to K at most.
    """
    if not lengths or [*lengths] != sorted({*lengths}) or lengths[0] < 1 or lengths[-1] > indices.shape[1]:
        raise ValueError(f"lengths = {[*lengths]}: expected ascending numbers from 1 to {indices.shape[1]}.")
    longest = lengths[-1]
    values, indices = values[:, :longest], indices[:, :longest]
    stretches: Tensor = SparseDecode.apply(values, indices, D, tuple(lengths))  # type: ignore[no-untyped-call]
    return list(itertools.accumulate(stretches.unbind(1), torch.add))
