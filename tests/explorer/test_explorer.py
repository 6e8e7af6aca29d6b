"""The explorer's server: what it shows is what the Python API returns, and it answers nobody but its own page."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the `explorer` extra")
pytest.importorskip("uvicorn", reason="needs the `explorer` extra")

from command_line import Run
from fastapi.testclient import TestClient
from small_world import World

from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import SAESteerError, SteeringError
from sae_steer_retriever.explorer.access import COOKIE, LARGEST_BODY, is_loopback
from sae_steer_retriever.explorer.feature_map import FeatureMap
from sae_steer_retriever.explorer.running import Explorer, explore
from sae_steer_retriever.explorer.server import create_app
from sae_steer_retriever.explorer.workbench import LatestRequest
from sae_steer_retriever.explorer.workbench_state import EditState, WorkbenchState
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.labelling.neuron2graph import PASSAGES
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.steering.operations import Add, Clamp, Scale, Suppress, When
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.chroma_store import ChromaStore

HERE = "http://127.0.0.1:8765"
QUESTION = "run a task in another thread"
HOSTILE = "<script>window.hacked = true</script><img src=x onerror=alert(1)> \u202eright to left\u202c 🦆"


@pytest.fixture
def client(retriever: SteeredRetriever) -> TestClient:
    """A page on this machine."""
    return TestClient(create_app(retriever), base_url=HERE)


@pytest.fixture
def frequent(world: World) -> list[int]:
    """The three most frequent named features."""
    named = sorted(world.catalog.labelled, key=lambda feature: (-feature.frequency, feature.id))
    return [feature.id for feature in named[:3]]


def searched(client: TestClient, state: dict[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
    """The lines of a search's answer, by kind."""
    answer = client.post("/api/search", json={"state": state, **more})
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    return {line["kind"]: line for line in lines}


