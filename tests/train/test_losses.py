"""The losses' stated properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_steer_retriever.train.losses import (
    choose_temperature,
    fraction_unexplained,
    paper_loss,
    printed_kl,
    relative_kl,
    released_kl,
)


def scores(seed: int, queries: int = 6, documents: int = 16) -> torch.Tensor:
    """Random scores of the spread that real lists have."""
    return 0.5 + 0.05 * torch.randn((queries, documents), generator=torch.Generator().manual_seed(seed)).double()


@given(seed=st.integers(0, 10**6), shift=st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_relative_kl_is_zero_for_equal_scores_up_to_a_shift(seed: int, shift: float) -> None:
    """What every document of a list gains alike changes no ranking, and costs nothing; nor has it a gradient."""
    s = scores(seed)
    shifted = (s + shift).requires_grad_()
    loss = relative_kl(s, shifted, 0.04)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert shifted.grad is not None
    assert shifted.grad.abs().max() < 1e-9


def test_relative_kl_is_one_without_information() -> None:
    """Constant scores say nothing about the order: the loss is 1 whatever the temperature."""
    s = scores(1)
    for temperature in (0.02, 0.04, 0.4):
        assert relative_kl(s, torch.zeros_like(s), temperature).item() == pytest.approx(1.0)


def test_relative_kl_does_not_depend_on_the_order_of_documents() -> None:
    """A list is a set."""
    s, t = scores(1), scores(2)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert relative_kl(s, t, 0.04).item() == pytest.approx(relative_kl(s[:, order], t[:, order], 0.04).item())


def test_small_errors_cost_half_their_variance() -> None:
    """KL ~ Var_p(error) / (2 T^2) for small errors."""
    s = scores(3, queries=1)
    error = 1e-4 * torch.randn(s.shape, generator=torch.Generator().manual_seed(9)).double()
    temperature = 0.05
    p = torch.softmax(s / temperature, dim=1)
    variance = ((error - (p * error).sum()) ** 2 * p).sum()
    information = math.log(16) + (p * p.log()).sum()
    expected = variance / (2 * temperature**2) / information
    assert relative_kl(s, s + error, temperature).item() == pytest.approx(expected.item(), rel=1e-2)


def test_fraction_unexplained_is_one_for_the_mean() -> None:
    """Predicting the corpus mean explains nothing; predicting the row explains all."""
    x = torch.randn((500, 8), generator=torch.Generator().manual_seed(0))
    mean = x.mean(dim=0)
    variance = float((x - mean).square().sum(dim=1).mean())
    assert fraction_unexplained(x, mean.expand_as(x), variance).item() == pytest.approx(1, rel=1e-5)
    assert fraction_unexplained(x, x, variance).item() == 0


@given(seed=st.integers(0, 10**6), spread=st.floats(0.01, 0.2))
@settings(max_examples=20, deadline=None)
def test_temperature_reaches_the_target_perplexity(seed: int, spread: float) -> None:
    """Four of sixteen documents count, whatever the spread of the scores."""
    s = spread * torch.randn((64, 16), generator=torch.Generator().manual_seed(seed))
    log_p = torch.log_softmax(s / choose_temperature(s), dim=1)
    assert float((-(log_p.exp() * log_p).sum(dim=1)).exp().median()) == pytest.approx(4, rel=0.02)


def test_paper_loss_by_hand() -> None:
    """Eq. 2 on one query with two documents."""
    q, documents = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    q_hat, documents_hat = torch.tensor([[0.5, 0.0]]), documents
    p = torch.softmax(torch.tensor([1.0, 0.0]), 0)
    p_hat = torch.softmax(torch.tensor([0.5, 0.0]), 0)
    expected = 0.25 / 2 + (p * (p / p_hat).log()).sum().item()
    assert paper_loss(q, q_hat, documents, documents_hat).item() == pytest.approx(expected)
    assert paper_loss(q, q, documents, documents).item() == pytest.approx(0, abs=1e-9)


def test_printed_kl_is_blind_to_a_shift_and_the_released_one_is_not() -> None:
    """Softmax rows sum to one; counting a document's own score twice makes rows that sum to L / (L + 1)."""
    s = scores(4)
    assert printed_kl(s, s + 0.3).item() == pytest.approx(0, abs=1e-12)
    shares = s / math.sqrt(384)
    own_twice = shares.exp() / (shares.exp() + shares.exp().sum(dim=1, keepdim=True))
    assert own_twice.sum(dim=1).numpy() == pytest.approx(16 / 17, rel=1e-4)
    t = scores(5)
    other = (t / math.sqrt(384)).exp()
    other = other / (other + other.sum(dim=1, keepdim=True))
    expected = (own_twice * (own_twice / other).log()).sum()
    assert released_kl(s, t, 384).item() == pytest.approx(expected.item(), rel=1e-6)


def test_printed_kl_carries_hardly_any_ranking() -> None:
    """At T = 1 cosines within .1 of each other are as good as equal: the mean KL is below a thousandth."""
    s = scores(6)
    assert printed_kl(s, torch.zeros_like(s)).item() < 2e-3
    assert relative_kl(s, torch.zeros_like(s), choose_temperature(s)).item() == pytest.approx(1)
