"""Searching by codes: exact sums of shared features, steering that edits the code, and hits as they are stored now."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_match import exact_match, exact_x_hat
from small_world import World
from toy import ToyEmbedder, catalog_for, random_sae

from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.options import LatentScore, SearchOptions
from sae_steer_retriever.steering.operations import Add, AddRaw, Clamp, Scale, Suppress
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.store_reader import StoreReader

QUERY = "wait until a thread has finished"
BOTH = pytest.mark.parametrize("score", ["dot", "damped"])


def features_of(retriever: SteeredRetriever) -> tuple[int, int]:
    """A feature the query has, and the most frequent one it lacks."""
    codes = retriever.sae.encode(retriever.embedder.embed_queries([QUERY]))
    counts = retriever.catalog.calibration.count.copy()
    counts[codes.indices[0]] = -1
    return int(codes.indices[0, 0]), int(np.argmax(counts))


def plain(hits: list[Hit]) -> list[tuple[str, float, float, int | None]]:
    return [(hit.id, hit.score, hit.base_score, hit.base_rank) for hit in hits]


def normalised(activations: np.ndarray, score: LatentScore) -> np.ndarray:
    return np.asarray(activations.astype(np.float64) ** (0.7 if score == "damped" else 1.0))


def dense_codes(world: World, score: LatentScore, query: str = QUERY) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the query's and (N, n) the passages' codes as the score reads them, dense, in float64."""
    sae = world.sae
    codes = sae.encode(np.concatenate([world.embedder.embed_queries([query]), world.vectors]))
    z = np.zeros((len(codes.indices), sae.config.n))
    np.put_along_axis(z, codes.indices.astype(np.int64), normalised(codes.values, score), axis=1)
    return z[0], z[1:]


def divisors(z: np.ndarray, z_q: np.ndarray, score: LatentScore) -> np.ndarray:
    lengths = np.linalg.norm(z, axis=1) * np.linalg.norm(z_q)
    return lengths if score == "damped" else np.ones(len(z))


def expected_scores(world: World, score: LatentScore, change: dict[int, float] | None = None) -> np.ndarray:
    """(N,) scores after some of the query's activations were set, as the score reads them."""
    z_q, z = dense_codes(world, score)
    for latent, value in (change or {}).items():
        z_q[latent] = value
    return np.asarray(z @ z_q / divisors(z, z_q, score))


def feature_match(world: World, retriever: SteeredRetriever, latent: int) -> np.ndarray:
    """(N,) the match of reconstructions, whose units are the store's."""
    unit = retriever.catalog.calibration.match_unit * retriever.store.lengths().match
    return exact_match(world.sae, unit, [latent], [1.0], exact_x_hat(world.sae, world.sae.encode(world.vectors)))


@BOTH
def test_without_steering_hits_are_by_the_score_of_codes(
    retriever: SteeredRetriever, world: World, score: LatentScore
) -> None:
    expected = expected_scores(world, score)
    hits = retriever.search(QUERY, k=20, space="latent", latent_score=score)
    rows = [world.ids.index(hit.id) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], expected[rows], atol=1e-5)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:20], atol=1e-5)
    assert [hit.base_score for hit in hits] == [hit.score for hit in hits]
    assert [hit.base_rank for hit in hits] == list(range(1, 21))
    assert [hit.text for hit in hits] == [world.texts[row] for row in rows]
    assert [hit.metadata for hit in hits] == [world.metadatas[row] for row in rows]


@BOTH
def test_nothing_asked_for_changes_nothing(retriever: SteeredRetriever, score: LatentScore) -> None:
    own, other = features_of(retriever)
    expected = retriever.search(QUERY, k=12, space="latent", latent_score=score)
    nothings: list[dict[Any, Any]] = [{}, {own: 0, other: 0.0}, {own: Scale(1.0)}, {other: Scale(7.0)}]
    for steer in nothings:
        assert retriever.search(QUERY, k=12, space="latent", latent_score=score, steer=steer) == expected


