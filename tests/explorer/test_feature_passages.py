"""A feature's passages are those whose stored embeddings have it, whatever another tool did to the collection."""

from __future__ import annotations

import uuid
from typing import NamedTuple

import chromadb
import numpy as np
import pytest
from toy import K_LABELS, N, random_sae, unit_rows

from sae_steer_retriever.explorer import feature_passages as module
from sae_steer_retriever.explorer.feature_passages import FeaturePassages, feature_passages
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.store_reader import StoreReader

COUNT = 120


class Filled(NamedTuple):
    """A collection of another tool, with a sidecar, and a feature that some of its passages have."""

    store: ChromaStore
    vectors: Array
    feature: int

    @property
    def having(self) -> list[int]:
        """The rows of the passages that have the feature."""
        return np.nonzero(has(self.store.sae, self.vectors, self.feature))[0].tolist()

    def listed(self) -> FeaturePassages:
        """All passages of the feature."""
        return feature_passages(self.store, self.feature, top=2 * COUNT)

    def ids(self) -> set[str]:
        """Their ids."""
        return {example.id for example in self.listed().top}

    def names(self, rows: list[int]) -> set[str]:
        """The ids of rows."""
        return {f"p{row}" for row in rows}


def has(sae: TopKSAE, vectors: Array, feature: int) -> np.ndarray:
    """(batch,) whether embeddings have a feature among their label latents."""
    codes = sae.encode(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).truncate(K_LABELS)
    return ((codes.indices == feature) & (codes.values > 0)).any(axis=1)


@pytest.fixture(params=["cosine", "ip", "l2"])
def filled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Filled:
    monkeypatch.setattr(module, "_PAGE", 7)
    sae = random_sae()
    vectors = unit_rows(1, COUNT) * np.random.default_rng(2).uniform(0.5, 2, (COUNT, 1)).astype(np.float32)
    collection = chromadb.EphemeralClient().create_collection(
        f"c{uuid.uuid4().hex}", embedding_function=None, configuration={"hnsw": {"space": request.param}}
    )
    collection.add(ids=[f"p{row}" for row in range(COUNT)], embeddings=vectors, documents=["text"] * COUNT)
    store = ChromaStore.from_collection(collection, sae)
    store.attach()
    counts = [has(sae, vectors, feature).sum() for feature in range(N)]
    return Filled(store, vectors, int(np.argmax(counts)))


def test_the_passages_of_a_feature_are_those_whose_embeddings_have_it_strongest_first(filled: Filled) -> None:
    found, sae = filled.listed(), filled.store.sae
    assert len(filled.having) > 20
    assert filled.ids() == filled.names(filled.having)
    assert found.total == len(filled.having) == sum(found.counts)
    units = filled.vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    rows = sae.W_enc.numpy().astype(np.float64)
    expected = (units - sae.bias) @ rows[filled.feature] + float(sae.b_enc[filled.feature])
    strengths = [example.strength for example in found.top]
    assert strengths == sorted(strengths, reverse=True)
    np.testing.assert_allclose(strengths, [expected[int(example.id[1:])] for example in found.top], atol=1e-5)
    few = feature_passages(filled.store, filled.feature, top=2)
    assert few.top == found.top[:2]
    assert set(few.middle) < set(found.top[2:])


def test_a_changed_embedding_counts_as_what_it_is_now(filled: Filled) -> None:
    """The sidecar's rows are stale: another tool has written."""
    lost, kept, won = filled.having[0], filled.having[1], next(row for row in range(COUNT) if row not in filled.having)
    pool = unit_rows(3, 200)
    fits = has(filled.store.sae, pool, filled.feature)
    without, with_it = pool[~fits][0], pool[fits][0]
    strength = {example.id: example.strength for example in filled.listed().top}
    filled.store.documents.update(ids=[f"p{row}" for row in (lost, kept, won)], embeddings=[without, with_it, with_it])
    found = {example.id: example.strength for example in filled.listed().top}
    assert found.keys() == filled.names(filled.having) - {f"p{lost}"}
    assert found[f"p{kept}"] != pytest.approx(strength[f"p{kept}"], abs=1e-4)
    filled.store.attach()
    mended = {example.id: example.strength for example in filled.listed().top}
    assert mended.keys() == found.keys() | {f"p{won}"}
    assert mended[f"p{kept}"] == pytest.approx(found[f"p{kept}"], abs=1e-6)
    assert mended[f"p{won}"] == pytest.approx(found[f"p{kept}"], abs=1e-6)


def test_a_passage_without_a_row_and_a_row_without_a_passage_are_left_out(filled: Filled) -> None:
    fits = has(filled.store.sae, unit_rows(3, 200), filled.feature)
    filled.store.documents.add(ids=["new"], embeddings=[unit_rows(3, 200)[fits][0]], documents=["text"])
    filled.store.documents.delete(ids=[f"p{filled.having[0]}"])
    assert filled.ids() == filled.names(filled.having[1:])
    filled.store.attach()
    assert filled.ids() == filled.names(filled.having[1:]) | {"new"}


def test_a_feature_without_passages_and_a_collection_without_a_sidecar_have_none(filled: Filled) -> None:
    store, same = filled.store, unit_rows(4, 1)
    assert filled.listed().total
    store.documents.update(ids=[f"p{row}" for row in range(COUNT)], embeddings=np.repeat(same, COUNT, axis=0))
    store.attach()
    present = {feature: bool(has(store.sae, same, feature)[0]) for feature in range(N)}
    for feature, there in present.items():
        assert feature_passages(store, feature).total == (COUNT if there else 0)
    store.detach()
    reader = StoreReader.open(store.sae, client=store._client, collection=store.documents.name)
    for feature in present:
        assert feature_passages(reader, feature) == FeaturePassages(0, (), (), (), ())
