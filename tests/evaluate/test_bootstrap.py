"""Bootstrap intervals of means, ratios and differences over queries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sae_steer_retriever.evaluate.bootstrap import difference, estimate, interval

figures = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1, width=32))


@given(figures)
@settings(max_examples=60, deadline=None)
def test_the_interval_contains_the_mean_and_lies_within_the_values(values: np.ndarray) -> None:
    low, high = interval(values)
    assert values.min() - 1e-9 <= low <= values.mean() + 1e-9
    assert values.mean() - 1e-9 <= high <= values.max() + 1e-9


@given(figures.filter(lambda values: values.mean() > 0))
@settings(max_examples=60, deadline=None)
def test_what_equals_its_reference_is_retained_in_full(values: np.ndarray) -> None:
    assert interval(values, values) == (1.0, 1.0)
    assert difference(values, values) == (0.0, 0.0, 0.0)


@given(st.integers(1, 2_000), st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_the_same_seed_gives_the_same_interval(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).random(count)
    assert interval(values, seed=seed) == interval(values.copy(), seed=seed)


def test_another_seed_gives_another_interval() -> None:
    values = np.random.default_rng(0).random(50)
    assert interval(values, seed=0) != interval(values, seed=1)


def test_the_interval_of_many_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, size=3_000)
    error = values.std() / math.sqrt(len(values))
    np.testing.assert_allclose(interval(values), values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.15 * error)


def test_19_of_20_intervals_contain_the_truth() -> None:
    random = np.random.default_rng(0)
    ends = np.array([interval(random.exponential(1.0, size=100), draws=500, seed=seed) for seed in range(300)])
    covered = ((ends[:, 0] <= 1.0) & (ends[:, 1] >= 1.0)).mean()
    assert 0.89 < covered < 0.98


def test_a_ratio_draws_the_same_queries_on_both_sides() -> None:
    reference = np.random.default_rng(0).random(60)
    low, high = interval(0.9 * reference, reference)
    assert (low, high) == pytest.approx((0.9, 0.9))
    alone = interval(0.9 * reference)
    assert alone[1] - alone[0] > 0.05


def test_a_difference_is_that_of_paired_queries() -> None:
    values = np.random.default_rng(0).random(60)
    assert difference(values + 0.25, values) == pytest.approx((0.25, 0.25, 0.25))
    found, low, high = difference(values, values[::-1])
    assert found == pytest.approx(0.0)
    assert low < found < high


def test_draws_whose_reference_is_zero_are_left_out() -> None:
    low, high = interval([0.5, 0.0], [1.0, 0.0])
    assert (low, high) == (0.5, 0.5)


def test_a_ratio_to_nothing_is_not_defined() -> None:
    assert all(math.isnan(end) for end in interval([0.5, 1.0], [0.0, 0.0]))


def test_tiles_of_draws_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    whole = interval(values, values[::-1])
    monkeypatch.setattr("sae_steer_retriever.evaluate.bootstrap._TILE_PLACES", 70)
    assert interval(values, values[::-1]) == whole


def test_an_estimate_is_the_mean_with_its_interval() -> None:
    found = estimate([0.0, 1.0, 1.0, 1.0])
    assert found.value == 0.75
    assert (found.low, found.high) == interval([0.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("values", "reference", "draws", "message"),
    [
        ([], None, 10, "at least one number a query"),
        ([[1.0]], None, 10, r"values of shape \(1, 1\)"),
        ([1.0, float("nan")], None, 10, "finite"),
        ([1.0], [1.0, 2.0], 10, "1 values, 2 of the reference"),
        ([1.0], [float("inf")], 10, "reference of shape"),
        ([1.0], None, 0, "draws = 0"),
    ],
)
def test_what_has_no_interval_is_refused(
    values: list[float], reference: list[float] | None, draws: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        interval(values, reference, draws=draws)


def test_a_difference_takes_pairs() -> None:
    with pytest.raises(ValueError, match="2 values and 1 others"):
        difference([1.0, 2.0], [1.0])