@BOTH
@pytest.mark.parametrize("name", ["add", "raw", "take away", "clamp", "clamp own", "scale", "suppress"])
def test_edits_change_the_code_by_units_as_codes_are_read(
    retriever: SteeredRetriever, world: World, name: str, score: LatentScore
) -> None:
    own, other = features_of(retriever)
    units = normalised(retriever.catalog.calibration.unit, score)
    had = dense_codes(world, score)[0]
    assert had[other] == 0 < had[own]
    steer, change = {
        # One unit is what a passage adds to the query's code that has the feature at one unit.
        "add": ({other: 1.0}, {other: units[other]}),
        "raw": ({other: AddRaw(0.3)}, {other: 0.3}),
        "take away": ({own: -0.4}, {own: had[own] - 0.4 * units[own]}),
        "clamp": ({other: Clamp(0.5)}, {other: 0.5 * units[other]}),
        "clamp own": ({own: Clamp(2.0)}, {own: 2.0 * units[own]}),
        "scale": ({own: Scale(0.5)}, {own: 0.5 * had[own]}),
        "suppress": ({own: Suppress()}, {own: 0.0}),
    }[name]
    expected, before = expected_scores(world, score, change), expected_scores(world, score)
    count = len(world.ids)
    options: dict[str, Any] = {"k": count, "space": "latent", "latent_score": score, "explain": False}
    hits = retriever.search(QUERY, steer=steer, drift_cap=0.01, fetch_k=count, **options)
    rows = [world.ids.index(hit.id) for hit in hits]
    assert len(rows) > 100
    np.testing.assert_allclose([hit.score for hit in hits], expected[rows], atol=1e-5)
    np.testing.assert_allclose([hit.base_score for hit in hits], before[rows], atol=1e-5)
    assert np.abs(expected - before).max() > 0.01
    answers = (before > 1e-9) | (expected > 1e-9)
    if name == "suppress":
        answers &= feature_match(world, retriever, own) < 0.5
    assert sorted(rows) == np.nonzero(answers)[0].tolist()
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    plain = retriever.search(QUERY, **options)
    rank_of = {hit.id: hit.base_rank for hit in plain}
    assert [hit.base_rank for hit in hits] == [rank_of.get(hit.id) for hit in hits]


@BOTH
def test_each_shared_feature_has_its_share_of_the_score(
    retriever: SteeredRetriever, world: World, score: LatentScore
) -> None:
    z_q, z = dense_codes(world, score)
    for hit in retriever.search(QUERY, k=5, space="latent", latent_score=score):
        row = world.ids.index(hit.id)
        expected = z_q * z[row] / divisors(z, z_q, score)[row]
        assert hit.attribution is not None
        found = {part.feature: part.value for part in hit.attribution.features}
        assert found == {int(latent): pytest.approx(expected[latent], abs=1e-5) for latent in np.nonzero(expected)[0]}


@BOTH
def test_document_boosts_read_codes_as_they_are(retriever: SteeredRetriever, world: World, score: LatentScore) -> None:
    _, other = features_of(retriever)
    matches = feature_match(world, retriever, other)
    # A unit is two spreads.
    gains = 2 * 3.0 * retriever.catalog.calibration.score_spread * matches
    assert ((matches > 0.05) & (matches < 0.95)).any()
    options: dict[str, Any] = {"space": "latent", "latent_score": score, "explain": False}
    hits = retriever.search(QUERY, k=len(world.ids), steer={other: Add(3.0, side="document")}, **options)
    plain = expected_scores(world, score)
    assert {hit.id for hit in hits} == {
        name for name, s, g in zip(world.ids, plain, gains, strict=True) if s > 0 or g > 0
    }
    for hit in hits:
        row = world.ids.index(hit.id)
        assert hit.score - hit.base_score == pytest.approx(gains[row], abs=1e-5)
        assert hit.base_score == pytest.approx(plain[row], abs=1e-5)


@BOTH
def test_a_family_counts_by_the_mean_of_its_matches(
    retriever: SteeredRetriever, world: World, score: LatentScore
) -> None:
    own, other = features_of(retriever)
    calibration = retriever.catalog.calibration
    edit = retriever.resolve({own: Add(2.0, side="document")}).edits[0]
    family = Steering((dataclasses.replace(edit, features=(own, other), weights=(1.0, 0.5)),), world.sae.fingerprint)
    x = exact_x_hat(world.sae, world.sae.encode(world.vectors)) - world.sae.bias
    unit = calibration.match_unit * retriever.store.lengths().match
    along = [x @ world.sae.decoder[latent] / unit[latent] for latent in (own, other)]
    ramp = np.clip(((along[0] + 0.5 * along[1]) / 1.5 - 0.25) / 0.35, 0, 1)
    assert ((ramp > 0.05) & (ramp < 0.95)).sum() > 5
    for hit in retriever.search(QUERY, k=len(world.ids), space="latent", latent_score=score, steer=family):
        gain = 4.0 * calibration.score_spread * ramp[world.ids.index(hit.id)]
        assert hit.score - hit.base_score == pytest.approx(gain, abs=1e-5)


