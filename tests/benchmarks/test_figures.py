"""Losses compared, and words and features by rank."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged_world import fit_series, judged_set
from toy import random_sae, unit_rows

from benchmarks.paper.figure import Figure
from benchmarks.paper.figure_2 import figure_2
from benchmarks.paper.figure_3 import figure_3, head_share, middle_slope
from benchmarks.paper.fits import FitSeries
from benchmarks.paper.seed_average import JudgedSet
from sae_steer_retriever.errors import MismatchError, MissingExtraError
from sae_steer_retriever.evaluate.bootstrap import Estimate, difference
from sae_steer_retriever.evaluate.frequencies import ranked_frequencies, word_frequencies
from sae_steer_retriever.evaluate.plots import draw_features
from sae_steer_retriever.evaluate.table import Range
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


@pytest.fixture(scope="module")
def sets() -> list[JudgedSet]:
    return [judged_set("one"), judged_set("two", seed=1)]


@pytest.fixture(scope="module")
def series(sets: list[JudgedSet], tmp_path_factory: pytest.TempPathFactory) -> FitSeries:
    return fit_series(sets[0], tmp_path_factory.mktemp("fits"))


@pytest.fixture(scope="module")
def compared(series: FitSeries, sets: list[JudgedSet]) -> Figure:
    return figure_2(series, sets, ks=(8, 4), seeds=(0, 1), losses=("rkl", "mse"))


class OneSAE(FitSeries):
    """A series in which no setting makes a difference."""

    def __init__(self, sae: TopKSAE) -> None:
        self._one = sae

    def sae(self, **changes: object) -> TopKSAE:
        return self._one


# --- Figure 2 --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_identical_values_differ_by_exactly_nothing(values: list[float]) -> None:
    assert difference(values, values, draws=20) == (0.0, 0.0, 0.0)


def test_figure_2_has_a_row_for_every_set_search_k_and_loss(compared: Figure) -> None:
    rows = compared.table.records()
    assert [(row["domain"], row["search"], row["K"], row["loss"]) for row in rows] == [
        (domain, search, k, loss)
        for domain in ("in domain", "out of domain")
        for search in ("Recon", "Latent", "Latent, cosine", "Latent, power-normalised")
        for k in (8, 4)
        for loss in ("rkl", "mse")
    ]
    for row in rows:
        assert (row["MRR@10 over mse"] is None) == (row["loss"] == "mse")
    for ours, reference in zip(rows[::2], rows[1::2], strict=True):
        values = [row["nDCG@10"] for row in (ours, reference)]
        gained = ours["nDCG@10 over mse"]
        assert isinstance(values[0], Estimate)
        assert isinstance(values[1], Estimate)
        assert isinstance(gained, Estimate)
        assert gained.value == pytest.approx(values[0].value - values[1].value)
        assert gained.low <= gained.value <= gained.high
        spread = ours["nDCG@10 over mse, seeds"]
        assert isinstance(spread, Range)
        # Of two seeds the mean difference is half-way.
        assert gained.value == pytest.approx((spread.low + spread.high) / 2)


def test_losses_that_make_no_difference_show_none(sets: list[JudgedSet]) -> None:
    found = figure_2(OneSAE(random_sae()), sets[:1], ks=(4,), seeds=(0, 1), losses=("mse", "eq2"))
    gained = [row["nDCG@10 over mse"] for row in found.table.records() if row["loss"] == "eq2"]
    assert gained == [Estimate(0.0, 0.0, 0.0)] * 4
    assert {row["domain"] for row in found.table.records()} == {"in domain"}


def test_steps_are_a_setting_of_the_fits(series: FitSeries, sets: list[JudgedSet]) -> None:
    asked = []

    class Recording(FitSeries):
        def __init__(self) -> None:
            pass

        def sae(self, **changes: object) -> TopKSAE:
            asked.append(changes)
            return random_sae()

    found = figure_2(Recording(), sets[:1], ks=(4,), seeds=(3,), losses=("mse",), steps=700)
    assert asked == [{"k": 4, "loss": "mse", "seed": 3, "steps": 700}]
    assert any("700 steps" in note for note in found.table.notes)


def test_losses_without_the_one_to_compare_with_are_refused(series: FitSeries, sets: list[JudgedSet]) -> None:
    with pytest.raises(ValueError, match="losses rkl: expected mse among them"):
        figure_2(series, sets, losses=("rkl",))


def test_figure_2_draws_both_domains_and_writes_everything(compared: Figure, tmp_path: Path) -> None:
    assert {stem: len(panels) for stem, panels in compared.panels.items()} == {"figure-2-mrr": 4, "figure-2-ndcg": 4}
    panel = compared.panels["figure-2-mrr"][0]
    assert [line.name for line in panel.lines] == ["rkl", "mse"]
    # Ascending, whatever the order of the rows.
    assert panel.lines[0].x == (4.0, 8.0)
    row = next(row for row in compared.table.records() if row["K"] == 8)
    assert isinstance(row["MRR@10 kept"], Estimate)
    assert panel.lines[0].y[1] == row["MRR@10 kept"].value
    written = compared.write(tmp_path)
    assert sorted(file.name for file in written) == sorted(
        ["figure-2.csv", "figure-2.json", "figure-2.md"]
        + [f"figure-2-{metric}.{ending}" for metric in ("mrr", "ndcg") for ending in ("png", "svg")]
    )
    assert all(file.stat().st_size > 500 for file in written)
    json.dumps(compared.to_json(), allow_nan=False)
    assert "Figure 2" in compared.to_text()


def test_without_matplotlib_the_table_is_there_and_the_extra_is_named(
    compared: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"sae-steer-retriever\[evaluate\]"):
        compared.write(tmp_path)
    assert (tmp_path / "figure-2.csv").exists()


# --- Figure 3 --------------------------------------------------------------------------------------------------


def zipf_texts(words: int, passages: int) -> list[str]:
    """Texts in which the word of rank r is in passages // r of them."""
    return [" ".join(f"w{rank}" for rank in range(1, words + 1) if row < passages // rank) for row in range(passages)]


def test_head_share_and_slope_of_a_planted_zipf_distribution() -> None:
    counts = ranked_frequencies(word_frequencies(zipf_texts(200, 2000)))
    planted = np.array([2000 // rank for rank in range(1, 201)])
    np.testing.assert_array_equal(counts, planted)
    assert head_share(counts, 10) == pytest.approx(planted[:10].sum() / planted.sum())
    # The most frequent 1 % of two hundred words are two.
    assert head_share(counts) == pytest.approx(planted[:2].sum() / planted.sum())
    assert middle_slope(counts) == pytest.approx(-1.0, abs=0.02)
    assert middle_slope(np.full(200, 7)) == pytest.approx(0.0, abs=1e-9)


def test_stop_words_and_words_of_one_letter_are_words() -> None:
    assert sorted(word_frequencies(["The cat and I", "a the THE", "the"]).tolist()) == [1, 1, 1, 1, 3]


def test_figure_3_says_whether_features_are_less_head_heavy(tmp_path: Path) -> None:
    sae = random_sae(n=64, k=6, k_labels=3)
    texts = zipf_texts(100, 300)
    texts = [text or "empty" for text in texts]
    # Every feature in as many passages as any other: no head at all.
    flat = np.array([[(6 * row + place) % 64 for place in range(6)] for row in range(300)], dtype=np.int32)
    codes = Codes(flat, np.tile(np.linspace(1, 0.5, 6, dtype=np.float32), (300, 1)))
    found = figure_3(sae, texts, codes)
    words, features, names = found.table.records()
    assert (words["what"], features["what"]) == ("words", "features, K = 6")
    assert names["what"] == "features, the 3 strongest"
    assert features["per passage"] == 6.0
    assert names["per passage"] == 3.0
    assert features["in the top 1%"] == pytest.approx(1 / 64, abs=2e-3)
    assert any("K = 6 are less head-heavy than words, by both measures" in note for note in found.table.notes)
    written = found.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "figure-3.csv").read_text(encoding="utf-8").splitlines()))
    assert [int(row["types"]) for row in rows] == [words["types"], 64, names["types"]]
    assert (tmp_path / "figure-3.png") in written


def test_dead_features_are_no_types() -> None:
    sae = random_sae(n=32, k=6)
    codes = sae.encode(unit_rows(0, 40))
    used = len(np.unique(codes.indices[codes.values > 0]))
    found = figure_3(sae, ["a word"] * 40, codes).table.records()
    assert found[1]["types"] == used


def test_texts_and_codes_that_differ_in_number_are_refused() -> None:
    with pytest.raises(MismatchError, match="3 texts, 40 codes"):
        figure_3(random_sae(), ["a"] * 3, random_sae().encode(unit_rows(0, 40)))


def test_histograms_count_the_dead_and_draw_without_labels() -> None:
    canvas = draw_features([], [0.0, 0.0, 0.1, 0.2])
    assert [axes.get_title() for axes in canvas.axes] == ["Label AUROC, 0 labels", "Document frequency (2 of 4 dead)"]
    scored = draw_features([0.6, 0.9, 0.95], [0.1], random_auroc=0.7)
    assert len(scored.axes[0].lines) == 2
