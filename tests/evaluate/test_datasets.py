"""Retrieval sets: folders in BEIR layout, ids of ir_datasets, datasets of the hub."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import ToyEmbedder

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.errors import CorpusError, MissingExtraError
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.retrieval_set import RetrievalSet, embed_set

HEADER = "query-id\tcorpus-id\tscore\n"
DOCUMENTS = [
    {"_id": "d1", "title": "Tea", "text": "Green leaves."},
    {"_id": "d2", "title": "", "text": "Coffee beans."},
    {"_id": "d3", "title": "Cocoa", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "leaves?"}, {"_id": "q2", "text": "beans?"}, {"_id": "q3", "text": "unjudged?"}]
QRELS = "q2\td2\t2\nq2\td1\t0\nq1\td1\t1\n"


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def beir(
    folder: Path,
    *,
    documents: list[dict[str, Any]] | None = None,
    queries: list[dict[str, Any]] | None = None,
    qrels: str = HEADER + QRELS,
    suffix: str = "",
) -> Path:
    """A small set in BEIR layout with the splits test and dev."""
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", documents or DOCUMENTS), ("queries", queries or QUERIES)):
        data = lines(rows)
        (folder / f"{name}.jsonl{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    (folder / "qrels" / "dev.tsv").write_text(HEADER + "q3\td3\t1\n", encoding="utf-8")
    return folder


def refusal(source: str | Path, split: str = "test") -> str:
    """The message with which a set is refused: one line."""
    with pytest.raises(CorpusError) as caught:
        read_retrieval_set(source, split=split)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_is_read(tmp_path: Path, suffix: str) -> None:
    found = read_retrieval_set(beir(tmp_path / "drinks", suffix=suffix))
    assert found == RetrievalSet(
        name="drinks",
        passages=[
            Passage("d1", "Tea Green leaves.", "Tea", {"source": f"corpus.jsonl{suffix}", "title": "Tea"}),
            Passage("d2", "Coffee beans.", "", {"source": f"corpus.jsonl{suffix}"}),
            Passage("d3", "Cocoa", "Cocoa", {"source": f"corpus.jsonl{suffix}", "title": "Cocoa"}),
        ],
        query_ids=["q2", "q1"],
        queries=["beans?", "leaves?"],
        judgments={"q2": {"d2": 2, "d1": 0}, "q1": {"d1": 1}},
        notes=(),
    )


def test_another_split_is_read(tmp_path: Path) -> None:
    found = read_retrieval_set(str(beir(tmp_path / "set")), split="dev")
    assert (found.query_ids, found.judgments) == (["q3"], {"q3": {"d3": 1}})


@pytest.mark.parametrize(
    "qrels",
    [
        QRELS,
        "query_id\tdoc_id\trelevance\n" + QRELS,
        "q2 0 d2 2\nq2 0 d1 0\n\nq1 0 d1 1\n",
        "q2\t0\td2\t2\r\nq2\t0\td1\t0\r\nq1\t0\td1\t1\r\n",
        QRELS + "q2\td2\t2\n",
    ],
    ids=["no header", "another header", "TREC", "TREC with tabs", "said twice"],
)
def test_judgments_are_read_with_and_without_header_in_both_forms(tmp_path: Path, qrels: str) -> None:
    found = read_retrieval_set(beir(tmp_path / "set", qrels=qrels))
    assert found.judgments == {"q2": {"d2": 2, "d1": 0}, "q1": {"d1": 1}}


def test_ids_may_hold_spaces_and_be_numbers(tmp_path: Path) -> None:
    folder = beir(
        tmp_path / "set", documents=[{"_id": "a b", "text": "x"}], queries=[{"_id": 7, "text": "y"}], qrels="7\ta b\t1"
    )
    assert read_retrieval_set(folder).judgments == {"7": {"a b": 1}}


def test_queries_without_a_relevant_document_are_left_out_and_noted(tmp_path: Path) -> None:
    found = read_retrieval_set(beir(tmp_path / "set", qrels=QRELS + "q3\td1\t0\nq3\td2\t-1\n"))
    assert found.query_ids == ["q2", "q1"]
    assert found.notes == ("1 of 3 queries have no relevant document: left out",)


def test_what_the_judgments_name_and_the_files_lack_is_noted(tmp_path: Path) -> None:
    found = read_retrieval_set(
        beir(tmp_path / "set", qrels=QRELS + "q9\td1\t1\nq3\tgone\t1\nq1\tgone\t1\nq1\tlost\t1\n")
    )
    assert found.query_ids == ["q2", "q1", "q3"]
    assert found.judgments["q1"] == {"d1": 1, "gone": 1, "lost": 1}
    assert found.notes == (
        "1 of 4 judged queries are not in the file of queries: left out",
        "2 judged documents are not in the corpus",
        "1 of 3 queries have none of their relevant documents in the corpus: kept",
    )


def test_unjudged_queries_are_noted_where_no_other_split_could_judge_them(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    (folder / "qrels" / "dev.tsv").unlink()
    assert read_retrieval_set(folder).notes == ("1 of 3 queries have no judgment: left out",)


def test_rows_without_text_are_noted(tmp_path: Path) -> None:
    folder = beir(
        tmp_path / "set",
        documents=[*DOCUMENTS, {"_id": "d4", "text": ""}],
        queries=[*QUERIES, {"_id": "q4", "text": 1}],
    )
    (folder / "README.md").write_text("# About\n", encoding="utf-8")
    assert read_retrieval_set(folder).notes == (
        "queries.jsonl: 1 queries without a text",
        "corpus.jsonl: 1 row without text (the first on line 4)",
    )


def test_a_set_is_embedded_in_its_order(tmp_path: Path) -> None:
    found = read_retrieval_set(beir(tmp_path / "set"))
    vectors = embed_set(found, ToyEmbedder())
    assert (vectors.documents.shape, vectors.queries.shape) == ((3, 16), (2, 16))
    np.testing.assert_array_equal(vectors.documents[1], ToyEmbedder().embed_documents(["Coffee beans."])[0])
    np.testing.assert_array_equal(vectors.queries[0], ToyEmbedder().embed_queries(["beans?"])[0])


# --- what is refused -------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_comes_with_the_nearest_names(tmp_path: Path) -> None:
    beir(tmp_path / "scifact")
    message = refusal(tmp_path / "scifct")
    assert "no such folder" in message
    assert "did you mean scifact?" in message
    assert "irds:ID" in message


def test_a_relative_path_into_a_folder_that_is_there_is_no_name_of_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beir(tmp_path / "data" / "scifact")
    monkeypatch.chdir(tmp_path)
    assert "did you mean scifact?" in refusal("data/scifct")
    assert read_retrieval_set("data/scifact").name == "scifact"


def test_a_file_is_no_set(tmp_path: Path) -> None:
    assert "is a file: expected a folder" in refusal(beir(tmp_path / "set") / "corpus.jsonl")


def test_a_folder_of_documents_is_sent_to_the_evaluation_without_judgments(tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("# Tea\n", encoding="utf-8")
    message = refusal(tmp_path)
    assert "found a.md, b.md" in message
    assert "corpus.jsonl, queries.jsonl and qrels/test.tsv" in message
    assert "--corpus" in message


def test_a_folder_of_sets_names_them(tmp_path: Path) -> None:
    beir(tmp_path / "one")
    beir(tmp_path / "two", suffix=".gz")
    assert "one, two?" in refusal(tmp_path)


def test_an_empty_folder_is_no_set(tmp_path: Path) -> None:
    assert "found nothing" in refusal(tmp_path)


def test_missing_queries(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    (folder / "queries.jsonl").unlink()
    assert "no queries.jsonl or queries.jsonl.gz" in refusal(folder)


def test_missing_judgments(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    for file in (folder / "qrels").iterdir():
        file.unlink()
    assert "an empty folder qrels: expected judgments in qrels/test.tsv" in refusal(folder)
    (folder / "qrels").rmdir()
    assert "no folder qrels: expected judgments in qrels/test.tsv" in refusal(folder)


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    assert "has no split 'tset', only dev, test: did you mean 'test'?" in refusal(folder, split="tset")
    assert "has no split '../qrels/test', only dev, test" in refusal(folder, split="../qrels/test")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("q1\td1\n", r"test\.tsv, line 5 has 2 columns, expected 3 with tabs"),
        ("q1 d1 1\n", r"line 5 has 1 column, expected 3 with tabs"),
        ("\n\nq1\t0\td1\t1\t9\n", r"line 7 has 5 columns"),
        ("\td1\t1\n", r"line 5 has an empty id"),
        ("q1\td1\thigh\n", r"line 5 has the score 'high', expected a whole number"),
        ("q1\td1\t1.0\n", r"line 5 has the score '1\.0', expected a whole number"),
        ("q1\td1\t\n", r"line 5 has the score '', expected a whole number"),
        ("q2\td2\t1\n", r"document 'd2' for query 'q2' as 2 \(line 2\) and as 1 \(line 5\)"),
    ],
)
def test_a_malformed_judgment_names_file_and_line(tmp_path: Path, bad: str, message: str) -> None:
    assert re.search(message, refusal(beir(tmp_path / "set", qrels=HEADER + QRELS + bad)))


def test_a_bad_score_on_the_first_line_is_no_header(tmp_path: Path) -> None:
    assert "line 1 has the score 'high'" in refusal(beir(tmp_path / "set", qrels="q1\td1\thigh\n" + QRELS))


def test_a_file_without_judgments(tmp_path: Path) -> None:
    assert "no judgment in" in refusal(beir(tmp_path / "set", qrels=HEADER))


def test_an_unreadable_file_of_judgments(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    (folder / "qrels" / "test.tsv").write_bytes(b"q1\0d1\0")
    assert "cannot read the judgments" in refusal(folder)


def test_two_documents_of_one_id(tmp_path: Path) -> None:
    assert "two rows have the id 'd1'" in refusal(beir(tmp_path / "set", documents=[*DOCUMENTS, DOCUMENTS[0]]))


def test_two_queries_of_one_id(tmp_path: Path) -> None:
    assert read_retrieval_set(beir(tmp_path / "same", queries=[*QUERIES, QUERIES[0]])).query_ids == ["q2", "q1"]
    other = {"_id": "q1", "text": "roots?"}
    message = refusal(beir(tmp_path / "different", queries=[*QUERIES, other]))
    assert "two queries with the id 'q1' and different texts, lines 1 and 4" in message


def test_malformed_queries(tmp_path: Path) -> None:
    assert "line 4 has no '_id'" in refusal(beir(tmp_path / "a", queries=[*QUERIES, {"text": "x"}]))
    assert "no query in" in refusal(beir(tmp_path / "b", queries=[{"_id": "q1", "title": "x"}]))
    folder = beir(tmp_path / "c")
    (folder / "queries.jsonl").write_text('{"_id": "q1"', encoding="utf-8")
    assert "queries.jsonl, line 1 is not valid JSON" in refusal(folder)
    (folder / "queries.jsonl").write_bytes(b"a\0b")
    assert "cannot read the queries" in refusal(folder)


def test_judgments_of_other_queries(tmp_path: Path) -> None:
    message = refusal(beir(tmp_path / "set", qrels="x1\td1\t1\nx2\td1\t1\n"))
    assert "none of the 2 queries" in message
    assert "(judged: 'x1', 'x2'; there: 'q1', 'q2', 'q3')" in message


def test_judgments_without_a_relevant_document(tmp_path: Path) -> None:
    assert "none of the 2 queries that" in (message := refusal(beir(tmp_path / "set", qrels="q1\td1\t0\nq2\td1\t0\n")))
    assert "has a relevant document" in message


def test_judgments_of_another_corpus(tmp_path: Path) -> None:
    message = refusal(beir(tmp_path / "set", qrels="q1\tx1\t1\nq2\tx2\t1\n"))
    assert "none of the 2 documents" in message
    assert "are these qrels of another corpus?" in message


# --- ir_datasets -----------------------------------------------------------------------------------------------


@pytest.fixture
def irds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real dataset of ir_datasets over local files: `toy-drinks` with documents, `toy-drinks/test` with judgments."""
    package = pytest.importorskip("ir_datasets")
    folder = tmp_path / "irds"
    folder.mkdir()
    monkeypatch.setenv("IR_DATASETS_HOME", str(folder / "home"))
    (folder / "docs.tsv").write_text("d1\tGreen leaves.\nd2\tCoffee beans.\nd3\t \n", encoding="utf-8")
    (folder / "queries.tsv").write_text("q1\tleaves?\nq2\tbeans?\n", encoding="utf-8")
    (folder / "qrels.txt").write_text("q2 0 d2 2\nq2 0 d1 0\nq1 0 d2 0\n", encoding="utf-8")
    parts = {"docs_tsv": str(folder / "docs.tsv"), "queries_tsv": str(folder / "queries.tsv")}
    known = package.registry._registered
    monkeypatch.setitem(known, "toy-drinks", package.create_dataset(**parts))
    monkeypatch.setitem(known, "toy-drinks/test", package.create_dataset(**parts, qrels_trec=str(folder / "qrels.txt")))
    return folder


