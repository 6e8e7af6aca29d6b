"""Searching by power-normalised codes: exact sums of shared features, and steering that edits the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_match import exact_match
from small_world import World
from toy import ToyEmbedder, catalog_for, random_sae

from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.steering.operations import Add, Clamp, Scale, Suppress
from sae_steer_retriever.store.chroma_store import ChromaStore

QUERY = "wait until a thread has finished"


def features_of(retriever: SteeredRetriever) -> tuple[int, int]:
    """A feature the query has, and the most frequent one it lacks."""
    codes = retriever.sae.encode(retriever.embedder.embed_queries([QUERY]))
    counts = retriever.catalog.calibration.count.copy()
    counts[codes.indices[0]] = -1
    return int(codes.indices[0, 0]), int(np.argmax(counts))


def plain(hits: list[Hit]) -> list[tuple[str, float, float, int | None]]:
    return [(hit.id, hit.score, hit.base_score, hit.base_rank) for hit in hits]


def normalised_codes(world: World, query: str = QUERY) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the query's and (N, n) the passages' codes, dense, in float64, to the power .7."""
    sae = world.sae
    codes = sae.encode(np.concatenate([world.embedder.embed_queries([query]), world.vectors]))
    z = np.zeros((len(codes.indices), sae.config.n))
    np.put_along_axis(z, codes.indices.astype(np.int64), codes.values.astype(np.float64) ** 0.7, axis=1)
    return z[0], z[1:]


def cosines(world: World, change: dict[int, float] | None = None) -> np.ndarray:
    """(N,) cosines of power-normalised codes, after some of the query's power-normalised activations were set."""
    z_q, z = normalised_codes(world)
    for latent, value in (change or {}).items():
        z_q[latent] = value
    return np.asarray(z @ z_q / (np.linalg.norm(z, axis=1) * np.linalg.norm(z_q)))


def test_without_steering_hits_are_by_the_cosine_of_normalised_codes(retriever: SteeredRetriever, world: World) -> None:
    expected = cosines(world)
    hits = retriever.search(QUERY, k=20, space="latent")
    rows = [world.ids.index(hit.id) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], expected[rows], atol=1e-5)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:20], atol=1e-5)
    assert [hit.base_score for hit in hits] == [hit.score for hit in hits]
    assert [hit.base_rank for hit in hits] == list(range(1, 21))
    assert [hit.text for hit in hits] == [world.texts[row] for row in rows]


def test_nothing_asked_for_changes_nothing(retriever: SteeredRetriever) -> None:
    own, other = features_of(retriever)
    expected = retriever.search(QUERY, k=12, space="latent")
    nothings: list[dict[Any, Any]] = [{}, {own: 0, other: 0.0}, {own: Scale(1.0)}, {other: Scale(7.0)}]
    for steer in nothings:
        assert retriever.search(QUERY, k=12, space="latent", steer=steer) == expected


@pytest.mark.parametrize("name", ["add", "take away", "clamp", "clamp own", "scale", "suppress"])
def test_edits_change_the_code_by_normalised_units(retriever: SteeredRetriever, world: World, name: str) -> None:
    own, other = features_of(retriever)
    units = retriever.catalog.calibration.unit.astype(np.float64) ** 0.7
    had = normalised_codes(world)[0]
    assert had[other] == 0 < had[own]
    steer, change = {
        # One unit is what a passage adds to the query's code that has the feature at one unit.
        "add": ({other: 1.0}, {other: units[other]}),
        "take away": ({own: -0.4}, {own: had[own] - 0.4 * units[own]}),
        "clamp": ({other: Clamp(0.5)}, {other: 0.5 * units[other]}),
        "clamp own": ({own: Clamp(2.0)}, {own: 2.0 * units[own]}),
        "scale": ({own: Scale(0.5)}, {own: 0.5 * had[own]}),
        "suppress": ({own: Suppress()}, {own: 0.0}),
    }[name]
    expected, before = cosines(world, change), cosines(world)
    hits = retriever.search(QUERY, k=len(world.ids), space="latent", steer=steer, drift_cap=0.01)
    rows = [world.ids.index(hit.id) for hit in hits]
    assert len(rows) > 100
    np.testing.assert_allclose([hit.score for hit in hits], expected[rows], atol=1e-5)
    np.testing.assert_allclose([hit.base_score for hit in hits], before[rows], atol=1e-5)
    assert np.abs(expected - before).max() > 0.01
    if name != "suppress":  # which leaves passages out
        answers = (before > 1e-9) | (expected > 1e-9)
        assert len(rows) == answers.sum()


