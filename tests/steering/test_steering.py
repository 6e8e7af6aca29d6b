"""Steering: what may be asked for, which features that means, and what it does to a query and to passages."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from exact_match import exact_match
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import N, catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import MismatchError, SteeringError
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.search.ranking import Scorer
from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH, Add, AddRaw, Clamp, Scale, Suppress
from sae_steer_retriever.steering.plan import DocumentBoost, Plan, cap_drift, plan
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering, parse, resolve

SAE = random_sae(3)
PASSAGES = unit_rows(4, 300)
CATALOG = catalog_for(SAE, PASSAGES)
UNIT, MATCH_UNIT = CATALOG.calibration.unit, CATALOG.calibration.match_unit
# Families of one to three features with falling weights, by name.
FAMILIES = {
    "one": Resolution((5,), (1.0,), "label"),
    "two": Resolution((7, 9), (1.0, 0.5), "keyword"),
    "three": Resolution((9, 11, 5), (1.0, 0.8, 0.25), "meaning"),
}


def resolver(name: str | int) -> Resolution:
    return FAMILIES[name] if isinstance(name, str) else Resolution((name,), (1.0,), "id")


def steering(steer: dict[Any, Any], **options: Any) -> Steering:
    return resolve(parse(steer), resolver, fingerprint=SAE.fingerprint, **options)


def planned(steer: dict[Any, Any], q: Array, **options: Any) -> Plan:
    return plan(steering(steer, **options), q, SAE.encode(q[None]), SAE, CATALOG.calibration)


def asked_shift(steer: dict[Any, Any], q: Array) -> np.ndarray:
    """The query shift before the drift cap."""
    plan_ = planned(steer, q, drift_cap=0.01)
    return plan_.total_shift(len(q)).astype(np.float64) / plan_.capped


def activations(q: Array) -> np.ndarray:
    codes, dense = SAE.encode(q[None]), np.zeros(N, dtype=np.float64)
    dense[codes.indices[0]] = codes.values[0]
    return dense


QUERIES = unit_rows(8, 20)
STRENGTHS = st.floats(-LARGEST_STRENGTH, LARGEST_STRENGTH).filter(lambda value: abs(value) > 1e-3)
NAMES = st.sampled_from([*FAMILIES, 0, 5, 31])
SIDES = st.sampled_from(["query", "document", "both"])


# -- what may be asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, {}, {"one": 0}, {"one": 0.0, "two": -0.0}, {"one": Add(0)}])
def test_no_strength_is_no_steering(nothing: Any) -> None:
    assert parse(nothing) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10.5, -11, 1e308])
def test_a_strength_that_is_no_reasonable_number_is_refused_whatever_the_operation(value: float) -> None:
    for operation in (value, Add(value), AddRaw(value), Clamp(value), Scale(value), np.float64(value)):
        with pytest.raises(SteeringError, match="'one' is .*expected"):
            parse({"one": operation})


@pytest.mark.parametrize("value", ["0.5", True, False, None, [0.5], {"a": 1}, 1j, Suppress])
def test_a_strength_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(SteeringError, match="'one' is .*expected a number such as"):
        parse({"one": value})
    with pytest.raises(SteeringError):
        parse({"one": Clamp(value)})


@pytest.mark.parametrize("name", ["", "   ", None, 1.5, True, ("one",), b"one"])
def test_a_name_that_names_nothing_is_refused(name: Any) -> None:
    with pytest.raises(SteeringError, match="named by text or by its id"):
        parse({name: 0.5})


@pytest.mark.parametrize("steer", ["employment", [("one", 0.5)], 0.5, {"one"}])
def test_a_steering_that_is_no_mapping_is_refused(steer: Any) -> None:
    with pytest.raises(SteeringError, match="steer must map feature names to strengths"):
        parse(steer)


def test_numbers_and_ids_of_numpy_are_numbers_and_ids() -> None:
    (request,) = parse({np.int32(5): np.float32(0.5)})
    assert (request.name, type(request.name)) == (5, int)
    assert json.loads(steering({np.int64(5): np.float64(0.5)}).to_json())["edits"][0]["features"] == [5]


def test_a_wrong_side_or_drift_cap_is_refused() -> None:
    with pytest.raises(SteeringError, match="side of 'one' is 'queri', expected one of query, document, both"):
        parse({"one": Add(0.5, side="queri")})  # type: ignore[arg-type]
    for cap in (0, -0.5, 1.01, math.nan, "0.8", True, None):
        with pytest.raises(SteeringError, match="drift_cap is"):
            steering({"one": 0.5}, drift_cap=cap)


def test_the_caller_keeps_the_mapping_as_it_was() -> None:
    steer = {" one ": 0.5, "two": 0}
    parse(steer)
    assert steer == {" one ": 0.5, "two": 0}


def test_an_edits_own_side_beats_the_calls_and_that_the_default() -> None:
    assert [edit.side for edit in steering({"one": 1}).edits] == ["both"]
    assert [edit.side for edit in steering({"one": 1}, side="document").edits] == ["document"]
    assert [edit.side for edit in steering({"one": Add(1, side="query")}, side="document").edits] == ["query"]


# -- policies ---------------------------------------------------------------------------------------------------------

OPERATIONS = st.one_of(
    STRENGTHS.map(Add),
    st.builds(Add, STRENGTHS, SIDES),
    STRENGTHS.map(Clamp),
    STRENGTHS.map(AddRaw),
    STRENGTHS.map(Scale),
    st.just(Suppress()),
)


@settings(max_examples=50, deadline=None)
@given(steer=st.dictionaries(NAMES, OPERATIONS, min_size=1), cap=st.floats(0.01, 1.0))
def test_a_policy_survives_json(steer: dict[Any, Any], cap: float) -> None:
    policy = steering(steer, drift_cap=cap)
    assert Steering.from_json(policy.to_json()) == policy
    assert hash(policy) == hash(Steering.from_json(policy.to_json()))


def test_another_saes_policy_is_refused_and_both_are_named() -> None:
    policy = steering({"one": 0.5})
    other = random_sae(99).fingerprint
    with pytest.raises(MismatchError) as caught:
        policy.require(other)
    assert other in str(caught.value)
    assert SAE.fingerprint in str(caught.value)


def altered(**changes: Any) -> str:
    body = json.loads(steering({"two": 0.5}).to_json())
    body["edits"][0].update({key: value for key, value in changes.items() if key in body["edits"][0]})
    body.update({key: value for key, value in changes.items() if key in body})
    return json.dumps(body)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "{}",
        "null",
        altered(format_version=3),
        altered(drift_cap=0),
        altered(drift_cap=None),
        altered(edits=[{}]),
        altered(edits=["x"]),
        altered(edits=None),
        altered(strength=math.nan),
        altered(strength="1"),
        altered(strength=100),
        altered(op="explode"),
        altered(side="left"),
        altered(features=[]),
        altered(features=[7]),
        altered(features=[7, -1]),
        altered(features=[7, 1.5]),
        altered(features="79"),
        altered(weights=[1.0, math.nan]),
        altered(weights=[1.0, 7.0]),
        altered(weights=["1", "1"]),
        altered(name=None),
    ],
)
def test_a_damaged_policy_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SteeringError) as caught:
        Steering.from_json(text)
    assert "\n" not in str(caught.value)


# -- what it does to a query ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(row=st.integers(0, 19), name=NAMES, strength=STRENGTHS)
def test_a_query_tilt_adds_as_many_spreads_per_unit_of_the_family_as_asked(
    row: int, name: Any, strength: float
) -> None:
    features, weights, _ = resolver(name)
    # A passage that has one unit of each feature gains two spreads by +1.
    direction = sum(
        w / sum(weights) / MATCH_UNIT[f] * SAE.decoder[f].astype(np.float64)
        for f, w in zip(features, weights, strict=True)
    )
    whole = 2 * strength * CATALOG.calibration.score_spread * direction
    for side, share in (("query", 1.0), ("both", 0.5)):
        shift = asked_shift({name: Add(strength, side=side)}, QUERIES[row])  # type: ignore[arg-type]
        np.testing.assert_allclose(shift, share * whole, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(row=st.integers(0, 19), feature=st.integers(0, N - 1), value=st.floats(-5, 5))
def test_clamp_sets_the_querys_activation(row: int, feature: int, value: float) -> None:
    q = QUERIES[row]
    before = activations(q)[feature]
    shift = asked_shift({feature: Clamp(value)}, q)
    np.testing.assert_allclose(shift, (value * UNIT[feature] - before) * SAE.decoder[feature], atol=1e-5)


@pytest.mark.parametrize("steer", [{"x" * 100_000: "much"}, {"one": "x" * 100_000}, {"x" * 100_000: 1e9}])
def test_huge_names_and_values_are_not_echoed_whole(steer: dict[str, Any]) -> None:
    with pytest.raises(SteeringError) as refused:
        parse(steer)
    assert len(str(refused.value)) < 500


@settings(max_examples=40, deadline=None)
@given(row=st.integers(0, 19), feature=st.integers(0, N - 1), amount=st.floats(-0.5, 0.5))
def test_raw_units_are_the_papers(row: int, feature: int, amount: float) -> None:
    """`q + delta d_f`, whatever the feature's units are."""
    shift = asked_shift({feature: AddRaw(amount)}, QUERIES[row])
    np.testing.assert_allclose(shift, amount * SAE.decoder[feature], atol=1e-6)


