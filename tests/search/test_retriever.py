"""The one path from a query to hits: unsteered it is the plain search, steered it is the exact ranking."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from chromadb.api.models.Collection import Collection
from exact_match import exact_match, exact_x_hat
from small_world import World
from toy import ToyEmbedder, catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import (
    AmbiguousFeatureError,
    ArtifactError,
    MismatchError,
    StaleSidecarWarning,
    SteeringError,
    StoreError,
    UnknownFeatureError,
)
from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.loading import load_sae
from sae_steer_retriever.features.text_reading import Concept
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.options import SPACES
from sae_steer_retriever.steering.operations import Add, Clamp, Scale, Suppress
from sae_steer_retriever.steering.plan import DocumentBoost, plan
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.connection import connect

QUERIES = ["wait until a thread has finished", "compress a file", "?"]
# What each distance makes of vectors of any length: larger is nearer.
PLAIN_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ip": np.matmul,
    "cosine": lambda x, q: x @ q / np.linalg.norm(x, axis=1),
    "l2": lambda x, q: 1 - ((x - q) ** 2).sum(axis=1) / 2,
}
FILTERS = [None, {"module": "threading"}, {"module": {"$in": ["shutil", "zipfile", "socket"]}}]


class Exact(NamedTuple):
    """The hits of a steered search by the definition, and the scores of all passages, in float64.

    Attributes:
        rows: The passages, best first.
        scores: (N,) with the steering's terms.
        base: (N,) without.
    """

    rows: list[int]
    scores: np.ndarray
    base: np.ndarray


def brute_force(
    retriever: SteeredRetriever,
    q: Array,
    vectors: Array,
    steering: Steering,
    space: str,
    k: int,
    *,
    plain: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul,
    among: np.ndarray | None = None,
    has_row: np.ndarray | None = None,
    read_on: str = "reconstruction",
) -> Exact:
    """Ranks all passages.

    Vectors are of any length, and `plain` says what their own collection makes of them and a query. `among` are the
    passages that a filter lets through, `has_row` those that the sidecar knows.
    """
    sae, unit, lengths = retriever.sae, retriever.catalog.calibration.match_unit, retriever.store.lengths()
    h_q = sae.encode(q[None])
    query = (sae.decode(h_q)[0] if space == "reconstructed" else q).astype(np.float64)
    plan_ = plan(steering, query.astype(np.float32), h_q, sae, retriever.catalog.calibration)
    v = plan_.total_shift(len(q)).astype(np.float64)
    x_hat = exact_x_hat(sae, sae.encode(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
    some = np.ones(len(vectors), dtype=bool) if among is None else among

    def steered(y: np.ndarray, base: np.ndarray, shift: float, boost: float, length: float, match: float) -> Any:
        """Scores by terms read on `y`, and which passages are kept; matches are of `y / length`."""

        def matches(one: DocumentBoost) -> np.ndarray:
            return exact_match(sae, match * unit, one.features, one.weights, y / length)

        scores = base + shift * (y @ v) + sum((boost * one.amount * matches(one) for one in plan_.boosts), np.zeros(1))
        return scores, np.all([matches(one) < 0.5 for one in plan_.excluded] + [np.ones(len(y), dtype=bool)], axis=0)

    def best(scores: np.ndarray, kept: np.ndarray, count: int) -> list[int]:
        return [row for row in np.lexsort((-base, -scores)).tolist() if kept[row]][:count]

    if space != "original":
        some = some if has_row is None else some & has_row
        y = x_hat / np.linalg.norm(x_hat, axis=1, keepdims=True)
        length = float(np.linalg.norm(query + v))
        base = y @ query / np.linalg.norm(query)
        scores, kept = steered(y, y @ query / length, 1.0 / length, 1.0, 1.0 / lengths.reconstruction, lengths.match)
        return Exact(best(scores, some & kept, k), scores, base)
    x = vectors.astype(np.float64)
    base = plain(x, query)
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if plain is PLAIN_SCORES["cosine"] else x
    first, kept = steered(x, base, 1.0, lengths.vector, lengths.vector, 1.0)
    if read_on == "vector":
        return Exact(best(first, some & kept, k), first, base)
    again, left = steered(x_hat, base, lengths.vector, lengths.vector, 1.0, lengths.match)
    if has_row is not None:
        again, left = np.where(has_row, again, first), np.where(has_row, left, kept)
    read = max(30, min(3 * k, 300), k)
    some = some & kept
    # The best by the vectors are read again; more of them, if too few of these are left.
    while True:
        chosen = np.isin(np.arange(len(x)), best(first, some, read))
        if (chosen & left).sum() >= min(k, (some & left).sum()):
            return Exact(best(again, chosen & left, k), again, base)
        read *= 2


def features_of(retriever: SteeredRetriever, query: str) -> tuple[int, int]:
    """A feature the query has, and the most frequent one it lacks."""
    codes = retriever.sae.encode(retriever.embedder.embed_queries([query]))
    own = int(codes.indices[0, 0])
    counts = retriever.catalog.calibration.count.copy()
    counts[codes.indices[0]] = -1
    return own, int(np.argmax(counts))


def steerings(own: int, other: int) -> dict[str, dict[Any, Any]]:
    return {
        "tilt": {other: Add(0.6, side="query")},
        "gate": {other: Add(0.6, side="document")},
        "both": {other: Add(0.6, side="both")},
        "strong": {other: Add(5.0, side="both")},
        "negative": {own: Add(-0.8, side="both")},
        "negative document boost": {own: Add(-3.0, side="document")},
        "no side said": {own: -0.5, other: 0.5},
        "clamp and scale": {own: Scale(0.0), other: Clamp(1.5)},
        "suppress": {own: Suppress()},
        "suppress what the query lacks": {other: Suppress()},
        "suppress and reward": {own: Suppress(), other: 0.4},
    }


NAMES_OF_STEERINGS = list(steerings(0, 1))


# -- without steering -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", FILTERS)
@pytest.mark.parametrize("k", [1, 4, 17, 1000])
def test_without_steering_hits_are_those_of_the_plain_collection(
    retriever: SteeredRetriever, k: int, where: dict[str, Any] | None
) -> None:
    own, other = features_of(retriever, QUERIES[0])
    nothings: list[Any] = [None, {}, {own: 0, other: 0.0}, {own: Scale(1.0)}, {other: Scale(7.0)}]
    nothings.append(retriever.resolve({}))
    for query in QUERIES:
        q = retriever.embedder.embed_queries([query])[0]
        plain = retriever.store.documents.query(query_embeddings=[q], n_results=k, where=where)
        for steer in nothings if query == QUERIES[0] else [None]:
            hits = retriever.search(query, k=k, where=where, steer=steer, fetch_k=5)
            assert [hit.id for hit in hits] == plain["ids"][0]
            assert [hit.text for hit in hits] == plain["documents"][0]
            assert [hit.metadata for hit in hits] == plain["metadatas"][0]
            np.testing.assert_allclose([hit.score for hit in hits], 1 - np.array(plain["distances"][0]), atol=1e-6)
            assert [hit.base_score for hit in hits] == [hit.score for hit in hits]
            assert [hit.base_rank for hit in hits] == list(range(1, len(hits) + 1))


def test_without_steering_the_reconstructed_space_is_the_sidecars_own_search(
    retriever: SteeredRetriever, world: World
) -> None:
    q = retriever.embedder.embed_queries([QUERIES[0]])
    q_hat = world.sae.reconstruct(q)[0]
    plain = retriever.store.sidecar._collection.query(query_embeddings=[q_hat], n_results=9)
    hits = retriever.search(QUERIES[0], k=9, space="reconstructed")
    assert [hit.id for hit in hits] == plain["ids"][0]
    base = brute_force(retriever, q[0], world.vectors, retriever.resolve({}), "reconstructed", 9).base
    expected = [base[world.ids.index(hit.id)] for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)


def test_more_hits_than_passages_are_all_that_there_are(retriever: SteeredRetriever, world: World) -> None:
    own, other = features_of(retriever, QUERIES[0])
    for space in SPACES:
        for steer in (None, {other: 0.5}, {own: -1.0}):
            hits = retriever.search(QUERIES[0], k=5000, space=space, steer=steer, explain=False)
            assert sorted(hit.id for hit in hits) == world.ids
            assert hits.certified


# -- with steering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "read_on"), [*((space, "reconstruction") for space in SPACES), ("original", "vector")]
)
@pytest.mark.parametrize("name", NAMES_OF_STEERINGS)
def test_steered_hits_are_the_exact_ranking_of_all_passages(
    retriever: SteeredRetriever, world: World, name: str, space: Any, read_on: Any
) -> None:
    for query in QUERIES[:2]:
        steer = steerings(*features_of(retriever, query))[name]
        q = retriever.embedder.embed_queries([query])[0]
        steering = retriever.resolve(steer, space=space)
        options: dict[str, Any] = {"steer": steer, "space": space, "read_on": read_on, "fetch_k": 10 * len(world.ids)}
        for k in (3, 25):
            exact = brute_force(retriever, q, world.vectors, steering, space, k, read_on=read_on)
            hits = retriever.search(query, k=k, **options)
            rows = [world.ids.index(hit.id) for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], exact.scores[rows], atol=2e-5)
            np.testing.assert_allclose([hit.base_score for hit in hits], exact.base[rows], atol=2e-5)
            np.testing.assert_allclose([hit.score for hit in hits], exact.scores[exact.rows], atol=2e-5)
            assert {hit.read_on for hit in hits} == {read_on}
            by_base = np.argsort(-exact.base, kind="stable").tolist()
            for hit, row in zip(hits, rows, strict=True):
                assert hit.base_rank is not None
                assert exact.base[by_base[hit.base_rank - 1]] == pytest.approx(exact.base[row], abs=2e-5)
        if name != "suppress what the query lacks":  # its best passages may lack it, too
            assert np.abs(exact.scores - exact.base).max() > 1e-3 or set(exact.rows) != set(by_base[:k])


@pytest.mark.parametrize("name", NAMES_OF_STEERINGS)
def test_a_filter_holds_under_every_steering(retriever: SteeredRetriever, world: World, name: str) -> None:
    steer = steerings(*features_of(retriever, QUERIES[0]))[name]
    q = retriever.embedder.embed_queries([QUERIES[0]])[0]
    for where, modules in ((FILTERS[2], ("shutil", "zipfile", "socket")), ({"module": "calendar"}, ("calendar",))):
        allowed = np.array([row["module"] in modules for row in world.metadatas])
        for space in SPACES:
            steering = retriever.resolve(steer, space=space)
            options: dict[str, Any] = {"space": space, "where": where, "explain": False}
            ranks = {hit.id: hit.base_rank for hit in retriever.search(QUERIES[0], k=len(world.ids), **options)}
            for k in (10, int(allowed.sum()), 2 * int(allowed.sum())):
                exact = brute_force(retriever, q, world.vectors, steering, space, k, among=allowed)
                hits = retriever.search(QUERIES[0], k=k, steer=steer, **options)
                np.testing.assert_allclose([hit.score for hit in hits], exact.scores[exact.rows], atol=2e-5)
                assert all(hit.metadata["module"] in modules for hit in hits)
                for hit in hits:  # its rank without steering is that under the same filter
                    assert hit.base_rank in (None, ranks[hit.id])


def test_a_filter_that_leaves_fewer_passages_than_hits_gives_these(retriever: SteeredRetriever, world: World) -> None:
    few = [name for name, row in zip(world.ids, world.metadatas, strict=True) if row["module"] == "statistics"]
    assert 0 < len(few) < 100
    for space in SPACES:
        for steer in (None, {0: 0.5}, {0: Suppress()}):
            options: dict[str, Any] = {"k": 100, "steer": steer, "space": space}
            hits = retriever.search("thread", where={"module": "statistics"}, **options)
            assert {hit.id for hit in hits} <= set(few)
            assert isinstance(steer, dict) and steer[0] != 0.5 or len(hits) == len(few)


def test_a_filter_that_leaves_nothing_gives_nothing(retriever: SteeredRetriever) -> None:
    for space in SPACES:
        for steer in (None, {0: 0.5}, {0: Suppress()}):
            assert retriever.search("thread", where={"module": "no such"}, steer=steer, space=space) == []


def test_a_strength_that_says_no_side_tilts_and_rewards_or_edits_the_code(retriever: SteeredRetriever) -> None:
    _, other = features_of(retriever, QUERIES[0])
    sides = {
        space: {
            term.side
            for hit in retriever.search(QUERIES[0], k=30, steer={other: 0.5}, space=space)
            for term in (hit.attribution.steering if hit.attribution else ())
        }
        for space in SPACES
    }
    assert sides == {"original": {"document", "query"}, "reconstructed": {"query"}, "latent": {"query"}}


def test_a_feature_brings_its_passages_up(retriever: SteeredRetriever, world: World) -> None:
    _, other = features_of(retriever, QUERIES[0])
    names = world.sae.encode(world.vectors, k=world.sae.config.k_labels)
    has = (names.indices == other).any(axis=1)

    def share(strength: float) -> float:
        hits = retriever.search(QUERIES[0], k=10, steer={other: strength}, explain=False)
        return float(np.mean([has[world.ids.index(hit.id)] for hit in hits]))

    shares = [share(strength) for strength in (-1.0, 0.0, 0.5, 1.0, 3.0)]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0]


def test_hits_are_the_same_in_any_order_of_edits_and_every_time(retriever: SteeredRetriever) -> None:
    own, other = features_of(retriever, QUERIES[0])
    steer = {own: -0.4, other: 0.6, 3: Scale(2.0)}
    first = retriever.search(QUERIES[0], k=20, steer=steer)
    again = retriever.search(QUERIES[0], k=20, steer=dict(reversed(steer.items())))
    assert [(hit.id, pytest.approx(hit.score, abs=1e-6)) for hit in first] == [(hit.id, hit.score) for hit in again]


def test_a_stored_policy_steers_as_the_mapping_it_came_from(retriever: SteeredRetriever) -> None:
    _, other = features_of(retriever, QUERIES[0])
    policy = Steering.from_json(retriever.resolve({other: 0.7}, side="document").to_json())
    by_policy = retriever.search(QUERIES[0], steer=policy)
    assert by_policy == retriever.search(QUERIES[0], steer={other: 0.7}, side="document")
    with pytest.raises(MismatchError):
        retriever.search(QUERIES[0], steer=Steering(policy.edits, "0" * 16))


def test_a_given_embedding_is_used_and_its_length_does_not_matter(retriever: SteeredRetriever) -> None:
    q = retriever.embedder.embed_queries([QUERIES[0]])[0]
    _, other = features_of(retriever, QUERIES[0])
    expected = retriever.search(QUERIES[0], steer={other: 0.5}, k=8)
    for embedding in (q, q.tolist(), 3.0 * q):
        hits = retriever.search("something else", steer={other: 0.5}, k=8, embedding=embedding)
        assert [hit.id for hit in hits] == [hit.id for hit in expected]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        assert all(hit.attribution.total == pytest.approx(hit.score, abs=1e-4) for hit in hits if hit.attribution)
    for wrong in (q[:-1], np.zeros(384), np.full(384, np.nan), [q], "text"):
        with pytest.raises(ValueError, match="embedding"):
            retriever.search("x", embedding=wrong)  # type: ignore[arg-type]


def test_explain_false_explains_nothing_and_changes_nothing(retriever: SteeredRetriever) -> None:
    for space in SPACES:
        plain = retriever.search(QUERIES[0], k=6, steer={3: 0.5}, space=space, explain=False)
        explained = retriever.search(QUERIES[0], k=6, steer={3: 0.5}, space=space)
        assert [hit.attribution for hit in plain] == [None] * 6
        assert [(hit.id, hit.score) for hit in plain] == [(hit.id, hit.score) for hit in explained]


# -- exactly the ranking of all, whatever the plain search finds ------------------------------------------------------

COUNT = 400


class Theirs(NamedTuple):
    """A collection of another tool: vectors of many lengths, ids in no order."""

    retriever: SteeredRetriever
    names: list[str]
    vectors: Array
    plain: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def exact(self, q: Array, steer: Any, k: int, **options: Any) -> tuple[list[str], dict[str, float]]:
        """The ids of the best `k` passages, best first, and the scores of all."""
        steering = self.retriever.resolve(steer)
        found = brute_force(self.retriever, q, self.vectors, steering, "original", k, plain=self.plain, **options)
        return [self.names[row] for row in found.rows], dict(zip(self.names, found.scores.tolist(), strict=True))

    def queries(self) -> list[tuple[Array, dict[str, dict[Any, Any]]]]:
        """Queries, and steerings by a feature each has and by one it lacks."""
        questions = unit_rows(77, 3)
        codes, found = self.retriever.sae.encode(questions), []
        for row, q in enumerate(questions):
            counts = self.retriever.catalog.calibration.count.copy()
            counts[codes.indices[row]] = -1
            found.append((q, steerings(int(codes.indices[row, 0]), int(np.argmax(counts)))))
        return found

    def open(self) -> SteeredRetriever:
        """A retriever that knows only what is on disk."""
        client, sae = self.retriever.store._client, self.retriever.sae
        store = ChromaStore.open(sae, client=client, collection="theirs", create=False)
        return SteeredRetriever(store, self.retriever.embedder, self.retriever.catalog)


@pytest.fixture(params=["ip", "cosine", "l2"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Theirs:
    sae, random = random_sae(3), np.random.default_rng(6)
    vectors = (unit_rows(6, COUNT) * random.uniform(0.6, 1.6, (COUNT, 1))).astype(np.float32)
    names = [f"p{number:03}" for number in random.permutation(COUNT).tolist()]
    collection = connect(path=tmp_path).create_collection(
        "theirs", embedding_function=None, configuration={"hnsw": {"space": request.param, "ef_search": 1000}}
    )
    metadatas: list[Any] = [{"tenth": row % 10} for row in range(COUNT)]
    collection.add(ids=names, embeddings=vectors, documents=names, metadatas=metadatas)
    store = ChromaStore.from_collection(collection, sae)
    store.attach()
    catalog = catalog_for(sae, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return Theirs(SteeredRetriever(store, ToyEmbedder(), catalog), names, vectors, PLAIN_SCORES[request.param])


def assert_best(hits: list[Hit], exact: tuple[list[str], dict[str, float]]) -> None:
    """The best passages, whichever of those that score alike."""
    best, scores = exact
    assert len({hit.id for hit in hits}) == len(hits) == len(best)
    assert [hit.score for hit in hits] == pytest.approx([scores[name] for name in best], abs=2e-5)
    assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=2e-5)


@pytest.mark.parametrize("where", [None, {"tenth": 3}, {"tenth": {"$gte": 8}}], ids=str)
def test_few_neighbours_are_enough_for_the_exact_ranking(theirs: Theirs, where: Any) -> None:
    tenth = np.arange(COUNT) % 10
    among = tenth >= 0 if where is None else (tenth == 3 if where["tenth"] == 3 else tenth >= 8)
    lifted = certified = found = wanted = 0
    for q, steers in theirs.queries():
        order = theirs.exact(q, {}, COUNT, among=among)[0]
        for steer in steers.values():
            for k in (1, 7):
                best, scores = exact = theirs.exact(q, steer, k, among=among)
                hits = theirs.retriever.search("x", embedding=q, k=k, steer=steer, where=where)
                if hits.certified:
                    assert_best(hits, exact)
                assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=2e-5)
                for hit in hits:
                    assert hit.attribution is not None
                    assert hit.attribution.total == pytest.approx(hit.score, abs=1e-4)
                    assert hit.base_rank in (None, order.index(hit.id) + 1)
                lifted += any(order.index(hit.id) > 2 * k for hit in hits)
                certified += hits.certified
                found += len({hit.id for hit in hits} & set(best))
                wanted += len(best)
    assert lifted >= 10, "else the plain neighbours would have been enough"
    assert certified >= 20, "else little is proved here"
    assert found >= 0.98 * wanted


def test_what_is_certified_by_stored_vectors_is_the_exact_ranking(theirs: Theirs) -> None:
    certified = 0
    for q, steers in theirs.queries():
        for steer in steers.values():
            for k in (1, 4, 20):
                hits = theirs.retriever.search("x", embedding=q, k=k, fetch_k=1, steer=steer, read_on="vector")
                if hits.certified:
                    assert_best(hits, theirs.exact(q, steer, k, read_on="vector"))
                certified += hits.certified
    assert certified >= 40


def test_what_another_tool_deletes_is_no_hit_and_the_next_take_its_place(theirs: Theirs) -> None:
    gone: set[str] = set()
    for q, steers in theirs.queries():
        for steer in steers.values():
            theirs.retriever.search("x", embedding=q, steer=steer)
            gone |= set(theirs.exact(q, steer, 3)[0])
    collection = theirs.retriever.store._client.get_collection("theirs", embedding_function=None)
    collection.delete(ids=sorted(gone))
    there = np.array([name not in gone for name in theirs.names])
    for retriever in (theirs.retriever, theirs.open()):
        now = theirs._replace(retriever=retriever)
        for q, steers in theirs.queries():
            for steer in steers.values():
                hits = retriever.search("x", embedding=q, k=5, fetch_k=COUNT, steer=steer, explain=False)
                assert_best(hits, now.exact(q, steer, 5, among=there))


def test_what_has_no_row_yet_is_found_and_steered_by_its_vector_with_a_warning(theirs: Theirs) -> None:
    random = np.random.default_rng(8)
    vectors = (unit_rows(9, 40) * random.uniform(0.6, 1.6, (40, 1))).astype(np.float32)
    new = [f"new{number}" for number in range(40)]
    collection = theirs.retriever.store._client.get_collection("theirs", embedding_function=None)
    collection.add(ids=new, embeddings=vectors, documents=new)
    both = theirs._replace(names=theirs.names + new, vectors=np.concatenate([theirs.vectors, vectors]))
    has_row = np.arange(COUNT + 40) < COUNT
    seen: set[str] = set()
    for q, steers in theirs.queries():
        for steer in steers.values():
            exact = both.exact(q, steer, 7, has_row=has_row)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                hits = theirs.retriever.search("x", embedding=q, k=7, fetch_k=20 * COUNT, steer=steer)
            assert_best(hits, exact)
            for hit in hits:
                assert hit.read_on == ("vector" if hit.id in new else "reconstruction")
                assert hit.attribution is not None
                assert hit.attribution.total == pytest.approx(hit.score, abs=1e-4)
            seen |= {hit.id for hit in hits}
            stale = [str(one.message) for one in caught if one.category is StaleSidecarWarning]
            assert len(stale) == 1 or not {hit.id for hit in hits} & set(new)
            assert all("'theirs.sae' is out of step with 'theirs' for " in text for text in stale)
    assert seen & set(new)
    theirs.retriever.store.attach()
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleSidecarWarning)
        for q, steers in theirs.queries():
            for steer in steers.values():
                hits = theirs.retriever.search("x", embedding=q, k=7, fetch_k=20 * COUNT, steer=steer)
                assert_best(hits, both.exact(q, steer, 7))


@pytest.mark.parametrize("space", SPACES)
def test_a_changed_vector_is_never_scored_by_its_old_reconstruction(theirs: Theirs, space: Any) -> None:
    q, steers = theirs.queries()[0]
    steer = steers["both"]
    options: dict[str, Any] = {"embedding": q, "steer": steer, "space": space}
    (first,) = theirs.retriever.search("x", k=1, **options)
    moved = (-1.2 * theirs.vectors[theirs.names.index(first.id)])[None]
    theirs.retriever.store._client.get_collection("theirs", embedding_function=None).update(
        ids=[first.id], embeddings=moved, documents=["moved"]
    )
    with pytest.warns(StaleSidecarWarning):
        found = {hit.id: hit for hit in theirs.retriever.search("x", k=COUNT, **options)}
    if space != "original":  # the sidecar has no row of this vector
        assert first.id not in found
        return
    hit = found[first.id]
    assert (hit.text, hit.read_on) == ("moved", "vector")
    now = theirs._replace(vectors=theirs.vectors.copy())
    now.vectors[theirs.names.index(first.id)] = moved[0]
    has_row = np.array([name != first.id for name in theirs.names])
    assert hit.score == pytest.approx(now.exact(q, steer, COUNT, has_row=has_row)[1][first.id], abs=2e-5)
    assert hit.attribution is not None
    assert hit.attribution.total == pytest.approx(hit.score, abs=1e-4)


def test_an_explanation_has_the_rank_that_the_search_gave(theirs: Theirs) -> None:
    for q, steers in theirs.queries():
        for steer in steers.values():
            for k in (4, 25):
                options: dict[str, Any] = {"embedding": q, "steer": steer, "k": k}
                for rank, hit in list(enumerate(theirs.retriever.search("x", **options), start=1))[::3]:
                    assert theirs.retriever.explain("x", hit, **options).rank == rank


def test_a_steered_search_asks_the_store_four_times_at_most(theirs: Theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for the candidates, two more if they prove nothing, and one for the texts; the rest is remembered."""
    calls: list[str] = []
    for name in ("query", "get"):
        original = getattr(Collection, name)

        def counting(self: Any, *args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            calls.append(name)
            return original(self, *args, **options)

        monkeypatch.setattr(Collection, name, counting)
    for q, steers in theirs.queries():
        for steer in steers.values():
            theirs.retriever.search("x", embedding=q, steer=steer)
            calls.clear()
            theirs.retriever.search("x", embedding=q, steer=steer)
            assert calls.count("get") == 1
            assert 1 <= calls.count("query") <= 3


@pytest.mark.parametrize("side", ["document", "query", "both"])
def test_a_stronger_steering_never_lowers_a_passage_that_has_the_feature(theirs: Theirs, side: Any) -> None:
    feature = int(np.argmax(theirs.retriever.catalog.calibration.count))
    sae, lengths = theirs.retriever.sae, theirs.retriever.store.lengths()
    unit = theirs.retriever.catalog.calibration.match_unit * lengths.match
    x_hat = exact_x_hat(sae, sae.encode(theirs.vectors / np.linalg.norm(theirs.vectors, axis=1, keepdims=True)))
    feature_match = exact_match(sae, unit, [feature], [1.0], x_hat)
    q = unit_rows(77, 1)[0]
    ranked = [
        {hit.id: hit.score for hit in theirs.retriever.search(
            "x", embedding=q, k=COUNT, steer={feature: Add(strength, side=side)}, drift_cap=0.3, explain=False)}
        for strength in (-0.6, -0.2, 0.2, 0.6)
    ]  # fmt: skip
    assert (feature_match > 0.5).sum() > 5
    for weak, strong in zip(ranked, ranked[1:], strict=False):
        assert len(weak) == len(strong) == COUNT
        gained = np.array([strong[name] - weak[name] for name in theirs.names])
        assert (gained[feature_match > 0.5] > 1e-3).all()
        if side == "document":
            # A unit is two spreads, each of .2, times the length of vectors where scores grow with it.
            np.testing.assert_allclose(gained, 0.4 * 2 * 0.2 * lengths.vector * feature_match, atol=1e-5)


# -- what may be asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "4", None])
def test_a_k_that_is_no_count_is_refused(retriever: SteeredRetriever, k: Any) -> None:
    with pytest.raises(ValueError, match="k is .*expected a whole number of at least 1"):
        retriever.search("thread", k=k)
    with pytest.raises(ValueError, match=r"\Ak is|fetch_k is"):
        retriever.search("thread", k=4 if k is None else 4, fetch_k=0 if k is None else k)


def test_a_count_of_numpy_is_a_count(retriever: SteeredRetriever) -> None:
    assert len(retriever.search("thread", k=np.int64(3))) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("query", [None, 3, {"input": "x"}, ["x"], b"x"])
def test_a_query_that_is_no_text_is_refused(retriever: SteeredRetriever, query: Any) -> None:
    with pytest.raises(TypeError, match="query must be a text, got"):
        retriever.search(query)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"space": "codes"}, ValueError, "space is 'codes', expected one of original, reconstructed, latent"),
        ({"side": "left"}, SteeringError, "side is 'left'"),
        ({"drift_cap": 0}, SteeringError, "drift_cap is 0"),
        ({"steer": {"thread": "much"}}, SteeringError, "expected a number"),
        ({"steer": {"xylophone quartet": 0.5}}, UnknownFeatureError, "unknown feature 'xylophone quartet'"),
        ({"steer": {99999: 0.5}}, UnknownFeatureError, "#0 to #63"),
        ({"steer": {"#-1": 0.5}}, UnknownFeatureError, "unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_query_is_embedded(
    retriever: SteeredRetriever, options: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    embed = retriever.embedder.embed_queries
    monkeypatch.setattr(retriever.embedder, "embed_queries", lambda texts: embedded.extend(texts) or embed(texts))
    with pytest.raises(error, match=message):
        retriever.search("wait for a thread", **options)
    assert "wait for a thread" not in embedded


def test_a_misspelt_name_is_answered_with_the_nearest(retriever: SteeredRetriever) -> None:
    word = max(retriever.catalog.labelled[0].keywords, key=len)
    with pytest.raises(UnknownFeatureError, match=rf"Did you mean .*'{word}'"):
        retriever.search("thread", steer={"x".join(word[:4]) + word[4:]: 0.5})


def test_an_ambiguous_name_lists_what_it_may_mean(world: World) -> None:
    one, *others = sorted(world.catalog.labelled, key=lambda feature: -feature.frequency)
    embeddings = world.catalog.label_embeddings
    assert embeddings is not None
    other = min(others, key=lambda feature: float(embeddings[feature.id] @ embeddings[one.id]))
    # Both claim the same word, and the word activates both alike.
    features = [
        feature.__class__(**{**vars(feature), "keywords": ("court",)}) if feature.id in (one.id, other.id) else feature
        for feature in world.catalog.features
    ]
    catalog = FeatureCatalog(features, world.catalog.calibration, world.catalog.fingerprint, embeddings)
    codes: Codes[np.ndarray] = Codes(np.array([[one.id, other.id]]), np.array([[0.5, 0.5]], dtype=np.float32))
    matches = np.full(len(catalog), -1.0, dtype=np.float32)
    text = (embeddings[one.id] + embeddings[other.id]) / np.linalg.norm(embeddings[one.id] + embeddings[other.id])
    matches[[one.id, other.id]] = 0.5
    concept = Concept(text, codes, matches)
    with pytest.raises(AmbiguousFeatureError, match=rf"(?s)#{one.id}\b.*#{other.id}\b|#{other.id}\b.*#{one.id}\b"):
        catalog.resolve("court", lambda text: concept)


def test_parts_of_two_saes_do_not_mix(world: World, filled_folder: Path) -> None:
    store = ChromaStore.open(world.sae, path=filled_folder / "chroma")
    catalog = FeatureCatalog(world.catalog.features, world.catalog.calibration, "0" * 16)
    with pytest.raises(MismatchError, match=f"0000.*{world.sae.fingerprint}"):
        SteeredRetriever(store, world.embedder, catalog)
    with pytest.raises(MismatchError, match="toy/words"):
        SteeredRetriever(store, ToyEmbedder(d=384), world.catalog)


def test_everything_is_loaded_from_its_folders(world: World, filled_folder: Path, tmp_path: Path) -> None:
    opened = SteeredRetriever.open(filled_folder / "sae", embedding=world.embedder, path=filled_folder / "chroma")
    assert len(opened.search("thread", k=3)) == 3
    with pytest.raises(MismatchError, match="toy/words"):
        load_sae(filled_folder / "sae", embedding=ToyEmbedder(d=384))
    world.sae.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="holds no features.json"):
        load_sae(tmp_path, embedding=world.embedder)
    with pytest.raises(StoreError, match="nowhere"):
        SteeredRetriever.open(
            filled_folder / "sae",
            embedding=world.embedder,
            path=filled_folder / "chroma",
            collection="nowhere",
            create=False,
        )


