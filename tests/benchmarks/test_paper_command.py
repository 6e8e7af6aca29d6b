"""`python -m benchmarks.paper` from end to end: tables and figures of a small judged set, and wrong input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Ran, Run
from judged_world import write_judged_folder, write_rows
from small_world import World

from benchmarks.paper.__main__ import main
from sae_steer_retriever.features.catalog import FeatureCatalog

TABLES = ["--latents", "32", "--ks", "4", "8", "--seeds", "0", "--steps", "6"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings that the tests of this file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_STEER_CACHE", str(cache))


@pytest.fixture(scope="module")
def judged(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judged_folder(world, tmp_path_factory.mktemp("judged"))


@pytest.fixture
def sae(filled_folder: Path) -> Path:
    """An SAE of these passages."""
    return filled_folder / "sae"


def renamed(sae: Path, world: World, module: str, words: str, folder: Path) -> tuple[Path, int]:
    """A copy of the SAE in which the feature that tells a module's passages from others is named so, and its id."""
    shutil.copytree(sae, folder)
    names = world.sae.encode(world.vectors, k=world.sae.config.k_labels)
    held = np.zeros((len(world.ids), world.sae.config.n))
    np.put_along_axis(held, np.asarray(names.indices), np.asarray(names.values) > 0, axis=1)
    own = np.array([metadata["module"] == module for metadata in world.metadatas])
    latent = int((held[own].mean(axis=0) - held[~own].mean(axis=0)).argmax())
    FeatureCatalog.load(folder, world.sae.fingerprint).annotate(latent, words)
    return folder, latent


def paper(run: Run, command: str, *arguments: object) -> Ran:
    return run(command, "--quiet", *arguments, entry=main)


