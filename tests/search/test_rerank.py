"""Re-ranking gives what the steered search would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_world import World

from sae_steer_retriever.errors import MismatchError, UnknownFeatureError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.reranker import Reranker
from sae_steer_retriever.steering.operations import Add, Clamp, Scale, Suppress

QUERY = "parse a string into an object"


@pytest.fixture
def beside(world: World, retriever: SteeredRetriever) -> Reranker:
    """A re-ranker that knows the store, and how long its reconstructions are."""
    return Reranker(world.sae, world.embedder, world.catalog, store=retriever.store)


@pytest.fixture
def reranker(world: World) -> Reranker:
    return Reranker(world.sae, world.embedder, world.catalog)


@pytest.mark.parametrize(
    "steer",
    [
        {"json": 1.0},
        {"json": Add(0.7, "query"), "whitespace": Add(-0.5, "document")},
        {"calendar": Clamp(1.0)},
        {"calendar": Suppress()},
    ],
    ids=["both", "sides", "clamp", "suppress"],
)
@pytest.mark.parametrize("stored", [False, True], ids=["without a store", "beside the store"])
def test_scores_are_those_of_the_steered_search(
    reranker: Reranker,
    beside: Reranker,
    retriever: SteeredRetriever,
    world: World,
    steer: dict[str, Any],
    stored: bool,
) -> None:
    hits = retriever.search(
        QUERY,
        k=len(world.ids),
        steer=steer,
        fetch_k=4 * len(world.ids),
        read_on="reconstruction" if stored else "vector",
    )
    if stored:  # nothing is embedded: vectors and reconstructions are the store's
        ranking = beside.rerank(QUERY, world.texts, steer, ids=world.ids)
    else:
        ranking = reranker.rerank(QUERY, world.texts, steer, vectors=list(world.vectors))
    assert ranking is not None
    left = {world.ids[place.position] for place in ranking}
    # The search leaves out what has a suppressed feature by its vector, too.
    assert left >= {hit.id for hit in hits}
    assert len(left) <= len(hits) + 5
    scores = {hit.id: (hit.score, hit.base_score) for hit in hits}
    for place in ranking:
        if world.ids[place.position] not in scores:
            continue
        assert (place.score, place.base_score) == pytest.approx(scores[world.ids[place.position]], abs=1e-5)
        assert place.attribution is not None
        assert place.attribution.total == pytest.approx(place.score, abs=1e-5)
    assert [place.score for place in ranking] == sorted((place.score for place in ranking), reverse=True)


def test_what_the_store_does_not_hold_as_it_is_is_embedded(world: World, retriever: SteeredRetriever) -> None:
    embedded: list[str] = []

    class Counting:
        spec = world.embedder.spec

        def embed_queries(self, texts: Any) -> Any:
            return world.embedder.embed_queries(texts)

        def embed_documents(self, texts: Any) -> Any:
            embedded.extend(texts)
            return world.embedder.embed_documents(texts)

    beside = Reranker(world.sae, Counting(), world.catalog, store=retriever.store)
    texts = [*world.texts[:4], "another text", "a text of no passage"]
    ranking = beside.rerank(QUERY, texts, {"json": 1.0}, ids=[*world.ids[:5], "unknown"])
    assert ranking is not None
    assert len(ranking) == 6
    assert embedded == texts[4:]


@pytest.mark.parametrize("steer", [None, {}, {"json": 0.0}])
def test_no_steering_gives_no_ranking(reranker: Reranker, world: World, steer: dict[str, Any] | None) -> None:
    assert reranker.rerank(QUERY, world.texts[:5], steer) is None


def test_a_steering_that_does_not_apply_to_the_query_gives_no_ranking(reranker: Reranker, world: World) -> None:
    own = set(world.sae.encode(world.embedder.embed_queries([QUERY])).indices[0].tolist())
    absent = next(int(latent) for latent in np.nonzero(world.catalog.calibration.count)[0] if latent not in own)
    assert reranker.rerank(QUERY, world.texts[:5], {absent: Scale(0.0)}) is None
    assert reranker.rerank(QUERY, world.texts[:5], {absent: Clamp(1.0)}) is not None


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strength=st.floats(-3, 3).filter(lambda s: abs(s) > 0.01), length=st.floats(0.01, 100))
def test_lengths_of_given_embeddings_do_not_matter(
    reranker: Reranker, world: World, strength: float, length: float
) -> None:
    q = world.embedder.embed_queries([QUERY])[0]
    texts, vectors = world.texts[:30], world.vectors[:30]
    steer = {"json": strength}
    unit = reranker.rerank(QUERY, texts, steer, embedding=q, vectors=list(vectors))
    scaled = reranker.rerank(QUERY, texts, steer, embedding=length * q, vectors=list(length * vectors))
    assert unit is not None
    assert scaled is not None
    by_position = {place.position: place.score for place in scaled}
    assert [by_position[place.position] for place in unit] == pytest.approx([p.score for p in unit], abs=1e-4)


def test_what_is_not_given_is_embedded(reranker: Reranker, world: World) -> None:
    texts = world.texts[:4]
    some = [world.vectors[0], None, world.vectors[2], None]
    mixed, alone = (reranker.rerank(QUERY, texts, {"json": 1.0}, vectors=v, explain=False) for v in (some, None))
    assert mixed is not None
    assert alone is not None
    assert [place.position for place in mixed] == [place.position for place in alone]
    assert [place.score for place in mixed] == pytest.approx([place.score for place in alone], abs=1e-5)
    assert mixed[0].attribution is None


def test_refusals(reranker: Reranker, world: World) -> None:
    with pytest.raises(UnknownFeatureError, match="calendar"):
        reranker.rerank(QUERY, world.texts[:2], {"clendar": 1.0})
    with pytest.raises(MismatchError, match="shape"):
        reranker.rerank(QUERY, world.texts[:1], {"json": 1.0}, vectors=[np.ones(3)])
    with pytest.raises(TypeError, match="got dict"):
        reranker.rerank({"q": QUERY}, world.texts[:1], {"json": 1.0})  # type: ignore[arg-type]
    foreign = FeatureCatalog(world.catalog.features, world.catalog.calibration, "0" * 16)
    with pytest.raises(MismatchError, match="0000"):
        Reranker(world.sae, world.embedder, foreign)
