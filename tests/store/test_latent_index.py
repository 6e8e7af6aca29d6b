"""The inverted index of codes: it finds what the dense dot product finds, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.codes import Codes, power_normalise, power_normalised
from sae_steer_retriever.store.latent_index import SIMILARITIES, LatentIndex, Similarity

N_LATENTS = 9


@st.composite
def codes(draw: st.DrawFn, rows: tuple[int, int], k: int = 4) -> Codes[NDArray[Any]]:
    """Rows of distinct latents by falling value; zeros are empty places. Few values, so that scores tie."""
    count = draw(st.integers(*rows))
    indices = [draw(st.permutations(range(N_LATENTS)))[:k] for _ in range(count)]
    value = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0])
    values = [sorted(draw(st.lists(value, min_size=k, max_size=k)), reverse=True) for _ in range(count)]
    shape = (count, k)
    return Codes(np.array(indices, dtype=np.int32).reshape(shape), np.array(values, dtype=np.float32).reshape(shape))


def dense(some: Codes[NDArray[Any]], n: int = N_LATENTS, similarity: Similarity = "dot") -> NDArray[np.float64]:
    """Codes as rows of all latents in float64, such that their dot products are the similarity."""
    out = np.zeros((len(some.indices), n))
    np.put_along_axis(out, some.indices.astype(np.int64), some.values.astype(np.float64), axis=1)
    out = np.sign(out) * np.abs(out) ** 0.7 if similarity == "damped" else out
    lengths = np.linalg.norm(out, axis=1, keepdims=True)
    return out if similarity == "dot" else out / np.where(lengths > 0, lengths, 1)


def random_codes(rows: int, n: int, k: int, seed: int = 0) -> Codes[NDArray[Any]]:
    random = np.random.default_rng(seed)
    indices = np.argsort(random.random((rows, n)), axis=1)[:, :k].astype(np.int32)
    values = -np.sort(-random.random((rows, k)), axis=1)
    return Codes(indices, values.astype(np.float32))


@given(codes((0, 12)), codes((1, 3)), st.integers(1, 14), st.sampled_from(SIMILARITIES), st.data())
def test_it_finds_what_the_dense_dot_product_finds(
    passages: Codes[NDArray[Any]], queries: Codes[NDArray[Any]], k: int, similarity: Similarity, data: st.DataObject
) -> None:
    count = len(passages.indices)
    subset = data.draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count))
    allowed = None if subset is None else np.array(subset, dtype=bool)
    expected = dense(queries, similarity=similarity) @ dense(passages, similarity=similarity).T
    found = LatentIndex.build(passages, N_LATENTS, similarity=similarity).search(queries, k, allowed=allowed)
    assert len(found) == len(queries.indices)
    for hits, scores in zip(found, expected, strict=True):
        may_be = scores > 0 if allowed is None else (scores > 0) & allowed
        assert len(hits.rows) == min(k, may_be.sum()), "fewer come back where fewer share a latent"
        assert may_be[hits.rows].all()
        np.testing.assert_allclose(hits.scores, scores[hits.rows], rtol=1e-5)
        np.testing.assert_allclose(hits.scores, np.sort(scores[may_be])[::-1][:k], rtol=1e-5)
        assert len(set(hits.rows.tolist())) == len(hits.rows)


@given(st.integers(1, 7), st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=12))
def test_equal_scores_come_in_the_order_of_their_rows(k: int, values: list[float]) -> None:
    shape = (len(values), 1)
    passages: Codes[NDArray[Any]] = Codes(np.full(shape, 3, np.int32), np.array(values, np.float32).reshape(shape))
    (hits,) = LatentIndex.build(passages, N_LATENTS, similarity="dot").search(
        Codes(np.array([[3]]), np.array([[1.0]], np.float32)), k
    )
    order = sorted((row for row, value in enumerate(values) if value), key=lambda row: (-values[row], row))
    assert hits.rows.tolist() == order[:k]


def test_more_passages_than_are_sorted_at_a_time_are_all_there() -> None:
    passages, queries = random_codes(9000, 40, 6), random_codes(5, 40, 6, seed=1)
    index = LatentIndex.build(passages, 40)
    assert (len(index), index.n) == (9000, 40)
    expected = dense(queries, 40) @ dense(passages, 40, "damped").T
    for row in range(5):
        scores = index.scores(queries.indices[row], queries.values[row])
        np.testing.assert_allclose(scores, expected[row], atol=1e-6)


@given(st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), max_size=8))
def test_damping_is_the_power_of_the_size_and_keeps_the_sign(values: list[float]) -> None:
    found = power_normalise(np.array(values, np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [np.sign(value) * abs(value) ** 0.7 for value in values], rtol=1e-5)


def test_one_large_value_decides_less_when_it_is_normalised() -> None:
    # The query shares its outlier with the first passage, and everything else with the second.
    query: Codes[NDArray[Any]] = Codes(np.array([[0, 1, 2, 3, 4]]), np.array([[9, 4, 4, 4, 4]], np.float32))
    passages: Codes[NDArray[Any]] = Codes(
        np.array([[0, 5, 6, 7, 8], [1, 2, 3, 4, 5]]), np.array([[9, 2, 2, 2, 2], [4, 4, 4, 4, 9]], np.float32)
    )
    first = {
        similarity: LatentIndex.build(passages, N_LATENTS, similarity=similarity).search(query, 1)[0].rows.tolist()
        for similarity in SIMILARITIES
    }
    assert first == {"dot": [0], "cosine": [0], "damped": [1]}
    assert power_normalised(passages).indices is passages.indices


def test_a_similarity_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="similarity is 'cosin', expected one of dot, cosine, damped"):
        LatentIndex.build(random_codes(3, N_LATENTS, 2), N_LATENTS, similarity="cosin")  # type: ignore[arg-type]


def test_a_negative_weight_takes_away() -> None:
    passages: Codes[NDArray[Any]] = Codes(np.array([[0, 1], [0, 2]]), np.array([[1, 1], [1, 1]], np.float32))
    index = LatentIndex.build(passages, N_LATENTS, similarity="dot")
    (hits,) = index.search(Codes(np.array([[0, 1]]), np.array([[1.0, -2.0]], np.float32)), 2)
    assert hits.rows.tolist() == [1], "the first is below zero"


@pytest.mark.parametrize("latent", [-1, N_LATENTS])
def test_a_latent_of_another_sae_is_refused(latent: int) -> None:
    wrong: Codes[NDArray[Any]] = Codes(np.array([[0, latent]]), np.ones((1, 2), dtype=np.float32))
    with pytest.raises(MismatchError, match=f"latent {latent}.*#0 to #8"):
        LatentIndex.build(wrong, N_LATENTS)
    with pytest.raises(MismatchError, match=f"latent {latent}.*#0 to #8"):
        LatentIndex.build(random_codes(3, N_LATENTS, 2), N_LATENTS).search(wrong, 2)