def test_each_shared_feature_has_its_share_of_the_normalised_cosine(retriever: SteeredRetriever, world: World) -> None:
    z_q, z = normalised_codes(world)
    for hit in retriever.search(QUERY, k=5, space="latent"):
        x = z[world.ids.index(hit.id)]
        expected = z_q * x / (np.linalg.norm(z_q) * np.linalg.norm(x))
        assert hit.attribution is not None
        found = {part.feature: part.value for part in hit.attribution.features}
        assert found == {int(latent): pytest.approx(expected[latent], abs=1e-5) for latent in np.nonzero(expected)[0]}


def test_gates_read_codes_as_they_are(retriever: SteeredRetriever, world: World) -> None:
    _, other = features_of(retriever)
    calibration = retriever.catalog.calibration
    feature_match = exact_match(world.sae, calibration.match_unit, [other], [1.0], world.sae.encode(world.vectors))
    # A unit is two spreads.
    gains = 2 * 3.0 * calibration.score_spread * feature_match
    assert ((feature_match > 0.05) & (feature_match < 0.95)).any()
    steer = {other: Add(3.0, side="document")}
    for hit in retriever.search(QUERY, k=len(world.ids), space="latent", steer=steer, explain=False):
        assert hit.score - hit.base_score == pytest.approx(gains[world.ids.index(hit.id)], abs=1e-5)


@pytest.mark.parametrize(
    "name", ["none", "add", "both sides", "gate", "take away", "clamp", "scale", "suppress", "past the cap"]
)
def test_features_and_steering_sum_to_the_score_and_nothing_else_does(retriever: SteeredRetriever, name: str) -> None:
    own, other = features_of(retriever)
    steer: dict[Any, Any] = {
        "none": {},
        "add": {other: 0.7},
        "both sides": {other: Add(0.7, side="both"), own: Add(-0.4, side="both")},
        "gate": {other: Add(3.0, side="document")},
        "take away": {own: -0.5},
        "clamp": {own: Clamp(0.2), other: Clamp(1.0)},
        "scale": {own: Scale(0.0)},
        "suppress": {own: Suppress()},
        "past the cap": {other: 10.0},
    }[name]
    hits = retriever.search(QUERY, k=400, space="latent", steer=steer)
    assert len(hits) >= 15
    q = set(retriever.sae.encode(retriever.embedder.embed_queries([QUERY])).indices[0].tolist())
    for hit in hits:
        why = hit.attribution
        assert why is not None
        assert (why.bias, why.residual, why.unexplained) == (0.0, 0.0, 0.0)
        assert why.total == pytest.approx(hit.score, abs=1e-5)
        assert {part.feature for part in why.features} <= q
        if not steer:
            assert why.features
            assert all(part.value > 0 for part in why.features)
    if name not in ("none", "suppress"):
        assert any(term.value for hit in hits for term in hit.attribution.steering)  # type: ignore[union-attr]


def test_adding_to_the_code_brings_the_features_passages_up(retriever: SteeredRetriever, world: World) -> None:
    _, other = features_of(retriever)
    has = (world.sae.encode(world.vectors).indices == other).any(axis=1)

    def share(strength: float) -> float:
        hits = retriever.search(QUERY, k=10, space="latent", steer={other: strength}, drift_cap=0.5, explain=False)
        return float(np.mean([has[world.ids.index(hit.id)] for hit in hits]))

    shares = [share(strength) for strength in (-1.0, 0.0, 0.5, 1.0, 2.0)]
    assert shares == sorted(shares)
    assert shares[-1] > shares[1] > shares[0] or shares[-1] > shares[1] == 0


def test_the_drift_cap_holds_for_the_code(retriever: SteeredRetriever) -> None:
    _, other = features_of(retriever)
    moved = [
        retriever.search(QUERY, k=15, space="latent", steer={other: 10.0}, drift_cap=cap) for cap in (0.999, 0.9, 0.6)
    ]
    largest = [max(abs(hit.score - hit.base_score) for hit in hits) for hits in moved]
    assert largest == sorted(largest)
    # Unit vectors at cosine c are sqrt(2 - 2 c) apart, and no score moves by more.
    assert all(gap <= np.sqrt(2 - 2 * cap) + 1e-5 for gap, cap in zip(largest, (0.999, 0.9, 0.6), strict=True))


