"""What features mean: planted concepts against dictionaries that were never trained on anything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import World
from toy import ToyEmbedder, random_sae, unit_rows, word_vector

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.encoders.vector_rows import VectorRows
from sae_steer_retriever.errors import ArtifactError, CorpusError, MismatchError
from sae_steer_retriever.evaluate.bootstrap import bootstrap_median
from sae_steer_retriever.evaluate.frequencies import measure_frequencies
from sae_steer_retriever.evaluate.meaning import Meaning, measure_meaning, with_k_labels
from sae_steer_retriever.evaluate.recurrence import match_features, measure_recurrence, recorded_recipe
from sae_steer_retriever.features.calibration import calibrate
from sae_steer_retriever.labelling.baselines import kmeans_dictionary, random_dictionary
from sae_steer_retriever.labelling.coherence import (
    GROUP,
    corpus_mean,
    feature_coherence,
    group_coherence,
    random_groups,
)
from sae_steer_retriever.labelling.gather_evidence import read_label_latents
from sae_steer_retriever.labelling.keyword_labels import label_features
from sae_steer_retriever.labelling.label_scores import sample_others
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import TrainConfig

D, N, PER_CONCEPT = 48, 32, 30
CONCEPTS = (
    "hockey", "violin", "glacier", "bakery", "senator", "orchid", "turbine", "pilgrim", "lobster", "dentist", "volcano",
    "compass", "diamond", "tractor", "mosaic", "penguin", "lawsuit", "textile", "bishop", "reactor", "saddle",
    "vaccine", "harvest", "cinema",
)  # fmt: skip
FILLER = ("river", "stone", "letter", "window", "garden", "market", "winter", "paper")
STEPS = 60


class Planted(NamedTuple):
    """Passages about two concepts each, and an SAE whose first directions are the concepts."""

    passages: list[Passage]
    vectors: Array
    embedder: ToyEmbedder
    sae: TopKSAE


class WordEmbedder(ToyEmbedder):
    """Sums the vectors of words, whatever the punctuation between them."""

    def embed_queries(self, texts: Sequence[str]) -> Array:
        return super().embed_queries([text.replace(",", " ").replace(".", " ") for text in texts])


@pytest.fixture(scope="module")
def planted() -> Planted:
    """720 texts of two of 24 words each, among others; latents 0 to 23 are those words', the rest random directions."""
    embedder, generator = WordEmbedder(d=D), np.random.default_rng(0)
    texts = []
    for number in range(len(CONCEPTS) * PER_CONCEPT):
        word = CONCEPTS[number % len(CONCEPTS)]
        other, filler = generator.choice(CONCEPTS), " and ".join(generator.choice(FILLER, 2, replace=False))
        texts.append(f"{word} {word} with {other} {other}, and {filler}.")
    passages = [Passage(f"p{number}", text) for number, text in enumerate(texts)]
    vectors = embedder.embed_documents(texts)
    mean = corpus_mean(vectors)
    words = np.stack([word_vector(word, D) for word in CONCEPTS]) - mean
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    directions = np.concatenate([words, unit_rows(9, N - len(CONCEPTS), D)])
    weights = torch.tensor(directions, dtype=torch.float32)
    recipe = TrainConfig(
        latents=N, k=4, k_labels=2, batch_size=64, list_queries=8, list_size=4, lr=1e-2, init="kmeans", device="cpu"
    )
    training = {**dataclasses.asdict(recipe), "steps": 1000, "epochs": 12.5, "variance": 0.5, "temperature": 0.1}
    config = SAEConfig(d=D, n=N, k=4, k_labels=2, encoder=embedder.spec, training=training)
    return Planted(passages, vectors, embedder, TopKSAE(weights, torch.zeros(N), weights, torch.tensor(mean), config))


@pytest.fixture(scope="module")
def meaning(planted: Planted) -> Meaning:
    return measure_meaning(planted.sae, planted.passages, planted.vectors, planted.embedder, recurrence_steps=STEPS)


def test_passages_of_planted_concepts_are_more_alike_than_those_of_random_directions(meaning: Meaning) -> None:
    """Their labels detect them, too; k-means finds such concepts as well."""
    sae, random, kmeans = (meaning.dictionaries[name] for name in ("sae", "random", "kmeans"))
    for dictionary in (sae, kmeans):
        assert min(dictionary.auroc_random.low, dictionary.auroc_hard.low) > 0.8
        assert dictionary.coherence.value > random.coherence.value + 0.1
    assert sae.auroc_random.low <= sae.auroc_random.value <= sae.auroc_random.high
    assert abs(meaning.random_passages.value) < 0.05 < random.coherence.value
    assert 0 < sae.scored <= sae.labelled <= N
    assert sae.share_scored == sae.scored / N