# -- a store that changes, and one that is large ----------------------------------------------------------------------


@pytest.fixture
def toy_retriever(tmp_path: Path) -> SteeredRetriever:
    sae, embedder = random_sae(3), ToyEmbedder()
    words = [f"word{number}" for number in range(40)]
    random = np.random.default_rng(1)
    passages = [" ".join(random.choice(words, 4)) for _ in range(60)]
    store = ChromaStore.open(sae, path=tmp_path)
    store.add([f"p{number:02}" for number in range(60)], passages, embedder=embedder)
    return SteeredRetriever(store, embedder, catalog_for(sae, embedder.embed_queries(passages)))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("steer", [None, 0.7, -0.7, Suppress()], ids=str)
def test_passages_deleted_behind_our_back_are_no_hits_and_no_error(
    toy_retriever: SteeredRetriever, space: Any, steer: Any
) -> None:
    feature = int(np.argmax(toy_retriever.catalog.calibration.count))
    steers = None if steer is None else {feature: steer}
    toy_retriever.search("word1", steer={feature: 0.1})
    gone = [hit.id for hit in toy_retriever.search("word1 word2", k=4, steer=steers, space=space)]
    toy_retriever.store._client.get_collection("docs", embedding_function=None).delete(ids=gone)
    hits = toy_retriever.search("word1 word2", k=4, steer=steers, space=space)
    assert len(hits) == 4
    assert not {hit.id for hit in hits} & set(gone)


