"""The store, with a real Chroma: two collections kept in step, whatever happens in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chroma_server import chroma_server
from chromadb.config import Settings
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import K, N, ToyEmbedder, catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import MismatchError, StaleSidecarWarning, StoreError
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import pack, unpack
from sae_steer_retriever.search.options import LATENT_SCORES, SPACES
from sae_steer_retriever.store import chroma_store as store_module
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.recorded_sae import recorded_sae
from sae_steer_retriever.store.sidecar import rebuild
from sae_steer_retriever.store.store_reader import StoreReader

SAE = random_sae(3)
WORDS = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau
""".split()  # noqa: SIM905 - words are easier to read


def texts(count: int, seed: int = 0) -> list[str]:
    """Passages of five words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 5)) for _ in range(count)]


def ids(count: int) -> list[str]:
    return [f"p{number:03}" for number in range(count)]


@pytest.fixture
def embedder() -> ToyEmbedder:
    return ToyEmbedder()


@pytest.fixture
def store(tmp_path: Path) -> ChromaStore:
    return ChromaStore.open(SAE, path=tmp_path / "chroma")


def contents(store: ChromaStore) -> dict[str, Any]:
    """Everything the two collections hold."""
    everything: dict[str, Any] = {}
    for name in (store.documents.name, store.sidecar.name):
        collection = store._client.get_collection(name, embedding_function=None)
        rows = collection.get(include=["documents", "metadatas", "embeddings"])
        everything[name] = {
            item: (rows["documents"][row], rows["metadatas"][row], np.asarray(rows["embeddings"])[row].tolist())
            for row, item in enumerate(rows["ids"])
        }
    return everything


def assert_in_step(store: ChromaStore) -> None:
    """The sidecar holds decode(encode(x)) and the codes of every stored vector, and nothing else."""
    state = contents(store)
    documents, sidecar = state[store.documents.name], state[store.sidecar.name]
    assert sidecar.keys() == documents.keys()
    for name, (_, metadata, x_hat) in sidecar.items():
        x = np.array([documents[name][2]], dtype=np.float32)
        codes = SAE.encode(x / np.linalg.norm(x))
        np.testing.assert_allclose(x_hat, SAE.decode(codes)[0], atol=1e-5)
        stored = unpack([metadata["codes"]], N, K)
        np.testing.assert_array_equal(stored.indices, codes.indices)
        np.testing.assert_allclose(stored.values, codes.values, atol=1e-6)
        names = codes.indices[0, :3][codes.values[0, :3] > 0].tolist()
        assert metadata.get("names", []) == names


# -- add, update, delete ----------------------------------------------------------------------------------------------


def test_what_is_added_is_found_and_has_a_sidecar(store: ChromaStore, embedder: ToyEmbedder) -> None:
    passages = texts(20)
    report = store.add(ids(20), passages, [{"n": n} for n in range(20)], embedder=embedder)
    assert report == (20, 0, 0)
    assert len(store) == 20
    assert_in_step(store)
    found = store.nearest(embedder.embed_queries([passages[7]])[0], 1)
    assert passages[ids(20).index(found.ids[0])] == passages[7]
    assert found.scores[0] == pytest.approx(1.0, abs=1e-6)


def test_adding_again_embeds_and_writes_nothing(store: ChromaStore, embedder: ToyEmbedder) -> None:
    metadatas = [{"n": 1, "f": 0.5, "b": True, "s": "x", "l": ["a", "b"]}, None, {}] * 5
    store.add(ids(15), texts(15), metadatas, embedder=embedder)
    before, generation = contents(store), store.sidecar.generation()
    embedder.embedded.clear()
    assert store.add(ids(15), texts(15), metadatas, embedder=embedder) == (0, 0, 15)
    assert embedder.embedded == []
    assert contents(store) == before
    assert store.sidecar.generation() == generation


def test_a_changed_text_is_replaced_in_both_and_alone_embedded(store: ChromaStore, embedder: ToyEmbedder) -> None:
    passages = texts(10)
    store.add(ids(10), passages, embedder=embedder)
    embedder.embedded.clear()
    passages[3] = "tau sigma rho"
    assert store.add(ids(10), passages, embedder=embedder) == (0, 1, 9)
    assert embedder.embedded == ["tau sigma rho"]
    (record,) = store.records(["p003"])
    assert record.text == "tau sigma rho"
    np.testing.assert_allclose(record.vector, embedder.embed_queries(["tau sigma rho"])[0], atol=1e-6)
    assert_in_step(store)


def test_changed_metadata_replace_the_old_without_embedding(store: ChromaStore, embedder: ToyEmbedder) -> None:
    store.add(ids(3), texts(3), [{"a": 1, "gone": "x"}, {"a": 1}, {"a": 1}], embedder=embedder)
    embedder.embedded.clear()
    assert store.add(ids(3), texts(3), [{"a": 2}, None, {"a": 1}], embedder=embedder) == (0, 2, 1)
    assert embedder.embedded == []
    assert [record.metadata for record in store.records(ids(3))] == [{"a": 2}, {}, {"a": 1}]
    assert store.documents.get(where={"gone": "x"})["ids"] == []
    assert_in_step(store)


def test_delete_removes_from_both_and_knows_unknown_ids(store: ChromaStore, embedder: ToyEmbedder) -> None:
    store.add(ids(5), texts(5), embedder=embedder)
    store.delete(["p001", "p003", "p003", "never there"])
    store.delete([])
    assert sorted(store.documents.get()["ids"]) == ["p000", "p002", "p004"]
    assert_in_step(store)


def test_batches_beyond_chromas_limit_are_cut(
    store: ChromaStore, embedder: ToyEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._client, "get_max_batch_size", lambda: 7)
    sizes: list[int] = []
    for collection in (store.documents, store.sidecar._collection):
        for method in ("add", "upsert", "update", "delete"):
            original = getattr(collection, method)

            def counting(*args: Any, original: Callable[..., Any] = original, **kwargs: Any) -> Any:
                sizes.append(len(kwargs["ids"]))
                return original(*args, **kwargs)

            monkeypatch.setattr(collection, method, counting)
    assert store.add(ids(50), texts(50), embedder=embedder).added == 50
    store.delete(ids(20))
    assert len(sizes) > 10
    assert max(sizes) <= 7
    assert_in_step(store)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a"], ["x", "y"], None), ValueError, "1 ids, 2 texts"),
        ((["a", "b"], ["x", "y"], [{}]), ValueError, "1 metadatas"),
        ((["a", "a"], ["x", "y"], None), ValueError, "'a' occurs twice"),
        ((["a"], [""], None), ValueError, "text of passage 'a' is empty"),
        ((["a"], [" \n"], None), ValueError, "text of passage 'a' is empty"),
        ((["a"], ["x\ud800"], None), ValueError, "'a' holds half of a surrogate pair"),
        (("a", "x", None), TypeError, "expected a list of ids"),
        (([1], ["x"], None), TypeError, "id 1 is a int"),
        (([""], ["x"], None), ValueError, "id is empty"),
        ((["a"], ["x"], [{"k": {"nested": 1}}]), ValueError, "metadata 'k' of passage 'a' is a dict"),
        ((["a"], ["x"], [{"k": []}]), ValueError, "metadata 'k' of passage 'a' is .*not empty"),
        ((["a"], ["x"], [{"k": [1, "a"]}]), ValueError, "one plain type"),
        ((["a"], ["x"], [{"chroma:document": "x"}]), ValueError, "Chroma's"),
    ],
)
def test_what_chroma_would_refuse_is_refused_before_anything_is_written(
    arguments: Any, error: type[Exception], message: str, store: ChromaStore, embedder: ToyEmbedder
) -> None:
    store.add(["a", "b"], ["alpha beta", "gamma"], [{"k": "old"}, None], embedder=embedder)
    before = contents(store)
    with pytest.raises(error, match=message):
        store.add(*arguments, embedder=embedder)
    assert contents(store) == before


def test_metadata_that_is_missing_or_of_numpy_is_kept_as_chroma_can(store: ChromaStore, embedder: ToyEmbedder) -> None:
    metadata = {"none": None, "nan": float("nan"), "i": np.int64(3), "f": np.float32(0.5), "l": np.array([1, 2])}
    for _ in range(2):
        report = store.add(["a"], ["alpha"], [metadata], embedder=embedder)
    assert report == (0, 0, 1)
    assert store.records(["a"])[0].metadata == {"i": 3, "f": 0.5, "l": [1, 2]}
    assert "none" in metadata, "the caller's mapping is left alone"


def test_an_embedder_that_gives_too_few_vectors_is_refused(store: ChromaStore) -> None:
    class Short(ToyEmbedder):
        def embed_documents(self, texts: Any) -> Any:
            return super().embed_documents(texts)[:1]

    with pytest.raises(MismatchError, match="1 vectors for 3 texts"):
        store.add(ids(3), texts(3), embedder=Short())
    assert len(store) == 0


def test_a_failure_in_the_middle_leaves_a_store_that_still_serves(
    store: ChromaStore, embedder: ToyEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BATCH", 5)

    class Fails(ToyEmbedder):
        def embed_documents(self, texts: Any) -> Any:
            if len(self.embedded) >= 5:
                raise RuntimeError("out of memory")
            return super().embed_documents(texts)

    with pytest.raises(RuntimeError, match="out of memory"):
        store.add(ids(10), texts(10), embedder=Fails())
    assert store.sidecar.generation() is not None, "else searches by codes would read all of them anew"
    assert store.sidecar.count() == 5
    assert_in_step(store)
    assert store.add(ids(10), texts(10), embedder=embedder) == (5, 0, 5)
    assert_in_step(store)


# -- codes ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 5), k=st.integers(1, 20), n=st.sampled_from([20, 2**16, 2**16 + 1, 2**20]), seed=st.integers()
)
def test_packed_codes_unpack_to_the_last_bit(rows: int, k: int, n: int, seed: int) -> None:
    random = np.random.default_rng(abs(seed))
    indices = random.integers(0, n, (rows, k), dtype=np.int32)
    indices[:, 0] = n - 1
    values = random.exponential(size=(rows, k)).astype(np.float32)
    again = unpack([pack(i, v, n) for i, v in zip(indices, values, strict=True)], n, k)
    np.testing.assert_array_equal(again.indices, indices)
    np.testing.assert_array_equal(again.values, values)


# -- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("scale", [0.0, 3.0], ids=["unit", "any norm"])
def test_lengths_are_those_of_the_stored_vectors_and_their_reconstructions(
    space: str, scale: float, tmp_path: Path
) -> None:
    collection = foreign(connect(path=tmp_path), space, scale=scale)
    store = ChromaStore.from_collection(collection, SAE)
    before = store.lengths()
    store.attach()
    vectors = np.asarray(collection.get(include=["embeddings"])["embeddings"], dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    typical = 1.0 if space == "cosine" or not scale else float(np.median(norms))
    x = vectors / norms[:, None]
    codes = SAE.encode(x.astype(np.float32))
    x_hat = SAE.decode(codes).astype(np.float64)
    matches = [
        sum(
            float((side[row] - SAE.bias) @ SAE.decoder[latent])
            for row in range(len(x))
            for latent, value in zip(codes.indices[row, :3], codes.values[row, :3], strict=True)
            if value > 0
        )
        for side in (x_hat, x)
    ]
    expected = (typical, float(np.median(np.linalg.norm(x_hat, axis=1))), matches[0] / matches[1])
    assert before == pytest.approx((typical, 1.0, 1.0), rel=1e-5)
    assert store.lengths() == pytest.approx(expected, rel=1e-4)
    assert StoreReader.open(SAE, client=store._client, collection="theirs").lengths() == pytest.approx(expected, 1e-4)


def test_a_store_leaves_nothing_in_the_cache(
    embedder: ToyEmbedder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("SAE_STEER_CACHE", str(cache))
    store = ChromaStore.open(SAE, path=tmp_path / "chroma")
    store.add(ids(30), texts(30), embedder=embedder)
    catalog = catalog_for(SAE, embedder.embed_queries(texts(30)))
    retriever = SteeredRetriever(store, embedder, catalog)
    for space in SPACES:
        for score in LATENT_SCORES:
            for strength in (0.0, 0.5):
                steer = {int(np.argmax(catalog.calibration.count)): strength}
                assert retriever.search("alpha mu", steer=steer, space=space, latent_score=score)
    store.delete(["p001"])
    store.attach()
    assert not cache.exists() or list(cache.rglob("*")) == []


# -- other tools ------------------------------------------------------------------------------------------------------


def foreign(client: Any, space: str, count: int = 40, scale: float = 1.0, name: str = "theirs") -> Any:
    """A collection that another tool made: their distance, their norms, their metadata."""
    collection = client.create_collection(
        name, embedding_function=None, metadata={"owner": "them"}, configuration={"hnsw": {"space": space}}
    )
    random = np.random.default_rng(5)
    vectors = ToyEmbedder().embed_queries(texts(count)) * (scale * random.uniform(0.5, 2, (count, 1)) if scale else 1)
    collection.add(
        ids=ids(count), embeddings=vectors, documents=texts(count), metadatas=[{"n": n} for n in range(count)]
    )
    return collection


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("scale", [0.0, 3.0], ids=["unit", "any norm"])
def test_attach_makes_a_sidecar_and_changes_nothing_else(space: str, scale: float, tmp_path: Path) -> None:
    client = connect(path=tmp_path)
    collection = foreign(client, space, scale=scale)
    everything = ["documents", "metadatas", "embeddings"]
    before = json.dumps(collection.get(include=everything), default=np.ndarray.tolist)
    configuration = collection.configuration
    store = ChromaStore.from_collection(collection, SAE)
    assert store.attach() == 40
    assert_in_step(store)
    assert store.attach() == 0, "what is in step is not encoded again"
    again = ChromaStore.from_collection(client.get_collection("theirs", embedding_function=None), SAE)
    assert again.attach() == 0
    # Searching gives the tool's own order, and a score that is larger for better.
    q = ToyEmbedder().embed_queries(["alpha beta gamma"])[0]
    plain = collection.query(query_embeddings=[q], n_results=40, include=["distances"])
    found = store.nearest(q, 40)
    assert found.ids == plain["ids"][0]
    assert (np.diff(found.scores) <= 0).all()
    for name, score in zip(found.ids, found.scores, strict=True):
        (record,) = store.records([name])
        assert record.vector @ q + record.offset == pytest.approx(score, abs=1e-5)
    store.detach()
    assert [c.name for c in client.list_collections()] == ["theirs"]
    after = client.get_collection("theirs", embedding_function=None)
    assert json.dumps(after.get(include=everything), default=np.ndarray.tolist) == before
    assert (after.metadata, after.configuration) == ({"owner": "them"}, configuration)


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
def test_what_add_wrote_attach_finds_in_step(space: str, tmp_path: Path, embedder: ToyEmbedder) -> None:
    store = ChromaStore.from_collection(foreign(connect(path=tmp_path), space, count=3), SAE)
    store.add(["new 1", "new 2"], ["mu nu xi", "pi rho"], embedder=embedder)
    assert store.attach() == 3
    assert store.attach() == 0


def test_attach_follows_what_other_tools_changed(store: ChromaStore, embedder: ToyEmbedder) -> None:
    store.add(ids(30), texts(30), embedder=embedder)
    theirs = store._client.get_collection("docs", embedding_function=None)
    theirs.update(ids=["p004"], embeddings=unit_rows(1, 1))
    theirs.delete(ids=["p007", "p008"])
    theirs.add(ids=["extra"], embeddings=unit_rows(2, 1), documents=["written by another tool"])
    assert store.attach() == 2
    assert_in_step(store)
    assert store.attach() == 0


def test_a_vector_without_direction_is_named(tmp_path: Path) -> None:
    collection = foreign(connect(path=tmp_path), "l2", count=3)
    collection.add(ids=["blank"], embeddings=[[0.0] * 16], documents=["blank page"])
    with pytest.raises(MismatchError, match="vector of passage 'blank' is zero"):
        ChromaStore.from_collection(collection, SAE).attach()


def test_collections_are_found_in_the_objects_that_wrap_them(tmp_path: Path) -> None:
    langchain_chroma = pytest.importorskip("langchain_chroma")
    client = connect(path=tmp_path)
    collection = foreign(client, "cosine", count=3)
    wrapped = langchain_chroma.Chroma(client=client, collection_name="theirs")
    assert len(ChromaStore.from_collection(wrapped, SAE)) == 3
    assert len(ChromaStore.from_collection(collection, SAE)) == 3
    with pytest.raises(TypeError, match="expected a chromadb Collection.*got list"):
        ChromaStore.from_collection([collection], SAE)


def test_a_passage_without_a_sidecar_row_is_steered_explained_and_said_to_lack_it(
    store: ChromaStore, embedder: ToyEmbedder
) -> None:
    store.add(ids(60), texts(60), embedder=embedder)
    store.sidecar._collection.delete(ids=ids(20))
    catalog = catalog_for(SAE, embedder.embed_queries(texts(60)))
    frequent = int(np.argmax(catalog.calibration.count))
    retriever = SteeredRetriever(store, embedder, catalog)
    with pytest.warns(StaleSidecarWarning, match=r"'docs\.sae' is out of step .* 20 of 60 candidates.*--attach"):
        hits = retriever.search("alpha mu", k=60, steer={frequent: 0.8})
    assert sorted(hit.id for hit in hits) == ids(60)
    for hit in hits:
        assert hit.read_on == ("vector" if hit.id in ids(20) else "reconstruction")
        assert hit.attribution is not None
        assert hit.attribution.total == pytest.approx(hit.score, abs=1e-5)
        assert any(term.side == "query" and term.value for term in hit.attribution.steering)
    assert any(hit.read_on == "vector" and hit.score > hit.base_score + 0.05 for hit in hits)
    # The other spaces are the sidecar's.
    for space in ("reconstructed", "latent"):
        assert sorted(hit.id for hit in retriever.search("alpha mu", k=60, space=space)) == ids(60)[20:]
    expected = SAE.encode(embedder.embed_queries(texts(60)))
    np.testing.assert_array_equal(store.codes(ids(60)).indices, expected.indices)
    assert store.attach() == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {hit.read_on for hit in retriever.search("alpha mu", k=60, steer={frequent: 0.8})} == {"reconstruction"}


# -- what does not belong together ------------------------------------------------------------------------------------


def test_another_saes_sidecar_is_refused_with_both_fingerprints(store: ChromaStore, embedder: ToyEmbedder) -> None:
    store.add(ids(3), texts(3), embedder=embedder)
    other = random_sae(4)
    with pytest.raises(MismatchError) as caught:
        ChromaStore.open(other, client=store._client)
    assert SAE.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    rebuild(store._client, "docs")
    rebuild(store._client, "docs")  # nothing to drop is no error
    assert ChromaStore.open(other, client=store._client).attach() == 3


def test_another_encoder_is_refused_with_both_names(store: ChromaStore) -> None:
    with pytest.raises(MismatchError, match="'toy/words'.*'toy/other'"):
        ChromaStore.open(random_sae(3, encoder="toy/other"), client=store._client)
    with pytest.raises(MismatchError, match="'toy/words'.*'toy/other'"):
        store.add(["a"], ["alpha"], embedder=ToyEmbedder("toy/other"))


def test_the_short_name_of_the_same_encoder_is_accepted(tmp_path: Path) -> None:
    client = connect(path=tmp_path)
    ChromaStore.open(random_sae(3, encoder="sentence-transformers/all-MiniLM-L6-v2"), client=client)
    store = ChromaStore.open(random_sae(3, encoder="all-MiniLM-L6-v2"), client=client)
    assert len(store) == 0


def test_vectors_of_another_dimension_are_refused(tmp_path: Path) -> None:
    client = connect(path=tmp_path)
    client.create_collection("docs", embedding_function=None).add(ids=["a"], embeddings=unit_rows(0, 1, 9))
    with pytest.raises(MismatchError, match="9 dimensions, but the SAE reads 16"):
        ChromaStore.open(SAE, client=client)


def test_a_collection_of_the_users_is_never_taken_for_a_sidecar(tmp_path: Path) -> None:
    client = connect(path=tmp_path)
    client.create_collection("docs.sae", embedding_function=None).add(ids=["mine"], embeddings=unit_rows(0, 1))
    with pytest.raises(StoreError, match=r"'docs\.sae' exists but is none of this library's"):
        ChromaStore.open(SAE, client=client)
    with pytest.raises(StoreError, match="none of this library's"):
        rebuild(client, "docs")
    assert client.get_collection("docs.sae", embedding_function=None).get()["ids"] == ["mine"]


def test_a_sidecar_is_never_taken_for_documents(store: ChromaStore) -> None:
    with pytest.raises(StoreError, match=r"'docs\.sae' is the sidecar of 'docs': open 'docs'"):
        ChromaStore.open(SAE, client=store._client, collection="docs.sae")


def test_a_missing_collection_or_unusable_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="opening collection 'nowhere'"):
        ChromaStore.open(SAE, path=tmp_path / "chroma", collection="nowhere", create=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="opening the folder"):
        connect(path=tmp_path / "file")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "chroma.sqlite3").write_bytes(b"garbage " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        connect(path=tmp_path / "bad")


def test_a_client_with_other_settings_on_the_same_folder_is_explained(tmp_path: Path) -> None:
    chromadb.PersistentClient(str(tmp_path), settings=Settings(anonymized_telemetry=True))
    with pytest.raises(StoreError, match="pass that one"):
        connect(path=tmp_path)


def test_telemetry_is_off(tmp_path: Path) -> None:
    assert connect(path=tmp_path).get_settings().anonymized_telemetry is False


def test_a_store_opened_for_reading_creates_nothing(tmp_path: Path, embedder: ToyEmbedder) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(StoreError, match="there is no store in"):
            StoreReader.open(SAE, path=folder)
        assert not (folder / "chroma.sqlite3").exists()
    client = connect(path=tmp_path / "chroma")
    with pytest.raises(StoreError, match="opening collection 'docs'"):
        StoreReader.open(SAE, client=client)
    collection = foreign(client, "l2", scale=3.0)
    reader = StoreReader.open(SAE, client=client, collection="theirs")
    assert [found.name for found in client.list_collections()] == ["theirs"]
    assert not any(hasattr(reader, writer) for writer in ("add", "delete", "attach", "detach"))
    q = embedder.embed_queries(["alpha beta gamma"])[0]
    assert reader.sidecar.neighbours(q[None], 5).ids == []
    assert len(reader.code_matrix()) == 0
    assert not reader.sidecar.exists
    without = reader.codes(ids(40))
    store = ChromaStore.from_collection(collection, SAE)
    store.attach()
    reader = StoreReader.open(SAE, client=client, collection="theirs")
    for codes in (without, store.codes(ids(40))):
        np.testing.assert_array_equal(reader.codes(ids(40)).indices, codes.indices)
        np.testing.assert_allclose(reader.codes(ids(40)).values, codes.values, atol=1e-6)
    assert reader.nearest(q, 9).ids == store.nearest(q, 9).ids
    assert reader.sidecar.neighbours(q[None], 9).ids == store.sidecar.neighbours(q[None], 9).ids
    assert len(reader.code_matrix()) == 40


def test_the_saes_location_is_recorded_and_updated(tmp_path: Path, embedder: ToyEmbedder) -> None:
    client = connect(path=tmp_path)
    assert recorded_sae(client, "docs") is None
    ChromaStore.open(SAE, client=client, sae_location="/somewhere/sae").add(ids(2), texts(2), embedder=embedder)
    ChromaStore.open(SAE, client=client)
    assert recorded_sae(client, "docs") == "/somewhere/sae"
    ChromaStore.open(SAE, client=client, sae_location="elsewhere")
    assert recorded_sae(client, "docs") == "elsewhere"


# -- searching --------------------------------------------------------------------------------------------------------


def test_where_filters_searches(store: ChromaStore, embedder: ToyEmbedder) -> None:
    store.add(ids(40), texts(40), [{"even": n % 2 == 0} for n in range(40)], embedder=embedder)
    q = embedder.embed_queries(["alpha"])[0]
    for search in (store.nearest, lambda q, k, where: store.neighbours(np.stack([q, -q]), k, where)):
        assert {int(name[1:]) % 2 for name in search(q, 40, {"even": True}).ids} == {0}
        assert len(search(q, 40, {"even": True}).ids) == 20
        assert search(q, 40, {"even": "no such"}).ids == []
        assert len(search(q, 40, {}).ids) == 40, "an empty filter filters nothing"
    assert store.existing(["p001", "p002", "never there"], {"even": True}) == ["p002"]
    assert len(store.existing(where={"even": True})) == 20
    assert list(store.find(["p001", "p002"], {"even": True})) == ["p002"]


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
def test_neighbours_of_several_probes_are_those_of_each(space: str, tmp_path: Path) -> None:
    collection = foreign(connect(path=tmp_path), space, scale=3.0)
    store = ChromaStore.from_collection(collection, SAE)
    probes = np.concatenate([unit_rows(3, 3), 5 * unit_rows(4, 2)]).astype(np.float64)
    for k in (1, 7, 39, 40, 100):
        found = store.neighbours(probes, k)
        scores = found.vectors.astype(np.float64) @ probes.T + found.offsets[:, None]
        everything = store.find(ids(40))
        for place, probe in enumerate(probes):
            exact = {name: row.vector.astype(np.float64) @ probe + row.offset for name, row in everything.items()}
            best = sorted(exact, key=lambda name: -exact[name])[:k]
            assert found.lists[place] == best
            assert {name: scores[found.ids.index(name), place] for name in best} == pytest.approx(
                {name: exact[name] for name in best}, abs=1e-5
            )
            outside = [value for name, value in exact.items() if name not in best]
            assert found.last[place] >= max(outside, default=-np.inf)
            assert found.last[place] <= exact[best[-1]] + 1e-3
        assert (found.last == -np.inf).all() == (k > 40)
        assert found.full == (k <= 40)


def test_scores_are_the_same_whatever_else_is_asked_for(store: ChromaStore, embedder: ToyEmbedder) -> None:
    store.add(ids(200), texts(200), embedder=embedder)
    q = embedder.embed_queries(["alpha beta"])[0]
    few, many = store.nearest(q, 5), store.nearest(q, 100)
    assert many.ids[:5] == few.ids
    np.testing.assert_array_equal(many.scores[:5], few.scores)
    with_texts = store.documents.query(query_embeddings=[q], n_results=100)
    assert with_texts["ids"][0] == many.ids
    found = store.neighbours(np.stack([-q, q]).astype(np.float64), 100)
    assert found.lists[1] == many.ids


def test_passages_another_tool_deleted_are_neither_found_nor_an_error(
    store: ChromaStore, embedder: ToyEmbedder
) -> None:
    store.add(ids(40), texts(40), embedder=embedder)
    q = embedder.embed_queries([texts(40)[0]])[0]
    store._client.get_collection("docs", embedding_function=None).delete(ids=ids(10))
    assert sorted(store.nearest(q, 40).ids) == ids(40)[10:]
    assert sorted(store.neighbours(q[None].astype(np.float64), 40).ids) == ids(40)[10:]
    assert store.existing(ids(10)) == []
    assert list(store.find(ids(12))) == ["p010", "p011"]
    assert not store.codes(ids(10)).values.any()
    with pytest.raises(StoreError, match="passage 'p000' is not in collection 'docs'"):
        store.records(["p011", "p000"])
    store.sidecar._collection.delete(ids=ids(10))
    assert not ChromaStore.open(SAE, client=store._client).codes(ids(10)).values.any()


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.getcwd()])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


OTHER_TOOL = """
import sys, chromadb
from chromadb.config import Settings
client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))
docs = client.get_collection("docs", embedding_function=None)
docs.add(ids=["other"], embeddings=[[1.0] + [0.0] * 15], documents=["written elsewhere"])
"""


def test_a_folder_another_process_writes_to_is_explained_or_served(
    store: ChromaStore, embedder: ToyEmbedder, tmp_path: Path
) -> None:
    store.add(ids(20), texts(20), embedder=embedder)
    assert len(store.nearest(unit_rows(0, 1)[0], 30).ids) == 20
    done = run(OTHER_TOOL, str(tmp_path / "chroma"))
    assert done.returncode == 0, done.stderr
    try:  # an embedded Chroma is for one process: what others write it sees in part
        assert store.records(["other"])[0].text == "written elsewhere"
    except StoreError as error:
        assert "another process has changed its folder" in str(error)  # noqa: PT017 - either is right
    assert len(store.nearest(unit_rows(0, 1)[0], 30).ids) in (20, 21)


def test_own_writes_are_seen_at_once(store: ChromaStore, embedder: ToyEmbedder) -> None:
    store.add(ids(5), texts(5), embedder=embedder)
    assert len(store.code_matrix()) == 5
    store.add(["p000"], ["tau tau sigma"], embedder=embedder)
    expected = SAE.encode(embedder.embed_queries(["tau tau sigma"]))
    np.testing.assert_array_equal(store.codes(["p000"]).indices, expected.indices)
    matrix = store.code_matrix()
    np.testing.assert_array_equal(matrix.take(matrix.rows_of(["p000"])).values, store.codes(["p000"]).values)
    store.delete(["p000"])
    assert not store.codes(["p000"]).values.any()
    assert "p000" not in store.code_matrix().ids


@pytest.mark.parametrize("space", SPACES)
def test_what_another_client_writes_is_seen_by_the_next_search(
    store: ChromaStore, embedder: ToyEmbedder, space: Any, tmp_path: Path
) -> None:
    store.add(ids(40), texts(40), embedder=embedder)
    catalog = catalog_for(SAE, embedder.embed_queries(texts(40)))
    other = StoreReader.open(SAE, path=tmp_path / "chroma")
    assert other._client is not store._client
    reading, writing = (SteeredRetriever(one, embedder, catalog) for one in (other, store))
    options: dict[str, Any] = {"k": 50, "steer": {int(np.argmax(catalog.calibration.count)): 0.4}, "space": space}
    first = reading.search("alpha beta", **options)[0].id
    store.add(["new", first], ["alpha beta", "tau tau sigma"], embedder=embedder)
    hits = {hit.id: hit for hit in reading.search("alpha beta", **options)}
    assert "new" in hits
    assert hits[first].text == "tau tau sigma"
    assert list(hits.values()) == writing.search("alpha beta", **options)
    store.delete(["new"])
    assert "new" not in {hit.id for hit in reading.search("alpha beta", **options)}


# -- kills ------------------------------------------------------------------------------------------------------------

# One warm process forks for every kill point: the child opens the store and dies before its n-th write.
CRASHER = """
import os, signal, shutil, sys
from pathlib import Path
from chromadb.api.models.Collection import Collection
from toy import ToyEmbedder, random_sae
import sae_steer_retriever.store.chroma_store as module
from test_store import after, before