@BOTH
@pytest.mark.parametrize(
    "name", ["none", "add", "both sides", "gate", "take away", "clamp", "scale", "suppress", "past the cap"]
)
def test_features_and_steering_sum_to_the_score_and_nothing_else_does(
    retriever: SteeredRetriever, name: str, score: LatentScore
) -> None:
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
    hits = retriever.search(QUERY, k=400, space="latent", latent_score=score, steer=steer)
    assert len(hits) >= 15
    q = set(retriever.sae.encode(retriever.embedder.embed_queries([QUERY])).indices[0].tolist())
    for hit in hits:
        why = hit.attribution
        assert why is not None
        assert (why.bias, why.residual, why.unexplained) == (0.0, 0.0, 0.0)
        assert why.total == pytest.approx(hit.score, abs=1e-6)
        assert {part.feature for part in why.features} <= q
        if not steer:
            assert why.features
            assert all(part.value > 0 for part in why.features)
    if name not in ("none", "suppress"):
        assert any(term.value for hit in hits for term in hit.attribution.steering)  # type: ignore[union-attr]


@BOTH
def test_adding_to_the_code_brings_the_features_passages_up(
    retriever: SteeredRetriever, world: World, score: LatentScore
) -> None:
    _, other = features_of(retriever)
    has = (world.sae.encode(world.vectors).indices == other).any(axis=1)

    def share(strength: float) -> float:
        options: dict[str, Any] = {"steer": {other: strength}, "drift_cap": 0.5, "explain": False}
        hits = retriever.search(QUERY, k=10, space="latent", latent_score=score, **options)
        return float(np.mean([has[world.ids.index(hit.id)] for hit in hits]))

    shares = [share(strength) for strength in (-1.0, 0.0, 0.5, 1.0, 2.0)]
    assert shares == sorted(shares)
    assert shares[-1] > shares[1] > shares[0] or shares[-1] > shares[1] == 0


def test_the_drift_cap_holds_for_the_code(retriever: SteeredRetriever) -> None:
    _, other = features_of(retriever)
    moved = [
        retriever.search(QUERY, k=15, space="latent", latent_score="damped", steer={other: 10.0}, drift_cap=cap)
        for cap in (0.999, 0.9, 0.6)
    ]
    largest = [max(abs(hit.score - hit.base_score) for hit in hits) for hits in moved]
    assert largest == sorted(largest)
    # Unit vectors at cosine c are sqrt(2 - 2 c) apart, and no score moves by more.
    assert all(gap <= np.sqrt(2 - 2 * cap) + 1e-5 for gap, cap in zip(largest, (0.999, 0.9, 0.6), strict=True))


@BOTH
def test_the_query_cosine_is_that_of_the_codes(retriever: SteeredRetriever, world: World, score: LatentScore) -> None:
    _, other = features_of(retriever)
    z_q, _ = dense_codes(world, score)
    edited = z_q.copy()
    edited[other] += 0.4 * normalised(retriever.catalog.calibration.unit, score)[other]
    expected = z_q @ edited / (np.linalg.norm(z_q) * np.linalg.norm(edited))
    found = retriever.query_cosine(QUERY, space="latent", latent_score=score, steer={other: 0.4}, drift_cap=0.01)
    assert found.cosine == pytest.approx(expected, abs=1e-5)
    assert found.cosine < 0.99


@BOTH
def test_suppressing_leaves_passages_with_the_feature_out(
    retriever: SteeredRetriever, world: World, score: LatentScore
) -> None:
    own, _ = features_of(retriever)
    left_out = {
        name for name, match in zip(world.ids, feature_match(world, retriever, own), strict=True) if match >= 0.5
    }
    options: dict[str, Any] = {"k": 20, "space": "latent", "latent_score": score}
    before = {hit.id for hit in retriever.search(QUERY, **options)}
    after = {hit.id for hit in retriever.search(QUERY, steer={own: Suppress()}, **options)}
    assert before & left_out
    assert not after & left_out


