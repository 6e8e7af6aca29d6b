"""What would have lifted a passage, and what feedback on hits steers towards: both are tried before they are told."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from small_world import World

from sae_steer_retriever.errors import SteeringError, StoreError, UnknownFeatureError
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.search.counterfactual import Counterfactual
from sae_steer_retriever.search.feedback import without_shared
from sae_steer_retriever.steering.policy import Steering

QUERY = "wait for something"


def ranks(retriever: SteeredRetriever, query: str, steer: Any = None, k: int = 1000) -> dict[str, int]:
    """Every hit's rank."""
    hits = retriever.search(query, k=k, steer=steer, explain=False)
    return {hit.id: rank for rank, hit in enumerate(hits, start=1)}


def lifted(retriever: SteeredRetriever, rank: int = 1, begin: int = 6, **options: Any) -> Counterfactual:
    """That of the first passage below a rank which one feature can lift."""
    for hit in retriever.search(QUERY, k=100, explain=False, space=options.get("space", "original"))[begin:]:
        with contextlib.suppress(SteeringError):
            found = retriever.counterfactual(QUERY, hit, rank, **options)
            if len(found.features) == 1:
                return found
    raise AssertionError("no passage can be lifted by one feature")


# -- counterfactuals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begin", "rank"), [(7, 1), (25, 3), (60, 5)])
def test_the_steering_told_lifts_the_passage_and_a_hundredth_less_does_not(
    retriever: SteeredRetriever, begin: int, rank: int
) -> None:
    plain = ranks(retriever, QUERY)
    found = lifted(retriever, rank, begin)
    name = found.id
    assert found.rank_before == plain[name]
    assert found.rank_after == ranks(retriever, QUERY, found.steering)[name] <= rank
    assert len(found.features) == len(found.steering.edits) == 1
    (edit,) = found.steering.edits
    assert edit.strength == found.strength > 0
    own = retriever.store.codes([name]).truncate(retriever.sae.config.k_labels)
    assert edit.features[0] in own.indices[0]
    if found.strength > 0.01:
        less = {edit.name: round(found.strength - 0.01, 2)}
        assert ranks(retriever, QUERY, less)[name] > rank
    # None of its other features does it with less.
    for latent in own.indices[0][own.values[0] > 0].tolist():
        if not retriever.catalog[latent].label:
            continue
        weaker = {latent: round(found.strength - 0.01, 2)}
        if found.strength > 0.01:
            assert ranks(retriever, QUERY, weaker)[name] > rank
    assert f"lifts '{name}' from rank {plain[name]} to rank {found.rank_after} for '{QUERY}'" in str(found)


def test_drift_is_what_the_first_hits_lose(retriever: SteeredRetriever) -> None:
    found = lifted(retriever, k=5)
    plain = np.mean([hit.base_score for hit in retriever.search(QUERY, k=5)])
    steered = np.mean([hit.base_score for hit in retriever.search(QUERY, k=5, steer=found.steering)])
    assert found.score_loss == pytest.approx((plain - steered) / plain)
    assert f"the first 5 hits lose {found.score_loss:.1%}" in str(found)


def test_a_passage_that_is_there_needs_nothing(retriever: SteeredRetriever) -> None:
    hit = retriever.search(QUERY, k=1)[0]
    found = retriever.counterfactual(QUERY, hit)
    assert (found.strength, found.features, found.score_loss, found.steering.edits) == (0.0, (), 0.0, ())
    assert str(found) == f"{hit.id!r} is at rank 1 for {QUERY!r} without a steering."


def test_named_features_are_tried_instead_of_its_own(retriever: SteeredRetriever) -> None:
    found = lifted(retriever, 3, features="thread")
    name = found.id
    assert found.features == ("'thread'",)
    assert [edit.name for edit in found.steering.edits] == ["thread"]
    assert ranks(retriever, QUERY, {"thread": found.strength})[name] <= 3
    with pytest.raises(UnknownFeatureError):
        retriever.counterfactual(QUERY, name, features=["thraed"])
    absent = next(f for f in range(64) if not np.isin(retriever.store.codes([name]).indices, [f]).any())
    with pytest.raises(
        SteeringError, match=f"{name}.* is at rank .*nothing tried lifts it to rank 1: each of #{absent}"
    ):
        retriever.counterfactual(QUERY, name, features=f"#{absent}")


def test_features_together_do_what_none_does_alone(retriever: SteeredRetriever) -> None:
    told = None
    for name, place in ranks(retriever, "create an object").items():
        if place < 20:
            continue
        try:
            told = retriever.counterfactual("create an object", name)
        except SteeringError:
            continue
        if len(told.features) > 1:
            break
    assert told is not None
    assert len(told.features) == len(told.steering.edits) in (2, 3)
    assert {edit.strength for edit in told.steering.edits} == {told.strength}
    assert ranks(retriever, "create an object", told.steering)[told.id] == 1
    assert f"{told.strength:+.2f} each of " in str(told)


@pytest.mark.parametrize("space", ["reconstructed", "latent"])
def test_it_holds_in_the_other_spaces(retriever: SteeredRetriever, space: Any) -> None:
    found = lifted(retriever, 3, space=space)
    hits = retriever.search(QUERY, k=10, space=space, steer=found.steering)
    assert [hit.id for hit in hits].index(found.id) + 1 == found.rank_after <= 3 < (found.rank_before or 99)


