"""Policies: steerings that are kept, laid under what a call asks for, and made only for some queries."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from exact_match import exact_match
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_world import World
from toy import N, ToyEmbedder, catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import ArtifactError, MismatchError, SteeringError, UnknownFeatureError
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.reranker import Reranker
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH, Add, AddRaw, Clamp, Scale, Suppress, When
from sae_steer_retriever.steering.policy import USEFUL_STRENGTH, Steering, compose, parse, resolve

SAE = random_sae(3)
PASSAGES = unit_rows(4, 300)
CATALOG = catalog_for(SAE, PASSAGES)
UNIT = CATALOG.calibration.unit
ALIVE = np.nonzero(CATALOG.calibration.count)[0].tolist()
FAMILIES = {
    "one": Resolution((5,), (1.0,), "label"),
    "two": Resolution((7, 9), (1.0, 0.5), "keyword"),
    "three": Resolution((9, 11, 5), (1.0, 0.8, 0.25), "meaning"),
    "also two": Resolution((9, 7), (1.0, 0.5), "keyword"),
}
STRENGTHS = st.floats(-LARGEST_STRENGTH, LARGEST_STRENGTH).filter(lambda value: abs(value) > 1e-3)
NAMES = st.sampled_from([*FAMILIES, 0, 5, 31])
OPERATIONS = st.one_of(
    STRENGTHS.map(Add),
    st.builds(Add, STRENGTHS, st.sampled_from(["query", "document", "both"])),
    STRENGTHS.map(Clamp),
    STRENGTHS.map(AddRaw),
    STRENGTHS.map(Scale),
    st.just(Suppress()),
)
CONDITIONAL = st.builds(When, NAMES, st.floats(0, 0.99), st.one_of(OPERATIONS, STRENGTHS))
STEERS = st.dictionaries(NAMES, st.one_of(OPERATIONS, CONDITIONAL), max_size=4)


def resolver(name: str | int) -> Resolution:
    return FAMILIES[name] if isinstance(name, str) else Resolution((name,), (1.0,), "id")


def steering(steer: dict[Any, Any], *, removals: bool = False, **options: Any) -> Steering:
    return resolve(parse(steer, removals=removals), resolver, fingerprint=SAE.fingerprint, **options)


def asked(policy: Steering) -> dict[str, str]:
    return {edit.name: edit.asked for edit in policy.edits}


# -- what depends on the query ----------------------------------------------------------------------------------------


def test_when_is_said_in_two_ways() -> None:
    one = steering({"one": Add(0.5).when("two", above=0.3)})
    assert one == steering({"one": When("two", above=0.3, then=0.5)})
    (edit,) = one.edits
    assert edit.condition is not None
    assert (edit.condition.features, edit.condition.weights, edit.condition.above) == ((7, 9), (1.0, 0.5), 0.3)
    assert str(edit.condition) == "when two > 0.3"
    assert asked(steering({"one": Suppress().when(" two ", above=0)})) == {"one": "suppress"}


@pytest.mark.parametrize("above", [1, 1.5, -0.1, float("nan"), "0.3", None, True])
def test_a_threshold_that_no_query_or_every_query_meets_is_refused(above: Any) -> None:
    with pytest.raises(SteeringError, match="condition of 'one' asks for more than .* of 'two': expected a number"):
        parse({"one": Add(0.5).when("two", above=above)})


@pytest.mark.parametrize("given", [When("two", 0.3, "much"), When("two", 0.3, When("one", 0.3, 1.0)), When("", 0.3, 1)])  # type: ignore[arg-type]
def test_a_condition_that_makes_no_sense_is_refused(given: Any) -> None:
    with pytest.raises(SteeringError, match="expected a number such as|named by text"):
        parse({"one": given})


@settings(max_examples=100, deadline=None)
@given(row=st.integers(0, 299), name=NAMES, above=st.floats(0, 0.99), strength=STRENGTHS)
def test_an_edit_is_made_if_and_only_if_the_query_has_more_than_asked(
    row: int, name: Any, above: float, strength: float
) -> None:
    names = SAE.encode(PASSAGES[row][None]).truncate(SAE.config.k_labels)
    own = np.zeros(N)
    own[names.indices[0]] = names.values[0]
    meant = resolver(name)
    share = sum(w * min(1.0, own[f] / UNIT[f]) for f, w in zip(meant.features, meant.weights, strict=True))
    assume(abs(min(1.0, share) - above) > 1e-6)
    policy = steering({"one": strength, "two": Add(strength).when(name, above=above)})
    left = policy.for_query(names, UNIT)
    assert [edit.name for edit in left.edits] == (["one", "two"] if min(1.0, share) > above else ["one"])
    assert (left.fingerprint, left.drift_cap) == (policy.fingerprint, policy.drift_cap)


# -- kept -------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(steer=STEERS, cap=st.floats(0.01, 1.0))
def test_a_policy_survives_json_with_its_conditions(steer: dict[Any, Any], cap: float) -> None:
    policy = steering(steer, drift_cap=cap)
    assert Steering.from_json(policy.to_json()) == policy
    assert hash(policy) == hash(Steering.from_json(policy.to_json()))


def test_policies_of_the_first_format_are_read_and_still_written_where_they_suffice() -> None:
    first = (
        '{"format_version": 1, "edits": [{"name": "one", "features": [5], "weights": [1.0], "op": "add", '
        '"strength": 0.5, "side": "document"}], "fingerprint": "ours", "drift_cap": 0.8}'
    ).replace("ours", SAE.fingerprint)
    assert Steering.from_json(first) == steering({"one": 0.5}, side="document")
    assert json.loads(steering({"one": 0.5}, side="document").to_json()) == json.loads(first)
    assert json.loads(steering({"one": Add(0.5).when("two", above=0.3)}).to_json())["format_version"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"above": 1.0}, {"above": "0.3"}, {"above": None}, {"name": 5}, {"features": []}, {"features": [7]},
        {"weights": [1.0, 3.0]}, {"below": 1}, {"features": [-1, 9]},
    ],
)  # fmt: skip
def test_a_damaged_condition_is_refused_in_one_line(change: dict[str, Any]) -> None:
    body = json.loads(steering({"one": Add(0.5).when("two", above=0.3)}).to_json())
    damaged: tuple[Any, ...] = ({**body["edits"][0]["condition"], **change}, "often", [], 0.3)
    for condition in damaged:
        body["edits"][0]["condition"] = condition
        with pytest.raises(SteeringError) as caught:
            Steering.from_json(json.dumps(body))
        assert "\n" not in str(caught.value)


def test_a_policy_is_a_file(tmp_path: Path) -> None:
    policy = steering({"one": 0.5, "two": Suppress().when("one", above=0)}, drift_cap=0.9)
    policy.save(tmp_path / "new" / "café.json")
    assert Steering.load(str(tmp_path / "new" / "café.json")) == policy
    with pytest.raises(ArtifactError, match="cannot read the policy .*nowhere.json.*Steering.save"):
        Steering.load(tmp_path / "nowhere.json")
    (tmp_path / "other.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(SteeringError, match="other.json"):
        Steering.load(tmp_path / "other.json")
    (tmp_path / "a file").write_text("")
    with pytest.raises(ArtifactError, match="cannot save"):
        policy.save(tmp_path / "a file" / "policy.json")


# -- composed ---------------------------------------------------------------------------------------------------------


def test_a_call_overrides_removes_and_adds() -> None:
    default = steering({"one": 0.5, "two": Suppress(), 31: Scale(2.0)})
    over = compose(default, steering({"one": -1.0, 31: 0, 0: 0.2}, removals=True))
    assert asked(over) == {"one": "-1", "two": "suppress", "#0": "+0.2"}
    assert asked(default) == {"one": "+0.5", "two": "suppress", "#31": "scale:2"}, "the default is as it was"
    by_features = compose(default, steering({"also two": 0.3, 5: 1.0}))
    assert asked(by_features) == {"#31": "scale:2", "also two": "+0.3", "#5": "+1"}


@settings(max_examples=100, deadline=None)
@given(default=STEERS, call=STEERS, caps=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)))
def test_composing_is_what_it_says(default: dict[Any, Any], call: dict[Any, Any], caps: tuple[float, float]) -> None:
    one, other = steering(default, drift_cap=caps[0]), steering(call, drift_cap=caps[1])
    over = compose(one, other)
    assert over.drift_cap == max(caps)
    assert set(other.edits) <= set(over.edits)
    features = {frozenset(edit.features) for edit in other.edits}
    assert set(over.edits) - set(other.edits) == {
        edit for edit in one.edits if edit.name not in asked(other) and frozenset(edit.features) not in features
    } - set(other.edits)
    assert compose(over, other) == over
    assert compose(one, steering({}, drift_cap=caps[0])).edits == one.edits
    assert compose(over, steering(dict.fromkeys([*default, *call], 0.0), removals=True)).edits == ()


def test_policies_of_two_saes_are_not_composed() -> None:
    foreign = dataclasses.replace(steering({"one": 1}), fingerprint="0" * 16)
    for pair in ((foreign, steering({"two": 1})), (steering({"two": 1}), foreign)):
        with pytest.raises(MismatchError, match="0000"):
            compose(*pair)


# -- the useful range -------------------------------------------------------------------------------------------------


def test_a_strength_past_the_useful_range_is_warned_of_once_a_call(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        steering({"one": USEFUL_STRENGTH, "two": -USEFUL_STRENGTH, 0: Clamp(9.0)})
        assert not caplog.records
        steering({"one": USEFUL_STRENGTH + 0.5, "two": Add(-5.0).when("one", above=0.1), 0: 0.3})
    (record,) = caplog.records
    assert f"'one' +{USEFUL_STRENGTH + 0.5:g}, 'two' -5" in record.getMessage()
    assert "useful range" in record.getMessage()


# -- what they do to scores -------------------------------------------------------------------------------------------

EMBEDDER = ToyEmbedder()
RERANKER = Reranker(SAE, EMBEDDER, CATALOG)
TEXTS = [f"text {row}" for row in range(60)]


def scores(steer: Any, row: int, reranker: Reranker = RERANKER) -> dict[int, float]:
    """Scores under a steering, by position; plain ones if it changes nothing."""
    q, vectors = unit_rows(8, 20)[row], PASSAGES[:60]
    ranking = reranker.rerank("a query", TEXTS, steer, embedding=q, vectors=list(vectors), explain=False)
    if ranking is None:
        return dict(enumerate((vectors @ q).tolist()))
    return {place.position: place.score for place in ranking}


@settings(max_examples=30, deadline=None)
@given(row=st.integers(0, 19), feature=st.sampled_from(ALIVE), low=STRENGTHS, high=STRENGTHS)
def test_the_score_of_a_passage_that_has_a_feature_rises_with_its_strength(
    row: int, feature: int, low: float, high: float
) -> None:
    assume(high - low > 1e-2)
    weak, strong = (scores({feature: Add(strength, "document")}, row) for strength in (low, high))
    unit = CATALOG.calibration.match_unit
    feature_match = exact_match(SAE, unit, [feature], [1.0], PASSAGES[:60])
    assert (feature_match > 1e-3).any()
    for position in range(60):
        assert strong[position] >= weak[position] - 1e-6
        if feature_match[position] > 1e-3:
            assert strong[position] > weak[position]


@settings(max_examples=30, deadline=None)
@given(row=st.integers(0, 19), steer=st.dictionaries(NAMES, OPERATIONS, min_size=2, max_size=4))
def test_edits_commute(row: int, steer: dict[Any, Any]) -> None:
    one, other = scores(steering(steer), row), scores(steering(dict(reversed(steer.items()))), row)
    assert one.keys() == other.keys()
    assert [one[key] for key in sorted(one)] == pytest.approx([other[key] for key in sorted(one)], abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(row=st.integers(0, 19), name=NAMES)
def test_zero_strength_is_no_steering_also_from_a_stored_policy(row: int, name: Any) -> None:
    zero = steering({name: 0.0}, removals=True)
    assert len(zero.edits) == 1
    plain = scores(None, row)
    assert scores(Steering.from_json(zero.to_json()), row) == plain
    assert scores({5: 0.0}, row) == plain


def test_a_condition_decides_for_each_query() -> None:
    queries = unit_rows(8, 20)
    names = SAE.encode(queries).truncate(SAE.config.k_labels)
    feature = int(names.indices[0, 0])
    has = ((names.indices == feature) & (names.values > 0)).any(axis=1)
    assert 0 < has.sum() < 20
    for row in range(20):
        conditional = scores({31: Add(1.0).when(feature, above=0)}, row)
        assert conditional == scores({31: 1.0} if has[row] else None, row)


def test_a_reranker_lays_calls_over_its_default() -> None:
    default = Reranker(SAE, EMBEDDER, CATALOG, steering={5: 1.0, 7: 0.5})
    assert scores(None, 0, default) == scores({5: 1.0, 7: 0.5}, 0)
    assert scores({7: 0}, 0, default) == scores({5: 1.0}, 0)
    assert scores({}, 0, default) == scores(None, 0)


# -- over a store -----------------------------------------------------------------------------------------------------

QUERY = "wait for something"


def found(retriever: SteeredRetriever, steer: Any = None, **options: Any) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in retriever.search(QUERY, k=8, steer=steer, explain=False, **options)]


def test_a_default_holds_for_every_call_that_says_nothing_else(retriever: SteeredRetriever, tmp_path: Path) -> None:
    assert retriever.steering is None
    tenant = retriever.with_steering({"thread": 0.7, "#3": -0.4})
    both = {"thread": 0.7, "#3": -0.4}
    assert found(tenant) == found(retriever, both)
    assert found(tenant, {"#3": 0}) == found(retriever, {"thread": 0.7})
    assert found(tenant, {"thread": -1.0, "#5": 0.3}) == found(retriever, {"thread": -1.0, "#3": -0.4, "#5": 0.3})
    assert found(tenant, {}) == found(retriever)
    whole = retriever.resolve({"#5": 0.3})
    assert found(tenant, whole) == found(retriever, {"#5": 0.3}), "a resolved steering is taken as it is"
    assert found(tenant.with_steering(None)) == found(retriever)
    assert tenant.steering is not None
    tenant.steering.save(tmp_path / "tenant.json")
    assert found(retriever.with_steering(Steering.load(tmp_path / "tenant.json"))) == found(tenant)
    hit = tenant.search(QUERY, k=1)[0]
    assert tenant.explain(QUERY, hit.id).rank == 1


def test_an_unusable_default_is_refused_when_it_is_set(retriever: SteeredRetriever) -> None:
    with pytest.raises(UnknownFeatureError):
        retriever.with_steering({"thraed": 1.0})
    foreign = dataclasses.replace(retriever.resolve({"thread": 1.0}), fingerprint="0" * 16)
    with pytest.raises(MismatchError, match="0000"):
        retriever.with_steering(foreign)
    with pytest.raises(MismatchError, match="0000"):
        retriever.search(QUERY, steer=foreign)


@pytest.mark.parametrize("space", ["original", "reconstructed", "latent"])
def test_a_failed_condition_is_the_plain_search_in_every_space(
    retriever: SteeredRetriever, world: World, space: Any
) -> None:
    q = retriever.embedder.embed_queries([QUERY])
    names = retriever.sae.encode(q).truncate(retriever.sae.config.k_labels)
    own = int(names.indices[0, 0])
    absent = next(f for f in range(64) if f not in names.indices[0].tolist())
    plain = found(retriever, space=space)
    assert found(retriever, {"thread": Add(1.0).when(absent, above=0)}, space=space) == plain
    met = found(retriever, {"thread": Add(1.0).when(own, above=0)}, space=space)
    assert met == found(retriever, {"thread": 1.0}, space=space) != plain
    steering = retriever.resolve({"thread": Add(1.0).when(absent, above=0), "#5": 0.2})
    assert [edit.name for edit in retriever.active_edits(steering, QUERY).edits] == ["#5"]


# -- in the frameworks ------------------------------------------------------------------------------------------------


def test_langchain_and_llama_index_lay_their_steerings_over_the_default(retriever: SteeredRetriever) -> None:
    langchain = pytest.importorskip("sae_steer_retriever.integrations.langchain")
    llama_index = pytest.importorskip("sae_steer_retriever.integrations.llama_index")
    tenant = retriever.with_steering({"thread": 0.7, "#3": -0.4})

    def ids(steer: Any) -> list[str]:
        return [hit.id for hit in retriever.search(QUERY, steer=steer)]

    for field, call, expected in (
        (None, None, {"thread": 0.7, "#3": -0.4}),
        (None, {"thread": 0, "#5": 0.4}, {"#3": -0.4, "#5": 0.4}),
        ({"#5": 0.4}, None, {"thread": 0.7, "#3": -0.4, "#5": 0.4}),
        ({"#5": 0.4}, {"thread": -0.5}, {"thread": -0.5, "#3": -0.4}),
        ({"#5": 0.4}, {}, {}),
    ):
        documents = langchain.SAESteeredRetriever(retriever=tenant, steer=field).invoke(QUERY, steer=call)
        nodes = llama_index.SAESteeredRetriever(tenant, steer=field).retrieve(QUERY, steer=call)
        assert [document.id for document in documents] == [node.node_id for node in nodes] == ids(expected)
        applied = documents[0].metadata["sae"]["steer"]
        assert {edit["name"]: edit["strength"] for edit in applied} == expected
    conditional = {"thread": Add(0.5).when("#3", above=0.2)}
    (document, *_) = langchain.SAESteeredRetriever(retriever=retriever, steer=conditional).invoke(QUERY)
    assert document.metadata["sae"]["steer"][0]["condition"] == "when #3 > 0.2"


# -- on the command line ----------------------------------------------------------------------------------------------


def test_search_saves_and_reads_policies(sae_steer: Run, filled_folder: Path, tmp_path: Path) -> None:
    search = ("search", QUERY, "--store", filled_folder / "chroma", "--json")
    saved, both = tmp_path / "mine.json", tmp_path / "both.json"
    first = sae_steer(*search, "--steer", "thread=+0.7", "--steer", "#3=-0.4", "--save-policy", saved).data
    assert asked(Steering.load(saved)) == {"thread": "+0.7", "#3": "-0.4"}
    assert sae_steer(*search, "--policy", saved).data == first
    over = sae_steer(*search, "--policy", saved, "--steer", "#3=0", "--steer", "#5=0.3", "--save-policy", both).data
    assert [edit["name"] for edit in over["steering"]] == ["thread", "#5"]
    assert asked(Steering.load(both)) == {"thread": "+0.7", "#5": "+0.3"}
    assert over["hits"] == sae_steer(*search, "--steer", "thread=0.7", "--steer", "#5=0.3").data["hits"]


def test_search_says_whether_a_condition_holds(
    sae_steer: Run, filled_folder: Path, retriever: SteeredRetriever
) -> None:
    search = ("search", QUERY, "--store", filled_folder / "chroma")
    names = retriever.sae.encode(retriever.embedder.embed_queries([QUERY])).truncate(4).indices[0].tolist()
    absent = next(feature for feature in range(64) if feature not in names)
    for feature, holds in ((names[0], True), (absent, False)):
        steer = ("--steer", f"thread=+0.7 when #{feature}>0")
        (edit,) = sae_steer(*search, *steer, "--json").data["steering"]
        assert edit["condition"] == {"name": f"#{feature}", "above": 0.0, "holds": holds}
        line = sae_steer(*search, *steer).out.splitlines()[0]
        assert line.startswith(f"steering thread +0.7 (both) when #{feature} > 0")
        assert ("which does not hold here" in line) is not holds
    plain = sae_steer(*search, "--json").data["hits"]
    assert sae_steer(*search, *steer, "--json").data["hits"] == plain


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--policy", "nowhere.json"], 2, "no such file; `sae-steer search --save-policy FILE` writes one"),
        (["--save-policy", "mine.json"], 2, "--save-policy has nothing to save"),
        (["--steer", "thread=0.5 when #3"], 2, "is no strength"),
        (["--steer", "thread=0.5 when #3>much"], 2, "is no strength"),
        (["--steer", "thread=0.5 when #3>2"], 2, "expected a number of units from 0"),
        (["--steer", "thread=0.5 when >0.2"], 2, "a feature is named by text or by its id"),
    ],
)
def test_unusable_policies_and_conditions_are_usage_errors(
    arguments: list[str], code: int, said: str, sae_steer: Run, filled_folder: Path
) -> None:
    ran = sae_steer("search", QUERY, "--store", filled_folder / "chroma", *arguments)
    assert ran.code == code
    assert said in ran.error


def test_another_saes_policy_is_refused(sae_steer: Run, filled_folder: Path, tmp_path: Path) -> None:
    steering({"one": 0.5}).save(tmp_path / "theirs.json")
    ran = sae_steer("search", QUERY, "--store", filled_folder / "chroma", "--policy", tmp_path / "theirs.json")
    assert ran.code == 1
    assert SAE.fingerprint in ran.error
    (tmp_path / "theirs.json").write_text("{}", encoding="utf-8")
    ran = sae_steer("search", QUERY, "--store", filled_folder / "chroma", "--policy", tmp_path / "theirs.json")
    assert ran.code == 1
    assert "theirs.json" in ran.error