@BOTH
@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_a_filter_holds(retriever: SteeredRetriever, world: World, strength: float, score: LatentScore) -> None:
    _, other = features_of(retriever)
    allowed = np.array([row["module"] == "threading" for row in world.metadatas])
    where = {"module": "threading"}
    options: dict[str, Any] = {"space": "latent", "latent_score": score, "steer": {other: strength}}
    hits = retriever.search(QUERY, k=5, where=where, **options)
    assert len(hits) == 5
    assert all(hit.metadata == where for hit in hits)
    everything = retriever.search(QUERY, k=len(world.ids), **options)
    assert [hit.id for hit in hits] == [hit.id for hit in everything if hit.metadata == where][:5]
    if not strength:
        expected = np.sort(expected_scores(world, score)[allowed])[::-1][:5]
        np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
    assert retriever.search(QUERY, space="latent", latent_score=score, where={"module": "no such"}) == []


def test_the_other_spaces_are_what_they_were(retriever: SteeredRetriever) -> None:
    _, other = features_of(retriever)
    spaces: tuple[Any, ...] = ("original", "reconstructed")
    asked: list[dict[str, Any]] = [{"space": space, "steer": {other: s}} for space in spaces for s in (0.0, 0.5)]
    before = [plain(retriever.search(QUERY, k=9, **options)) for options in asked]
    retriever.search(QUERY, k=9, space="latent", latent_score="dot", steer={other: 0.5})
    assert [plain(retriever.search(QUERY, k=9, **options)) for options in asked] == before


def toy_retriever(folder: Path) -> SteeredRetriever:
    sae, embedder = random_sae(3), ToyEmbedder()
    words = [f"word{number}" for number in range(40)]
    random = np.random.default_rng(1)
    passages = [" ".join(random.choice(words, 4)) for _ in range(60)]
    store = ChromaStore.open(sae, path=folder)
    store.add([f"p{number:02}" for number in range(60)], passages, embedder=embedder)
    return SteeredRetriever(store, embedder, catalog_for(sae, embedder.embed_queries(passages)))


def toy_options(retriever: SteeredRetriever, score: LatentScore, strength: float) -> dict[str, Any]:
    feature = int(np.argmax(retriever.catalog.calibration.count))
    return {"space": "latent", "latent_score": score, "steer": {feature: Add(strength, side="both")}}


@BOTH
@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_what_other_tools_deleted_is_no_hit_however_much_it_is(
    tmp_path: Path, strength: float, score: LatentScore
) -> None:
    retriever = toy_retriever(tmp_path)
    options = toy_options(retriever, score, strength)
    ranked = [hit.id for hit in retriever.search("word1 word2", k=60, **options)]
    retriever.store._client.get_collection("docs", embedding_function=None).delete(ids=ranked[:20])
    hits = retriever.search("word1 word2", k=4, fetch_k=5, **options)
    assert [hit.id for hit in hits] == ranked[20:24]
    # The deleted have no rank any more.
    hits = retriever.search("word1 word2", k=60, fetch_k=60, **options)
    ranks = sorted(hit.base_rank for hit in hits if hit.base_rank is not None)
    assert ranks == list(range(1, len(ranks) + 1))


@BOTH
@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_what_other_tools_embedded_anew_is_no_hit_until_it_is_encoded_anew(
    tmp_path: Path, strength: float, score: LatentScore
) -> None:
    retriever = toy_retriever(tmp_path)
    options = toy_options(retriever, score, strength)
    before = retriever.search("word1 word2", k=60, **options)
    gone, new_text, relabelled = before[0].id, before[1].id, before[2].id
    theirs = retriever.store._client.get_collection("docs", embedding_function=None)
    theirs.update(ids=[gone], embeddings=-retriever.embedder.embed_queries(["word1 word2"]), documents=["moved"])
    vector = retriever.store.vectors_of([new_text])[1]
    theirs.update(ids=[new_text], embeddings=vector, documents=["the same vector, another text"])
    theirs.update(ids=[relabelled], metadatas=[{"topic": "new"}])
    hits = retriever.search("word1 word2", k=5, **options)
    assert [hit.id for hit in hits] == [hit.id for hit in before[1:6]]
    assert [hit.score for hit in hits] == [hit.score for hit in before[1:6]]
    assert hits[0].text == "the same vector, another text"
    assert hits[1].metadata == {"topic": "new"}
    assert retriever.store.attach() == 1
    again = {hit.id: hit.score for hit in retriever.search("word1 word2", k=60, **options)}
    assert again.get(gone, -1.0) < before[0].score