def test_table_1_and_figure_2_fit_once(sae_steer: Run, judged: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", judged, "--out-of-domain", judged, "--output", tmp_path, *TABLES)
    first = paper(sae_steer, "table-1", *arguments, "--json")
    assert first.code == 0, first.err
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("fits/*/model.safetensors")}
    assert len(weights) == 2
    again = paper(sae_steer, "table-1", *arguments, "--json")
    assert again.data == first.data
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    with (tmp_path / "table-1.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["K"] for row in rows} >= {"4", "8"}
    assert (tmp_path / "table-1.png").read_bytes().startswith(b"\x89PNG")

    figure = paper(sae_steer, "figure-2", *arguments, "--losses", "mse", "rkl", "--json")
    assert figure.code == 0, figure.err
    losses = [(row["loss"], row["K"]) for row in figure.data["rows"] if row["search"] == "Recon"]
    assert {("mse", 4), ("mse", 8), ("rkl", 4), ("rkl", 8)} == set(losses)
    assert (tmp_path / "figure-2-ndcg.svg").exists()


def test_figure_3(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    ran = paper(sae_steer, "figure-3", "--dataset", judged, "--sae", sae, "--output", tmp_path)
    assert ran.code == 0
    assert "words" in ran.out
    assert (tmp_path / "figure-3.csv").exists()


def test_figure_4_raises_latents_of_a_fitted_sae(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    arguments = ("figure-4", "--dataset", judged, "--sae", sae, "--output", tmp_path)
    found = paper(sae_steer, *arguments, "--json").data
    mrr = {
        (row["added to"], round(row["strength"], 4)): row["MRR@10"]["value"]
        for row in found["rows"]
        if row["ranked by"] == "dot product"
    }
    assert mrr["nothing", 0] < mrr["query", 6.5536] < mrr["relevant documents", 6.5536] == 1
    assert {Path(file).name for file in found["files"]} == {
        f"figure-4.{ending}" for ending in ("md", "csv", "json", "png", "svg")
    }
    graded = paper(sae_steer, *arguments, "--relevant-from", "2")
    assert graded.code == 1
    assert "the largest grade is 1" in graded.error


def test_table_4_asks_the_papers_questions_of_a_set(
    sae_steer: Run, judged: Path, sae: Path, world: World, tmp_path: Path
) -> None:
    words = "time, duration, intervals, periods, estimation"
    own, latent = renamed(sae, world, "datetime", words, tmp_path / "sae")
    arguments = ("table-4", "--dataset", judged, "--sae", own, "--output", tmp_path / "page")
    found = paper(sae_steer, *arguments, "--json").data
    row, total = found["rows"]
    assert row["question"] == "What determines the success of rehabilitation therapy?"
    assert (row["perspective"], row["feature"]) == (words, f"#{latent} {words}")
    assert row["paper B/A"] == total["paper B/A"] == "0/5"
    assert any("No feature answers to: " in note for note in found["notes"])
    assert (tmp_path / "page" / "table-4.csv").exists()


def test_table_4_counts_by_the_labels_of_a_corpus(sae_steer: Run, sae: Path, world: World, tmp_path: Path) -> None:
    own, latent = renamed(sae, world, "ssl", "encryption", tmp_path / "sae")
    rows = [
        {"_id": name, "text": text, "label": "sci.crypt" if metadata["module"] == "ssl" else "talk.politics.guns"}
        for name, text, metadata in zip(world.ids, world.texts, world.metadatas, strict=True)
    ]
    write_rows(tmp_path / "labelled.jsonl", rows)
    arguments = ("table-4", "--corpus", tmp_path / "labelled.jsonl", "--sae", own, "--output", tmp_path / "page")
    ran = paper(sae_steer, *arguments)
    assert ran.code == 0, ran.err
    assert "No feature answers to: guns. Left out." in ran.out
    with (tmp_path / "page" / "table-4-labelled.csv").open(encoding="utf-8", newline="") as stream:
        *found, total = csv.DictReader(stream)
    assert {(row["perspective"], row["label"], row["feature"]) for row in found} == {
        ("encryption", "sci.crypt", f"#{latent} encryption")
    }
    for way in ("replace +0.5", "steer, same drift"):
        assert int(total[f"{way}, after"]) > int(total[f"{way}, before"])
    assert "table-4-labelled.md" in ran.out


def test_tables_of_a_store_are_written_where_asked(
    sae_steer: Run, filled_folder: Path, world: World, tmp_path: Path
) -> None:
    store, output = filled_folder / "chroma", tmp_path / "deep" / "tables"
    ran = paper(
        sae_steer,
        "feature-tables",
        "--limit",
        2,
        "--store",
        filled_folder / "chroma",
        "--document",
        world.ids[0],
        "--output",
        output,
    )
    assert ran.code == 0, ran.err
    assert "Table 3: " in ran.out
    assert (output / "table-3.csv").read_text(encoding="utf-8").count("\n") == 3
    assert (output / "figure-3.png").stat().st_size > 1000
    unknown = paper(sae_steer, "feature-tables", "--store", store, "--document", "nobody")
    assert unknown.code == 2
    assert "no such passage" in unknown.error
    file = tmp_path / "file"
    file.write_text("")
    refused = paper(sae_steer, "feature-tables", "--store", store, "--output", file)
    assert refused.code == 2
    assert "--output: cannot make the folder" in refused.error


# -- wrong input ------------------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    file = judged / "corpus.jsonl"
    for arguments, expected in (
        (("table-8", "--dataset", judged), "name it with --model"),
        (("figure-2",), "name its folder with --dataset"),
        (("figure-2", "--dataset", judged, "--losses", "rkl"), "mse among the losses"),
        (("table-1", "--dataset", judged, "--latents", "4", "--ks", "8"), "latents = 4"),
        (("table-1", "--dataset", judged, "--split", "train"), "fits the queries of the split train"),
        (("table-1", "--dataset", judged, "--output", file), "cannot make the folder"),
        (("figure-3", "--sae", sae), "either --dataset DIR"),
        (("figure-3", "--sae", sae, "--corpus", tmp_path / "none"), "no such file or folder"),
        (("figure-3", "--sae", sae, "--dataset", judged, "--k", "99"), "--k: "),
        (("figure-4", "--dataset", judged, "--sae", tmp_path / "none"), "no such folder"),
        (("figure-4", "--sae", sae), "give --dataset"),
        (("figure-4", "--sae", sae, "--dataset", judged, "--output", file), "cannot make"),
        (("table-4", "--sae", sae), "give one of them"),
        (("table-4", "--sae", sae, "--dataset", judged, "--corpus", judged), "give one of them"),
        (("table-4", "--sae", sae, "--corpus", judged), "no such file"),
        (("feature-tables", "--sae", sae, "--document", "a"), "--document names passages"),
    ):
        ran = paper(sae_steer, *arguments)
        assert ran.code == 2, arguments
        assert expected in ran.error, arguments


def test_a_command_has_no_options_of_another(sae_steer: Run, judged: Path, sae: Path) -> None:
    for arguments in (
        ("table-1", "--dataset", judged, "--sae", sae),
        ("table-1", "--dataset", judged, "--corpus", judged),
        ("figure-4", "--sae", sae, "--dataset", judged, "--corpus", judged),
        ("figure-4", "--sae", sae, "--dataset", judged, "--recurrence-steps", "0"),
        ("figure-4", "--sae", sae, "--dataset", judged, "--out-of-domain", judged),
        ("figure-4", "--sae", sae, "--dataset", judged, "--k", "4"),
        ("table-4", "--sae", sae, "--dataset", judged, "--relevant-from", "2"),
        ("table-4", "--sae", sae, "--dataset", judged, "--meaning"),
        ("table-4", "--sae", sae, "--dataset", judged, "--config", judged),
    ):
        ran = paper(sae_steer, *arguments)
        assert ran.code == 2, arguments
        assert "unrecognized arguments: --" in ran.err, arguments


def test_a_k_that_the_corpus_does_not_bear_is_refused(sae_steer: Run, judged: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", judged, "--output", tmp_path, "--ks", "400", "--seeds", "0", "--steps", "2")
    ran = paper(sae_steer, "table-1", *arguments)
    assert ran.code == 1
    assert "K = 400: the corpus bears only" in ran.error
    assert not list(tmp_path.glob("fits/*/config.json"))


def test_passages_without_words_have_no_figure_3(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(judged, tmp_path / "marks")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(folder / "corpus.jsonl", [{**row, "text": "?!" * (1 + number % 9)} for number, row in enumerate(rows)])
    ran = paper(sae_steer, "figure-3", "--dataset", folder, "--sae", sae, "--output", tmp_path / "page")
    assert ran.code == 1
    assert "passages has a word" in ran.error
