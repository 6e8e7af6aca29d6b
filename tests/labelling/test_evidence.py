"""What is shown of a feature: its strongest passages, some of its middle, and the hardest of those that lack it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import World
from toy import ToyEmbedder, random_sae, unit_rows

from sae_steer_retriever.encoders.vector_rows import VectorRows
from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.calibration import calibrate
from sae_steer_retriever.features.evidence import QUANTILES, FeatureEvidence, read_evidence, write_evidence
from sae_steer_retriever.labelling.gather_evidence import (
    LABELLED_FROM,
    describe_features,
    frequent_features,
    gather_evidence,
    hardest_misses,
    nearest_features,
    read_label_latents,
    strengths,
)
from sae_steer_retriever.labelling.keyword_labels import label_features, split_halves
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE


def with_refinement(sae: TopKSAE, steps: int) -> TopKSAE:
    config = dataclasses.replace(sae.config, refine_steps=steps)
    return TopKSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, config)


def described(sae: TopKSAE, vectors: Array) -> Mapping[int, FeatureEvidence]:
    names = strengths(sae, vectors, read_label_latents(sae, vectors))
    ids = [f"p{row}" for row in range(len(vectors))]
    return describe_features(sae, gather_evidence(names, nearest_features(sae)), ids, vectors)


@pytest.mark.parametrize("steps", [0, 4])
def test_every_live_feature_is_described(steps: int) -> None:
    """By its strength: the activation, or after a refinement the match with its direction."""
    sae, vectors = with_refinement(random_sae(k_labels=4), steps), unit_rows(3, 600)
    names = sae.encode(vectors).truncate(4)
    found = described(sae, vectors)
    assert set(found) == set(np.unique(names.indices[names.values > 0]).tolist())
    for feature, evidence in found.items():
        row, place = np.nonzero((names.indices == feature) & (names.values > 0))
        match = (vectors[row] - sae.bias) @ sae.decoder[feature]
        strength = dict(zip(row.tolist(), match if steps else names.values[row, place], strict=True))
        ranked = sorted(strength, key=lambda passage: -strength[passage])
        assert [example.strength for example in evidence.top] == pytest.approx(
            [max(strength[passage], 0) for passage in ranked[:10]], abs=1e-5
        )
        assert evidence.quantiles == pytest.approx(
            np.quantile(np.maximum(list(strength.values()), 0), QUANTILES), abs=1e-5
        )
        shown = [int(example.id[1:]) for example in (*evidence.top, *evidence.middle)]
        assert len(set(shown)) == len(shown) <= len(strength)
        assert set(shown) <= set(strength)


def test_the_middle_has_one_passage_from_each_tenth() -> None:
    """Of those that are not already among the strongest."""
    sae, vectors = random_sae(k_labels=4), unit_rows(3, 3000)
    names = read_label_latents(sae, vectors)
    evidence = gather_evidence(names, nearest_features(sae))
    for feature, found in described(sae, vectors).items():
        rows, _ = evidence.passages(feature)
        rank = {f"p{row}": place for place, row in enumerate(rows)}
        tenths = [10 * rank[example.id] // len(rows) for example in found.middle]
        assert len(rows) < 200 or tenths == list(range(10))


@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_near_misses_are_the_best_matching_of_those_that_lack_it(seed: int, count: int, batch: int) -> None:
    """The same for any size of a batch."""
    sae, vectors = random_sae(seed % 7, shift=-0.3), unit_rows(seed, count)
    evidence = gather_evidence(read_label_latents(sae, vectors), nearest_features(sae))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_steer_retriever.labelling.gather_evidence._GATHERED", batch * sae.config.n)
        found = hardest_misses(sae, evidence, VectorRows(vectors), 5)
    match = (vectors - sae.bias) @ sae.decoder.T
    for feature in range(sae.config.n):
        candidates = evidence.near_misses(feature)
        rows = found.get(feature, np.empty(0, dtype=np.int64))
        assert np.isin(rows, candidates).all()
        assert len(rows) == len(np.unique(rows)) == min(5, len(candidates))
        best = np.sort(match[candidates, feature])[::-1][:5]
        np.testing.assert_allclose(match[rows, feature], best, atol=1e-5)


def test_neighbours_are_the_nearest_directions_in_tiles_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = random_sae(n=50)
    cosines = sae.decoder @ sae.decoder.T
    np.fill_diagonal(cosines, -2)
    expected = np.argsort(-cosines, axis=1)[:, :5]
    np.testing.assert_array_equal(nearest_features(sae), expected)
    monkeypatch.setattr("sae_steer_retriever.labelling.gather_evidence._GATHERED", 150)
    np.testing.assert_array_equal(nearest_features(sae), expected)
    found = described(sae, unit_rows(3, 100))
    for feature, evidence in found.items():
        assert [near.feature for near in evidence.neighbours] == expected[feature].tolist()
        assert [near.cosine for near in evidence.neighbours] == pytest.approx(
            cosines[feature, expected[feature]], abs=1e-5
        )


def test_what_hardly_any_passage_has_is_nobodys_neighbour() -> None:
    """A feature whose nearest directions no passage has would have no near misses, and its label no score."""
    sae, vectors = random_sae(n=50, k=3, k_labels=1), unit_rows(3, 200)
    names = read_label_latents(sae, vectors)
    counted = frequent_features(names, 50)
    assert 6 < counted.sum() < 50
    cosines = sae.decoder @ sae.decoder.T
    np.fill_diagonal(cosines, -2)
    expected = np.argsort(-np.where(counted, cosines, -3), axis=1)[:, :5]
    found = nearest_features(sae, counted)
    np.testing.assert_array_equal(found, expected)
    evidence = gather_evidence(names, found)
    assert all(len(evidence.near_misses(feature)) >= LABELLED_FROM for feature in range(50))
    alone = np.arange(50) == 7
    assert nearest_features(sae, alone).shape == (50, 0)
    assert not len(gather_evidence(names, nearest_features(sae, alone)).near_misses(7))


@pytest.mark.parametrize("n", [1, 2])
def test_a_dictionary_with_hardly_any_neighbours(n: int) -> None:
    sae = random_sae(n=n, k=1, k_labels=1)
    for evidence in described(sae, unit_rows(0, 40)).values():
        assert len(evidence.neighbours) == n - 1


def test_vectors_are_read_once_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many passages there are, only a batch of them is in memory."""
    sae, vectors = random_sae(), unit_rows(0, 1000)
    evidence = gather_evidence(read_label_latents(sae, vectors), nearest_features(sae))
    read: list[int] = []

    class Watched(VectorRows):
        def __getitem__(self, chosen: Any) -> Array:
            found = super().__getitem__(chosen)
            read.append(len(found))
            return found

    monkeypatch.setattr("sae_steer_retriever.labelling.gather_evidence._GATHERED", 64 * sae.config.n)
    describe_features(sae, evidence, [str(row) for row in range(1000)], Watched(vectors))
    assert max(read) == 64
    assert sum(read) == 1000