def test_a_passage_deleted_between_the_search_and_its_text_is_replaced_by_the_next(
    toy_retriever: SteeredRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = toy_retriever.store
    steer = {int(np.argmax(toy_retriever.catalog.calibration.count)): 0.5}
    first = [hit.id for hit in toy_retriever.search("word1", k=4, steer=steer)]
    assert first[0] in [hit.id for hit in toy_retriever.search("word1", k=20)]
    find, calls = store.find, []

    def found_too_late(*arguments: Any, **options: Any) -> Any:
        if not calls:
            store.documents.delete(ids=first[:1])
        calls.append(arguments)
        return find(*arguments, **options)

    monkeypatch.setattr(store, "find", found_too_late)
    assert [hit.id for hit in toy_retriever.search("word1", k=3, steer=steer)] == first[1:]
    assert len(calls) >= 2


@pytest.mark.parametrize("steer", [None, 0.5, -0.5])
def test_a_store_that_another_tool_has_emptied_has_no_hits(toy_retriever: SteeredRetriever, steer: Any) -> None:
    store = toy_retriever.store
    client, sae = store._client, toy_retriever.sae
    feature = int(np.argmax(toy_retriever.catalog.calibration.count))
    toy_retriever.search("word1", steer={feature: 0.1})
    store.documents.delete(ids=store.documents.get()["ids"])
    fresh = SteeredRetriever(ChromaStore.open(sae, client=client), toy_retriever.embedder, toy_retriever.catalog)
    for retriever in (toy_retriever, fresh):
        for space in SPACES:
            assert retriever.search("word1", steer=steer and {feature: steer}, space=space) == []


def test_an_empty_store_has_no_hits(tmp_path: Path) -> None:
    sae, embedder = random_sae(3), ToyEmbedder()
    retriever = SteeredRetriever(
        ChromaStore.open(sae, path=tmp_path), embedder, catalog_for(sae, embedder.embed_queries(["a", "b", "c d"]))
    )
    alive = int(np.argmax(retriever.catalog.calibration.count))
    for space in SPACES:
        for steer in (None, {alive: 0.5}, {alive: -0.5}, {alive: Suppress()}):
            assert retriever.search("word", space=space, steer=steer) == []


def test_eight_threads_get_what_one_gets(retriever: SteeredRetriever) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        (query, {"steer": steer, "space": space, "k": 7})
        for query in QUERIES
        for steer in (None, {3: 0.5}, {5: -0.5})
        for space in SPACES
    ]
    expected = [retriever.search(query, **options) for query, options in calls]
    fresh = SteeredRetriever(
        ChromaStore.open(retriever.sae, client=retriever.store._client), retriever.embedder, retriever.catalog
    )
    failures: list[BaseException | tuple[int, Any]] = []

    def work(start: int) -> None:
        try:
            for step in range(len(calls)):
                number = (start + step) % len(calls)
                query, options = calls[number]
                if fresh.search(query, **options) != expected[number]:
                    failures.append((number, options))
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def large_world(tmp_path: Path, count: int, d: int = 32, n: int = 128) -> tuple[SteeredRetriever, Array, TopKSAE]:
    """Passages around random topics: one topic strongly and two weakly, as an encoder would place them."""
    random = np.random.default_rng(0)
    topics = random.normal(size=(n, d))
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    weights = np.zeros((count, n))
    for row in weights:
        row[random.choice(n, 3, replace=False)] = [1.0, 0.6, 0.4]
    vectors = weights @ topics + 0.15 * random.normal(size=(count, d))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    sae = random_sae(0, d, n, 12, 4)
    for tensor in (sae.W_enc, sae.W_dec):
        tensor.copy_(tensor.new_tensor(topics))
    sae.b_dec.zero_()
    sae.b_enc.zero_()
    sae = TopKSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.config)
    store = ChromaStore.open(sae, path=tmp_path)
    for start in range(0, count, 1000):
        part = vectors[start : start + 1000]
        names = [f"p{number}" for number in range(start, start + len(part))]
        store.documents.add(
            ids=names, embeddings=part, documents=names, metadatas=[{"tenth": n % 10} for n in range(len(part))]
        )
    store.attach()
    return SteeredRetriever(store, ToyEmbedder(d=d), catalog_for(sae, vectors)), vectors, sae