@pytest.mark.parametrize("name", ["toy-drinks/test", "irds:toy-drinks/test", "toy-drinks", "irds:toy-drinks"])
@pytest.mark.usefixtures("irds")
def test_a_dataset_of_ir_datasets(name: str) -> None:
    assert read_retrieval_set(name) == RetrievalSet(
        name="toy-drinks/test",
        passages=[Passage("d1", "Green leaves."), Passage("d2", "Coffee beans.")],
        query_ids=["q2"],
        queries=["beans?"],
        judgments={"q2": {"d2": 2, "d1": 0}},
        notes=("1 documents without text: left out", "1 of 2 queries have no relevant document: left out"),
    )


@pytest.mark.usefixtures("irds")
def test_a_dataset_without_judgments_or_of_unknown_name() -> None:
    assert "toy-drinks of ir_datasets has no qrels" in refusal("irds:toy-drinks", split="dev")
    assert "did you mean toy-drinks" in refusal("irds:toy-drink")
    assert "ir_datasets has no such dataset: did you mean" in refusal("beir/scifact/tests")


def test_a_dataset_that_cannot_be_had(irds: Path) -> None:
    (irds / "docs.tsv").unlink()
    message = refusal("toy-drinks/test")
    assert "ir_datasets cannot give toy-drinks/test (" in message
    assert "check the network" in message


