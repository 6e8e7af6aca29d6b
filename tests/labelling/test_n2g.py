"""Neuron2Graph for pooled embeddings: from passages to the words that carry a feature, and how well these detect it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from small_world import World
from toy import D, ToyEmbedder, random_sae, word_vector

from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features.trie import Trie, detection
from sae_steer_retriever.labelling.neuron2graph import grow_tries
from sae_steer_retriever.labelling.word_attribution import PrefixReader, TokenReader, WordActivations
from sae_steer_retriever.labelling.word_substitutes import Substitutes
from sae_steer_retriever.sae.topk_sae import FeatureDirections, TopKSAE


def features_of(*meanings: str) -> TopKSAE:
    """A toy dictionary whose first latents are the words of the given meanings, added up; without biases."""
    own = random_sae()
    rows = own.W_dec.clone()
    for latent, meaning in enumerate(meanings):
        row = torch.tensor(sum(word_vector(word) for word in meaning.split()))
        rows[latent] = row / row.norm()
    return TopKSAE(rows, torch.zeros(len(rows)), rows, torch.zeros(D), own.config)


def filler(seed: int, words: int = 6) -> str:
    """Words that mean nothing to any feature."""
    return " ".join(f"filler{number}" for number in np.random.default_rng(seed).integers(200, size=words))


class CountingReader:
    """Remembers what was read."""

    def __init__(self, embedder: ToyEmbedder, sae: TopKSAE) -> None:
        self.reader = PrefixReader(embedder, sae)
        self.texts: list[str] = []

    def read(self, texts: Sequence[str], features: Sequence[Sequence[int]]) -> list[WordActivations]:
        self.texts.extend(texts)
        return self.reader.read(texts, features)


def test_one_word_that_carries_a_feature_is_its_trie() -> None:
    texts = [f"{filler(seed, 3)} hockey {filler(seed + 100, 2)}" for seed in range(8)] + [filler(9)]
    trie = grow_tries(texts, {0: range(8)}, ToyEmbedder(), features_of("hockey"))[0]
    assert trie.words()[0] == "hockey"
    assert trie.strength("ice HOCKEY") == pytest.approx(1.0, abs=1e-5)
    assert detection(trie, texts[:8], texts[8:]).recall == 1.0


def test_windows_grow_backwards_until_they_keep_half() -> None:
    embedder, sae = ToyEmbedder(), features_of("alpha beta")
    text = "one alpha beta two"
    whole = float(FeatureDirections.of(sae).match(embedder.embed_documents([text]), [0])[0, 0])

    class PeakAtTwo:
        def read(self, texts: Sequence[str], features: Sequence[Sequence[int]]) -> list[WordActivations]:
            values = np.array([[0], [0], [0], [whole]], dtype=np.float32)
            (found,) = PrefixReader(embedder, sae).read(texts, features)
            return [found._replace(values=values, rest=np.zeros(1, dtype=np.float32))]

    windows = ["two", "beta two", "alpha beta two", text]
    matches = FeatureDirections.of(sae).match(embedder.embed_documents(windows), [0])[:, 0]
    expected = windows[int(np.argmax(matches > whole / 2))]
    trie = grow_tries([text], {0: [0]}, embedder, sae, reader=PeakAtTwo())[0]
    assert trie.words() == (expected,)
    assert expected != "two"


def test_each_passage_is_read_once_however_many_features_need_it() -> None:
    sae = features_of("hockey", "goalie", "ice")
    texts = [f"{filler(seed, 2)} hockey goalie ice" for seed in range(6)]
    reader = CountingReader(ToyEmbedder(), sae)
    tries = grow_tries(texts, {0: range(6), 1: [5, 0, 1], 2: [2]}, ToyEmbedder(), sae, reader=reader, limit=2)
    assert sorted(reader.texts) == sorted({texts[row] for row in (0, 1, 5, 2)})
    assert [tries[feature].words()[0] for feature in range(3)] == ["hockey", "goalie", "ice"]


def test_a_feature_without_passages_and_passages_without_words_have_empty_tries() -> None:
    sae = features_of("hockey")
    reader = TextlessReader()
    tries = grow_tries(["?!"], {0: [0], 1: []}, ToyEmbedder(), sae, reader=reader)
    assert tries == {0: Trie(), 1: Trie()}


class TextlessReader:
    """Finds no word anywhere."""

    def read(self, texts: Sequence[str], features: Sequence[Sequence[int]]) -> list[WordActivations]:
        return [WordActivations((), (), np.zeros((0, len(own)), np.float32), np.ones(len(own))) for own in features]


@pytest.mark.parametrize("limit", [0, 513])
def test_the_number_of_passages_is_bounded(limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit}"):
        grow_tries([], {}, ToyEmbedder(), random_sae(), limit=limit)


def test_substitutes_are_the_nearest_words_that_keep_the_match() -> None:
    vectors = np.stack([word_vector("hockey"), word_vector("hockey") + 0.1 * word_vector("a"), word_vector("cheese")])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    substitutes = Substitutes(["hockey", "rink", "cheese"], vectors)
    assert substitutes.near("Hockey") == ("rink",)
    assert substitutes.near("unheard") == ()
    assert len(substitutes) == 3
    with pytest.raises(MismatchError, match="3 words"):
        Substitutes(["a", "b", "c"], vectors[:2])

    texts = [f"{filler(seed, 3)} hockey" for seed in range(4)]
    sae = features_of("hockey rink")
    both = grow_tries(texts, {0: range(4)}, ToyEmbedder(), sae, substitutes=substitutes)[0]
    assert set(both.words()) >= {"hockey", "rink"}
    # The toy encoder finds nothing of hockey in "rink", so a feature of hockey alone does not take it.
    alone = grow_tries(texts, {0: range(4)}, ToyEmbedder(), features_of("hockey"), substitutes=substitutes)[0]
    assert "hockey" in alone.words()
    assert "rink" not in alone.words()


def test_a_vocabulary_is_the_words_that_stand_in_most_texts() -> None:
    embedder = ToyEmbedder()
    texts = ["The game, a game", "the THE 1234 ab", "the game is on", "once"]
    Substitutes.of_texts(texts, embedder, most=2)
    assert embedder.embedded == ["the", "game"]


def test_tries_detect_their_features_in_unseen_passages(world: World, cached_embedder: CachedEmbedder) -> None:
    """Made of one half of the docstrings, tested on the other, with the real encoder."""
    names = world.sae.encode(world.vectors).truncate(world.sae.config.k_labels)
    half = np.arange(0, len(world.texts), 2)
    passages, unseen = {}, {}
    for feature in range(world.sae.config.n):
        strength = np.where(names.indices == feature, names.values, 0).max(axis=1)
        order = np.argsort(-strength, kind="stable")
        own = order[strength[order] > 0]
        if len(own) >= 16:
            passages[feature] = own[np.isin(own, half)][:6].tolist()
            held = own[~np.isin(own, half)]
            unseen[feature] = held[: (len(held) + 1) // 2], np.setdiff1d(np.arange(1, len(world.texts), 2), held)
    chosen = sorted(passages, key=lambda feature: -len(unseen[feature][0]))[:12]
    assert len(chosen) >= 8
    reader = TokenReader(cached_embedder, world.sae)
    tries = grow_tries(
        world.texts, {feature: passages[feature] for feature in chosen}, cached_embedder, world.sae, reader=reader
    )
    again = grow_tries(
        world.texts, {feature: passages[feature] for feature in chosen}, cached_embedder, world.sae, reader=reader
    )
    # Sums over other batches differ in their last digits.
    assert {feature: trie.words() for feature, trie in again.items()} == {
        feature: trie.words() for feature, trie in tries.items()
    }
    hits, mistakes = [], []
    for feature, trie in tries.items():
        assert trie.words()
        rows, others = unseen[feature]
        hits.append(detection(trie, [world.texts[row] for row in rows], []).recall)
        mistakes.append(detection(trie, [world.texts[row] for row in others], []).recall)
    # A trie that matched at random would match both alike.
    assert np.median(hits) >= 0.4
    assert np.mean(mistakes) <= np.mean(hits) / 3