def test_planted_concepts_recur_in_both_halves(meaning: Meaning) -> None:
    """And on passages that a half's fit has not seen; random directions do not."""
    found = meaning.recurrence
    assert found is not None
    assert found.passages == (360, 360)
    assert found.steps == STEPS
    sae, random, kmeans = (found.dictionaries[name] for name in ("sae", "random", "kmeans"))
    for dictionary in (sae, kmeans):
        assert dictionary.recurrence > 0.4
        assert dictionary.held_out_coherence.value > random.held_out_coherence.value + 0.1
    assert random.recurrence < 0.05
    assert sae.recurrence == pytest.approx((sae.match.forward + sae.match.backward) / 2)


def test_everything_comes_out_as_standard_json(meaning: Meaning, planted: Planted) -> None:
    """Three dictionaries by name; what could not be measured is null, not NaN."""
    body = json.loads(json.dumps(meaning.to_json(), allow_nan=False))
    assert list(body["dictionaries"]) == list(body["recurrence"]["dictionaries"]) == ["sae", "random", "kmeans"]
    assert body["recurrence"]["steps"] == STEPS
    # Twenty passages, one word: no label can be scored.
    few = measure_meaning(
        planted.sae, planted.passages[:20], planted.vectors[:20], planted.embedder, recurrence_steps=0
    ).to_json()
    text = json.dumps(few, allow_nan=False)
    assert few["recurrence"] is None
    assert few["dictionaries"]["sae"]["auroc_hard"]["value"] is None
    assert "NaN" not in text


def test_a_seed_decides_everything(meaning: Meaning, planted: Planted) -> None:
    same, other = (
        measure_meaning(
            planted.sae, planted.passages, planted.vectors, planted.embedder, seed=seed, recurrence_steps=STEPS
        )
        for seed in (0, 1)
    )
    assert same.to_json() == meaning.to_json()
    assert other.dictionaries["random"] != meaning.dictionaries["random"]


def test_the_number_of_label_latents_can_be_changed(planted: Planted) -> None:
    """It holds for all three dictionaries; more label latents a passage are more passages a feature."""
    whole = measure_meaning(
        planted.sae, planted.passages, planted.vectors, planted.embedder, recurrence_steps=0, k_labels=4
    )
    assert whole.k_labels == whole.to_json()["k_names"] == 4
    for dictionary in whole.dictionaries.values():
        assert dictionary.frequencies["k_names"] == dictionary.frequencies["k"]
    assert with_k_labels(planted.sae, 1).config.k_labels == 1
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f"k_labels = {wrong}.*1 to 4"):
            with_k_labels(planted.sae, wrong)