def test_real_near_misses_lack_the_feature_and_resemble_it(world: World) -> None:
    """They match a feature better than any passages do, and never have it."""
    has = read_label_latents(world.sae, world.vectors)
    place = {name: row for row, name in enumerate(world.ids)}
    match = (world.vectors - world.sae.bias) @ world.sae.decoder.T
    above = []
    for feature in world.catalog.labelled:
        misses = [place[example.id] for example in world.catalog.evidence(feature.id).near_misses]
        assert not ((has.indices[misses] == feature.id) & (has.values[misses] > 0)).any()
        above.append(match[misses, feature.id].mean() - match[:, feature.id].mean())
    assert np.mean(np.array(above) > 0) > 0.95


def test_labels_are_made_of_one_half_and_evidence_of_both() -> None:
    """Other words in the unseen half change no label; what is shown comes from both, each time the same."""
    embedder, random = ToyEmbedder(), np.random.default_rng(0)
    sae, words = random_sae(shift=-0.2), ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
    texts = [" ".join(random.choice(words, 3)) for _ in range(400)]
    ids, vectors = [f"p{row}" for row in range(400)], embedder.embed_documents(texts)
    calibration = calibrate([read_label_latents(sae, vectors)], sae.config.n, 0.2)
    halves = split_halves(400)
    assert sorted([*halves.made_of, *halves.unseen]) == list(range(400))
    assert not np.array_equal(halves.made_of, split_halves(400, seed=1).made_of)
    whole = label_features(sae, calibration, ids, texts, vectors, embedder)
    again = label_features(sae, calibration, ids, texts, vectors, embedder)
    assert (whole.catalog.features, whole.evidence, whole.families) == (
        again.catalog.features,
        again.evidence,
        again.families,
    )
    for row in halves.unseen:
        texts[row] = "zulu yankee xray"
    other = label_features(sae, calibration, ids, texts, vectors, embedder)
    assert [feature.keywords for feature in other.catalog.features] == [
        feature.keywords for feature in whole.catalog.features
    ]
    unseen = {ids[row] for row in halves.unseen}
    share = np.mean([example.id in unseen for found in whole.evidence.values() for example in found.top])
    assert 0.3 < share < 0.7


def test_evidence_comes_back_from_its_file(tmp_path: Path) -> None:
    sae = random_sae()
    found = described(sae, unit_rows(0, 300))
    write_evidence(tmp_path, found, sae.fingerprint)
    assert read_evidence(tmp_path, sae.fingerprint) == found
    with pytest.raises(ArtifactError, match="about the features of SAE"):
        read_evidence(tmp_path, "another")
    assert read_evidence(tmp_path / "elsewhere", sae.fingerprint) == {}
