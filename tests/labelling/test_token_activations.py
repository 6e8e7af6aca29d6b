"""The exact split of a match over words, with the real MiniLM; and prefixes, for any encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_world import World
from toy import D, ToyEmbedder, random_sae

from sae_steer_retriever.encoders.embedders import LangChainEmbedder, SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features.trie import word_spans
from sae_steer_retriever.labelling.word_attribution import PrefixReader, TokenReader, unwrapped, word_reader
from sae_steer_retriever.sae.topk_sae import FeatureDirections, TopKSAE

TEXTS = st.text(
    st.sampled_from("abc deXYZ 0189.,;:-_'()\n\t\u00e9\u00df\u0130\u4e16\U0001f600\u2019\u0301\u200d\u0e01"),
    max_size=120,
)


@pytest.fixture(scope="session")
def minilm_sae(world: World) -> TopKSAE:
    """A random dictionary of MiniLM's size, so that all signs and sizes of matches occur."""
    return random_sae(d=world.sae.config.d, n=48, encoder=world.embedder.spec.name)


@pytest.fixture(scope="session")
def reader(world: World, minilm_sae: TopKSAE) -> TokenReader:
    """Reads words of that dictionary's features."""
    return TokenReader(world.embedder, minilm_sae)


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_and_rest_add_up_to_the_match(
    reader: TokenReader, world: World, minilm_sae: TopKSAE, texts: list[str], seed: int
) -> None:
    features = np.random.default_rng(seed).integers(48, size=(len(texts), 7)).tolist()
    vectors = world.embedder.embed_documents(texts).astype(np.float64)
    for text, own, vector, read in zip(texts, features, vectors, reader.read(texts, features), strict=True):
        rows = minilm_sae.W_enc.double().numpy()[own]
        expected = rows @ (vector - minilm_sae.bias) + minilm_sae.b_enc.double().numpy()[own]
        np.testing.assert_allclose(read.values.sum(axis=0) + read.rest, expected, atol=1e-5)
        np.testing.assert_allclose(read.match, expected, atol=1e-5)
        assert read.values.shape == (len(read.words), 7)
        assert [text[start:end] for start, end in read.spans] == list(read.words)


def test_long_passages_add_up_too_and_are_cut_where_the_encoder_cuts(reader: TokenReader, world: World) -> None:
    text = " ".join(f"word{number} of the asyncio event loop;" for number in range(200))
    (read,) = reader.read([text], [[3, 5]])
    vector = world.embedder.embed_documents([text])
    np.testing.assert_allclose(read.match, FeatureDirections.match(reader._directions, vector, [3, 5])[0], atol=1e-5)
    assert 20 < len(read.words) < len(word_spans(text))


def test_the_words_that_a_text_is_about_have_the_largest_shares(world: World) -> None:
    # A feature that points from one topic to another: its share must be found in the words that differ.
    topics = world.embedder.embed_documents(["salary and wages", "ice hockey goalie"])
    direction = torch.tensor(topics[0] - topics[1])[None]
    direction = direction / direction.norm()
    rows = torch.cat([direction, random_sae(d=384, n=31).W_dec])
    own = random_sae(d=384)
    sae = TopKSAE(rows, torch.zeros(32), rows, torch.zeros(384), own.config)
    (read,) = TokenReader(world.embedder, sae).read(
        ["Yesterday it was decided to raise her salary by a little."], [[0]]
    )
    assert read.words[int(np.argmax(read.values[:, 0]))] == "salary"


def test_pieces_of_a_word_are_one_word_and_signs_are_none(reader: TokenReader) -> None:
    (read,) = reader.read(["Antidisestablishmentarianism, (COVID-19) ... don\u2019t!"], [[0]])
    assert read.words == ("Antidisestablishmentarianism", "COVID-19", "don\u2019t")


def test_a_text_without_words_has_only_a_rest(reader: TokenReader, world: World) -> None:
    empty, signs, none = reader.read(["", "?! ...", "words"], [[1], [1, 2], []])
    assert empty.words == signs.words == ()
    assert signs.rest.shape == (2,)
    assert none.values.shape == (1, 0)
    assert reader.read([], []) == []
    np.testing.assert_allclose(
        empty.match, reader._directions.match(world.embedder.embed_documents([""]), [1])[0], atol=1e-5
    )


def test_a_batch_gives_what_single_texts_give(reader: TokenReader, world: World) -> None:
    texts = [text[: 40 * (1 + place % 7)] for place, text in enumerate(world.texts[:20])]
    features = [[place, 7] for place in range(20)]
    for text, own, read in zip(texts, features, reader.read(texts, features), strict=True):
        (alone,) = reader.read([text], [own])
        assert alone.words == read.words
        np.testing.assert_allclose(alone.values, read.values, atol=1e-5)


