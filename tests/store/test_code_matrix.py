"""The matrix of codes: it finds what the dense dot product finds, exactly, and follows the sidecar."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy import ToyEmbedder, random_sae

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.codes import Codes, power_normalise, power_normalised
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.code_matrix import SIMILARITIES, CodeMatrix, CurrentMatrix, Similarity
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.sidecar import CodePage, SidecarReader
from sae_steer_retriever.store.store_reader import StoreReader

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


FEW: Codes[NDArray[Any]] = Codes(np.array([[0, 1], [2, 3]]), np.array([[1.0, 0.5], [1.0, 0.5]], np.float32))


@given(codes((0, 12)), codes((1, 3)), st.integers(1, 14), st.sampled_from(SIMILARITIES))
def test_it_finds_what_the_dense_dot_product_finds(
    passages: Codes[NDArray[Any]], queries: Codes[NDArray[Any]], k: int, similarity: Similarity
) -> None:
    expected = dense(queries, similarity=similarity) @ dense(passages, similarity=similarity).T
    found = CodeMatrix(passages, N_LATENTS).search(similarity, queries, k)
    assert len(found) == len(queries.indices)
    for hits, scores in zip(found, expected, strict=True):
        may_be = scores > 0
        assert len(hits.rows) == min(k, may_be.sum()), "fewer come back where fewer share a latent"
        assert may_be[hits.rows].all()
        np.testing.assert_allclose(hits.scores, scores[hits.rows], rtol=1e-5)
        np.testing.assert_allclose(hits.scores, np.sort(scores[may_be])[::-1][:k], rtol=1e-5)
        assert len(set(hits.rows.tolist())) == len(hits.rows)


@given(st.integers(1, 7), st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=12))
def test_equal_scores_come_in_the_order_of_their_rows(k: int, values: list[float]) -> None:
    shape = (len(values), 1)
    passages: Codes[NDArray[Any]] = Codes(np.full(shape, 3, np.int32), np.array(values, np.float32).reshape(shape))
    query: Codes[NDArray[Any]] = Codes(np.array([[3]]), np.array([[1.0]], np.float32))
    (hits,) = CodeMatrix(passages, N_LATENTS).search("dot", query, k)
    order = sorted((row for row, value in enumerate(values) if value), key=lambda row: (-values[row], row))
    assert hits.rows.tolist() == order[:k]


@given(codes((0, 12)), st.lists(st.floats(-2, 2, width=32), min_size=N_LATENTS, max_size=N_LATENTS))
def test_projections_are_those_of_the_codes_as_they_are(passages: Codes[NDArray[Any]], along: list[float]) -> None:
    matrix = CodeMatrix(passages, N_LATENTS)
    matrix.search("damped", passages, 3)
    found = matrix.project(np.array(along, np.float32))
    np.testing.assert_allclose(found, dense(passages) @ np.array(along), atol=1e-5)


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
        similarity: CodeMatrix(passages, N_LATENTS).search(similarity, query, 1)[0].rows.tolist()
        for similarity in SIMILARITIES
    }
    assert first == {"dot": [0], "cosine": [0], "damped": [1]}
    assert power_normalised(passages).indices is passages.indices


def test_a_similarity_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="similarity is 'cosin', expected one of dot, cosine, damped"):
        CodeMatrix(FEW, N_LATENTS).search("cosin", FEW, 1)  # type: ignore[arg-type]


def test_a_negative_weight_takes_away() -> None:
    passages: Codes[NDArray[Any]] = Codes(np.array([[0, 1], [0, 2]]), np.array([[1, 1], [1, 1]], np.float32))
    query: Codes[NDArray[Any]] = Codes(np.array([[0, 1]]), np.array([[1.0, -2.0]], np.float32))
    (hits,) = CodeMatrix(passages, N_LATENTS).search("dot", query, 2)
    assert hits.rows.tolist() == [1], "the first is below zero"


@pytest.mark.parametrize("latent", [-1, N_LATENTS])
def test_a_latent_of_another_sae_is_refused(latent: int) -> None:
    wrong: Codes[NDArray[Any]] = Codes(np.array([[0, latent]]), np.ones((1, 2), dtype=np.float32))
    with pytest.raises(MismatchError, match=f"latent {latent}.*#0 to #8"):
        CodeMatrix(wrong, N_LATENTS)
    with pytest.raises(MismatchError, match=f"latent {latent}.*#0 to #8"):
        CodeMatrix(FEW, N_LATENTS).search("damped", wrong, 2)


# -- in step with the sidecar -----------------------------------------------------------------------------------------

SAE = random_sae(3)
EMBEDDER = ToyEmbedder()


def filled(folder: Path, count: int = 9) -> ChromaStore:
    store = ChromaStore.open(SAE, path=folder)
    store.add(
        [f"p{number}" for number in range(count)], [f"a word{number}" for number in range(count)], embedder=EMBEDDER
    )
    return store


def current(store: StoreReader) -> CurrentMatrix:
    return CurrentMatrix(store.sidecar, SAE.config)


def assert_holds(matrix: CodeMatrix, texts: dict[str, str]) -> None:
    assert sorted(matrix.ids) == sorted(texts)
    expected = SAE.encode(EMBEDDER.embed_queries([texts[name] for name in matrix.ids]))
    np.testing.assert_array_equal(matrix.codes.indices, expected.indices)
    np.testing.assert_allclose(matrix.codes.values, expected.values, atol=1e-6)


def test_what_another_client_writes_is_read_at_once_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = filled(tmp_path)
    reader = StoreReader.open(SAE, path=tmp_path)
    reads = []
    pages = SidecarReader.pages
    monkeypatch.setattr(SidecarReader, "pages", lambda sidecar: reads.append(1) or pages(sidecar))
    codes = current(reader)
    texts = {f"p{number}": f"a word{number}" for number in range(9)}
    assert_holds(codes.read(reader.__len__), texts)
    writer.add(["p3", "new"], ["changed", "added"], embedder=EMBEDDER)
    assert_holds(codes.read(reader.__len__), texts | {"p3": "changed", "new": "added"})
    writer.delete(["p0"])
    del texts["p0"]
    assert_holds(codes.read(reader.__len__), texts | {"p3": "changed", "new": "added"})
    assert codes.read(reader.__len__) is codes.read(reader.__len__)
    assert len(reads) == 3


def test_threads_share_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    reads = []
    pages = SidecarReader.pages
    monkeypatch.setattr(SidecarReader, "pages", lambda sidecar: reads.append(1) or pages(sidecar))
    codes, together, found = current(store), threading.Barrier(8), []

    def read() -> None:
        together.wait()
        found.append(codes.read(store.__len__))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_an_unfinished_write_is_read_now_and_then_and_its_end_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    clock = [0.0]
    monkeypatch.setattr("sae_steer_retriever.store.code_matrix.time.monotonic", lambda: clock[0])
    pages = SidecarReader.pages

    def slow(sidecar: SidecarReader) -> Iterator[Any]:
        clock[0] += 2.0
        return pages(sidecar)

    monkeypatch.setattr(SidecarReader, "pages", slow)
    codes = current(store)
    with store.sidecar.writing() as writer:
        writer.write(["half"], EMBEDDER.embed_queries(["written"]))
        assert "half" in codes.read(store.__len__).ids
        writer.write(["other half"], EMBEDDER.embed_queries(["written too"]))
        clock[0] += 19.0
        assert "other half" not in codes.read(store.__len__).ids, "ten times as long as the reading took"
        clock[0] += 2.0
        assert "other half" in codes.read(store.__len__).ids
        writer.write(["rest"], EMBEDDER.embed_queries(["the rest"]))
    assert "rest" in codes.read(store.__len__).ids


def test_a_passage_that_two_pages_hold_is_there_once() -> None:
    again: Codes[NDArray[Any]] = Codes(FEW.indices[1:], FEW.values[1:])
    pages = [CodePage(["a", "b"], FEW, ["old", "b"]), CodePage(["a"], again, ["new"])]
    matrix = CodeMatrix.read(pages, N_LATENTS, 2)
    assert (list(matrix.ids), list(matrix.digests)) == (["a", "b"], ["new", "b"])
    assert matrix.take(matrix.rows_of(["a", "unknown"])).indices.tolist() == [[2, 3]]


def test_passages_without_codes_are_counted_once_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path)
    store.documents.add(ids=["x", "y"], embeddings=EMBEDDER.embed_queries(["x", "y"]), documents=["x", "y"])
    codes = current(store)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert len(codes.read(store.__len__)) == 9
    assert [record.getMessage() for record in caplog.records] == [
        "2 passages of 'docs' have no codes: run `sae-steer index --attach` or ChromaStore.attach()"
    ]


def test_a_store_without_a_sidecar_has_no_codes(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.detach()
    reader = StoreReader.open(SAE, path=tmp_path)
    matrix = current(reader).read(reader.__len__)
    assert len(matrix) == 0
    assert matrix.scores("damped", np.array([1, 2]), np.ones(2, np.float32)).shape == (0,)


@pytest.mark.parametrize("space", ["ip", "cosine", "l2"])
def test_only_passages_whose_vectors_are_those_that_were_encoded_are_unchanged(tmp_path: Path, space: str) -> None:
    client = connect(path=tmp_path)
    theirs = client.create_collection("docs", embedding_function=None, configuration={"hnsw": {"space": space}})
    vectors = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    names = [f"p{number}" for number in range(60)]
    theirs.add(ids=names, embeddings=vectors, documents=names, metadatas=[{"odd": bool(row % 2)} for row in range(60)])
    store = ChromaStore.from_collection(theirs, SAE)
    store.attach()
    matrix = current(store).read(store.__len__)
    digests = dict(zip(matrix.ids, matrix.digests, strict=True))
    assert store.unchanged({}) == {}
    assert store.unchanged(digests).keys() == set(names)
    theirs.update(ids=["p1"], embeddings=-vectors[1:2])
    theirs.update(ids=["p2"], embeddings=vectors[2:3], documents=["another text"], metadatas=[{"odd": True}])
    theirs.delete(ids=["p3"])
    found = store.unchanged(digests)
    assert found.keys() == set(names) - {"p1", "p3"}
    assert (found["p2"].text, found["p2"].metadata) == ("another text", {"odd": True})
    for name in ("p0", "p9"):
        assert found[name].vector.tolist() == store.find([name])[name].vector.tolist()
    if space != "cosine":
        theirs.update(ids=["p5"], embeddings=np.zeros((1, 16), np.float32))
        assert "p5" not in store.unchanged(digests)