folder = Path(sys.argv[1])
for n in range(1, 40):
    target = folder / str(n)
    shutil.copytree(folder / "start", target)
    child = os.fork()
    if child == 0:
        module._BATCH = 4
        store = module.ChromaStore.open(random_sae(3), path=target)
        count = 0
        for method in ("add", "update", "upsert", "delete", "modify"):
            def dying(self, *args, original=getattr(Collection, method), **kwargs):
                global count
                count += 1
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, *args, **kwargs)
            setattr(Collection, method, dying)
        store.add(*after(), embedder=ToyEmbedder())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        shutil.rmtree(target)
        break
    print(n, flush=True)
"""


def before() -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Ten passages."""
    return ids(10), texts(10), [{"n": n, "old": "x"} for n in range(10)]


def after() -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """The same call later: one text and two metadata have changed, and two passages are new."""
    names, passages, metadatas = ids(12), texts(12), [{"n": n, "old": "x"} for n in range(12)]
    passages[1] = "tau sigma"
    metadatas[2], metadatas[6] = {"n": 2}, {"n": -6, "new": "y"}
    return names, passages, metadatas


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_write_loses_no_passage_and_the_same_call_completes_it(
    tmp_path: Path, embedder: ToyEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BATCH", 4)
    ChromaStore.open(SAE, path=tmp_path / "start").add(*before(), embedder=embedder)
    ChromaStore.open(SAE, path=tmp_path / "calm").add(*before(), embedder=embedder)
    calm = ChromaStore.open(SAE, path=tmp_path / "calm")
    calm.add(*after(), embedder=embedder)
    done = run(CRASHER, str(tmp_path))
    assert done.returncode == 0, done.stderr
    moments = done.stdout.splitlines()
    assert len(moments) >= 8, "has the child died at all?"
    for moment in moments:
        # In this process a killed store must serve: everything that was there is there, old or new.
        killed = ChromaStore.open(SAE, path=tmp_path / moment)
        assert set(ids(10)) <= set(killed.documents.get()["ids"]), moment
        assert killed.codes(ids(10)).values.any(axis=1).all()
        killed.add(*after(), embedder=embedder)
        assert contents(killed) == contents(calm), moment
        assert killed.sidecar.generation() is not None
        np.testing.assert_array_equal(killed.codes(ids(12)).values, calm.codes(ids(12)).values)


def test_an_interrupt_in_the_middle_leaves_a_store_that_the_same_call_completes(
    store: ChromaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BATCH", 4)

    class Interrupted(ToyEmbedder):
        def embed_documents(self, texts: Any) -> Any:
            if len(self.embedded) == 4:
                raise KeyboardInterrupt
            return super().embed_documents(texts)

    with pytest.raises(KeyboardInterrupt):
        store.add(*before(), embedder=Interrupted())
    assert store.sidecar.count() == 4
    store.add(*before(), embedder=ToyEmbedder())
    assert_in_step(store)


# -- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A Chroma server on loopback: its port and its process."""
    with chroma_server(tmp_path / "server") as running:
        yield running


@pytest.mark.server
def test_a_server_is_the_same_code(server: tuple[int, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    port, process = server
    embedder = ToyEmbedder()
    local = ChromaStore.open(SAE, path=tmp_path / "local")
    remote = ChromaStore.open(SAE, host="127.0.0.1", port=port)
    catalog = catalog_for(SAE, embedder.embed_queries(texts(60)))
    frequent = int(np.argmax(catalog.calibration.count))
    answers = []
    for store in (local, remote):
        assert store._client.get_settings().anonymized_telemetry is False
        store.add(*before(), embedder=embedder)
        assert store.add(*after(), embedder=embedder) == (2, 3, 7)
        store.add(ids(60), texts(60), embedder=embedder)
        store.delete(["p002"])
        assert store.attach() == 0
        assert_in_step(store)
        retriever = SteeredRetriever(store, embedder, catalog)
        answers.append(
            [
                [(hit.id, pytest.approx(hit.score, abs=1e-6)) for hit in retriever.search("alpha mu", k=9, **options)]
                for options in (
                    {},
                    {"steer": {frequent: 0.5}},
                    {"steer": {frequent: -0.5}, "space": "reconstructed"},
                    {"where": {"n": 3}},
                )
            ]
        )
    assert answers[0] == answers[1]
    other = ChromaStore.from_collection(remote.documents, SAE)
    assert len(other) == 59
    # What another client writes is seen at once.
    other.add(["p001", "new"], ["tau tau sigma", "rho rho rho"], embedder=embedder)
    other.delete(["p003"])
    expected = SAE.encode(embedder.embed_queries(["tau tau sigma", "rho rho rho"]))
    np.testing.assert_array_equal(remote.codes(["p001", "new"]).indices, expected.indices)
    assert not remote.codes(["p003"]).values.any()
    hits = SteeredRetriever(remote, embedder, catalog).search("rho", k=60, steer={frequent: 0.5})
    assert {"new"} <= {hit.id for hit in hits} <= set(remote.documents.get()["ids"])
    process.kill()
    process.wait()
    retriever = SteeredRetriever(remote, embedder, catalog)
    for action in (
        lambda: retriever.search("alpha"),
        lambda: remote.add(["x"], ["alpha"], embedder=embedder),
        lambda: len(remote),
        lambda: ChromaStore.open(SAE, host="127.0.0.1", port=port),
    ):
        began = time.monotonic()
        with pytest.raises(StoreError) as caught:
            action()
        assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 10
    assert f"127.0.0.1:{port}" in str(caught.value), "the line says which server"