def test_after_a_refinement_the_decoder_says_what_a_match_is() -> None:
    plain = random_sae()
    config = plain.config.__class__(**{**vars(plain.config), "refine_steps": 4})
    pursued = TopKSAE(plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, config)
    x = np.random.default_rng(0).normal(size=(5, D)).astype(np.float32)
    matches = FeatureDirections.of(pursued).match(x, range(32))
    np.testing.assert_allclose(matches, (x - pursued.bias) @ pursued.decoder.T, atol=1e-5)
    activations = FeatureDirections.of(plain).match(x, range(32))
    codes = plain.encode(x)
    active = codes.values > 0
    np.testing.assert_allclose(
        np.take_along_axis(activations, codes.indices, 1)[active], codes.values[active], atol=1e-5
    )


def test_a_prompt_is_no_word_and_still_adds_up(world: World, minilm_sae: TopKSAE) -> None:
    from sentence_transformers import SentenceTransformer

    modules = list(world.embedder.model)
    model = SentenceTransformer(modules=modules, prompts={"document": "passage: "}, device="cpu")
    embedder = SentenceTransformerEmbedder(model)
    (read,) = TokenReader(embedder, minilm_sae).read(["event loop"], [[0, 1]])
    assert read.words == ("event", "loop")
    expected = FeatureDirections.of(minilm_sae).match(embedder.embed_documents(["event loop"]), [0, 1])[0]
    np.testing.assert_allclose(read.match, expected, atol=1e-5)


def test_an_encoder_that_pools_otherwise_is_read_by_prefixes(world: World, minilm_sae: TopKSAE) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling

    first = world.embedder.model[0]
    pooling = Pooling(384, pooling_mode="cls")
    embedder = SentenceTransformerEmbedder(SentenceTransformer(modules=[first, pooling], device="cpu"))
    with pytest.raises(MismatchError, match=r"cls.*prefixes"):
        word_reader(embedder, minilm_sae, "split")
    assert isinstance(word_reader(embedder, minilm_sae), PrefixReader)


def test_the_reader_is_chosen_by_how_the_encoder_is_reached(
    world: World, cached_embedder: CachedEmbedder, minilm_sae: TopKSAE
) -> None:
    assert unwrapped(cached_embedder) is cached_embedder.embedder
    assert isinstance(word_reader(cached_embedder, minilm_sae), TokenReader)
    assert isinstance(word_reader(cached_embedder, minilm_sae, "prefixes"), PrefixReader)

    class Reached:
        def embed_query(self, text: str) -> list[float]:
            return world.embedder.embed_queries([text])[0].tolist()

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return world.embedder.embed_documents(texts).tolist()

    reached = LangChainEmbedder(Reached())
    assert isinstance(word_reader(reached, minilm_sae), PrefixReader)
    with pytest.raises(MismatchError, match="LangChainEmbedder"):
        word_reader(reached, minilm_sae, "split")
    with pytest.raises(ValueError, match='"auto", "split" or "prefixes"'):
        word_reader(reached, minilm_sae, "tokens")  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 3])
def test_prefixes_add_up_to_the_match_for_any_encoder(stride: int) -> None:
    random = np.random.default_rng(1)
    texts = [
        " ".join(f"w{number}" for number in random.integers(30, size=random.integers(1, 30))) + "." for _ in range(40)
    ]
    sae, embedder = random_sae(), ToyEmbedder()
    features = [[place % 32, 3] for place in range(40)]
    for text, own, read in zip(
        texts, features, PrefixReader(embedder, sae, stride=stride).read(texts, features), strict=True
    ):
        expected = FeatureDirections.of(sae).match(embedder.embed_documents([text]), own)[0]
        np.testing.assert_allclose(read.match, expected, atol=1e-5)
        assert len(read.words) == len(text.split())


def test_what_all_prefixes_of_a_length_have_is_no_words_share() -> None:
    # One text over and over: each prefix is the usual one of its length, so no word adds anything.
    texts = ["alpha beta gamma delta"] * 25
    read = PrefixReader(ToyEmbedder(), random_sae()).read(texts, [[0, 1, 2]] * 25)
    assert np.abs(read[0].values).max() < 1e-5


def test_the_word_that_turns_a_text_to_a_feature_has_the_largest_share_by_prefixes() -> None:
    embedder = ToyEmbedder()
    sae = random_sae()
    rows = sae.W_enc.clone()
    rows[0] = torch.tensor(embedder.embed_documents(["hockey"])[0])
    sae = TopKSAE(rows, sae.b_enc, sae.W_dec, sae.b_dec, sae.config)
    texts = [f"a{n} b{n} c{n} d{n} e{n}" for n in range(40)] + ["a1 b2 c3 hockey d4 e5"]
    read = PrefixReader(embedder, sae).read(texts, [[0]] * 41)
    assert read[-1].words[int(np.argmax(read[-1].values[:, 0]))] == "hockey"


def test_prefixes_of_texts_without_words_and_bad_strides() -> None:
    sae, embedder = random_sae(), ToyEmbedder()
    read = PrefixReader(embedder, sae).read(["? !", "one"], [[0], [0]])
    assert read[0].words == ()
    assert PrefixReader(embedder, sae).read([], []) == []
    with pytest.raises(ValueError, match="stride is 0"):
        PrefixReader(embedder, sae, stride=0)