@pytest.mark.parametrize("name", ["beir/scifact/test", "irds:vaswani"])
def test_without_ir_datasets_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingExtraError, match=r"is no folder.*sae-steer-retriever\[datasets\]"):
        read_retrieval_set(name)


# --- the hub ---------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for the call that downloads: gives a folder, remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str, list[str]]] = []

    def __call__(self, repo_id: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        self.asked.append((repo_id, repo_type, allow_patterns))
        return str(self.folder)


@pytest.mark.parametrize("name", ["hub:mteb/drinks", "mteb/drinks"])
def test_a_dataset_of_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(beir(tmp_path / "0123abcd"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    found = read_retrieval_set(name)
    assert (found.name, found.query_ids) == ("mteb/drinks", ["q2", "q1"])
    ((repository, kind, patterns),) = hub.asked
    assert (repository, kind) == ("mteb/drinks", "dataset")
    assert {"corpus.jsonl", "queries.jsonl.gz", "qrels/*.tsv"} <= set(patterns)


def test_a_dataset_of_the_hub_in_another_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(tmp_path / "snapshot"))
    message = refusal("hub:mteb/drinks")
    assert "mteb/drinks has no corpus.jsonl, no queries.jsonl, no qrels/test.tsv" in message
    assert "no Parquet" in message


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    message = refusal("mteb/drinks")
    assert "no folder mteb/drinks, and the hub gave no dataset of that name (We couldn't connect to the hub)" in message
    assert "check the name and the network" in message


@pytest.mark.parametrize("name", ["hub:drinks", "hub:a/b/c", "hub:../x"])
def test_a_name_that_no_dataset_of_the_hub_can_have(name: str) -> None:
    assert "expected hub:OWNER/NAME" in refusal(name)


@pytest.mark.parametrize("score", ["1001", "-30000000000", "9" * 5000])
def test_a_score_that_no_scorer_can_hold(tmp_path: Path, score: str) -> None:
    folder = beir(tmp_path / "drinks")
    (folder / "qrels" / "test.tsv").write_text(f"q1\td1\t{score}\n", encoding="utf-8")
    message = refusal(folder)
    assert "the score" in message
    assert "order of the columns" in message
    assert len(message) < 400 + len(str(folder))


# --- public sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "documents", "queries", "judgments", "notes"),
    [
        (
            "scifact",
            5183,
            300,
            339,
            ("2 queries are, word for word, also in the train split, which an SAE may be fitted to",),
        ),
        ("msmarco-5k", 5000, 43, 4102, ("7 of 50 queries have no judgment: left out",)),
        ("npl", 11429, 93, 2083, ()),
    ],
)
def test_public_sets_have_their_published_size(
    shared_data: Path, name: str, documents: int, queries: int, judgments: int, notes: tuple[str, ...]
) -> None:
    found = read_retrieval_set(shared_data / name)
    assert (len(found.document_ids), len(found.texts)) == (documents, documents)
    assert (len(found.query_ids), len(found.queries)) == (queries, queries)
    assert sum(map(len, found.judgments.values())) == judgments
    assert found.notes == notes


def test_graded_judgments_keep_their_grades(shared_data: Path) -> None:
    found = read_retrieval_set(shared_data / "msmarco-5k")
    assert {grade for grades in found.judgments.values() for grade in grades.values()} == {1, 2, 3}


def test_queries_that_training_may_have_seen_are_noted(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td1\t1\n", encoding="utf-8")
    with (folder / "queries.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"_id": "q9", "text": "leaves?"}\n')
    assert any(note.startswith("1 queries are, word for word") for note in read_retrieval_set(folder).notes)