def test_suppressing_leaves_passages_with_the_feature_out(retriever: SteeredRetriever, world: World) -> None:
    own, _ = features_of(retriever)
    unit = retriever.catalog.calibration.match_unit
    strong = exact_match(world.sae, unit, [own], [1.0], world.sae.encode(world.vectors)) >= 0.5
    before = {hit.id for hit in retriever.search(QUERY, k=20, space="latent")}
    after = {hit.id for hit in retriever.search(QUERY, k=20, space="latent", steer={own: Suppress()})}
    left_out = {name for name, has in zip(world.ids, strong, strict=True) if has}
    assert before & left_out
    assert not after & left_out


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_a_filter_holds(retriever: SteeredRetriever, world: World, strength: float) -> None:
    _, other = features_of(retriever)
    allowed = np.array([row["module"] == "threading" for row in world.metadatas])
    where = {"module": "threading"}
    hits = retriever.search(QUERY, k=5, space="latent", steer={other: strength}, where=where)
    assert len(hits) == 5
    assert all(hit.metadata == where for hit in hits)
    if not strength:
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines(world)[allowed])[::-1][:5], atol=1e-5)
    assert retriever.search(QUERY, space="latent", where={"module": "no such"}) == []


def test_the_other_spaces_are_what_they_were(retriever: SteeredRetriever) -> None:
    _, other = features_of(retriever)
    spaces: tuple[Any, ...] = ("original", "reconstructed")
    asked: list[dict[str, Any]] = [{"space": space, "steer": {other: s}} for space in spaces for s in (0.0, 0.5)]
    before = [plain(retriever.search(QUERY, k=9, **options)) for options in asked]
    retriever.search(QUERY, k=9, space="latent", steer={other: 0.5})
    assert [plain(retriever.search(QUERY, k=9, **options)) for options in asked] == before


def toy_retriever(folder: Path) -> SteeredRetriever:
    sae, embedder = random_sae(3), ToyEmbedder()
    words = [f"word{number}" for number in range(40)]
    random = np.random.default_rng(1)
    passages = [" ".join(random.choice(words, 4)) for _ in range(60)]
    store = ChromaStore.open(sae, path=folder)
    store.add([f"p{number:02}" for number in range(60)], passages, embedder=embedder)
    return SteeredRetriever(store, embedder, catalog_for(sae, embedder.embed_queries(passages)))


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_what_other_tools_deleted_is_no_hit_however_much_it_is(tmp_path: Path, strength: float) -> None:
    retriever = toy_retriever(tmp_path)
    feature = int(np.argmax(retriever.catalog.calibration.count))
    options: dict[str, Any] = {"space": "latent", "steer": {feature: strength}}
    ranked = [hit.id for hit in retriever.search("word1 word2", k=60, **options)]
    retriever.store._client.get_collection("docs", embedding_function=None).delete(ids=ranked[:20])
    hits = retriever.search("word1 word2", k=4, fetch_k=5, **options)
    assert [hit.id for hit in hits] == ranked[20:24]


def test_what_was_added_is_found_and_what_has_no_codes_is_not(tmp_path: Path) -> None:
    retriever = toy_retriever(tmp_path)
    assert "new" not in {hit.id for hit in retriever.search("word50 word51", k=60, space="latent")}
    retriever.store.add(["new"], ["word50 word51"], embedder=retriever.embedder)
    best = retriever.search("word50 word51", k=1, space="latent")[0]
    assert (best.id, best.score) == ("new", pytest.approx(1.0, abs=1e-5))
    vector = retriever.embedder.embed_queries(["word60 word61"])
    retriever.store.documents.add(ids=["behind our back"], embeddings=vector, documents=["word60 word61"])
    found = {hit.id for hit in retriever.search("word60 word61", k=70, space="latent")}
    assert "behind our back" not in found
    retriever.store.attach()
    assert retriever.search("word60 word61", k=1, space="latent")[0].id == "behind our back"


@pytest.mark.parametrize("engine", ["faiss", "seismic"])
def test_an_engine_that_is_not_there_is_refused_at_once(retriever: SteeredRetriever, world: World, engine: str) -> None:
    with pytest.raises(ValueError, match=f"latent_engine is '{engine}'"):
        SteeredRetriever(retriever.store, world.embedder, world.catalog, latent_engine=engine)
