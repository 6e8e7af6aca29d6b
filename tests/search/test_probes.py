"""The certificate of a steered ranking: with exact neighbours it is never false, and in easy cases it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_match import exact_x_hat
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy import ToyEmbedder, catalog_for, random_sae, unit_rows

from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.search.candidates import Candidates, CandidateSearch
from sae_steer_retriever.search.options import Space
from sae_steer_retriever.search.ranking import Scorer
from sae_steer_retriever.steering.operations import Add, AddRaw, Clamp, Operation, Scale, Suppress
from sae_steer_retriever.steering.plan import DocumentBoost, Plan, QueryShift, plan
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.documents import NeighbourLists, in_score_space, neighbour_lists

D = 8
SAE = random_sae(5, d=D, n=12, k=4)
UNIT = np.random.default_rng(6).uniform(0.2, 1.5, 12).astype(np.float32)
METRICS = ["ip", "cosine", "l2"]
# What rounding makes of a score in float64, in relation to its parts.
ROUNDING = 1e-9


class ExactCollection:
    """Answers like a Chroma collection, with exact neighbours by distances in float32."""

    name = "exact"

    def __init__(self, vectors: Array, space: str, allowed: NDArray[np.bool_]) -> None:
        self._vectors = vectors
        self._space = space
        self._allowed = allowed

    def count(self) -> int:
        return len(self._vectors)

    def query(
        self, query_embeddings: Sequence[Array], n_results: int, where: Mapping[str, Any] | None, **_: object
    ) -> dict[str, Any]:
        rows = np.arange(len(self._vectors)) if where is None else np.nonzero(self._allowed)[0]
        x = self._vectors[rows]
        lists, embeddings = [], []
        for p in np.asarray(query_embeddings, dtype=np.float32):
            if self._space == "cosine":
                distances = 1 - (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (p / np.linalg.norm(p))
            else:
                distances = 1 - x @ p if self._space == "ip" else ((x - p) ** 2).sum(axis=1)
            nearest = rows[np.argsort(distances, kind="stable")[:n_results]]
            lists.append([f"p{row:03}" for row in nearest])
            embeddings.append(self._vectors[nearest])
        return {"ids": lists, "embeddings": embeddings, "distances": None}


@dataclasses.dataclass
class Case:
    """One steered query over a few vectors."""

    space: str
    vectors: Array
    allowed: NDArray[np.bool_]
    query: Array
    plan: Plan
    typical: float
    large: float
    normalised: bool = False

    def scorer(self) -> Scorer:
        return Scorer(
            SAE,
            self.plan,
            UNIT,
            self.query,
            vectors=1.0 if self.normalised else self.typical,
            reconstructions=(self.typical, 1.0),
            normalised=self.normalised,
        )

    def candidates(self, k: int, fetch_k: int) -> Candidates:
        """What the search finds among exact neighbours."""
        collection: Any = ExactCollection(self.vectors, self.space, self.allowed)
        where = None if self.allowed.all() else {"allowed": True}

        def ask(probes: NDArray[np.float64], count: int) -> NeighbourLists:
            return neighbour_lists(collection, self.space, probes, count, where=where)

        scorer = self.scorer()
        probes = scorer.probes(self.large)
        probes.fewest = 1  # few neighbours are the harder case
        return CandidateSearch(ask, scorer, probes).candidates(k, fetch_k, k)

    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], float]:
        """All scores by the definition, which passages may be hits, and the size of the largest part of a score."""
        x = self.vectors.astype(np.float64)
        q, v = self.query.astype(np.float64), sum(shift.vector.astype(np.float64) for shift in self.plan.shifts)
        if self.space == "cosine":
            x = in_score_space(self.vectors, "cosine")[0].astype(np.float64)  # unit vectors of float32
        length = float(np.linalg.norm(q + v)) if self.normalised else 1.0
        offset = (1 - (x**2).sum(axis=1)) / 2 if self.space == "l2" else np.zeros(len(x))
        # Reconstructions of any length are compared by their directions, and matched at their typical length.
        y = x * self.typical if self.normalised else x / self.typical
        parts = [x @ q / length, offset, x @ (v + np.zeros(D)) / length]
        for boost in self.plan.boosts:
            parts.append(boost.amount * (1.0 if self.normalised else self.typical) * match(y, boost))
        kept = self.allowed.copy()
        for one in self.plan.excluded:
            kept &= match(y, one) < 0.5
        return np.sum(parts, axis=0), kept, float(max(np.abs(parts).max(), (x**2).sum(axis=1).max()))


def match(y: NDArray[np.float64], boost: DocumentBoost) -> NDArray[np.float64]:
    """How much of some features vectors have: nothing below a quarter of a unit, all of it from .6 units on."""
    mean = np.zeros(len(y))
    for feature, weight in zip(boost.features, boost.weights, strict=True):
        mean += weight * ((y - SAE.bias) @ SAE.decoder[feature].astype(np.float64)) / float(UNIT[feature])
    return np.clip((mean / sum(boost.weights) - 0.25) / 0.35, 0.0, 1.0)


def along(boost: DocumentBoost) -> NDArray[np.float64]:
    """The direction of a boost's features, one unit of their weighted mean long."""
    shares = np.array(boost.weights) / sum(boost.weights) / UNIT[list(boost.features)]
    return np.asarray(shares @ SAE.decoder[list(boost.features)].astype(np.float64))