def test_clamp_of_a_family_sets_each_to_its_share_and_clamp_zero_removes_all() -> None:
    for q in QUERIES:
        own = activations(q)
        features, weights, _ = FAMILIES["three"]
        wanted = sum((2 * w * UNIT[f] - own[f]) * SAE.decoder[f] for f, w in zip(features, weights, strict=True))
        np.testing.assert_allclose(asked_shift({"three": Clamp(2)}, q), wanted, atol=1e-5)
        removed = -sum(own[f] * SAE.decoder[f] for f in features)
        np.testing.assert_allclose(asked_shift({"three": Clamp(0)}, q), removed, atol=1e-5)


def test_scale_multiplies_what_the_query_has_and_nothing_else() -> None:
    for q in QUERIES:
        own = activations(q)
        strongest, absent = int(own.argmax()), int(np.nonzero(own == 0)[0][0])
        np.testing.assert_allclose(
            asked_shift({strongest: Scale(3)}, q), 2 * own[strongest] * SAE.decoder[strongest], atol=1e-5
        )
        assert planned({absent: Scale(3)}, q).is_empty
        assert planned({strongest: Scale(1)}, q).is_empty


def test_suppress_takes_the_feature_from_the_query_and_its_passages_from_the_hits() -> None:
    q = QUERIES[0]
    own = activations(q)
    strongest = int(own.argmax())
    suppressed = planned({strongest: Suppress()}, q)
    np.testing.assert_allclose(
        asked_shift({strongest: Suppress()}, q), -own[strongest] * SAE.decoder[strongest], atol=1e-5
    )
    assert suppressed.excluded[0].features == (strongest,)
    absent = int(np.nonzero(own == 0)[0][0])
    assert not planned({absent: Suppress()}, q).is_empty, "passages are left out even if the query lacks the feature"


