"""Tables 1 and 8 on tiny sets, beside the paper's, and the fits that they share."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from judged_world import fit_series, judged_set
from toy import random_sae

from benchmarks.paper.fits import FitSeries
from benchmarks.paper.plots import draw_table_1
from benchmarks.paper.printed import TABLE_1_IN_DOMAIN, TABLE_1_OUT_OF_DOMAIN, TABLE_8, PaperSet
from benchmarks.paper.seed_average import JudgedSet, average_seeds, pool, score_sets
from benchmarks.paper.table_1 import table_1, table_8
from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.fidelity import LATENT, RECONSTRUCTED, measure_fidelity
from sae_steer_retriever.evaluate.plots import Plot
from sae_steer_retriever.evaluate.table import Range, Table
from sae_steer_retriever.sae.topk_sae import TopKSAE


@pytest.fixture(scope="module")
def sets() -> list[JudgedSet]:
    return [judged_set("one"), judged_set("two", seed=1, queries=6), judged_set("three", seed=2, queries=10)]


@pytest.fixture(scope="module")
def series(sets: list[JudgedSet], tmp_path_factory: pytest.TempPathFactory) -> FitSeries:
    return fit_series(sets[0], tmp_path_factory.mktemp("fits"))


@pytest.fixture(scope="module")
def table(series: FitSeries, sets: list[JudgedSet]) -> Table:
    return table_1(series, sets, ks=(32, 4), seeds=(0, 1))


# --- the paper's figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "percent"),
    [
        (TABLE_1_IN_DOMAIN, [100.0, 75.5, 84.9, 91.7, 82.8, 88.6, 95.8]),
        (TABLE_1_OUT_OF_DOMAIN, [100.0, 65.4, 79.0, 80.6, 68.9, 78.8, 92.1]),
        (TABLE_8, [100.0, 50.6, 68.8, 78.3, 83.0, 90.1, 93.8]),
    ],
)
def test_printed_mrr_is_kept_as_the_paper_has_it(printed: PaperSet, percent: list[float]) -> None:
    assert [round(100 * printed.kept(row)[0], 1) for row in printed.rows] == percent


# --- Table 1 ---------------------------------------------------------------------------------------------------


def test_table_1_has_a_row_for_every_set_search_and_k_and_the_papers_below_its_own(table: Table) -> None:
    names = {"one": "in domain", "two": "out of domain", "three": "out of domain", "two + three": "out of domain"}
    ours = [row for row in table.records() if row["by"] == "ours"]
    searches = ("Latent", "Latent, cosine", "Latent, power-normalised", "Recon")
    expected = [("Original", None), *((search, k) for search in searches for k in (32, 4))]
    assert [(row["domain"], row["set"], row["search"], row["K"]) for row in ours] == [
        (domain, name, *row) for name, domain in names.items() for row in expected
    ]
    beside = [
        (above["set"], row["set"], row["search"], row["K"])
        for above, row in zip(table.records(), table.records()[1:], strict=False)
        if row["by"] == "paper" and (above["search"], above["K"]) == (row["search"], row["K"])
    ]
    # K = 4 is not in the paper, and its score out of domain is one pooled score.
    assert beside == [
        (ours, f"{paper}, BGE-base-en-v1.5", search, k)
        for ours, paper in (("one", "MS MARCO"), ("two + three", "BEIR"))
        for search, k in (("Original", None), ("Latent", 32), ("Recon", 32))
    ]
    assert len([row for row in table.records() if row["by"] == "paper"]) == len(beside)
    assert {row["search"] for row in ours if row["MSE"] is not None} == {"Recon"}
    assert any("another encoder" in note for note in table.notes)


def test_table_1_averages_seeds_and_names_the_extremes(table: Table, series: FitSeries, sets: list[JudgedSet]) -> None:
    fits = [measure_fidelity(series.sae(k=4, seed=seed), *sets[0]) for seed in (0, 1)]
    original = fits[0].row("original").values["ndcg@10"]
    each = [fit.row(RECONSTRUCTED).values["ndcg@10"] for fit in fits]
    assert each[0] != each[1]
    row = next(row for row in table.records() if (row["set"], row["search"], row["K"]) == ("one", "Recon", 4))
    assert isinstance(row["nDCG@10"], Estimate)
    assert isinstance(row["nDCG@10 kept"], Estimate)
    assert row["nDCG@10"].value == pytest.approx(np.mean(each))
    assert row["nDCG@10 kept"].value == pytest.approx(np.mean(each) / original)
    assert row["nDCG@10 kept, seeds"] == pytest.approx(Range(min(each) / original, max(each) / original))
    assert row["MSE"] == pytest.approx(np.mean([fit.mse for fit in fits]))
    assert row["nDCG@10 kept"].low <= row["nDCG@10 kept"].value <= row["nDCG@10 kept"].high


def test_pooled_queries_count_alike(sets: list[JudgedSet]) -> None:
    first, *others, pooled = score_sets(random_sae(), sets)
    assert (first.dataset, pooled.dataset) == ("one", "two + three")
    values = np.concatenate([found.per_query[LATENT]["mrr@10"] for found in others])
    assert len(values) == 16
    assert average_seeds([pooled]).rows[LATENT].values["mrr@10"] == pytest.approx(values.mean())
    weights = [found.vectors for found in others]
    # Every query of these sets has a document of its own that answers it.
    assert weights == [12, 20]
    assert pool(others).mse == pytest.approx(np.average([found.mse for found in others], weights=weights))


def test_table_8_stands_beside_the_papers_second_encoder(series: FitSeries, sets: list[JudgedSet]) -> None:
    found = table_8(series, sets[:2], ks=(32,), seeds=(0,))
    paper = [row for row in found.records() if row["by"] == "paper"]
    assert {(row["domain"], row["set"]) for row in paper} == {("in domain", "MS MARCO, MiniCPM-Embedding")}
    assert {row["set"] for row in found.records() if row["by"] == "ours"} == {"one", "two"}
    assert {row["nDCG@10 kept, seeds"] for row in found.records()} == {None}


def test_no_set_is_refused_before_anything_is_fitted(series: FitSeries) -> None:
    with pytest.raises(ValueError, match="0 sets, 3 K and 3 seeds"):
        table_1(series, [])


def test_table_1_is_drawn_beside_the_paper(table: Table, tmp_path: Path) -> None:
    canvas = draw_table_1(table)
    assert [axes.get_title() for axes in canvas.axes] == ["one (in domain)", "two + three (out of domain)"]
    # Eight bars of ours, two of the paper's.
    assert [len(axes.patches) for axes in canvas.axes] == [10, 10]
    png, svg = Plot("table-1", "", "", canvas).save(tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("error")
def test_a_set_whose_name_no_font_has_is_drawn(table: Table, tmp_path: Path) -> None:
    column = [column.name for column in table.columns].index("set")
    rows = tuple((*row[:column], f"{row[column]} 漢字", *row[column + 1 :]) for row in table.rows)
    files = Plot("table-1", "", "", draw_table_1(dataclasses.replace(table, rows=rows))).save(tmp_path)
    assert all(file.stat().st_size > 1000 for file in files)


def test_a_fit_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    fitted = fit_series(judged_set("toy"), tmp_path).sae(k=4)
    (lock,) = tmp_path.glob(".*.lock")
    (folder,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
    shutil.rmtree(folder)
    found: list[TopKSAE] = []
    waiting = threading.Thread(target=lambda: found.append(fit_series(judged_set("toy"), tmp_path).sae(k=4)))
    with FileLock(lock):
        waiting.start()
        waiting.join(timeout=0.5)
        assert not found
        assert not folder.exists()
    waiting.join(timeout=60)
    assert [sae.fingerprint for sae in found] == [fitted.fingerprint]