def refused(answer: Any, status: int) -> str:
    """The one sentence of a refusal."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    return str(answer.json()["error"])


# -- the bench shows what the Python API returns ----------------------------------------------------------------------


@pytest.mark.parametrize("space", ["original", "reconstructed", "latent"])
def test_hits_scores_and_reasons_are_those_of_the_same_search_in_python(
    space: Any, client: TestClient, retriever: SteeredRetriever, frequent: list[int]
) -> None:
    first, second, third = frequent
    edits = [
        {"name": f"#{first}", "strength": 0.7, "side": "document" if space == "original" else "query"},
        {"name": f"#{second}", "op": "clamp", "strength": 1.0},
        {"name": f"#{third}", "strength": -0.4},
        {"name": f"#{third}0", "strength": 9.0, "on": False},
    ]
    side = "document" if space == "original" else "query"
    steer = {f"#{first}": Add(0.7, side), f"#{second}": Clamp(1.0), f"#{third}": -0.4}
    found = searched(client, {"query": QUESTION, "edits": edits, "k": 7, "space": space, "fetch_k": 50})
    hits = retriever.search(QUESTION, k=7, steer=steer, space=space, fetch_k=50)
    plain = retriever.search(QUESTION, k=7, steer={}, space=space, fetch_k=50)
    results, reasons = found["results"], found["reasons"]
    assert [hit["id"] for hit in results["hits"]] == [hit.id for hit in hits]
    assert [hit["id"] for hit in results["before"]] == [hit.id for hit in plain]
    assert [hit["score"] for hit in results["hits"]] != [hit["score"] for hit in results["before"]]
    assert [hit["score"] for hit in results["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert [hit["base_rank"] for hit in results["hits"]] == [hit.base_rank for hit in hits]
    for hit in hits:
        why = reasons["hits"][hit.id]
        assert sum(part["value"] for part in why["parts"]) == pytest.approx(hit.score, abs=1e-5)
        assert why["unexplained"] == pytest.approx(hit.attribution.unexplained if hit.attribution else -1, abs=1e-6)
    drift = retriever.query_cosine(QUESTION, steer=steer, space=space)
    assert results["drift"]["cosine"] == pytest.approx(drift.cosine, abs=1e-6)
    lost = 1 - np.mean([hit.base_score for hit in hits]) / np.mean([hit.base_score for hit in plain])
    assert results["drift"]["lost"] == pytest.approx(lost, abs=1e-6)


def test_a_bench_without_knobs_is_the_plain_ranking(client: TestClient, retriever: SteeredRetriever) -> None:
    found = searched(client, {"query": QUESTION})["results"]
    assert found["hits"] == found["before"]
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in retriever.search(QUESTION, k=10)]
    assert found["steered"] is False
    assert found["drift"] == {"cosine": 1.0, "applied": 1.0, "lost": 0.0}


def test_chips_are_the_names_that_the_question_is_read_by(
    client: TestClient, retriever: SteeredRetriever, world: World
) -> None:
    chips = client.post("/api/query", json={"query": QUESTION}).json()["features"]
    names = world.sae.encode(world.embedder.embed_queries([QUESTION])).truncate(world.sae.config.k_labels)
    assert [chip["id"] for chip in chips] == names.indices[0].tolist()
    assert chips[0]["strength"] == pytest.approx(
        names.values[0, 0] / world.catalog.calibration.unit[chips[0]["id"]], rel=1e-4
    )


def test_the_default_steering_is_what_the_bench_starts_with_and_nothing_beneath_it(
    world: World, filled_folder: Path, frequent: list[int]
) -> None:
    store = ChromaStore.open(world.sae, path=filled_folder / "chroma")
    steered = SteeredRetriever(store, world.embedder, world.catalog, steering={f"#{frequent[0]}": Add(0.8, "document")})
    client = TestClient(create_app(steered), base_url=HERE)
    start = client.get("/api/about").json()["start"]
    assert [(edit["name"], edit["strength"], edit["side"]) for edit in start["edits"]] == [
        (f"#{frequent[0]}", 0.8, "document")
    ]
    with_it = searched(client, {**start, "query": QUESTION})["results"]["hits"]
    assert [hit["id"] for hit in with_it] == [hit.id for hit in steered.search(QUESTION, k=10)]
    without = searched(client, {"query": QUESTION})["results"]["hits"]
    assert [hit["id"] for hit in without] == [hit.id for hit in steered.search(QUESTION, k=10, steer={})]


def test_a_condition_that_fails_is_said_to(client: TestClient, frequent: list[int]) -> None:
    dead = {"name": f"#{frequent[0]}", "strength": 1.0, "when": f"#{frequent[1]}", "above": 0.99}
    found = searched(client, {"query": "calendar of the month", "edits": [dead]})["results"]
    assert [edit["applies"] for edit in found["edits"]] == [found["steered"]]


def test_an_unknown_feature_is_answered_with_the_nearest_names(client: TestClient, retriever: SteeredRetriever) -> None:
    answer = client.post("/api/search", json={"state": {"query": QUESTION, "edits": [{"name": "zebra crossings"}]}})
    with pytest.raises(LookupError) as raised:
        retriever.resolve({"zebra crossings": 0.5})
    assert refused(answer, 422) == str(raised.value)
    assert "Nearest features: #" in answer.json()["error"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"query": " "}, "the question is empty"),
        ({"query": "x", "edits": [{"name": "#1", "strength": 11}]}, "expected at most 10 in size"),
        ({"query": "x", "edits": [{"name": "#1"}, {"name": "#1"}]}, "is there twice"),
        ({"query": "x", "k": 0}, "state.k"),
        ({"query": "x", "drift_cap": 2}, "drift_cap is 2"),
        ({"query": "x", "spcae": "latent"}, "state.spcae"),
        ({"query": "x" * 4001}, "state.query"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(state: dict[str, Any], said: str, client: TestClient) -> None:
    assert said in refused(client.post("/api/search", json={"state": state}), 422)


def test_of_one_page_only_the_newest_turn_is_worked_on(client: TestClient, frequent: list[int]) -> None:
    state = {"query": QUESTION, "edits": [{"name": f"#{frequent[0]}"}]}
    assert "results" in searched(client, state, page="a", turn=5)
    assert set(searched(client, state, page="a", turn=4)) == {"superseded"}
    assert "results" in searched(client, state, page="b", turn=1)
    turns = LatestRequest()
    turns.take("a", 2)
    turns.take("a", 1)
    assert [turns.is_newest("a", turn) for turn in (1, 2)] == [False, True]
    assert turns.is_newest("unknown", 1)


# -- links, code, policies --------------------------------------------------------------------------------------------


def test_a_link_holds_the_whole_state() -> None:
    state = WorkbenchState(
        query="straße & 東京? 🦆",
        edits=(
            EditState(name="#12", strength=-0.35, side="query"),
            EditState(name="jobs, pay", op="suppress", on=False),
            EditState(name="x", op="scale", strength=2.0, when="#3", above=0.25),
        ),
        k=25,
        space="latent",
        fetch_k=400,
        drift_cap=0.6,
    )
    assert WorkbenchState.from_fragment(state.fragment()) == state
    assert WorkbenchState.from_fragment("#" + WorkbenchState().fragment()) == WorkbenchState()
    assert re.fullmatch(r"b1\.[A-Za-z0-9_-]+", state.fragment())
    for damaged in ("", "b1.", "b1.%%%", "b9.e30", "b1.eyJrIjogMH0", state.fragment()[:-9]):
        with pytest.raises(SteeringError, match="holds no state"):
            WorkbenchState.from_fragment(damaged)


def test_rows_are_the_steering_that_python_would_resolve(retriever: SteeredRetriever, frequent: list[int]) -> None:
    first, second, third = frequent
    steer = {
        f"#{first}": Add(0.5, "document").when(f"#{second}", above=0.1),
        f"#{second}": Scale(0.5),
        f"#{third}": Suppress(),
    }
    from sae_steer_retriever.explorer.workbench_state import edits_of, rows_of

    state = WorkbenchState(edits=tuple(edits_of(steer)))
    steering = state.steering(retriever)
    assert steering == retriever.resolve(steer)
    assert WorkbenchState(edits=tuple(rows_of(steering, retriever.resolve_name))).steering(retriever) == steering
    # A policy whose names mean other features by now still means the features that it was saved with.
    moved = Steering.from_json(steering.to_json().replace(f'"name": "#{third}"', '"name": "gone by now"'))
    kept = WorkbenchState(edits=tuple(rows_of(moved, retriever.resolve_name))).steering(retriever)
    assert set(kept.edits) == set(moved.edits)
    lost = Steering.from_json(steering.to_json().replace(f'"name": "#{second}"', '"name": "gone by now"'))
    with pytest.raises(SteeringError, match="has a condition"):
        rows_of(lost, retriever.resolve_name)
    assert isinstance(state.edits[0].operation, When)


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
def test_copied_python_runs_as_it_is_and_finds_the_same(
    framework: str, world: World, filled_folder: Path, frequent: list[int], client: TestClient, tmp_path: Path
) -> None:
    pytest.importorskip("langchain_core" if framework == "langchain" else "llama_index.core")
    edits = [
        {"name": f"#{frequent[0]}", "strength": 0.8, "side": "document"},
        {"name": f"#{frequent[1]}", "strength": -0.5, "when": f"#{frequent[2]}", "above": 0.0},
    ]
    state = {"query": 'a "quoted" question\nover two lines', "edits": edits, "k": 3, "fetch_k": 60}
    code = client.post("/api/code", json={"state": state, "framework": framework}).json()["code"]
    script = tmp_path / "copied.py"
    script.write_text(code, encoding="utf-8")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, code + ran.stderr
    shown = searched(client, state)["results"]["hits"]
    assert ran.stdout.splitlines() == [f"{hit['score']:.3f} {hit['id']}" for hit in shown]


def test_a_policy_is_saved_and_read_as_the_command_line_does(
    client: TestClient, retriever: SteeredRetriever, frequent: list[int], tmp_path: Path
) -> None:
    state = {"query": "x", "edits": [{"name": f"#{frequent[0]}", "strength": 0.3}], "drift_cap": 0.7}
    policy = client.post("/api/policy", json={"state": state}).json()["policy"]
    (tmp_path / "policy.json").write_text(policy, encoding="utf-8")
    saved = Steering.load(tmp_path / "policy.json")
    assert saved == retriever.resolve({f"#{frequent[0]}": 0.3}, drift_cap=0.7)
    read = client.post("/api/policy/read", json={"policy": policy}).json()
    assert WorkbenchState.model_validate(read).steering(retriever) == saved
    foreign = policy.replace(saved.fingerprint, "0" * len(saved.fingerprint))
    assert "made for SAE" in refused(client.post("/api/policy/read", json={"policy": foreign}), 422)
    assert "not a steering policy" in refused(client.post("/api/policy/read", json={"policy": "[]"}), 422)


def test_what_lifts_a_passage_is_what_the_counterfactual_says(client: TestClient, retriever: SteeredRetriever) -> None:
    target = retriever.search(QUESTION, k=3)[2]
    found = client.post("/api/lift", json={"state": {"query": QUESTION}, "id": target.id}).json()
    expected = retriever.counterfactual(QUESTION, target.id)
    assert found["sentence"] == str(expected)
    lifted = searched(client, {"query": QUESTION, "edits": found["edits"]})["results"]["hits"]
    assert lifted[0]["id"] == target.id


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_are_listed_found_and_shown(client: TestClient, world: World, retriever: SteeredRetriever) -> None:
    listed = client.get("/api/features", params={"limit": 5}).json()
    frequencies = [feature["frequency"] for feature in listed["features"]]
    assert frequencies == sorted(frequencies, reverse=True)
    assert listed["count"] == int((world.catalog.calibration.count > 0).sum())
    label = world.catalog.labelled[0].keywords[0]
    found = client.get("/api/features", params={"search": label, "limit": 5}).json()["features"]
    expected = world.catalog.search(label, concept=retriever.concept(label), limit=5, include_hubs=True)
    assert [feature["id"] for feature in found] == [feature.id for feature in expected]
    page = client.get(f"/api/features/{listed['features'][0]['id']}").json()
    count = int(world.catalog.calibration.count[page["id"]])
    assert page["active_in"] == count == page["here"]["count"] == sum(page["here"]["counts"])
    assert "AUROC" in page["score_meaning"] or page["score_meaning"].startswith("-")
    strengths = [passage["strength"] for passage in page["lists"]["top"]]
    assert strengths == sorted(strengths, reverse=True)
    assert page["lists"]["top"][0]["text"] == world.texts[world.ids.index(page["lists"]["top"][0]["id"])]
    assert page["zipf"]["rank"] == 1
    assert page["nearest"]
    assert client.get("/features/0").status_code == 200
    assert "unknown feature #64" in refused(client.get("/api/features/64"), 422)


def test_the_words_that_carry_a_feature_are_words_of_its_passages(client: TestClient) -> None:
    feature = client.get("/api/features", params={"limit": 1}).json()["features"][0]["id"]
    top = client.get(f"/api/features/{feature}").json()["lists"]["top"][:2]
    read = client.post(f"/api/features/{feature}/words", json={"passages": [one["id"] for one in top]}).json()
    for passage in top:
        found = read["passages"][passage["id"]]
        assert len(found["spans"]) == len(found["values"]) > 0
        assert all(passage["text"][start:end].strip() for start, end in found["spans"])
        assert found["match"] == pytest.approx(passage["strength"], abs=1e-3)


def test_a_trie_is_grown_from_the_collection_when_asked_for(client: TestClient, world: World) -> None:
    feature = client.get("/api/features", params={"limit": 1}).json()["features"][0]["id"]
    top = [passage["id"] for passage in client.get(f"/api/features/{feature}").json()["lists"]["top"]]
    grown = client.post(f"/api/features/{feature}/trie", json={}).json()
    assert grown["passages"] == min(PASSAGES, int(world.catalog.calibration.count[feature]))
    words = " ".join(world.texts[world.ids.index(name)].casefold() for name in top)
    peaks = [line.split()[0] for line in grown["text"].splitlines() if not line.startswith(" ")]
    assert peaks
    assert any(peak in words for peak in peaks)


def test_a_name_given_on_the_page_is_kept_with_the_sae(world: World, filled_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(filled_folder / "sae", tmp_path / "sae")
    catalog = FeatureCatalog.load(tmp_path / "sae", world.sae.fingerprint)
    store = ChromaStore.open(world.sae, path=filled_folder / "chroma")
    client = TestClient(create_app(SteeredRetriever(store, world.embedder, catalog)), base_url=HERE)
    named = client.post("/api/features/3/name", json={"label": "  concurrent   things ", "note": "mine"}).json()
    assert (named["name"], named["by"]) == ("concurrent things", "person")
    again = FeatureCatalog.load(tmp_path / "sae", world.sae.fingerprint)
    assert again[3].label == "concurrent things"
    assert again.annotations.names[3].note == "mine"
    state = {"query": QUESTION, "edits": [{"name": "Concurrent Things"}]}
    assert searched(client, state)["results"]["edits"][0]["features"][0]["id"] == 3
    assert "reads as the id" in refused(client.post("/api/features/3/name", json={"label": "#7"}), 422)
    back = client.post("/api/features/3/name", json={"label": None}).json()
    assert back["name"] == world.catalog.name(3)
    assert FeatureCatalog.load(tmp_path / "sae", world.sae.fingerprint)[3].label == world.catalog[3].label


def test_the_map_is_laid_out_once_and_kept(world: World, client: TestClient) -> None:
    plane = FeatureMap(world.sae, world.catalog)
    first = plane.layout()
    final = plane.wait()
    live = int((world.catalog.calibration.count > 0).sum())
    assert first.positions.shape == final.positions.shape == (live, 2)
    assert final.progress == 1.0
    assert (final.positions >= 0).all()
    assert (final.positions <= 1).all()
    assert np.array_equal(FeatureMap(world.sae, world.catalog).layout().positions, final.positions)
    # What is near in the dictionary is near on the map.
    directions = world.sae.decoder[final.features]
    cosines = directions @ directions.T - 2 * np.eye(live)
    away = np.linalg.norm(final.positions[:, None] - final.positions[None], axis=2)
    nearest = np.mean([away[row, cosines[row].argmax()] for row in range(live)])
    assert nearest < 0.5 * away[~np.eye(live, dtype=bool)].mean()
    shown = client.get("/api/map").json()
    assert shown["ids"] == final.features.tolist()
    assert len(shown["x"]) == len(shown["names"]) == live
    plane.path.write_bytes(b"damaged")
    assert FeatureMap(world.sae, world.catalog).layout().progress < 1.0


# -- compare ----------------------------------------------------------------------------------------------------------


def test_this_not_that_is_the_contrast(client: TestClient, retriever: SteeredRetriever) -> None:
    positive, negative = ["Start a new thread of control.", "Threads share memory."], ["A month of the calendar."]
    found = client.post("/api/contrast", json={"positive": positive, "negative": negative}).json()
    expected = retriever.contrast(positive, negative)
    assert found["steer"] == expected.steer
    assert WorkbenchState(edits=found["edits"]).steering(retriever) == expected.steering


def test_judged_hits_are_the_feedback(client: TestClient, retriever: SteeredRetriever) -> None:
    hits = [hit.id for hit in retriever.search(QUESTION, k=10)]
    asked = {"query": QUESTION, "positive": [hits[4]], "negative": hits[:2]}
    found = client.post("/api/autosteer", json=asked).json()
    expected = retriever.autosteer([hits[4]], hits[:2], query=QUESTION)
    assert found["steer"] == expected.steer
    assert found["ranks_after"] == list(expected.ranks_after)
    assert "not in collection" in refused(client.post("/api/autosteer", json={"positive": ["nowhere"]}), 503)


# -- who may ask ------------------------------------------------------------------------------------------------------


def test_another_name_for_this_address_is_refused(retriever: SteeredRetriever) -> None:
    app = create_app(retriever, hosts=["explorer.lan"])
    for host in ("127.0.0.1:9", "localhost", "[::1]:8765", "LOCALHOST:1", "explorer.lan:80"):
        assert TestClient(app, base_url=HERE).get("/", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost:80@evil.example", "", "[::1"):
        answer = TestClient(app, base_url=HERE).get("/api/about", headers={"host": host})
        assert "not known by that name" in refused(answer, 421)


def test_another_site_and_a_form_are_refused(client: TestClient) -> None:
    body = {"state": {"query": QUESTION}}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert "another site" in refused(client.post("/api/search", json=body, headers=headers), 403)
    assert client.post("/api/search", json=body, headers={"origin": HERE}).status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post("/api/search", content=json.dumps(body), headers={"content-type": kind})
        assert "expected JSON" in refused(answer, 415)


def test_a_request_that_is_too_large_is_refused_whatever_its_header_says(client: TestClient) -> None:
    huge = json.dumps({"policy": "x" * LARGEST_BODY})
    kind = {"content-type": "application/json"}
    assert "too large" in refused(client.post("/api/policy/read", content=huge, headers=kind), 413)
    parts = (huge[start : start + 60_000].encode() for start in range(0, len(huge), 60_000))
    assert "too large" in refused(client.post("/api/policy/read", content=parts, headers=kind), 413)


def test_a_token_is_asked_for_once_and_kept_in_a_cookie(retriever: SteeredRetriever) -> None:
    app = create_app(retriever, token="secret-token")
    stranger = TestClient(app, base_url="http://192.0.2.7:8765")
    for path in ("/", "/api/about", "/static/bench.js", "/?token=wrong"):
        assert "needs its token" in refused(stranger.get(path), 401)
    answer = stranger.get("/features?token=secret-token&search=x", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/features?search=x")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert stranger.cookies[COOKIE] == "secret-token"
    assert stranger.get("/api/about").status_code == 200
    bearer = {"authorization": "Bearer secret-token"}
    assert TestClient(app, base_url="http://192.0.2.7").get("/api/about", headers=bearer).status_code == 200
    away = TestClient(app, base_url=HERE).get("//evil.example/?token=secret-token", follow_redirects=False)
    assert not away.headers.get("location", "").startswith("//")


def test_only_this_machine_needs_no_token(retriever: SteeredRetriever) -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.8.8.8")] == [True] * 5
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""))  # noqa: S104
    open_to_all = Explorer(retriever, host="0.0.0.0")  # noqa: S104
    try:
        assert open_to_all.token is not None
        assert len(open_to_all.token) >= 32
        assert open_to_all.url.endswith(f"?token={open_to_all.token}")
    finally:
        open_to_all.close()


def test_a_hostile_passage_is_text_and_nothing_else(
    world: World, world_embedder: CachedEmbedder, tmp_path: Path
) -> None:
    store = ChromaStore.open(world.sae, path=tmp_path / "chroma")
    ids = ["plain", "<b>bold</b>", "huge"]
    store.add(ids, ["a thread", HOSTILE, "thread " * 60_000], [{"a": HOSTILE}] * 3, embedder=world_embedder)
    client = TestClient(create_app(SteeredRetriever(store, world.embedder, world.catalog)), base_url=HERE)
    answer = client.post("/api/search", json={"state": {"query": "a thread"}})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert answer.headers["x-content-type-options"] == "nosniff"
    found = {hit["id"]: hit for hit in json.loads(answer.text.splitlines()[0])["hits"]}
    assert found["<b>bold</b>"]["text"] == HOSTILE
    assert (found["huge"]["cut"], found["huge"]["characters"]) == (True, 420_000)
    assert len(answer.text) < 100_000
    whole = client.post("/api/passage", json={"id": "huge"}).json()
    assert (len(whole["text"]), whole["cut"]) == (200_000, True)
    assert "no passage" in refused(client.post("/api/passage", json={"id": "../../etc/passwd"}), 422)


def test_the_page_loads_nothing_from_elsewhere_and_writes_no_markup(client: TestClient) -> None:
    for path in ("/", "/features", "/features/0", "/map", "/compare"):
        answer = client.get(path)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert re.search(r"<script(?! type=\"module\" src=\"/static/)", answer.text) is None
        assert re.search(r"\son\w+=|\sstyle=", answer.text) is None
        for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text):
            assert client.get(name).status_code == 200, name
    for item in (files("sae_steer_retriever.explorer") / "static").iterdir():
        text = item.read_text(encoding="utf-8")
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], item.name
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text) == [], item.name
        for name in re.findall(r'from "(/static/[^"]+)"', text):
            assert client.get(name).status_code == 200, name
    for path in ("/static/../server.py", "/static/%2e%2e%2fserver.py", "/static/nothing.js", "/docs", "/features/x"):
        assert client.get(path).status_code in (404, 422), path


# -- running ----------------------------------------------------------------------------------------------------------


def test_a_notebook_gets_a_running_page_and_can_close_it(retriever: SteeredRetriever, frequent: list[int]) -> None:
    with explore(retriever) as explorer:
        with urllib.request.urlopen(explorer.url, timeout=30) as answer:
            assert b"Steering workbench" in answer.read()
        link = explorer.link(QUESTION, {f"#{frequent[0]}": 0.5})
        state = WorkbenchState.from_fragment(link.partition("#")[2])
        assert (state.query, state.edits[0].name) == (QUESTION, f"#{frequent[0]}")
        assert explorer.url in explorer._repr_html_()
        with pytest.raises(SAESteerError, match="cannot listen on"):
            Explorer(retriever, port=explorer.port)
    with pytest.raises(OSError, match=r"."):
        urllib.request.urlopen(explorer.url, timeout=5)


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
def test_an_adapter_opens_the_page_with_its_own_settings(
    framework: str, retriever: SteeredRetriever, frequent: list[int]
) -> None:
    pytest.importorskip("langchain_core" if framework == "langchain" else "llama_index.core")
    module = importlib.import_module(f"sae_steer_retriever.integrations.{framework}")
    count = "k" if framework == "langchain" else "similarity_top_k"
    options = {count: 7, "steer": {f"#{frequent[0]}": 0.6}, "space": "latent", "fetch_k": 90}
    adapter = module.SAESteeredRetriever(retriever=retriever, **options)
    with explore(adapter, "a thread") as explorer, urllib.request.urlopen(f"{explorer.url}api/about") as answer:
        start = WorkbenchState.model_validate(json.loads(answer.read())["start"])
    assert (start.query, start.k, start.space, start.fetch_k) == ("a thread", 7, "latent", 90)
    assert start.steering(retriever) == retriever.resolve({f"#{frequent[0]}": 0.6}, space="latent")


def test_only_what_has_a_retriever_can_be_explored() -> None:
    with pytest.raises(TypeError, match="cannot explore a list: expected a SteeredRetriever"):
        explore([])  # type: ignore[arg-type]


def test_the_extra_is_loaded_when_it_is_needed_and_named_when_it_is_missing() -> None:
    script = """
import sys
import sae_steer_retriever.explorer as package
assert "fastapi" not in sys.modules
sys.modules["fastapi"] = None
from sae_steer_retriever.errors import MissingExtraError
try:
    package.explore
except MissingExtraError as error:
    assert error.extra == "explorer"
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "the explorer needs an optional dependency" in ran.stdout


def test_the_command_says_what_is_missing(sae_steer: Run, tmp_path: Path, filled_folder: Path) -> None:
    ran = sae_steer("explore", "--store", tmp_path)
    assert (ran.code, "no store in" in ran.error) == (2, True)
    ran = sae_steer("explore", "--store", filled_folder / "chroma", "--policy", tmp_path / "nowhere.json")
    assert (ran.code, "no such file" in ran.error) == (2, True)
    assert sae_steer("explore", "--port", "70000").code == 2