def recall(
    retriever: SteeredRetriever, vectors: Array, name: str, *, queries: int, where: Any = None, read_on: Any = "vector"
) -> list[float]:
    """Shares of the exact steered top 10 that a search with the default fetch_k finds."""
    shares = []
    allowed = np.ones(len(vectors), dtype=bool)
    if where is not None:
        allowed = np.arange(len(vectors)) % 10 == where["tenth"]
    random = np.random.default_rng(7)
    for _ in range(queries):
        q = vectors[random.integers(len(vectors))] + 0.3 * random.normal(size=vectors.shape[1]).astype(np.float32)
        q = (q / np.linalg.norm(q)).astype(np.float32)
        codes = retriever.sae.encode(q[None])
        own, other = int(codes.indices[0, 0]), int(random.choice(np.setdiff1d(np.arange(128), codes.indices[0])))
        steer = steerings(own, other)[name]
        exact = brute_force(
            retriever, q, vectors, retriever.resolve(steer), "original", 10, among=allowed, read_on=read_on
        )
        best = {f"p{row}" for row in exact.rows}
        hits = retriever.search("x", embedding=q, k=10, steer=steer, explain=False, where=where, read_on=read_on)
        shares.append(len(best & {hit.id for hit in hits}) / 10)
    return shares


def test_on_a_larger_store_the_steered_top_ten_is_nearly_always_found(tmp_path: Path) -> None:
    count = 2000
    retriever, vectors, _ = large_world(tmp_path, count)
    for read_on, least in (("vector", 0.97), ("reconstruction", 0.97)):
        found = {
            name: float(np.mean(recall(retriever, vectors, name, queries=8, read_on=read_on)))
            for name in NAMES_OF_STEERINGS
        }
        assert min(found.values()) >= least, found
    filtered = {
        name: float(np.mean(recall(retriever, vectors, name, queries=4, where={"tenth": 3})))
        for name in ("gate", "both", "negative")
    }
    assert min(filtered.values()) >= 0.95, filtered