def test_a_dictionary_recurs_in_itself(planted: Planted) -> None:
    """Whatever the order of its latents; two random ones share nothing, and no live feature is no figure."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    sae = planted.sae
    shuffled = TopKSAE(sae.W_enc[order], sae.b_enc[order], sae.W_dec[order], sae.b_dec, sae.config)
    same = match_features(sae, shuffled, planted.vectors)
    assert (same.forward, same.backward, same.mean) == (1, 1, 1)
    assert same.best_cosine == pytest.approx(1, abs=1e-5)
    random = match_features(random_dictionary(sae, 1), random_dictionary(sae, 2), planted.vectors)
    assert random.mean == 0
    silent = TopKSAE(sae.W_enc, sae.b_enc - 100, sae.W_dec, sae.b_dec, sae.config)
    assert np.isnan(match_features(sae, silent, planted.vectors).mean)


def test_recurrence_counts_each_direction() -> None:
    """All of A is in B, half of B is in A."""
    rows = np.eye(4, dtype=np.float32)
    one, other = (TopKSAE(*_parts(rows[: 2 * size], k=1)) for size in (1, 2))
    found = match_features(one, other, rows)
    assert (found.forward, found.backward, found.mean) == (1, 0.5, 0.75)


def _parts(rows: Array, k: int) -> tuple[Any, ...]:
    weights = torch.tensor(rows)
    config = SAEConfig(d=rows.shape[1], n=len(rows), k=k, encoder=ToyEmbedder(d=rows.shape[1]).spec)
    return weights, torch.zeros(len(rows)), weights, torch.zeros(rows.shape[1]), config


def test_an_sae_of_unknown_making_cannot_be_fitted_again(planted: Planted) -> None:
    foreign = random_sae(d=D, encoder=planted.embedder.spec.name)
    with pytest.raises(ArtifactError, match=r"does not record.*recurrence_steps=0"):
        measure_recurrence(foreign, planted.passages, planted.vectors, planted.embedder, steps=STEPS)
    config = dataclasses.replace(planted.sae.config, training={"loss": "hinge", "init": "random"})
    sae = TopKSAE(planted.sae.W_enc, planted.sae.b_enc, planted.sae.W_dec, planted.sae.b_dec, config)
    with pytest.raises(ArtifactError, match="hinge"):
        recorded_recipe(sae, STEPS)


def test_label_scores_are_kept_by_feature(planted: Planted) -> None:
    """The medians are theirs; the catalog has the same ones."""
    texts = [passage.text for passage in planted.passages]
    calibration = calibrate([read_label_latents(planted.sae, planted.vectors)], N, 1.0)
    ids = [passage.id for passage in planted.passages]
    report = label_features(planted.sae, calibration, ids, texts, planted.vectors, planted.embedder)
    assert report.scored == len(report.scores) > 20
    assert report.auroc_random == np.median([score.random for score in report.scores.values()])
    assert report.auroc_hard == np.median([score.hard for score in report.scores.values()])
    features = report.catalog.features
    in_catalog = {feature.id: feature.label_score for feature in features if feature.label_score is not None}
    assert in_catalog == {feature: score.hard for feature, score in report.scores.items()}


def test_labels_read_a_file_row_by_row(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a larger store, or codes that are known already, change no score; all vectors are never read at once."""
    sae, texts = planted.sae, [passage.text for passage in planted.passages]
    ids, calibration = [passage.id for passage in planted.passages], calibrate([sae.encode(planted.vectors, k=2)], N, 1)
    whole = label_features(sae, calibration, ids, texts, planted.vectors, planted.embedder)
    monkeypatch.setattr("sae_steer_retriever.labelling.gather_evidence._TILE", 100)
    monkeypatch.setattr("sae_steer_retriever.labelling.gather_evidence._GATHERED", 7 * N)
    monkeypatch.setattr("sae_steer_retriever.labelling.label_scores._TILE", 7)
    read: list[int] = []

    class Watched(VectorRows):
        def __getitem__(self, chosen: Any) -> Array:
            found = super().__getitem__(chosen)
            read.append(len(found))
            return found

    monkeypatch.setattr(VectorRows, "select", lambda self, chosen: Watched(self._store, self._positions[chosen]))
    rows = Watched(np.concatenate([unit_rows(0, 30, D), planted.vectors]), np.arange(30, 750))
    names = read_label_latents(sae, rows)
    np.testing.assert_array_equal(names.indices, sae.encode(planted.vectors).indices[:, :2])
    assert max(read) == 100
    read.clear()
    found = label_features(sae, calibration, ids, texts, rows, planted.embedder, names=names)
    assert max(read) <= 7
    assert found.scores.keys() == whole.scores.keys()
    for feature, score in whole.scores.items():
        assert found.scores[feature][:2] == pytest.approx(score[:2], abs=0.01)
    assert found.catalog.features[0].keywords == whole.catalog.features[0].keywords


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_negatives_are_never_positives(seed: int, count: int, most: int, data: st.DataObject) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.permutation(count)[: data.draw(st.integers(0, count))]
    found = sample_others(rows, count, most, generator)
    others = np.setdiff1d(np.arange(count), rows)
    assert len(np.unique(found)) == len(found) == min(most, len(others))
    assert np.isin(found, others).all()


def test_every_negative_is_as_likely_as_any_other() -> None:
    generator, rows = np.random.default_rng(0), np.array([9, 0, 4, 5])
    drawn = np.concatenate([sample_others(rows, 12, 3, generator) for _ in range(8000)])
    shares = np.bincount(drawn, minlength=12) / 8000
    others = np.setdiff1d(np.arange(12), rows)
    np.testing.assert_allclose(shares[others], 3 / 8, atol=0.02)


def test_what_does_not_fit_together_is_refused(planted: Planted) -> None:
    sae, embedder = planted.sae, planted.embedder
    with pytest.raises(MismatchError, match="720 passages, 3 vectors"):
        measure_meaning(sae, planted.passages, planted.vectors[:3], embedder)
    with pytest.raises(MismatchError, match="other/words"):
        measure_meaning(sae, planted.passages, planted.vectors, ToyEmbedder("other/words", D))
    with pytest.raises(CorpusError, match="19 passage"):
        measure_meaning(sae, planted.passages[:19], planted.vectors[:19], embedder)
    with pytest.raises(CorpusError, match=r"30 passage.*at least 40.*recurrence_steps=0"):
        measure_meaning(sae, planted.passages[:30], planted.vectors[:30], embedder)
    with pytest.raises(ValueError, match="recurrence_steps = -1"):
        measure_meaning(sae, planted.passages, planted.vectors, embedder, recurrence_steps=-1)