def test_a_default_steering_holds_before_and_after(retriever: SteeredRetriever) -> None:
    tenant = retriever.with_steering({"socket": 0.6})
    before = ranks(tenant, QUERY)
    found = lifted(tenant)
    name = found.id
    assert found.rank_before == before[name]
    assert "socket" in [edit.name for edit in found.steering.edits]
    assert ranks(retriever, QUERY, found.steering)[name] == found.rank_after == 1


def test_what_makes_no_sense_is_refused(retriever: SteeredRetriever) -> None:
    with pytest.raises(StoreError, match="'nowhere' is not in collection 'docs'"):
        retriever.counterfactual(QUERY, "nowhere")
    for rank in (0, -1, True, 1.5, "1"):
        with pytest.raises(ValueError, match="rank is"):
            retriever.counterfactual(QUERY, "json.dumps", rank)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="passage must be a Hit or a passage's id"):
        retriever.counterfactual(QUERY, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="query must be a text"):
        retriever.counterfactual(None, "json.dumps")  # type: ignore[arg-type]
    with pytest.raises(SteeringError, match="is not found for .*a filter may leave it out"):
        retriever.counterfactual(QUERY, "json.dumps", features="#3", where={"module": "socket"})


# -- feedback ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["threading", "socket", "zipfile", "calendar"])
def test_what_was_liked_rises_for_its_query(retriever: SteeredRetriever, topic: str) -> None:
    question = "create an object"
    plain = ranks(retriever, question)
    liked = [name for name in plain if name.startswith(f"{topic}.")][:3]
    found = retriever.autosteer(liked, query=question)
    after = ranks(retriever, question, found)
    assert sum(after[name] for name in liked) < sum(plain[name] for name in liked)
    assert found.ranks_before == tuple(plain[name] for name in liked)
    assert found.ranks_after == tuple(after[name] for name in liked)
    assert f"mean rank of what was liked for {question!r}" in str(found)
    assert Steering.from_json(found.to_json()) == found.steering


def test_what_was_shown_and_not_liked_falls(retriever: SteeredRetriever) -> None:
    question = "create an object"
    plain = ranks(retriever, question)
    liked, disliked = ([name for name in plain if name.startswith(f"{t}.")][:3] for t in ("threading", "zipfile"))
    found = retriever.autosteer(liked, disliked, query=question)
    after = ranks(retriever, question, found)
    assert any(reason.strength < 0 for reason in found.reasons)
    assert sum(after[name] for name in disliked) > sum(plain[name] for name in disliked)
    assert (found.positives, found.negatives) == (3, 3)


def test_without_a_query_it_is_the_contrast_of_the_passages(retriever: SteeredRetriever, world: World) -> None:
    ids = [name for name in world.ids if name.startswith("zipfile.")][:3]
    found = retriever.autosteer(ids)
    assert found.steering == retriever.from_examples(ids).steering
    assert (found.query, found.ranks_before, found.ranks_after) == (None, (), ())
    assert "mean rank" not in str(found)


def codes(*rows: list[int]) -> Codes[np.ndarray]:
    return Codes(np.array(rows), np.where(np.array(rows) > 0, 0.5, 0.0).astype(np.float32))


def features(read: Codes[np.ndarray] | None) -> list[list[int]]:
    assert read is not None
    return [row[values > 0].tolist() for row, values in zip(read.indices, read.values, strict=True)]


def test_what_hits_have_because_the_query_has_it_does_not_count() -> None:
    liked, disliked, query = codes([1, 2, 3], [1, 2, 4]), codes([1, 5, 0]), codes([1, 2, 9])
    alone, none = without_shared(liked, None, query)
    assert (features(alone), none) == ([[3], [4]], None)
    mine, theirs = without_shared(liked, disliked, query)
    assert features(mine) == [[2, 3], [2, 4]], "2 is the query's too, but only what was liked has it"
    assert features(theirs) == [[5]]


def test_feedback_that_does_not_help_says_so(retriever: SteeredRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "create an object"
    first, last = list(ranks(retriever, question))[0], list(ranks(retriever, question))[-1]
    opposed = retriever.resolve({latent: -0.5 for latent in range(64) if retriever.catalog.calibration.count[latent]})
    found = retriever.autosteer([last])

    def against(*_: Any, **__: Any) -> Any:
        return found.__class__(opposed.edits, opposed.fingerprint)

    monkeypatch.setattr("sae_steer_retriever.search.feedback.contrast", against)
    with pytest.raises(SteeringError, match="does not help 'create an object': without it .* at strength 2"):
        retriever.autosteer([first], query=question)


def test_feedback_that_is_none_is_refused(retriever: SteeredRetriever, world: World) -> None:
    with pytest.raises(ValueError, match="positive_ids is empty"):
        retriever.autosteer([], [world.ids[0]])
    with pytest.raises(ValueError, match="is among positive_ids and negative_ids"):
        retriever.autosteer(world.ids[:2], world.ids[1:3])
    with pytest.raises(StoreError, match="'nowhere' is not in collection"):
        retriever.autosteer(["nowhere"])
    with pytest.raises(TypeError, match="positive_ids must be a list"):
        retriever.autosteer("json.dumps")
    with pytest.raises(TypeError, match="query must be a text"):
        retriever.autosteer(world.ids[:2], query=3)  # type: ignore[arg-type]
