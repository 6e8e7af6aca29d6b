"""`sae-steer evaluate` from end to end: what it prints, what it writes, and what it says when something is wrong."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ran, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import World
from toy import random_sae

from sae_steer_retriever.evaluate.__main__ import main as evaluate_main
from sae_steer_retriever.evaluate.fidelity import ROWS
from sae_steer_retriever.evaluate.metrics import METRICS, score_rankings, summarise
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever

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
    """The world's docstrings in BEIR layout; the second sentence of some asks for its docstring."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "qrels").mkdir()
    rows = [{"_id": name, "text": text} for name, text in zip(world.ids, world.texts, strict=True)]
    queries, qrels = [], ["query-id\tcorpus-id\tscore"]
    for name, text in zip(world.ids, world.texts, strict=True):
        sentences = " ".join(text.split()).split(". ")
        if len(sentences) > 1 and len(sentences[1]) > 30 and len(queries) < 40:
            queries.append({"_id": f"q{len(queries)}", "text": sentences[1]})
            qrels.append(f"{queries[-1]['_id']}\t{name}\t1")
    assert len(queries) == 40
    write_rows(folder / "corpus.jsonl", rows)
    write_rows(folder / "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def sae(filled_folder: Path) -> Path:
    """An SAE of these passages."""
    return filled_folder / "sae"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


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


def evaluate(run: Run, *arguments: object) -> Ran:
    return run("evaluate", "--quiet", *arguments)


# -- one SAE ----------------------------------------------------------------------------------------------------------


def test_a_judged_set_gives_one_object(sae_steer: Run, judged: Path, sae: Path) -> None:
    found = evaluate(sae_steer, "--dataset", judged, "--sae", sae, "--json").data
    assert found["dataset"] == judged.name
    assert (found["d"], found["n"], found["k"]) == (384, 64, 16)
    assert found["encoder"].endswith("all-MiniLM-L6-v2")
    assert found["mse"] == pytest.approx(found["fvu"] * 0.75 / 384, rel=0.5)
    assert 0 < found["fvu"] < 1
    assert [row["name"] for row in found["rows"]] == list(ROWS)
    original = found["rows"][0]
    assert original["retention"] == dict.fromkeys(METRICS, 1.0)
    assert original["ndcg@10"] > 0.7
    for row in found["rows"]:
        for metric in METRICS:
            low, high = row["intervals"][metric]
            assert low <= row[metric] <= high
            assert row["retention"][metric] == pytest.approx(row[metric] / original[metric])
    mixed, latent = found["rows"][-1], found["rows"][1]
    assert latent["ndcg@10"] < mixed["ndcg@10"] <= original["ndcg@10"] + 0.05


def test_the_normalised_row_is_what_the_latent_space_ranks_by(
    sae_steer: Run, judged: Path, sae: Path, retriever: SteeredRetriever
) -> None:
    rows = evaluate(sae_steer, "--dataset", judged, "--sae", sae, "--json").data["rows"]
    queries = [json.loads(line) for line in (judged / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    judgments: dict[str, dict[str, int]] = {}
    for line in (judged / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, name, grade = line.split("\t")
        judgments.setdefault(query, {})[name] = int(grade)
    rankings = [[hit.id for hit in retriever.search(query["text"], k=10, space="latent")] for query in queries]
    values = score_rankings(rankings, [query["_id"] for query in queries], judgments)
    row = next(row for row in rows if row["name"] == "latent_damped")
    assert {metric: row[metric] for metric in METRICS} == pytest.approx(
        {metric: values[metric].mean() for metric in METRICS}
    )


def test_the_module_is_the_same_command(sae_steer: Run, judged: Path, sae: Path) -> None:
    arguments = ("--quiet", "--dataset", judged, "--sae", sae, "--json")
    assert sae_steer(*arguments, entry=evaluate_main).data == sae_steer("evaluate", *arguments).data


def test_a_page_is_written(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    ran = evaluate(sae_steer, "--dataset", judged, "--sae", sae, "--output", tmp_path / "page")
    assert ran.code == 0
    assert "nDCG@10" in ran.out
    assert {path.name for path in (tmp_path / "page").iterdir()} == {
        "report.html", "report.md", "figure-3.png", "figure-3.svg",
    }  # fmt: skip
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert re.search(r"(src|href)=\"(?!#)|url\(http|@import", page) is None


def test_documents_without_judgments(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    shutil.copy(judged / "corpus.jsonl", tmp_path / "docs.jsonl")
    found = evaluate(sae_steer, "--corpus", tmp_path / "docs.jsonl", "--sae", sae, "--json").data
    rows = found["rows"]
    assert set(rows) == set(ROWS) - {"original"}
    for row in rows.values():
        assert row["overlap"]["low"] <= row["overlap"]["value"] <= row["overlap"]["high"]
    assert rows["latent"]["overlap"]["value"] < rows["original_x_reconstructed"]["overlap"]["value"] < 1


def test_meaning_stands_beside_untrained_dictionaries(sae_steer: Run, judged: Path, sae: Path) -> None:
    options = ("--meaning", "--recurrence-steps", "0", "--json")
    found = evaluate(sae_steer, "--dataset", judged, "--sae", sae, *options).data["meaning"]
    assert set(found["dictionaries"]) == {"sae", "random", "kmeans"}
    coherence = {name: part["coherence"]["value"] for name, part in found["dictionaries"].items()}
    assert coherence["sae"] > coherence["random"] + 0.05
    assert found["recurrence"] is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_passages_that_do_not_differ_have_no_share_of_variance(
    sae_steer: Run, judged: Path, sae: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(judged, tmp_path / "same")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(folder / "corpus.jsonl", [{**row, "text": "the very same text"} for row in rows])
    found = evaluate(sae_steer, "--dataset", folder, "--sae", sae, "--json").data
    assert (found["fvu"], found["fvu_documents"], found["fvu_queries"]) == (None, None, None)
    assert found["mse"] > 0
    ran = evaluate(sae_steer, "--dataset", folder, "--sae", sae)
    assert "no FVU, the passages do not differ" in ran.out
    assert "nan" not in ran.out


def test_where_the_original_finds_nothing_nothing_is_kept(
    sae_steer: Run, judged: Path, sae: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(judged, tmp_path / "gone")
    first = json.loads((folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[0])["_id"]
    (folder / "qrels" / "test.tsv").write_text(f"q0\tgone\t1\nq0\t{first}\t0\n", encoding="utf-8")
    ran = evaluate(sae_steer, "--dataset", folder, "--sae", sae)
    original = next(line for line in ran.out.splitlines() if line.startswith("Original "))
    assert original.split() == ["Original", *["0.0000", "–"] * 4]


# -- the paper's tables and figures -----------------------------------------------------------------------------------


def test_table_1_and_figure_2_fit_once(sae_steer: Run, judged: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", judged, "--out-of-domain", judged, "--output", tmp_path, *TABLES)
    first = evaluate(sae_steer, "--table", "1", *arguments, "--json")
    assert first.code == 0, first.err
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("fits/*/model.safetensors")}
    assert len(weights) == 2
    again = evaluate(sae_steer, "--table", "1", *arguments, "--json")
    assert again.data == first.data
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    with (tmp_path / "table-1.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["K"] for row in rows} >= {"4", "8"}
    assert (tmp_path / "table-1.png").read_bytes().startswith(b"\x89PNG")

    figure = evaluate(sae_steer, "--figure", "2", *arguments, "--losses", "mse", "rkl", "--json")
    assert figure.code == 0, figure.err
    losses = [(row["loss"], row["K"]) for row in figure.data["rows"] if row["search"] == "Recon"]
    assert {("mse", 4), ("mse", 8), ("rkl", 4), ("rkl", 8)} == set(losses)
    assert (tmp_path / "figure-2-ndcg.svg").exists()


def test_figure_3(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    ran = evaluate(sae_steer, "--figure", "3", "--dataset", judged, "--sae", sae, "--output", tmp_path)
    assert ran.code == 0
    assert "words" in ran.out
    assert (tmp_path / "figure-3.csv").exists()


def test_figure_4_raises_latents_of_a_fitted_sae(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    arguments = ("--figure", "4", "--dataset", judged, "--sae", sae, "--output", tmp_path)
    found = evaluate(sae_steer, *arguments, "--json").data
    mrr = {
        (row["added to"], round(row["strength"], 4)): row["MRR@10"]["value"]
        for row in found["rows"]
        if row["ranked by"] == "dot product"
    }
    assert mrr["nothing", 0] < mrr["query", 6.5536] < mrr["relevant documents", 6.5536] == 1
    assert {Path(file).name for file in found["files"]} == {
        f"figure-4.{ending}" for ending in ("md", "csv", "json", "png", "svg")
    }
    graded = evaluate(sae_steer, *arguments, "--relevant-from", "2")
    assert graded.code == 1
    assert "the largest grade is 1" in graded.error


def test_table_4_asks_the_papers_questions_of_a_set(
    sae_steer: Run, judged: Path, sae: Path, world: World, tmp_path: Path
) -> None:
    words = "time, duration, intervals, periods, estimation"
    own, latent = renamed(sae, world, "datetime", words, tmp_path / "sae")
    arguments = ("--table", "4", "--dataset", judged, "--sae", own, "--output", tmp_path / "page")
    found = evaluate(sae_steer, *arguments, "--json").data
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
    arguments = ("--table", "4", "--corpus", tmp_path / "labelled.jsonl", "--sae", own, "--output", tmp_path / "page")
    ran = evaluate(sae_steer, *arguments)
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


# -- wrong input ------------------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (("--sae", sae), "either --dataset DIR"),
        (("--sae", sae, "--dataset", judged, "--corpus", judged), "either --dataset DIR"),
        (("--sae", sae, "--corpus", tmp_path / "none"), "no such file or folder"),
        (("--sae", tmp_path / "none", "--dataset", judged), "no such folder"),
        (("--table", "1", "--figure", "2", "--dataset", judged), "not both"),
        (("--table", "8", "--dataset", judged), "name it with --model"),
        (("--table", "1", "--dataset", judged, "--sae", sae), "fit their own"),
        (("--figure", "2"), "name its folder with --dataset"),
        (("--figure", "2", "--dataset", judged, "--losses", "rkl"), "mse among the losses"),
        (("--table", "1", "--dataset", judged, "--latents", "4", "--ks", "8"), "latents = 4"),
        (("--table", "1", "--dataset", judged, "--split", "train"), "fit the queries of the split train"),
        (("--sae", sae, "--dataset", judged, "--out-of-domain", judged), "--out-of-domain"),
        (("--sae", sae, "--dataset", judged, "--recurrence-steps", "9"), "goes with --meaning"),
        (("--sae", sae, "--dataset", judged, "--output", judged / "corpus.jsonl"), "cannot make the folder"),
        (("--table", "1", "--dataset", judged, "--output", judged / "corpus.jsonl"), "cannot make the folder"),
        (("--table", "4", "--figure", "4", "--dataset", judged, "--sae", sae), "not both"),
        (("--figure", "4", "--dataset", judged, "--sae", tmp_path / "none"), "no such folder"),
        (("--figure", "4", "--sae", sae), "give --dataset"),
        (("--figure", "4", "--sae", sae, "--dataset", judged, "--corpus", judged), "no --corpus"),
        (("--table", "4", "--sae", sae), "give one of them"),
        (("--table", "4", "--sae", sae, "--dataset", judged, "--corpus", judged), "give one of them"),
        (("--table", "4", "--sae", sae, "--corpus", judged), "no such file"),
        (("--table", "4", "--sae", sae, "--dataset", judged, "--relevant-from", "2"), "goes with --figure 4"),
        (("--sae", sae, "--dataset", judged, "--relevant-from", "2"), "goes with --figure 4"),
        (("--table", "4", "--sae", sae, "--dataset", judged, "--meaning"), "leave out --meaning"),
        (("--table", "4", "--sae", sae, "--dataset", judged, "--config", judged), "leave out --config"),
        (
            ("--figure", "4", "--sae", sae, "--dataset", judged, "--recurrence-steps", "0"),
            "leave out --recurrence-steps",
        ),
        (("--figure", "4", "--sae", sae, "--dataset", judged, "--out-of-domain", judged), "leave out --out-of-domain"),
        (("--figure", "4", "--sae", sae, "--dataset", judged, "--steering"), "leave out --figure"),
        (("--sae", sae, "--corpus", judged, "--steering", "--relevant-from", "2"), "leave out --relevant-from"),
        (("--figure", "4", "--sae", sae, "--dataset", judged, "--output", judged / "corpus.jsonl"), "cannot make"),
    ):
        ran = evaluate(sae_steer, *arguments)
        assert ran.code == 2, arguments
        assert expected in ran.error, arguments


def test_sets_and_saes_that_do_not_fit(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    shutil.copytree(judged, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "qrels")
    random_sae().save_pretrained(tmp_path / "toy")
    for arguments, expected in (
        (("--sae", sae, "--dataset", tmp_path / "bare"), "no folder qrels"),
        (("--sae", sae, "--dataset", judged, "--split", "tset"), "did you mean 'test'?"),
        (("--sae", sae, "--dataset", tmp_path / "nothing"), "no such folder"),
        (("--sae", tmp_path / "toy", "--dataset", judged, "--model", "all-MiniLM-L6-v2"), "encoder 'toy/words'"),
    ):
        ran = evaluate(sae_steer, *arguments)
        assert ran.code == 1, arguments
        assert expected in ran.error, arguments


def test_a_k_that_the_corpus_does_not_bear_is_refused(sae_steer: Run, judged: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", judged, "--output", tmp_path, "--ks", "400", "--seeds", "0", "--steps", "2")
    ran = evaluate(sae_steer, "--table", "1", *arguments)
    assert ran.code == 1
    assert "K = 400: the corpus bears only" in ran.error
    assert not list(tmp_path.glob("fits/*/config.json"))


def test_passages_without_words_have_no_figure_3(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(judged, tmp_path / "marks")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(folder / "corpus.jsonl", [{**row, "text": "?!" * (1 + number % 9)} for number, row in enumerate(rows)])
    ran = evaluate(sae_steer, "--dataset", folder, "--sae", sae, "--figure", "3", "--output", tmp_path / "page")
    assert ran.code == 1
    assert "passages has a word" in ran.error


# -- the metrics ------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_metrics_are_those_of_the_textbook(seed: int) -> None:
    """nDCG with linear gain, reciprocal rank, precision and recall at ten, with graded judgments."""
    generator = np.random.default_rng(seed)
    documents = [f"d{number}" for number in range(30)]
    judgments = {
        f"q{number}": {str(name): int(generator.integers(0, 3)) for name in generator.permutation(documents)[:8]}
        for number in range(4)
    }
    judgments["q0"]["d0"] = 1
    rankings = [generator.permutation(documents)[: int(generator.integers(0, 15))].tolist() for _ in judgments]
    found = score_rankings(rankings, list(judgments), judgments)
    for place, (ranking, grades) in enumerate(zip(rankings, judgments.values(), strict=True)):
        top = [grades.get(name, 0) for name in ranking[:10]]
        discounts = 1 / np.log2(np.arange(2, 12))
        ideal = sorted(grades.values(), reverse=True)[:10]
        best = float(np.dot(ideal, discounts[: len(ideal)]))
        relevant = sum(grade > 0 for grade in grades.values())
        first = next((rank for rank, grade in enumerate(top, start=1) if grade > 0), None)
        assert found["ndcg@10"][place] == pytest.approx(np.dot(top, discounts[: len(top)]) / best if best else 0)
        assert found["mrr@10"][place] == pytest.approx(1 / first if first else 0)
        assert found["p@10"][place] == pytest.approx(sum(grade > 0 for grade in top) / 10)
        assert found["r@10"][place] == pytest.approx(sum(grade > 0 for grade in top) / relevant if relevant else 0)


def test_a_query_without_hits_counts_as_zero() -> None:
    judgments = {"a": {"x": 1}, "b": {"y": 1}}
    values = score_rankings([["x"], []], ["a", "b"], judgments)
    assert values["mrr@10"].tolist() == [1.0, 0.0]
    assert summarise("half", values, values).retention == dict.fromkeys(METRICS, 1.0)
    nothing = summarise("none", values, {metric: np.zeros(2) for metric in METRICS})
    assert np.isnan(list(nothing.retention.values())).all()