def boosts(amounts: Sequence[float], random: np.random.Generator) -> tuple[DocumentBoost, ...]:
    found = []
    for amount in amounts:
        features = random.choice(SAE.config.n, random.integers(1, 4), replace=False)
        weights = random.uniform(0.1, 1, len(features))
        found.append(DocumentBoost(f"edit {len(found)}", tuple(features.tolist()), tuple(weights.tolist()), amount))
    return tuple(found)


AMOUNTS = st.builds(lambda size, sign: sign * 10.0**size, st.floats(-4, 0.6), st.sampled_from([1.0, -1.0]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Vectors on every part of the ramps, of norms from .01 to 50, some twice; a query with all kinds of terms."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    space = draw(st.sampled_from(METRICS))
    normalised = space == "cosine" and draw(st.booleans())
    count = draw(st.integers(1, 120))
    typical = draw(st.sampled_from([0.01, 1.0, 1.0, 7.0, 50.0])) if space != "cosine" or normalised else 1.0
    rewards = boosts(draw(st.lists(AMOUNTS, max_size=4)), random)
    excluded = boosts([0.0] * draw(st.integers(0, 2)), random)
    vectors = random.normal(size=(count, D))
    norms = draw(st.sampled_from(["unit", "near", "any"]))
    spread = {"unit": 0.0, "near": 0.3, "any": 1.0}[norms]
    vectors *= (10.0 ** (spread * random.uniform(-2, 1.7, count)) / np.linalg.norm(vectors, axis=1))[:, None]
    if rewards or excluded:
        chosen = [*rewards, *excluded]
        for row in range(count):  # many are moved to a chosen match of one group, the ramp's ends included
            one = chosen[random.integers(len(chosen))]
            direction = along(one)
            wanted = random.choice([0.25, 0.6, 0.42, random.uniform(-1, 2)])
            scale = 1.0 if normalised else typical
            if random.random() < 0.6:
                gap = wanted + direction @ SAE.bias - vectors[row] @ direction / scale
                vectors[row] += scale * gap * direction / (direction @ direction)
    if count > 2 and draw(st.booleans()):
        vectors[random.integers(count, size=count // 3)] = vectors[0]
    allowed = random.random(count) < draw(st.sampled_from([1.0, 1.0, 0.5, 0.1]))
    shift = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0])) * random.normal(size=D)
    query = random.normal(size=D)
    shifts = [QueryShift("a", np.float32(shift / 2)), QueryShift("b", np.float32(shift / 2))] if shift.any() else []
    for boost in rewards:  # edits on both sides shift the query along the direction that they reward or penalise
        if draw(st.booleans()):
            size = np.sign(boost.amount) * 10.0 ** random.uniform(-2, 0.5) * random.choice([1, 1, 1, -1])
            shifts.append(QueryShift(boost.name, np.float32(size * along(boost))))
    return Case(
        space,
        vectors.astype(np.float32),
        allowed,
        np.float32(query / np.linalg.norm(query)),
        Plan(tuple(shifts), rewards, excluded, 1.0),
        typical,
        draw(st.floats(0.01, 4)),
        normalised,
    )


@settings(max_examples=600, deadline=None)
@given(case=cases(), data=st.data())
def test_no_passage_outside_the_lists_is_above_the_bound_and_a_certified_ranking_is_that_of_all(
    case: Case, data: st.DataObject
) -> None:
    count = len(case.vectors)
    k = data.draw(st.integers(1, count), label="k")
    candidates = case.candidates(k, data.draw(st.integers(1, 3 * count), label="fetch_k"))
    scores, kept, size = case.scores()
    slack = 1e-6 * size  # shifts and offsets are float32
    rows = [int(name[1:]) for name in candidates.found.ids]
    np.testing.assert_allclose(candidates.scored.scores, scores[rows], rtol=0, atol=slack)
    outside = np.setdiff1d(np.nonzero(kept)[0], rows)
    assert (scores[outside] <= candidates.bound + ROUNDING * size).all()
    if candidates.bound == -np.inf:
        assert not len(outside)
    event(f"{len(case.plan.boosts)} boosts, proved: {candidates.proves(k)}")
    if candidates.proves(k):
        best = np.sort(scores[kept])[::-1][:k]
        found = scores[[rows[row] for row in candidates.order[:k]]]
        np.testing.assert_allclose(found, best, rtol=0, atol=slack)


def test_certificates_are_given_where_a_steering_is_mild() -> None:
    proved = {amount: 0 for amount in (0.05, -0.05, 0.1, 0.2)}
    for seed in range(40):
        random = np.random.default_rng(seed)
        vectors, query = unit_rows(seed, 400, D), unit_rows(seed + 1000, 1, D)[0]
        for amount in proved:
            made = Plan((), boosts([amount], random), (), 1.0)
            case = Case("ip", vectors, np.ones(400, dtype=bool), query, made, 1.0, 10.0)
            proved[amount] += case.candidates(10, 100).proves(10)
    assert min(proved.values()) >= 36, proved


# -- a real Chroma ----------------------------------------------------------------------------------------------------

COUNT = 150
STORE_SAE = random_sae(3)
# With more links than passages and a search as wide as the collection, Chroma's neighbours are exact.
WIDE = {"ef_search": 400, "ef_construction": 400, "max_neighbors": 200}


def opened(space: str, folder: Path) -> SteeredRetriever:
    """A collection of another tool, of any norms where the distance reads them, with a sidecar."""
    random = np.random.default_rng(7)
    configuration: Any = {"hnsw": {"space": space, **WIDE}}
    collection = connect(path=folder).create_collection("docs", embedding_function=None, configuration=configuration)
    words = [f"w{number}" for number in range(40)]
    texts = [" ".join(random.choice(words, 3)) for _ in range(COUNT)]
    vectors = ToyEmbedder().embed_queries(texts)
    vectors = np.float32(vectors * random.uniform(0.3, 3, (COUNT, 1)))
    names, metadatas = [f"p{row:03}" for row in range(COUNT)], [{"part": row % 5} for row in range(COUNT)]
    collection.add(ids=names, embeddings=vectors, documents=texts, metadatas=metadatas)
    store = ChromaStore.from_collection(collection, STORE_SAE)
    store.attach()
    # As a later process opens it, with what the sidecar tells about lengths.
    store = ChromaStore.from_collection(collection, STORE_SAE)
    catalog = catalog_for(STORE_SAE, ToyEmbedder().embed_queries(texts), score_spread=0.1)
    return SteeredRetriever(store, ToyEmbedder(), catalog)


def definition(
    retriever: SteeredRetriever, q: Array, steering: Steering, space: Space, where: Mapping[str, Any] | None, k: int
) -> dict[str, tuple[list[float], dict[str, float]]]:
    """The best `k` scores by each reading, and the scores of all passages that may be hits, in float64."""
    store, calibration, lengths = retriever.store, retriever.catalog.calibration, retriever.store.lengths()
    found = store.documents.get(include=["embeddings", "metadatas"])
    ids, x = np.array(found["ids"]), np.asarray(found["embeddings"], dtype=np.float64)
    allowed = np.array([where is None or row["part"] in where["part"]["$in"] for row in found["metadatas"] or []])
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    x_hat = exact_x_hat(STORE_SAE, STORE_SAE.encode(units.astype(np.float32)))
    h_q = STORE_SAE.encode(q[None])
    vector = STORE_SAE.decode(h_q)[0] if space == "reconstructed" else q
    made = plan(steering, vector, h_q, STORE_SAE, calibration)
    v = made.total_shift(len(q)).astype(np.float64)

    def matches(y: NDArray[np.float64], boost: DocumentBoost, ratio: float) -> NDArray[np.float64]:
        mean = np.zeros(len(y))
        for feature, weight in zip(boost.features, boost.weights, strict=True):
            unit = float(calibration.match_unit[feature]) * ratio
            mean += weight * ((y - STORE_SAE.bias) @ STORE_SAE.decoder[feature].astype(np.float64)) / unit
        return np.clip((mean / sum(boost.weights) - 0.25) / 0.35, 0.0, 1.0)

    def read(y: NDArray[np.float64], scale: float, ratio: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        added, kept = np.zeros(len(y)), np.ones(len(y), dtype=bool)
        for boost in made.boosts:
            added += boost.amount * scale * matches(y, boost, ratio)
        for one in made.excluded:
            kept &= matches(y, one, ratio) < 0.5
        return added, kept

    def best(scores: NDArray[np.float64], among: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
        rows = np.nonzero(among)[0]
        return rows[np.argsort(-scores[rows], kind="stable")[:count]]

    def told(scores: NDArray[np.float64], among: NDArray[np.bool_]) -> tuple[list[float], dict[str, float]]:
        return scores[best(scores, among, k)].tolist(), dict(zip(ids[among], scores[among], strict=True))

    if space != "original":
        directions = x_hat / np.linalg.norm(x_hat, axis=1, keepdims=True)
        added, kept = read(directions * lengths.reconstruction, 1.0, lengths.match)
        scores = directions @ (vector + v) / np.linalg.norm(vector + v) + added
        return dict.fromkeys(("vector", "reconstruction"), told(scores, kept & allowed))
    searched, scale = (units, 1.0) if store.space == "cosine" else (x, lengths.vector)
    base = searched @ q + ((1 - (x**2).sum(axis=1)) / 2 if store.space == "l2" else 0.0)
    added, kept = read(searched / scale, scale, 1.0)
    by_vector = base + searched @ v + added
    among = kept & allowed
    y_added, y_kept = read(x_hat, scale, lengths.match)
    depth = max(k, 30)
    while True:  # the best by vectors are read again; more of them where too few are left
        read_again = y_kept & np.isin(np.arange(len(x)), best(by_vector, among, depth))
        if read_again.sum() >= k or depth >= among.sum():
            break
        depth *= 2
    return {"vector": told(by_vector, among), "reconstruction": told(base + scale * (x_hat @ v) + y_added, read_again)}


def steerings(alive: Sequence[int], random: np.random.Generator, count: int) -> list[dict[int, float | Operation]]:
    """Steerings by one to four features with all operations."""
    made: list[dict[int, float | Operation]] = []
    for _ in range(count):
        features = random.choice(alive, random.choice([1, 1, 1, 2, 3, 4]), replace=False)
        steer: dict[int, float | Operation] = {}
        for feature in features.tolist():
            strength = float(random.choice([0.25, 0.5, 1.0, -0.5, -1.0, 2.0]))
            steer[feature] = [
                strength,
                Add(strength, side="document"),
                Add(strength, side="query"),
                Suppress(),
                Clamp(1.0),
                Scale(0.5),
                AddRaw(0.3 * strength),
            ][random.choice(7, p=[0.3, 0.3, 0.1, 0.12, 0.06, 0.06, 0.06])]
        made.append(steer)
    return made


def alive(retriever: SteeredRetriever) -> list[int]:
    return [int(feature) for feature in np.nonzero(retriever.catalog.calibration.count)[0]]


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_certified_over_chroma_is_the_ranking_of_all(metric: str, tmp_path: Path) -> None:
    retriever = opened(metric, tmp_path)
    random = np.random.default_rng(8)
    certified = asked = 0
    for number, steer in enumerate(steerings(alive(retriever), random, 60)):
        query = f"w{number % 40} w{(7 * number) % 40}"
        q = ToyEmbedder().embed_queries([query])[0]
        where = [None, None, {"part": {"$in": [0, 1, 2]}}][number % 3]
        k = int(random.choice([1, 4, 10]))
        steering = retriever.resolve(steer)
        for space in ("original", "reconstructed", "latent"):
            expected = definition(retriever, q, steering, space, where, k)
            for reading in ("vector", "reconstruction"):
                hits = retriever.search(query, k=k, steer=steering, space=space, where=where, read_on=reading)
                asked += 1
                certified += hits.certified
                if hits.certified:
                    best, of_all = expected[reading]
                    told = str((metric, space, reading, steer, query))
                    scores, own = [hit.score for hit in hits], [of_all[hit.id] for hit in hits]
                    np.testing.assert_allclose(scores, best, rtol=0, atol=1e-5, err_msg=told)
                    np.testing.assert_allclose(scores, own, rtol=0, atol=1e-5, err_msg=told)
                for hit in hits:
                    assert hit.attribution is not None
                    assert hit.attribution.total == pytest.approx(hit.score, abs=1e-4)
    assert certified >= asked / 2, f"{certified} of {asked}"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("space", ["original", "reconstructed", "latent"])
def test_a_filter_that_no_passage_passes_gives_no_hits(space: Space, metric: str, tmp_path: Path) -> None:
    retriever = opened(metric, tmp_path)
    one, two, three, four = alive(retriever)[:4]
    for steer in ({}, {one: 1.0}, {one: Suppress()}, {one: 0.5, two: -0.5, three: 1.0, four: 1.0}):
        assert retriever.search("w1 w2", k=3, steer=steer, space=space, where={"part": 9}) == []
