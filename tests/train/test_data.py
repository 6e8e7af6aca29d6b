"""What a fit draws from: the same rows in the same order whether they are in memory or in a file."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import ToyEmbedder, unit_rows

from sae_steer_retriever.corpus.passage import Corpus, Passage
from sae_steer_retriever.corpus.query_texts import query_texts
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.encoders.vector_rows import VectorRows, Vectors
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import EncoderSpec
from sae_steer_retriever.train import embedded_corpus as module
from sae_steer_retriever.train import nearest_lists as lists
from sae_steer_retriever.train import trainer
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.embedded_corpus import EmbeddedCorpus, embed_corpus, short_texts
from sae_steer_retriever.train.nearest_lists import nearest_documents
from sae_steer_retriever.train.pipeline import prepare
from sae_steer_retriever.train.sampling import Rows, Sampler

CONFIG = TrainConfig(sentences=2, list_size=4, seed=3, device="cpu", latents=64, k=8, steps=10)


def sentence(generator: np.random.Generator) -> str:
    letters = ("".join(generator.choice(list("abcdefghij"), size=4)) for _ in range(6))
    return " ".join(letters).capitalize() + "."


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    generator = np.random.default_rng(0)
    texts = [" ".join(sentence(generator) for _ in range(4)) for _ in range(120)]
    return Corpus(
        [Passage(str(number), text) for number, text in enumerate(texts)],
        queries=[sentence(generator) for _ in range(20)],
    )


def whole_in_memory(corpus: Corpus, config: TrainConfig, embedder: Embedder) -> dict[str, np.ndarray]:
    """Splits and lists as the figures of docs/ were made: every part an array of its own, permuted as a whole."""
    passages = embedder.embed_documents([passage.text for passage in corpus.passages])
    short = query_texts(corpus.passages, seed=config.seed, per_passage=config.sentences) if config.sentences else []
    short_rows = embedder.embed_queries([query.text for query in short])
    real = embedder.embed_queries(corpus.queries)
    generator = np.random.default_rng(config.seed)
    held_passage, held_real = np.zeros(len(passages), dtype=bool), np.zeros(len(real), dtype=bool)
    held_passage[generator.permutation(len(passages))[: round(0.1 * len(passages))]] = True
    held_short = held_passage[[query.passage_index for query in short]] if short else np.zeros(0, dtype=bool)
    held_real[generator.permutation(len(real))[: round(0.1 * len(real))]] = True
    held_queries = np.concatenate([real[held_real], generator.permutation(short_rows[held_short])])
    found = {
        "held_out.rows": np.concatenate([passages[held_passage], short_rows[held_short], real[held_real]]),
        "held_out.queries": held_queries if len(held_queries) else passages[held_passage],
        "held_out.documents": passages[np.sort(generator.permutation(len(passages)))],
    }
    for name, of_passages, of_real, of_short in (
        ("fitted", ~held_passage, ~held_real, ~held_short),
        ("everything", *(np.ones(len(mask), dtype=bool) for mask in (held_passage, held_real, held_short))),
    ):
        documents, queries = passages[of_passages], np.concatenate([real[of_real], short_rows[of_short]])
        found[f"{name}.rows"] = np.concatenate([documents, queries])
        queries = queries if len(queries) else documents
        best = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, : config.list_size]
        found |= {f"{name}.documents": documents, f"{name}.queries": queries, f"{name}.lists": best}
    return found


def as_arrays(embedded: EmbeddedCorpus) -> dict[str, np.ndarray]:
    return {
        f"{part}.{name}": np.asarray(rows)
        for part, held in embedded.data._asdict().items()
        for name, rows in held._asdict().items()
    }


@pytest.mark.parametrize("cached", [True, False], ids=["in a file", "in memory"])
@pytest.mark.parametrize("kept", ["all", "no sentences", "passages alone"])
def test_parts_are_what_they_were_when_all_was_in_memory(
    corpus: Corpus, kept: str, cached: bool, tmp_path: Path
) -> None:
    """A fit of a small corpus draws what it always drew, so that published figures stay what they are."""
    config = CONFIG if kept == "all" else TrainConfig(sentences=0, list_size=4, seed=3, device="cpu")
    if kept == "passages alone":
        corpus = Corpus(corpus.passages)
    embedder: Embedder = CachedEmbedder(ToyEmbedder(), tmp_path) if cached else ToyEmbedder()
    found, expected = as_arrays(embed_corpus(corpus, config, embedder)), whole_in_memory(corpus, config, ToyEmbedder())
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows, err_msg=name)


def test_the_draws_of_a_step_are_pinned() -> None:
    """A fresh permutation per pass, by seed and pass alone: what a step draws is known without the steps before."""
    rows = np.arange(46, dtype=np.float32).reshape(23, 2)
    sampler = Sampler(Rows(rows, rows, rows[:9], np.zeros((9, 1), dtype=np.int64)), seed=5)
    for step in (7, 0, 3, 4, 0):
        number, position = divmod(step, 4)
        generator = torch.Generator().manual_seed((5 * 1_000_003 + number) * 7 + 1)
        expected = torch.randperm(23, generator=generator)[5 * position : 5 * position + 5]
        assert torch.equal(sampler.draw_rows(step, 5), expected)
        generator = torch.Generator().manual_seed((5 * 1_000_003 + step) * 7 + 2)
        assert torch.equal(sampler.draw_queries(step, 9), torch.randperm(9, generator=generator))
        assert torch.equal(sampler.rows[expected], torch.from_numpy(rows)[expected])


def test_a_sample_is_all_rows_or_as_many_as_asked_for() -> None:
    rows = np.arange(46, dtype=np.float32).reshape(23, 2)
    sampler = Sampler(Rows(rows, rows, rows, np.zeros((23, 1), dtype=np.int64)), seed=5)
    assert torch.equal(sampler.sample_rows(23), torch.from_numpy(rows))
    some = sampler.sample_rows(8)[:, 0].tolist()
    assert len(set(some)) == 8
    assert some == sorted(some) == sampler.sample_rows(8)[:, 0].tolist()
    sampler.sample_rows(23).zero_()
    assert rows[-1, -1] == 45


def test_many_query_like_texts_have_lists_for_a_sample(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real queries are kept before sentences, every row is still fitted, and every document still a candidate."""
    embedder = ToyEmbedder()
    whole = embed_corpus(corpus, CONFIG, embedder).data
    monkeypatch.setattr(module, "MOST_LIST_QUERIES", 50)
    monkeypatch.setattr(module, "_MEASURED_ROWS", 15)
    part, again = (embed_corpus(corpus, CONFIG, embedder).data for _ in range(2))
    queries = np.asarray(part.everything.queries)
    assert len(whole.everything.queries) > 200
    assert queries.shape == (50, 16)
    np.testing.assert_array_equal(queries[:20], embedder.embed_queries(corpus.queries))
    np.testing.assert_array_equal(queries, np.asarray(again.everything.queries))
    asked = [row.tobytes() for row in np.asarray(whole.everything.queries)]
    for query, own in zip(queries, part.everything.lists, strict=True):
        assert np.array_equal(own, whole.everything.lists[asked.index(query.tobytes())])
    np.testing.assert_array_equal(np.asarray(part.everything.rows), np.asarray(whole.everything.rows))
    assert len(part.held_out.rows) == 15
    assert {row.tobytes() for row in part.held_out.rows} <= {row.tobytes() for row in whole.held_out.rows}
    np.testing.assert_array_equal(part.held_out.queries, whole.held_out.queries)


