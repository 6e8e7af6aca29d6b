"""Advice on a corpus that is too small for what is asked of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.sizing import Sizes, advise, choose_sizes


def about(passages: int, latents: int, k: int, *, rows: int | None = None, k_labels: int = 8) -> tuple[str, ...]:
    """Advice when the latents were asked for; five rows a passage unless said otherwise."""
    return advise(passages, rows or 5 * passages, Sizes(latents, k, 1.0), k_labels, latents_given=True)


def test_enough_is_enough() -> None:
    assert about(5000, 2048, 64) == ()
    assert about(500, 256, 64) == ()


def test_few_passages_make_coarse_features() -> None:
    (sentence,) = about(499, 256, 64)
    assert sentence.startswith("499 passages: features will be coarse: ")


@pytest.mark.parametrize(
    ("passages", "latents", "k", "said"),
    [
        # No more names than active latents.
        (1000, 1024, 3, "each would label 2.9 of 1,000 passages"),
        (1000, 4096, 64, "each would label 2.0 of 1,000 passages on average, fewer than 8"),
    ],
)
def test_latents_that_are_too_rare(passages: int, latents: int, k: int, said: str) -> None:
    (sentence,) = about(passages, latents, k)
    assert said in sentence
    assert "most latents will be too rare to get a label: lower --latents to " in sentence


def test_the_boundary_of_rare_is_eight() -> None:
    assert about(1024, 1024, 64) == ()
    (sentence,) = about(1023, 1024, 64)
    assert sentence.endswith("lower --latents to 512.")


def test_more_latents_than_half_the_rows() -> None:
    (sentence,) = about(1000, 1000, 64, rows=1500)
    assert sentence.startswith("1,000 latents for 1,500 rows, more than one for two")
    assert sentence.endswith("lower --latents to 512.")
    assert about(1000, 750, 64, rows=1500) == ()
    # The library's own choice is not held against the rows.
    assert advise(1000, 1500, Sizes(1000, 64, 1.0), 8, latents_given=False) == ()


def test_k_above_a_quarter_of_the_latents() -> None:
    (sentence,) = about(5000, 128, 64)
    assert sentence.startswith("k = 64, more than a quarter of 128 latents")
    assert sentence.endswith("lower -k to 32.")
    assert about(5000, 256, 64) == ()


@given(
    passages=st.integers(20, 20_000),
    texts=st.integers(0, 5),
    latents=st.integers(1, 40_000),
    k=st.integers(1, 512),
    k_labels=st.integers(1, 64),
)
def test_who_follows_the_advice_hears_no_more_of_it(
    passages: int, texts: int, latents: int, k: int, k_labels: int
) -> None:
    """Latents and k that are advised bring no other advice than more text."""
    latents = max(latents, k)
    rows = passages * (1 + texts)
    found = about(passages, latents, k, rows=rows, k_labels=k_labels)
    numbers = {name: int(number) for name, number in re.findall(r"(--latents|-k) to (\d+)", " ".join(found))}
    for name, number in re.findall(r"(--latents|-k) to (\d+)", " ".join(found)):
        assert numbers[name] == int(number), "two sentences contradict each other"
    if any("add documents." in sentence for sentence in found):
        return
    latents, k = numbers.get("--latents", latents), numbers.get("-k", k)
    assert 1 <= k <= latents
    for sentence in about(passages, latents, k, rows=rows, k_labels=k_labels):
        assert "features will be coarse" in sentence


@given(st.integers(200, 100_000), st.integers(0, 8))
def test_the_sizes_chosen_by_the_corpus_need_no_advice(passages: int, texts: int) -> None:
    rows = passages * (1 + texts)
    sizes = choose_sizes(TrainConfig(), passages, rows, d=384)
    found = advise(passages, rows, sizes, TrainConfig().k_labels, latents_given=False)
    assert len(found) == (passages < 500)
