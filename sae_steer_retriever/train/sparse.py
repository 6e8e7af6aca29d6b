"""The sparse step: one dense product per row to find its latents, and work on K of them everywhere else.

For row t with latents S_t: u_t = sum_{i in S_t} z_ti d_i + b. With G_t = dL/du_t:
dD_i = sum_t z_ti G_t, dz_ti = <G_t, d_i> where z_ti > 0, dW_i = sum_t dz_ti x_t, dc_i = sum_t dz_ti.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# A scattered dense product beats a sparse one while the dictionary is this many times wider than a code: it runs at
# the speed of GEMM, the sparse one at the speed of memory.
_DENSE_UP_TO = 96
# Gathered decoder rows of a tile stay within the cache's reach.
_TILE_ELEMENTS = 2**22


def accumulate_rows(indices: Tensor, values: Tensor, rows: Tensor, n: int) -> Tensor:
    """(n, d) sums `out_i = sum_t values_ti rows_t` over the places where `indices_ti == i`.

    Args:
        indices: (B, K) int64.
        values: (B, K).
        rows: (B, d).
        n: Number of sums.
    """
    batch, k = indices.shape
    if n <= _DENSE_UP_TO * k:
        dense = torch.zeros((batch, n), dtype=values.dtype, device=values.device).scatter_(1, indices, values)
        return dense.T @ rows
    flat = indices.reshape(-1)
    order = torch.argsort(flat, stable=True)
    starts = torch.zeros(n + 1, dtype=torch.int64, device=flat.device)
    starts[1:] = torch.bincount(flat, minlength=n).cumsum(0)
    by_latent = torch.sparse_csr_tensor(
        starts, order // k, values.reshape(-1)[order], size=(n, batch), check_invariants=False
    )
    return by_latent @ rows


def selected_products(rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """(B, K) dot products `<rows_t, table_{indices_ti}>`.

    Args:
        rows: (B, d).
        table: (n, d).
        indices: (B, K) int64.
    """
    batch, k = indices.shape
    n, d = table.shape
    if n <= _DENSE_UP_TO * k:
        return (rows @ table.T).gather(1, indices)
    out = torch.empty((batch, k), dtype=rows.dtype, device=rows.device)
    tile = max(1, _TILE_ELEMENTS // (k * d))
    for start in range(0, batch, tile):
        part = slice(start, start + tile)
        torch.bmm(table[indices[part]], rows[part].unsqueeze(2), out=out[part].unsqueeze(2))
    return out


class SparseEncode(torch.autograd.Function):
    """z = relu(TopK(W x + c)): values and indices of the K largest pre-activations, largest first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401, D102
        top = functional.linear(x, W, c).topk(k, dim=1)
        values = top.values.relu()
        ctx.save_for_backward(x, top.indices, values)
        ctx.n = len(W)
        ctx.mark_non_differentiable(top.indices)
        return values, top.indices

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401, D102
        x, indices, values = ctx.saved_tensors
        dz = gradients[0] * (values > 0)
        dW = accumulate_rows(indices, dz, x, ctx.n)
        dc = torch.zeros(ctx.n, dtype=dz.dtype, device=dz.device).index_add_(0, indices.reshape(-1), dz.reshape(-1))
        # The rows are data: they need no gradient.
        return None, dW, dc, None


class SparseDecode(torch.autograd.Function):
    """u = sum_i z_i d_i over a row's own latents."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, D: Tensor) -> Tensor:  # noqa: ANN401, D102
        ctx.save_for_backward(values, indices, D)
        return functional.embedding_bag(indices, D, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401, D102
        values, indices, D = ctx.saved_tensors
        G = gradients[0].contiguous()
        return selected_products(G, D, indices), None, accumulate_rows(indices, values, G, len(D))


def sparse_encode(x: Tensor, W: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices, (B, k) each; gradients reach `W` and `c`."""
    values, indices = SparseEncode.apply(x, W, c, k)  # type: ignore[no-untyped-call]
    return values, indices


def sparse_decode(values: Tensor, indices: Tensor, D: Tensor) -> Tensor:
    """(B, d) reconstructions; gradients reach `values` and `D`."""
    out: Tensor = SparseDecode.apply(values, indices, D)  # type: ignore[no-untyped-call]
    return out
