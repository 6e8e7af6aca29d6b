"""The sparse step against dense autograd in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_steer_retriever.train import sparse
from sae_steer_retriever.train.sparse import accumulate_rows, selected_products, sparse_decode, sparse_encode


def dense_forward(x: Tensor, W: Tensor, c: Tensor, D: Tensor, k: int) -> Tensor:
    """The same function with dense codes, the way it is written on paper."""
    pre = x @ W.T + c
    top = pre.topk(k, dim=1)
    z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    return z @ D


def problem(seed: int, batch: int, n: int, d: int, shift: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random parameters in float64; a negative shift leaves rows with fewer than K positive latents."""
    generator = torch.Generator().manual_seed(seed)
    x, W, D = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((batch, d), (n, d), (n, d)))
    c = torch.randn(n, generator=generator, dtype=torch.float64) + shift
    target = torch.randn((batch, d), generator=generator, dtype=torch.float64)
    for parameter in (W, c, D):
        parameter.requires_grad_()
    return x, W, c, D, target


@pytest.mark.parametrize("dense_up_to", [0, 10**6], ids=["sparse", "scattered"])
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 9),
    n=st.integers(4, 40),
    k=st.integers(1, 4),
    shift=st.sampled_from([0.0, -2.0, -20.0]),
)
@settings(max_examples=40, deadline=None)
def test_gradients_equal_dense_autograd(dense_up_to: int, seed: int, batch: int, n: int, k: int, shift: float) -> None:
    """Both ways of summing give the gradients of the dense function, also where latents are negative."""
    x, W, c, D, target = problem(seed, batch, n, 6, shift)
    (dense_forward(x, W, c, D, k) - target).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in (W, c, D) if parameter.grad is not None]
    for parameter in (W, c, D):
        parameter.grad = None
    before = sparse._DENSE_UP_TO
    sparse._DENSE_UP_TO = dense_up_to
    try:
        values, indices = sparse_encode(x, W, c, k)
        loss = (sparse_decode(values, indices, D) - target).square().sum()
        loss.backward()
    finally:
        sparse._DENSE_UP_TO = before
    for parameter, gradient in zip((W, c, D), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-9)


def test_gradcheck() -> None:
    """Finite differences agree, away from ties and from the kink of the relu."""
    x, W, c, D, _ = problem(3, 4, 12, 5, 0.0)
    assert torch.autograd.gradcheck(lambda *p: sparse_decode(*sparse_encode(x, p[0], p[1], 3), p[2]), (W, c, D))


def test_two_readings_of_one_code() -> None:
    """A loss on the first latents and on all of them reaches every parameter as dense autograd has it."""
    x, W, c, D, target = problem(5, 7, 20, 6, 0.0)
    loss = sum((dense_forward(x, W, c, D, k) - target).square().sum() for k in (2, 6))
    assert isinstance(loss, Tensor)
    loss.backward()
    expected = [parameter.grad.clone() for parameter in (W, c, D) if parameter.grad is not None]
    for parameter in (W, c, D):
        parameter.grad = None
    values, indices = sparse_encode(x, W, c, 6)
    parts = [sparse_decode(values[:, :k].contiguous(), indices[:, :k].contiguous(), D) for k in (2, 6)]
    torch.stack([(part - target).square().sum() for part in parts]).sum().backward()
    for parameter, gradient in zip((W, c, D), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@given(seed=st.integers(0, 10**6), batch=st.integers(1, 20), n=st.integers(2, 300), k=st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_sums_and_products_by_hand(seed: int, batch: int, n: int, k: int) -> None:
    """Narrow and wide dictionaries take different ways to the same sums."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(batch)])
    values = torch.randn((batch, k), generator=generator, dtype=torch.float64)
    rows = torch.randn((batch, 4), generator=generator, dtype=torch.float64)
    table = torch.randn((n, 4), generator=generator, dtype=torch.float64)
    sums = torch.zeros((n, 4), dtype=torch.float64)
    for t in range(batch):
        for j in range(k):
            sums[indices[t, j]] += values[t, j] * rows[t]
    torch.testing.assert_close(accumulate_rows(indices, values, rows, n), sums)
    expected = torch.stack([table[indices[t]] @ rows[t] for t in range(batch)])
    torch.testing.assert_close(selected_products(rows, table, indices), expected)