def test_what_two_suppressed_families_share_is_removed_once() -> None:
    for q in QUERIES:
        own = activations(q)
        wanted = -sum(own[f] * SAE.decoder[f] for f in {7, 9, 11, 5})
        shift = asked_shift({"two": Suppress(), "three": Suppress()}, q)
        np.testing.assert_allclose(shift, wanted, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(steer=st.dictionaries(NAMES, OPERATIONS, min_size=2), row=st.integers(0, 19), cap=st.floats(0.5, 1.0))
def test_the_order_of_edits_does_not_matter(steer: dict[Any, Any], row: int, cap: float) -> None:
    one = planned(steer, QUERIES[row], drift_cap=cap)
    other = planned(dict(reversed(steer.items())), QUERIES[row], drift_cap=cap)
    np.testing.assert_allclose(one.total_shift(16), other.total_shift(16), atol=1e-5)
    assert set(one.boosts) == set(other.boosts)
    assert set(one.excluded) == set(other.excluded)


# -- the drift cap ----------------------------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cap=st.floats(0.01, 1.0),
    size=st.floats(1e-3, 1e3),
    norm=st.floats(0.05, 20),
    opposed=st.floats(-1, 1),
)
def test_the_cap_is_kept_and_no_more_is_cut_than_it_asks_for(
    seed: int, cap: float, size: float, norm: float, opposed: float
) -> None:
    random = np.random.default_rng(seed)
    q = random.normal(size=12)
    q *= norm / np.linalg.norm(q)
    v = random.normal(size=12) + 5 * opposed * q / norm
    v *= size / np.linalg.norm(v)
    share = cap_drift(q, v, cap)
    assert 0 <= share <= 1
    assert cosine(q, q + share * v) >= cap - 1e-6
    if share < 1:
        # The largest: a little more would break the cap, or leave next to nothing of the query.
        more = q + (share * 1.01 + 1e-9) * v
        assert cosine(q, more) < cap + 1e-6 or more @ q <= 0.0101 * (q @ q)


def test_a_tilt_straight_against_the_query_leaves_a_query() -> None:
    q = QUERIES[0]
    for factor in (-1.0, -2.0, -100.0):
        left = q + cap_drift(q, factor * q, 0.8) * factor * q
        assert np.linalg.norm(left) > 0.005
        assert cosine(q, left) > 0.99