@BOTH
def test_what_was_added_is_found_and_what_has_no_codes_is_not(tmp_path: Path, score: LatentScore) -> None:
    retriever = toy_retriever(tmp_path)
    options: dict[str, Any] = {"space": "latent", "latent_score": score}
    assert "new" not in {hit.id for hit in retriever.search("word50 word51", k=60, **options)}
    retriever.store.add(["new"], ["word50 word51"], embedder=retriever.embedder)
    found = {hit.id: hit for hit in retriever.search("word50 word51", k=60, **options)}
    z = retriever.sae.encode(retriever.embedder.embed_queries(["word50 word51"])).values[0].astype(np.float64)
    assert found["new"].score == pytest.approx(1.0 if score == "damped" else z @ z, abs=1e-5)
    vector = retriever.embedder.embed_queries(["word60 word61"])
    retriever.store.documents.add(ids=["behind our back"], embeddings=vector, documents=["word60 word61"])
    assert "behind our back" not in {hit.id for hit in retriever.search("word60 word61", k=70, **options)}
    retriever.store.attach()
    assert "behind our back" in {hit.id for hit in retriever.search("word60 word61", k=70, **options)}


@BOTH
def test_what_another_client_writes_is_seen_at_once(tmp_path: Path, score: LatentScore) -> None:
    retriever = toy_retriever(tmp_path)
    options: dict[str, Any] = {"space": "latent", "latent_score": score}
    other = StoreReader.open(retriever.sae, path=tmp_path)
    assert other._client is not retriever.store._client
    reading = SteeredRetriever(other, retriever.embedder, retriever.catalog)
    first = reading.search("word1 word2", k=1, **options)[0].id
    retriever.store.add(["new", first], ["word1 word2", "word60 word61"], embedder=retriever.embedder)
    hits = reading.search("word1 word2", k=60, **options)
    assert plain(hits) == plain(retriever.search("word1 word2", k=60, **options))
    assert "new" in {hit.id for hit in hits}
    retriever.store.delete(["new"])
    assert "new" not in {hit.id for hit in reading.search("word1 word2", k=60, **options)}


@BOTH
@pytest.mark.parametrize("steered", [False, True])
def test_equal_passages_come_in_the_order_of_their_writing(tmp_path: Path, steered: bool, score: LatentScore) -> None:
    retriever = toy_retriever(tmp_path)
    # More of them than candidates, so that the cut goes through them.
    names = [f"twin{(7 * number) % 200:03}" for number in range(200)]
    retriever.store.add(names, ["word1 word2"] * 200, embedder=retriever.embedder)
    options = toy_options(retriever, score, 0.3 if steered else 0.0)
    hits = [hit for hit in retriever.search("word1 word2", k=250, **options) if hit.id.startswith("twin")]
    assert [hit.id for hit in hits] == names
    for k in (1, 10, 30):
        some = retriever.search("word1 word2", k=k, fetch_k=k, **options)
        assert plain(some) == plain(retriever.search("word1 word2", k=250, **options)[:k])


@BOTH
def test_a_passage_far_down_can_be_explained(retriever: SteeredRetriever, score: LatentScore) -> None:
    hits = retriever.search(QUERY, k=150, space="latent", latent_score=score)
    options: dict[str, Any] = {"space": "latent", "latent_score": score}
    explanation = retriever.explain(QUERY, hits[120].id, **options)
    assert (explanation.rank, explanation.hit.score) == (121, hits[120].score)


@pytest.mark.parametrize("wrong", ["cosine", "", None])
def test_a_score_that_is_not_there_is_refused(retriever: SteeredRetriever, wrong: Any) -> None:
    with pytest.raises(ValueError, match="latent_score is .*, expected one of match, dot, damped"):
        SearchOptions(latent_score=wrong)
    with pytest.raises(ValueError, match="latent_score is"):
        retriever.search(QUERY, space="latent", latent_score=wrong)