@pytest.mark.parametrize(("documents", "size"), [(7, 3), (64, 5), (65, 5), (200, 40), (16, 16)])
def test_tiles_of_documents_change_no_list(documents: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last tile is shorter than a list, and where equal documents tie."""
    generator = np.random.default_rng(documents)
    rows = generator.integers(-2, 3, size=(documents, 5)).astype(np.float32)
    queries = generator.integers(-2, 3, size=(30, 5)).astype(np.float32)
    for name, value in (("_QUERIES", 8), ("_DOCUMENTS", 16), ("_SELECTED", 3)):
        monkeypatch.setattr(lists, name, value)
    scores = queries @ rows.T
    found = nearest_documents(queries, rows, size)
    assert all(len(set(own)) == min(size, documents) for own in found.tolist())
    expected = -np.sort(-scores, axis=1)[:, :size]
    np.testing.assert_array_equal(np.take_along_axis(scores, found, axis=1), expected)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(20, 90),
    st.integers(0, 40),
    st.integers(0, 5),
    st.integers(1, 30),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_one_search_gives_both_lists(seed: int, passages: int, short: int, real: int, size: int, sampled: bool) -> None:
    """Those among the fitted documents equal a search of their own, ties included; scores here are whole numbers."""
    generator = np.random.default_rng(seed)
    sizes = (passages, real, short)
    store = generator.integers(-2, 3, size=(sum(sizes), 5)).astype(np.float32)
    places = np.split(np.arange(len(store)), np.cumsum(sizes)[:-1])
    parts = module._Parts(*(VectorRows(store, own) for own in places))
    masks = module._Masks(*(generator.random(count) >= 0.2 for count in sizes))
    masks.passages[0] = True
    config = dataclasses.replace(CONFIG, list_size=size)
    with pytest.MonkeyPatch.context() as patch:
        if sampled:
            patch.setattr(module, "MOST_LIST_QUERIES", 12)
        fitted, everything = module._with_lists(parts, masks, config)
    for rows, mask in ((fitted, masks.passages), (everything, np.ones(passages, dtype=bool))):
        documents, queries = np.asarray(rows.documents), np.asarray(rows.queries)
        np.testing.assert_array_equal(documents, store[:passages][mask])
        assert 0 < len(queries) <= (12 if sampled else passages + short + real)
        np.testing.assert_array_equal(rows.lists, nearest_documents(queries, documents, size))
        scores = queries @ documents.T
        found = np.take_along_axis(scores, rows.lists, axis=1)
        np.testing.assert_array_equal(found, -np.sort(-scores, axis=1)[:, :size])


def test_a_list_that_loses_too_many_documents_is_searched_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other one: here the documents nearest to the first query are all held out."""
    passages = unit_rows(1, 200, 8)
    query = passages[0]
    nearest = np.argsort(-(passages @ query), kind="stable")
    store = np.concatenate([passages, [query, -query]])
    kept = np.ones(200, dtype=bool)
    kept[nearest[:40]] = False
    parts = module._Parts(*(VectorRows(store, own) for own in (np.arange(200), np.arange(200, 202), np.arange(0))))
    asked: list[int] = []

    def counted(queries: Vectors, documents: Vectors, size: int) -> np.ndarray:
        asked.append(len(queries))
        return nearest_documents(queries, documents, size)

    monkeypatch.setattr(module, "nearest_documents", counted)
    masks = module._Masks(kept, np.ones(2, dtype=bool), np.ones(0, dtype=bool))
    fitted, _ = module._with_lists(parts, masks, CONFIG)
    assert asked == [1]
    number = np.cumsum(kept) - 1
    np.testing.assert_array_equal(fitted.lists[0], number[nearest[40:44]])
    np.testing.assert_array_equal(fitted.lists[1], number[nearest[::-1][:4]])


def test_texts_that_were_made_before_are_not_made_again(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = as_arrays(embed_corpus(corpus, CONFIG, ToyEmbedder()))
    short = short_texts(corpus, CONFIG)
    monkeypatch.setattr(module, "query_texts", None)
    found = as_arrays(embed_corpus(corpus, CONFIG, ToyEmbedder(), short))
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows, err_msg=name)


class Numbered:
    """Quick wide vectors: a text's number is the seed."""

    spec = EncoderSpec("toy/numbered", 512)

    def embed_documents(self, texts: Sequence[str]) -> Array:
        rows = [np.random.default_rng(int(text)).standard_normal(512, dtype=np.float32) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]) if rows else np.empty((0, 512), dtype=np.float32)

    embed_queries = embed_documents


