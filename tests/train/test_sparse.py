"""The sparse step against dense autograd in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_steer_retriever.train import sparse_kernels as sparse
from sae_steer_retriever.train.sparse_kernels import (
    SelectedPreactivations,
    accumulate_rows,
    largest,
    sparse_decode_prefixes,
    sparse_encode,
)

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["bags", "scattered"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sums as on CPU and CUDA, and as on devices whose embedding_bag takes no weights."""
    if request.param == "scattered":
        monkeypatch.setattr(sparse, "_WITH_BAGS", ())
    return str(request.param)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of a few rows, as if the dictionary were very wide."""
    monkeypatch.setattr(sparse, "_TILE_ELEMENTS", 50)


def dense_forward(x: Tensor, W: Tensor, c: Tensor, D: Tensor, k: int, lengths: tuple[int, ...] = ()) -> list[Tensor]:
    """The same function with dense codes, the way it is written on paper: reconstructions at each length."""
    pre = x @ W.T + c
    top = pre.topk(k, dim=1)
    z = torch.zeros_like(pre)
    return [z.scatter(1, top.indices[:, :length], top.values[:, :length].relu()) @ D for length in lengths or (k,)]


def problem(seed: int, batch: int, n: int, d: int, shift: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random parameters in float64; a negative shift leaves rows with fewer than K positive latents."""
    generator = torch.Generator().manual_seed(seed)
    x, W, D = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((batch, d), (n, d), (n, d)))
    c = torch.randn(n, generator=generator, dtype=torch.float64) + shift
    target = torch.randn((batch, d), generator=generator, dtype=torch.float64)
    for parameter in (W, c, D):
        parameter.requires_grad_()
    return x, W, c, D, target


def sparse_decode(values: Tensor, indices: Tensor, D: Tensor) -> Tensor:
    """Reconstructions from whole codes."""
    return sparse_decode_prefixes(values, indices, D, (indices.shape[1],))[0]


def selected_preactivations(x: Tensor, W: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = SelectedPreactivations.apply(x, W, c, k)  # type: ignore[no-untyped-call]
    return values, indices


def gradients(loss: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, parameters)


@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(0, 9),
    n=st.sampled_from([4, 7, 40, 64]),
    k=st.integers(1, 4),
    shift=st.sampled_from([0.0, -2.0, -20.0]),
)
@quick
def test_gradients_equal_dense_autograd(way: str, seed: int, batch: int, n: int, k: int, shift: float) -> None:
    """Also where latents are negative, where all n are active, and where there are no rows."""
    x, W, c, D, target = problem(seed, batch, n, 6, shift)
    (expected,) = dense_forward(x, W, c, D, k)
    found = sparse_decode(*sparse_encode(x, W, c, k), D)
    torch.testing.assert_close(found, expected)
    wanted = gradients((expected - target).square().sum(), W, c, D)
    got = gradients((found - target).square().sum(), W, c, D)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_tiles_change_nothing(way: str, small_tiles: None) -> None:
    """A batch that is encoded a few rows at a time has the gradients of the whole."""
    x, W, c, D, target = problem(1, 11, 20, 6, 0.0)
    (expected,) = dense_forward(x, W, c, D, 3)
    found = sparse_decode(*sparse_encode(x, W, c, 3), D)
    wanted = gradients((expected - target).square().sum(), W, c, D)
    torch.testing.assert_close(gradients((found - target).square().sum(), W, c, D), wanted)


@pytest.mark.parametrize("lengths", [(3,), (1, 3), (2, 3, 12)], ids=str)
def test_gradcheck(way: str, lengths: tuple[int, ...]) -> None:
    """Finite differences agree, away from ties and from the kink of the relu, at one length and at several."""
    x, W, c, D, _ = problem(3, 4, 12, 5, 0.0)
    k = lengths[-1]

    def reconstructions(*p: Tensor) -> tuple[Tensor, ...]:
        return tuple(sparse_decode_prefixes(*sparse_encode(x, p[0], p[1], k), p[2], lengths))

    assert torch.autograd.gradcheck(reconstructions, (W, c, D))


