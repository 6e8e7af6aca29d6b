"""Figure 4: what is added to a latent of documents or of queries, on dictionaries whose rankings follow by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from judged_world import judged_set
from small_world import World
from toy import ToyEmbedder, random_sae, unit_rows

from benchmarks.paper import manipulation
from benchmarks.paper.figure_4 import figure_4, manipulation_study
from benchmarks.paper.manipulation import (
    STRENGTHS,
    ReconstructedSearch,
    best_rows,
    judged_from,
    largest_latents,
    manipulate,
    summed_latents,
    usual_values,
)
from benchmarks.paper.table_4 import perspectives_study
from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.errors import CorpusError, MismatchError
from sae_steer_retriever.evaluate.fidelity import RECONSTRUCTED, measure_fidelity
from sae_steer_retriever.evaluate.retrieval_set import EmbeddedSet, RetrievalSet
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.nearest_lists import nearest_documents

D = 6


def planted_sae() -> TopKSAE:
    """Latent i is coordinate i: what is not negative is reconstructed exactly."""
    config = SAEConfig(d=D, n=D, k=4, k_labels=2, encoder=EncoderSpec(name="toy/axes", dimension=D))
    return TopKSAE(torch.eye(D), torch.zeros(D), torch.eye(D), torch.zeros(D), config)


def planted_set(documents: list[list[float]], query: list[float]) -> tuple[RetrievalSet, EmbeddedSet]:
    """Document 0 is relevant to the one query."""
    passages = [Passage(f"d{row}", f"text {row}") for row in range(len(documents))]
    judged = RetrievalSet("planted", passages, ["q"], ["question"], {"q": {"d0": 1}})

    def padded(rows: list[list[float]]) -> Array:
        found = np.array([row + [0.0] * (D - len(row)) for row in rows], dtype=np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)

    return judged, EmbeddedSet(padded(documents), padded([query]))


# The relevant document is about latents 0 and 1, the query about 0; one other has more of 0, one only 1.
RISES_AND_FALLS = ([[0.6, 0.8], [0.8, 0.0, 0.6], [0.0, 1.0]], [1.0])
# What is all latent 0 is less near to the query than the second document, which is the query.
TWO_TOPICS = ([[0.6, 0.0, 0.8], [0.8, 0.6], [0.0, 0.0, 1.0]], [0.8, 0.6])


# --- The curves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["dot", "cosine"])
def test_raising_the_querys_latent_in_relevant_documents_ends_at_the_top(product: manipulation.Product) -> None:
    judged, vectors = planted_set(*RISES_AND_FALLS)
    found = manipulate(planted_sae(), judged, vectors, (0.1, 0.3, 1.6, 100.0))
    mrr = [float(values["mrr@10"].mean()) for values in found.curves[product, "document"]]
    assert found.unchanged[product]["mrr@10"].tolist() == [0.5]
    assert mrr[0] == 0.5, "0.6 + 0.1 is still less than 0.8"
    assert mrr == sorted(mrr)
    assert mrr[-1] == 1.0


def test_raising_the_documents_latent_in_the_query_helps_and_then_overshoots() -> None:
    judged, vectors = planted_set(*RISES_AND_FALLS)
    found = manipulate(planted_sae(), judged, vectors, (0.2, 0.3, 2.9, 3.1))
    for product in manipulation.PRODUCTS:
        mrr = [float(values["mrr@10"].mean()) for values in found.curves[product, "query"]]
        # 0.6 + 0.8 s passes 0.8 at s = 0.25, and is passed by s itself at 3.
        assert mrr == [0.5, 1.0, 1.0, 0.5]


def test_only_the_dot_product_grows_without_end() -> None:
    judged, vectors = planted_set(*TWO_TOPICS)
    found = manipulate(planted_sae(), judged, vectors, (1000.0,))
    assert found.curves["dot", "document"][0]["mrr@10"].tolist() == [1.0]
    assert found.curves["cosine", "document"][0]["mrr@10"].tolist() == [0.5], "cos(q, d_0) = 0.8 < cos(q, q)"


def test_documents_that_are_not_relevant_stay_as_they_are() -> None:
    judged, vectors = planted_set(*RISES_AND_FALLS)
    search = ReconstructedSearch(vectors.documents, vectors.queries, "dot")
    directions = np.eye(D, dtype=np.float32)[[0]]
    ranking = search.documents_changed(directions, [np.array([2])], (0.0, 0.7, 50.0))
    assert [rows[0].tolist() for rows in ranking] == [[1, 0, 2], [1, 2, 0], [2, 1, 0]]


def test_nothing_added_is_the_reconstructed_search() -> None:
    sae, (judged, vectors) = random_sae(), judged_set("one")
    found = manipulate(sae, judged, vectors, (1e-9,))
    expected = measure_fidelity(sae, judged, vectors).row(RECONSTRUCTED).per_query
    for metric, values in found.unchanged["cosine"].items():
        np.testing.assert_array_equal(values, expected[metric])
        for side in manipulation.SIDES:
            np.testing.assert_array_equal(found.curves["cosine", side][0][metric], values)
    x, q = unit_rows(0, 40), unit_rows(1, 7)
    plain = ReconstructedSearch(x, q, "dot").queries_changed(unit_rows(2, 7), (0.0,))[0]
    np.testing.assert_array_equal(np.stack(plain), nearest_documents(q, x, 10))


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, (judged, vectors) = random_sae(), judged_set("one")
    whole = manipulate(sae, judged, vectors, (0.1, 0.5))
    monkeypatch.setattr(manipulation, "_TILE_SCORES", 3 * len(judged.passages))
    tiled = manipulate(sae, judged, vectors, (0.1, 0.5))
    for curve, values in whole.curves.items():
        for one, other in zip(values, tiled.curves[curve], strict=True):
            np.testing.assert_array_equal(one["mrr@10"], other["mrr@10"])


# --- What is changed -----------------------------------------------------------------------------------------------


def test_which_latents_are_raised() -> None:
    codes = Codes(np.array([[3, 1], [1, 2], [2, 3]], dtype=np.int32), np.array([[0.2, 0.5], [0.4, 0.1], [0.8, 0.0]]))
    assert largest_latents(codes).tolist() == [1, 1, 2], "by value, whatever comes first"
    # Over rows 0 and 1 latent 1 sums to 0.9; over all three latent 2 does, with row 1's 0.1.
    assert summed_latents(codes, [np.array([0, 1]), np.array([0, 1, 2]), np.array([2])], 5).tolist() == [1, 1, 2]
    assert summed_latents(codes, [np.array([], dtype=np.int64)], 5).tolist() == [0]


def test_usual_values_are_of_active_latents() -> None:
    codes = Codes(np.array([[0, 1], [2, 3]]), np.array([[0.4, 0.2], [0.6, 0.0]]))
    median, _, largest = usual_values(codes)
    assert (median, largest) == (pytest.approx(0.4), pytest.approx(0.5))
    assert usual_values(Codes(codes.indices, np.zeros((2, 2)))).median == 0.0


def test_the_grid_is_the_papers_and_three_doublings_more() -> None:
    assert STRENGTHS[0] == 0.0004
    assert STRENGTHS[11] == pytest.approx(0.8192)
    assert STRENGTHS[-1] == pytest.approx(6.5536)


@given(arrays(np.float32, (3, 14), elements=st.floats(-1, 1, width=16)))
def test_best_rows_are_the_largest_in_order(scores: Array) -> None:
    rows = best_rows(scores, 5)
    np.testing.assert_array_equal(np.take_along_axis(scores, rows, axis=1), -np.sort(-scores, axis=1)[:, :5])
    assert all(len(set(row)) == 5 for row in rows.tolist())


def test_a_higher_grade_leaves_fewer_documents_relevant() -> None:
    judged, vectors = planted_set(*RISES_AND_FALLS)
    graded = RetrievalSet(
        "graded", judged.passages, ["a", "q"], ["one", "two"], {"a": {"d1": 1}, "q": {"d0": 3, "d1": 2, "d2": 1}}
    )
    both = EmbeddedSet(vectors.documents, np.concatenate([vectors.queries, vectors.queries]))
    assert judged_from(graded, both, 1)[0] is graded
    narrowed, kept = judged_from(graded, both, 2)
    assert (narrowed.query_ids, narrowed.queries, len(kept.queries)) == (["q"], ["two"], 1)
    assert [rows.tolist() for rows in manipulation.relevant_rows(narrowed)] == [[0, 1]]
    with pytest.raises(CorpusError, match="the largest grade is 3"):
        judged_from(graded, both, 4)


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strengths", [(), (0.0, 0.1), (float("nan"),), (-1.0,)])
def test_unusable_strengths_are_refused(strengths: tuple[float, ...]) -> None:
    judged, vectors = planted_set(*RISES_AND_FALLS)
    with pytest.raises(ValueError, match="expected at least one, all above 0"):
        manipulate(planted_sae(), judged, vectors, strengths)


def test_what_does_not_belong_together_is_refused() -> None:
    judged, vectors = planted_set(*RISES_AND_FALLS)
    with pytest.raises(MismatchError, match="expected one each"):
        manipulate(planted_sae(), judged, EmbeddedSet(vectors.documents[:2], vectors.queries))
    absent = RetrievalSet("absent", judged.passages, ["q"], ["question"], {"q": {"elsewhere": 1}})
    with pytest.raises(CorpusError, match="nothing to manipulate"):
        manipulate(planted_sae(), absent, vectors)


# --- The figure ----------------------------------------------------------------------------------------------------


def test_the_figure_says_how_far_either_side_goes() -> None:
    judged, vectors = planted_set(*RISES_AND_FALLS)
    figure = figure_4(planted_sae(), judged, vectors, (0.1, 0.4, 6.4))
    assert len(figure.table.rows) == 2 * (1 + 2 * 3)
    (shape,) = [note for note in figure.table.notes if note.startswith("By dot product")]
    assert "MRR@10 0.500 unchanged; documents raise it to 1.000 at 0.4000 (0.99 from 0.4000 on)" in shape
    assert "the query raises it to 1.000 at 0.4000" in shape
    assert shape.endswith("6.4000 leaves 0.500.")
    assert any("the paper" in note.lower() for note in figure.table.notes)


def test_the_figure_does_not_claim_what_is_not_so() -> None:
    judged, vectors = planted_set(*TWO_TOPICS)
    notes = figure_4(planted_sae(), judged, vectors, (1000.0,)).table.notes
    (shape,) = [note for note in notes if note.startswith("By cosine")]
    assert "(not to 0.99)" in shape
    perfect, found = planted_set([[1.0], [0.0, 1.0]], [1.0])
    notes = figure_4(planted_sae(), perfect, found, (0.1,)).table.notes
    assert any("nothing is left to raise" in note for note in notes)


def test_the_figure_is_written_with_its_drawing(tmp_path: Path) -> None:
    judged, vectors = planted_set(*RISES_AND_FALLS)
    figure = figure_4(planted_sae(), judged, vectors)
    files = {path.name for path in figure.write(tmp_path)}
    assert files == {f"figure-4.{ending}" for ending in ("md", "csv", "json", "png", "svg")}
    with (tmp_path / "figure-4.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["added to"] for row in rows} == {"nothing", "relevant documents", "query"}
    drawn = (tmp_path / "figure-4.svg").read_text(encoding="utf-8")
    assert len(drawn) > 10_000
    (canvas,) = [plot.canvas for plot in figure.plots()]
    assert [axes.get_title() for axes in canvas.axes] == [
        f"{metric}, {product}" for metric in ("MRR@10", "P@10") for product in ("dot product", "cosine")
    ]
    assert all(axes.get_xscale() == "log" for axes in canvas.axes)


# --- From files ----------------------------------------------------------------------------------------------------


def test_both_studies_from_files(world: World, tmp_path: Path) -> None:
    sae, dataset = tmp_path / "sae", tmp_path / "judged"
    world.sae.save_pretrained(sae)
    world.catalog.save(sae)
    (dataset / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "text": text} for name, text in zip(world.ids[:12], world.texts[:12], strict=True)]
    (dataset / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (dataset / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "wait for a child process"}) + "\n")
    (dataset / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{world.ids[0]}\t1\n")
    figure = manipulation_study(sae, dataset, world.embedder)
    assert figure.table.rows[0][1] == "nothing"
    with pytest.raises(CorpusError, match="the largest grade is 1"):
        manipulation_study(sae, dataset, world.embedder, relevant_from=2)
    with pytest.raises(MismatchError):
        manipulation_study(sae, dataset, ToyEmbedder())
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(f"{json.dumps({**row, 'label': 'a'})}\n" for row in rows), encoding="utf-8")
    with pytest.raises(CorpusError, match="20 Newsgroups"):
        perspectives_study(sae, world.embedder, corpus=labelled)
    with pytest.raises(ValueError, match="not both"):
        perspectives_study(sae, world.embedder)