def test_vectors_stay_in_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the split to the end of the fit less is allocated than half of one copy, where a copy is 24.6 MB."""
    for owner, name, value in (
        (module, "_MEASURED_ROWS", 300),
        (module, "_MEASURED_PASSAGES", 300),
        (module, "_TILE", 300),
        (lists, "_DOCUMENTS", 300),
        (trainer, "_STATISTICS_ROWS", 300),
        (trainer, "_SAMPLE", 300),
    ):
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr("sae_steer_retriever.train.pipeline._HASHED", 300)
    monkeypatch.setattr("sae_steer_retriever.encoders.embedding_cache._CHECKED", 300)
    corpus = Corpus([Passage(str(number), str(number)) for number in range(12_000)], queries=["12001", "12002"])
    config = TrainConfig(sentences=0, latents=64, k=8, steps=10, device="cpu")
    cached = CachedEmbedder(Numbered(), tmp_path)
    cached.embed_documents([passage.text for passage in corpus.passages])

    def whole_fit() -> None:
        embedded = embed_corpus(corpus, config, cached)
        prepare(corpus, embedded, config, cached.spec, tmp_path / "sae", resume=False)[0].fit()

    whole_fit()  # what libraries load when they are first used is not meant
    tracemalloc.start()
    try:
        whole_fit()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12e6