@pytest.mark.parametrize("shift", [0.0, -2.0])
@pytest.mark.parametrize("lengths", [(2, 6), (1, 2, 5), (6,)], ids=str)
def test_readings_of_one_code(way: str, lengths: tuple[int, ...], shift: float) -> None:
    """A loss on the first latents and on all of them reaches every parameter as dense autograd has it."""
    x, W, c, D, target = problem(5, 7, 20, 6, shift)
    expected = dense_forward(x, W, c, D, 6, lengths)
    found = sparse_decode_prefixes(*sparse_encode(x, W, c, 6), D, lengths)
    torch.testing.assert_close(found, expected)
    wanted, got = (
        gradients(torch.stack([(part - target).pow(2 + 2 * i).sum() for i, part in enumerate(parts)]).sum(), W, c, D)
        for parts in (expected, found)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("lengths", [(), (0, 6), (2, 2), (3, 2), (2, 7)], ids=str)
def test_lengths_that_are_no_prefixes_are_refused(lengths: tuple[int, ...]) -> None:
    """The message says what was given and what would do."""
    x, W, c, D, _ = problem(5, 7, 20, 6, 0.0)
    with pytest.raises(ValueError, match="expected ascending numbers from 1 to 6"):
        sparse_decode_prefixes(*sparse_encode(x, W, c, 6), D, lengths)


def test_a_loss_on_what_has_not_fired_reaches_the_encoder(way: str) -> None:
    """Pre-activations keep the gradient that a relu would drop, beside a loss on the reconstruction."""
    x, W, c, D, target = problem(7, 6, 20, 5, -3.0)
    pre, indices = selected_preactivations(x, W, c, 8)
    assert (pre < 0).any()
    assert (pre > 0).any()
    loss = (sparse_decode(pre.relu(), indices, D) - target).square().sum() + (1 - pre).square().sum()
    top = (x @ W.T + c).topk(8, dim=1)
    torch.testing.assert_close((pre, indices), (top.values, top.indices))
    (dense,) = dense_forward(x, W, c, D, 8)
    expected = (dense - target).square().sum() + (1 - top.values).square().sum()
    torch.testing.assert_close(gradients(loss, W, c, D), gradients(expected, W, c, D))
    reaches = gradients((1 - selected_preactivations(x, W, c - 100, 8)[0]).sum(), W)[0]
    assert reaches.abs().sum() > 0


@given(seed=st.integers(0, 10**6), batch=st.integers(0, 20), n=st.integers(2, 300), k=st.integers(1, 2))
@quick
def test_sums_by_hand(way: str, seed: int, batch: int, n: int, k: int) -> None:
    """Each sum over the entries of a latent, also where no row has it."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.cat([torch.randperm(n, generator=generator)[None, :k] for _ in range(batch)] or [torch.zeros(0, k)])
    indices = indices.long()
    values = torch.randn((batch, k), generator=generator, dtype=torch.float64)
    rows = torch.randn((batch, 4), generator=generator, dtype=torch.float64)
    sums = torch.zeros((n, 4), dtype=torch.float64)
    for t in range(batch):
        for j in range(k):
            sums[indices[t, j]] += values[t, j] * rows[t]
    torch.testing.assert_close(accumulate_rows(indices, values, rows, n), sums)


@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(0, 5),
    n=st.sampled_from([1, 2, 6, 63, 64, 200, 256, 1000, 1024]),
    k=st.integers(1, 70),
    levels=st.sampled_from([1, 3, 1000]),
)
@quick
def test_the_largest_are_the_largest(seed: int, batch: int, n: int, k: int, levels: int) -> None:
    """Values as torch's topk has them, ties and minus infinity included, at distinct places that hold them."""
    k = min(k, n)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(0, levels, (batch, n), generator=generator).float() - 1
    a[a == -1] = -torch.inf
    values, indices = largest(a, k)
    torch.testing.assert_close(values, a.topk(k, dim=1).values, rtol=0, atol=0)
    torch.testing.assert_close(a.gather(1, indices), values, rtol=0, atol=0)
    assert all(len(set(row)) == k for row in indices.tolist())
