"""The figures of a corpus without judgments: held-out texts, and how much of the original ranking is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from toy import random_sae, unit_rows

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.query_texts import query_texts
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.errors import ArtifactError, CorpusError, MismatchError
from sae_steer_retriever.evaluate import agreement
from sae_steer_retriever.evaluate.agreement import held_out_queries, measure_agreement
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE

# --- held-out texts --------------------------------------------------------------------------------------------

PASSAGES = [
    Passage(
        f"p{index}",
        f"Title {index}\n" + " ".join(f"Document {index} has the sentence {n}." for n in range(9)),
        f"Title {index}",
    )
    for index in range(30)
]


@pytest.mark.parametrize(("seed", "sentences"), [(0, 4), (3, 1), (5, 9)])
def test_held_out_texts_are_those_that_training_did_not_draw(seed: int, sentences: int) -> None:
    drawn = {query.text for query in query_texts(PASSAGES, seed=seed, per_passage=sentences)}
    held_out = held_out_queries(PASSAGES, {"seed": seed, "sentences": sentences}, limit=10_000)
    assert {query.text for query in held_out}.isdisjoint(drawn)
    assert len(held_out) == 30 * 10 - len(drawn)
    assert all(query.text in PASSAGES[query.passage_index].text for query in held_out)


def test_without_sentences_in_training_titles_are_held_out_too() -> None:
    for training in ({"seed": 0, "sentences": 0}, {}):
        texts = [query.text for query in held_out_queries(PASSAGES, training, limit=10_000)]
        assert len(texts) == 300
        assert "Title 7" in texts


def test_the_same_words_in_other_letters_are_no_unseen_text() -> None:
    text = "It is the same sentence here. This one is different though."
    passages = [Passage("a", text), Passage("b", text.upper())]
    # One sentence is drawn of the first passage, and of the second the other one, in capitals.
    with pytest.raises(CorpusError, match="training drew all 2 "):
        held_out_queries(passages, {"seed": 0, "sentences": 1})


def test_passages_without_a_title_or_sentence_are_an_error() -> None:
    with pytest.raises(CorpusError, match="none of the 1 passages has a title, or a sentence"):
        held_out_queries([Passage("a", "word")], {"seed": 0, "sentences": 4})


def test_a_limit_takes_the_same_sample_every_time() -> None:
    training = {"seed": 0, "sentences": 4}
    some = held_out_queries(PASSAGES, training, limit=20)
    assert len(some) == 20
    assert some == held_out_queries(PASSAGES, training, limit=20)
    everything = held_out_queries(PASSAGES, training, limit=10_000)
    assert some == [query for query in everything if query in some]
    assert len({query.passage_index for query in some}) > 5


def test_training_that_used_every_text_is_an_error() -> None:
    with pytest.raises(CorpusError, match=r"training drew all 300 \(at most 10 of each passage\).*--sentences"):
        held_out_queries(PASSAGES, {"seed": 0, "sentences": 10})


@pytest.mark.parametrize("training", [{"seed": "0"}, {"sentences": -1}, {"sentences": 1.5}, {"sentences": True}])
def test_a_record_that_training_cannot_have_written_is_an_error(training: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="expected a whole number"):
        held_out_queries(PASSAGES, training)


def test_scifact_leaves_texts_to_measure_with(shared_data: Path) -> None:
    passages = read_corpus(shared_data / "scifact").passages[:400]
    held_out = held_out_queries(passages, {"seed": 0, "sentences": 4})
    drawn = {query.text for query in query_texts(passages, seed=0, per_passage=4)}
    assert len(held_out) == 500
    assert {query.text for query in held_out}.isdisjoint(drawn)


# --- agreement -------------------------------------------------------------------------------------------------

DOCUMENTS, QUERIES = unit_rows(1, 300), unit_rows(2, 40)
ROWS = ["latent", "latent_cosine", "latent_damped", "reconstructed", "original_x_reconstructed"]


def lossless(d: int = 16) -> TopKSAE:
    """An SAE that reconstructs exactly: each direction and its opposite, all of them kept."""
    directions = torch.cat([torch.eye(d), -torch.eye(d)])
    config = dataclasses.replace(random_sae().config, n=2 * d, k=d)
    return TopKSAE(directions, torch.zeros(2 * d), directions, torch.zeros(d), config)


def empty(d: int = 16) -> TopKSAE:
    """An SAE whose latents never activate."""
    return random_sae(shift=-1e3, d=d)


def dense_scores(sae: TopKSAE, documents: Array, queries: Array) -> dict[str, Array]:
    """The five ways to search, written down densely and all at once."""

    def dense(rows: Array) -> Array:
        codes, full = sae.encode(rows), np.zeros((len(rows), sae.config.n), dtype=np.float32)
        np.put_along_axis(full, codes.indices.astype(np.int64), codes.values, axis=1)
        return full

    def unit(rows: Array) -> Array:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    x, q = dense(documents), dense(queries)
    x_hat, q_hat = unit(sae.reconstruct(documents)), unit(sae.reconstruct(queries))
    return {
        "latent": q @ x.T,
        "latent_cosine": unit(q) @ unit(x).T,
        "latent_damped": unit(q**0.7) @ unit(x**0.7).T,
        "reconstructed": q_hat @ x_hat.T,
        "original_x_reconstructed": queries @ x_hat.T,
    }


@pytest.mark.parametrize("tile_bytes", [1, 32 * 2**20, 7 * 4 * 300])
def test_figures_equal_those_of_the_dense_computation(tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_TILE_BYTES", tile_bytes)
    sae = random_sae()
    found = measure_agreement(sae, DOCUMENTS, QUERIES, latent=True)
    assert (found.documents, found.queries, list(found.rows)) == (300, 40, ROWS)
    original = QUERIES @ DOCUMENTS.T
    for name, scores in dense_scores(sae, DOCUMENTS, QUERIES).items():
        overlaps, taus = [], []
        for before, after in zip(original, scores, strict=True):
            nearest = np.argsort(-before)[:100]
            overlaps.append(len(set(nearest[:10]) & set(np.argsort(-after)[:10])) / 10)
            taus.append(kendalltau(before[nearest], after[nearest]).statistic)
        row = found.rows[name]
        assert row.overlap.value == pytest.approx(np.mean(overlaps), abs=1e-6)
        # Rounding may swap neighbours of equal score.
        assert row.rank_correlation.value == pytest.approx(np.mean(taus), abs=1e-3)
        assert row.overlap.low < row.overlap.value < row.overlap.high
        assert row.rank_correlation.low < row.rank_correlation.value < row.rank_correlation.high


def test_a_lossless_sae_keeps_the_ranking() -> None:
    found = measure_agreement(lossless(), DOCUMENTS, QUERIES)
    assert list(found.rows) == ["reconstructed", "original_x_reconstructed"]
    for row in found.rows.values():
        assert (row.overlap.value, row.overlap.low, row.overlap.high) == (1.0, 1.0, 1.0)
        assert row.rank_correlation.value == pytest.approx(1.0, abs=1e-3)


def test_a_better_dictionary_agrees_more() -> None:
    coarse, fine = (measure_agreement(random_sae(k=k), DOCUMENTS, QUERIES).rows["reconstructed"] for k in (1, 8))
    assert fine.overlap.value > coarse.overlap.high
    assert fine.rank_correlation.value > coarse.rank_correlation.high


def test_codes_without_an_active_latent_have_no_order_to_agree_with() -> None:
    found = measure_agreement(empty(), DOCUMENTS, QUERIES, latent=True)
    for name in ROWS[:4]:
        assert found.rows[name].rank_correlation.value == 0.0, name
        assert found.rows[name].overlap.value < 0.5, name


def test_fewer_passages_than_places_are_compared_as_far_as_they_go() -> None:
    found = measure_agreement(random_sae(), DOCUMENTS[:4], QUERIES, latent=True)
    assert all(row.overlap.value == 1.0 for row in found.rows.values())
    assert all(-1.0 <= row.rank_correlation.value < 1.0 for row in found.rows.values())


def test_two_passages_are_in_one_order_or_the_other() -> None:
    rows, queries = unit_rows(3, 2, 16), unit_rows(4, 40, 16)
    sae = random_sae()
    kept = measure_agreement(sae, rows, queries).rows["original_x_reconstructed"].rank_correlation.value
    decoded = sae.decode(sae.encode(rows))
    before, after = np.diff(queries @ rows.T), np.diff(queries @ (decoded / np.linalg.norm(decoded, axis=1)[:, None]).T)
    assert kept == pytest.approx(np.mean(np.sign(before) * np.sign(after)))


def test_the_figures_are_standard_json() -> None:
    text = json.dumps(measure_agreement(random_sae(), DOCUMENTS, QUERIES).to_json(), allow_nan=False)
    assert set(json.loads(text)["rows"]["reconstructed"]["overlap"]) == {"value", "low", "high"}


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(CorpusError, match=r"300 passage\(s\) and 0 queries"):
        measure_agreement(random_sae(), DOCUMENTS, QUERIES[:0])
    with pytest.raises(CorpusError, match=r"1 passage\(s\)"):
        measure_agreement(random_sae(), DOCUMENTS[:1], QUERIES)
    with pytest.raises(MismatchError, match=r"queries of shape \(40, 8\): expected \(40, 16\)"):
        measure_agreement(random_sae(), DOCUMENTS, np.ascontiguousarray(QUERIES[:, :8]))
