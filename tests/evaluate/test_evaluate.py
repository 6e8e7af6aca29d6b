"""`sae-steer evaluate` from end to end: what it prints, what it writes, and what it says when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Ran, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_world import write_judged_folder, write_rows
from small_world import World
from toy import random_sae

from sae_steer_retriever.evaluate.fidelity import ROWS
from sae_steer_retriever.evaluate.metrics import METRICS, score_rankings, summarise
from sae_steer_retriever.retriever import SteeredRetriever


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
    rankings = [
        [hit.id for hit in retriever.search(query["text"], k=10, space="latent", latent_score="damped")]
        for query in queries
    ]
    values = score_rankings(rankings, [query["_id"] for query in queries], judgments)
    row = next(row for row in rows if row["name"] == "latent_damped")
    assert {metric: row[metric] for metric in METRICS} == pytest.approx(
        {metric: values[metric].mean() for metric in METRICS}
    )


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


# -- wrong input ------------------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (("--sae", sae), "either --dataset DIR"),
        (("--sae", sae, "--dataset", judged, "--corpus", judged), "either --dataset DIR"),
        (("--sae", sae, "--corpus", tmp_path / "none"), "no such file or folder"),
        (("--sae", tmp_path / "none", "--dataset", judged), "no such folder"),
        (("--sae", sae, "--dataset", judged, "--recurrence-steps", "9"), "goes with --meaning"),
        (("--sae", sae, "--dataset", judged, "--output", judged / "corpus.jsonl"), "cannot make the folder"),
    ):
        ran = evaluate(sae_steer, *arguments)
        assert ran.code == 2, arguments
        assert expected in ran.error, arguments


def test_options_of_the_studies_name_their_commands(sae_steer: Run, judged: Path, sae: Path) -> None:
    for arguments, expected in (
        (("--table", "1", "--dataset", judged, "--ks", "32", "64"), "--table is no option .*benchmarks.paper table-1,"),
        (("--figure", "4", "--dataset", judged, "--sae", sae, "--relevant-from", "2"), "--figure .*paper figure-2,"),
        (("--steering", "--corpus", judged), "--steering .*python -m benchmarks.steering"),
        (("--sae", sae, "--corpus", judged, "--limit-passages", "5"), "--limit-passages .*benchmarks.steering"),
        (("--sae", sae, "--dataset", judged, "--out-of-domain", judged), "--out-of-domain .*benchmarks.paper table-1"),
        (("--sae", sae, "--dataset", judged, "--relevant-from", "2"), "--relevant-from .*benchmarks.paper figure-4"),
    ):
        ran = evaluate(sae_steer, *arguments)
        assert ran.code == 2, arguments
        assert re.search(expected, ran.error), arguments
    assert "--table" not in evaluate(sae_steer, "--help").out


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


def test_passages_without_words_have_no_page(sae_steer: Run, judged: Path, sae: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(judged, tmp_path / "marks")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(folder / "corpus.jsonl", [{**row, "text": "?!" * (1 + number % 9)} for number, row in enumerate(rows)])
    ran = evaluate(sae_steer, "--dataset", folder, "--sae", sae, "--output", tmp_path / "page")
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