@settings(max_examples=50, deadline=None)
@given(steer=st.dictionaries(NAMES, OPERATIONS, min_size=1), row=st.integers(0, 19), cap=st.floats(0.3, 1.0))
def test_no_steering_drifts_beyond_the_cap(steer: dict[Any, Any], row: int, cap: float) -> None:
    q = QUERIES[row]
    capped = planned(steer, q, drift_cap=cap)
    assert cosine(q.astype(np.float64), q + capped.total_shift(len(q)).astype(np.float64)) >= cap - 1e-5
    assert 0 <= capped.capped <= 1


def test_a_cap_that_binds_is_said_and_gates_are_not_cut(caplog: pytest.LogCaptureFixture) -> None:
    capped = planned({5: Add(10.0, side="both")}, QUERIES[0], drift_cap=DEFAULT_DRIFT_CAP)
    assert capped.capped < 1
    assert "capped" in caplog.text
    assert capped.boosts[0].amount == pytest.approx(10 * CATALOG.calibration.score_spread)


# -- document boosts on passages --------------------------------------------------------------------------------------


def exact_gain(boost: DocumentBoost) -> np.ndarray:
    """(300,) what a document boost adds to the passages' scores, by the definition."""
    feature_match = exact_match(SAE, MATCH_UNIT, boost.features, boost.weights, PASSAGES)
    return np.asarray(boost.amount * feature_match)


@settings(max_examples=40, deadline=None)
@given(name=NAMES, strength=STRENGTHS, row=st.integers(0, 19), side=st.sampled_from(["document", "both"]))
def test_a_gate_adds_two_spreads_a_unit_to_a_passage_that_has_all_and_half_of_both_sides(
    name: Any, strength: float, row: int, side: Any
) -> None:
    (boost,) = planned({name: Add(strength, side=side)}, QUERIES[row]).boosts
    features, weights, _ = resolver(name)
    assert (boost.features, boost.weights) == (features, weights)
    share = 0.5 if side == "both" else 1.0
    assert boost.amount == pytest.approx(2 * share * strength * CATALOG.calibration.score_spread)
    gains = exact_gain(boost)
    if len(features) == 1:
        assert np.abs(gains).max() == pytest.approx(abs(boost.amount)), "some passage has it in full"
    assert np.abs(gains).max() > abs(boost.amount) / 2
    assert (np.abs(gains) <= abs(boost.amount) + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(name=NAMES, low=STRENGTHS, high=STRENGTHS, row=st.integers(0, 19))
def test_a_stronger_gate_raises_what_has_the_feature_and_lowers_nothing(
    name: Any, low: float, high: float, row: int
) -> None:
    assume(high - low > 1e-3)
    q = QUERIES[row]

    def scores(strength: float) -> np.ndarray:
        scorer = Scorer(SAE, planned({name: Add(strength, side="document")}, q), MATCH_UNIT, q)
        return scorer.score(PASSAGES, np.zeros(len(PASSAGES), dtype=np.float32)).scores

    gained = scores(high) - scores(low)
    features, weights, _ = resolver(name)
    feature_match = exact_match(SAE, MATCH_UNIT, features, weights, PASSAGES)
    assert (feature_match > 1e-3).any()
    np.testing.assert_allclose(gained, 2 * (high - low) * CATALOG.calibration.score_spread * feature_match, atol=1e-5)
    assert (gained[feature_match > 1e-3] > 0).all()
    assert (gained >= -1e-7).all()


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.2, 0.1), (1e-3, 5e-4)])
def test_a_familys_gate_is_the_same_at_any_scale_of_its_weights(weights: tuple[float, float]) -> None:
    boost = DocumentBoost("two", (7, 9), weights, 0.3)
    expected = exact_gain(DocumentBoost("two", (7, 9), (1.0, 0.5), 0.3))
    feature_match = FeatureMatch.of_features(SAE, MATCH_UNIT, boost.features, boost.weights)
    np.testing.assert_allclose(boost.amount * feature_match.of(PASSAGES), expected, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(row=st.integers(0, 19), name=NAMES, low=st.floats(0.01, 10), more=st.floats(0.01, 10))
def test_a_stronger_tilt_never_moves_less_even_where_the_cap_binds(
    row: int, name: Any, low: float, more: float
) -> None:
    high = min(low + more, LARGEST_STRENGTH)
    q = QUERIES[row]
    weak, strong = (
        np.linalg.norm(planned({name: Add(s, side="query")}, q, drift_cap=0.8).total_shift(len(q))) for s in (low, high)
    )
    assert strong >= weak - 1e-5