@given(st.integers(0, 2**32 - 1), st.integers(8, 60), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_coherence_equals_the_cosines_of_all_pairs(seed: int, count: int, k: int) -> None:
    vectors, n = unit_rows(seed, count), 10
    generator = np.random.default_rng(seed)
    indices = np.stack([generator.permutation(n)[:k] for _ in range(count)]).astype(np.int32)
    values = np.maximum(generator.normal(size=(count, k)) + 0.5, 0).astype(np.float32)
    mean = corpus_mean(vectors)
    unit = (vectors - mean) / np.linalg.norm(vectors - mean, axis=1, keepdims=True)
    expected = []
    for feature in range(n):
        has = (indices == feature) & (values > 0)
        rows = np.nonzero(has.any(axis=1))[0]
        if len(rows) >= GROUP:
            strongest = rows[np.argsort(-np.where(has, values, 0).sum(axis=1)[rows], kind="stable")[:GROUP]]
            cosines = unit[strongest] @ unit[strongest].T
            expected.append(cosines[np.triu_indices(GROUP, 1)].mean())
    np.testing.assert_allclose(feature_coherence(Codes(indices, values), n, vectors, mean), expected, atol=1e-5)


def test_random_groups_have_no_passage_twice_and_no_coherence() -> None:
    vectors = unit_rows(3, 300)
    groups = random_groups(300, 1000, np.random.default_rng(0))
    assert all(len(set(group)) == GROUP for group in groups.tolist())
    assert abs(group_coherence(groups, vectors, corpus_mean(vectors)).mean()) < 0.02


def test_frequencies_by_hand() -> None:
    """Twenty passages: feature 0 in all of them, feature 1 in six, feature 2 in one, feature 3 in none."""
    indices = np.tile(np.array([0, 1, 2], dtype=np.int32), (20, 1))
    values = np.zeros((20, 3), dtype=np.float32)
    values[:, 0], values[:6, 1], values[0, 2] = 1, 0.5, 0.1
    found = measure_frequencies(Codes(indices, values), 4)
    assert (found.dead, found.rare, found.frequent, found.maximum) == (0.25, 0.5, 0.5, 1)
    assert found.quantiles["q50"] == pytest.approx((0.05 + 0.3) / 2)
    assert found.l0 == pytest.approx(27 / 20)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
@settings(max_examples=30, deadline=None)
def test_the_interval_of_a_median_holds_it(values: list[float]) -> None:
    found = bootstrap_median(np.array(values))
    assert found.low <= found.value <= found.high
    assert (found.value, found.features) == (np.median(values), len(values))


def test_more_values_narrow_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    wide, narrow = bootstrap_median(values[:100]), bootstrap_median(values)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 3
    assert bootstrap_median(np.empty(0)).features == 0


def test_kmeans_directions_are_unit_and_keep_the_sizes(world: World) -> None:
    """On real text: K as the SAE's, centred on the mean, and closer to passages than random directions are."""
    found, random = kmeans_dictionary(world.sae, world.vectors, seed=1), random_dictionary(world.sae, 1)
    assert found.config == world.sae.config
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(64))
    np.testing.assert_allclose(found.bias, world.vectors.mean(axis=0), atol=1e-6)
    codes = found.encode(world.vectors)
    assert codes.indices.shape == (len(world.vectors), world.sae.config.k)
    mean = corpus_mean(world.vectors)
    coherence = [
        np.median(feature_coherence(each.encode(world.vectors), 64, world.vectors, mean)) for each in (found, random)
    ]
    assert coherence[0] > coherence[1] + 0.1
    assert torch.equal(found.W_dec, kmeans_dictionary(world.sae, world.vectors, seed=1).W_dec)


def test_kmeans_reads_a_sample_of_many_vectors(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows in a file as well, and none of them is changed."""
    before = world.vectors.copy()
    monkeypatch.setattr("sae_steer_retriever.labelling.baselines._POINTS", 150)
    read: list[int] = []
    plain = VectorRows.__getitem__

    def watched(self: VectorRows, chosen: Any) -> Array:
        found = plain(self, chosen)
        read.append(len(found))
        return found

    monkeypatch.setattr(VectorRows, "__getitem__", watched)
    found = kmeans_dictionary(world.sae, VectorRows(world.vectors), seed=1)
    assert read == [150]
    assert torch.equal(found.W_dec, kmeans_dictionary(world.sae, world.vectors, seed=1).W_dec)
    np.testing.assert_array_equal(world.vectors, before)
