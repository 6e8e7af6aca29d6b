"""Steering by examples: which features they share, why, and what the search does with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from small_world import World
from toy import N, catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import SteeringError, StoreError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import Feature, LabelScore
from sae_steer_retriever.features.search import hubs
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.steering.from_examples import Contrast, contrast
from sae_steer_retriever.steering.policy import Steering

EXAMPLES = {
    "threading": ["wait until a thread ends", "a lock shared by threads", "start a thread"],
    "statistics": ["the mean of a sample", "the median of some numbers", "standard deviation"],
    "calendar": ["print the calendar of a month", "the weekday of a date"],
    "socket": ["connect to a remote host over TCP", "listen for connections on a port"],
}
QUESTIONS = ("what does it return?", "create an object")


def codes(*rows: dict[int, float]) -> Codes[np.ndarray]:
    """Naming readings: feature -> activation, one dict a passage."""
    k = max(map(len, rows))
    indices, values = np.zeros((len(rows), k), np.int32), np.zeros((len(rows), k), np.float32)
    for row, active in enumerate(rows):
        for place, (latent, value) in enumerate(sorted(active.items(), key=lambda item: -item[1])):
            indices[row, place], values[row, place] = latent, value
    return Codes(indices, values)


@pytest.fixture(scope="module")
def catalog() -> FeatureCatalog:
    """Features 0 to 9 with unit 0.5; 0 is in half of the passages, 9 in none, the others in one of 100."""
    calibration = catalog_for(random_sae(), unit_rows(0, 50)).calibration
    count = np.full(10, 10)
    count[0], count[9] = 500, 0
    calibration = calibration.__class__(
        1000, count, np.full(10, 0.5, np.float32), np.ones(10, np.float32), 0.2, np.ones(10, np.float32)
    )
    features = [
        Feature(i, f"topic {i}", (f"topic {i}",), LabelScore(0.9, 0.9), count[i] / 1000, 0.5, ()) for i in range(10)
    ]
    return FeatureCatalog(features, calibration, "f" * 16)


def test_what_all_positives_share_leads_and_what_everybody_has_does_not_count(catalog: FeatureCatalog) -> None:
    found = contrast(catalog, codes({0: 0.6, 1: 0.5, 2: 0.5}, {0: 0.6, 1: 0.5}, {0: 0.6, 1: 0.5, 3: 0.4}))
    assert found.reasons[0].feature == 1
    assert found.reasons[0].label == "topic 1"
    assert (found.reasons[0].positives, found.positives, found.reasons[0].frequency) == (3, 3, 0.01)
    # In one of three examples, or in half of the corpus: not what they are about.
    assert {reason.feature for reason in found.reasons} == {1}


def test_negatives_take_away_what_both_have_and_push_from_what_they_have_alone(catalog: FeatureCatalog) -> None:
    found = contrast(catalog, codes({1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.4}), codes({1: 0.5, 4: 0.5}, {1: 0.6, 4: 0.5}))
    assert [(reason.feature, reason.positives, reason.negatives) for reason in found.reasons] == [(2, 2, 0), (4, 0, 2)]
    assert found.reasons[0].strength > 0 > found.reasons[1].strength
    assert [edit.strength for edit in found.edits] == [reason.strength for reason in found.reasons]
    assert "in 2 of 2 positives, 0 of 2 negatives, 1.0% of the corpus" in str(found)


def test_examples_that_share_nothing_are_doubted(catalog: FeatureCatalog) -> None:
    apart = contrast(catalog, codes({1: 0.5}, {2: 0.5}))
    assert "in more than one of the 2 positives" in str(apart)
    assert "in more than one of the 2 positives" in apart._repr_html_()
    assert apart.to_dict()["warning"] == apart.warning
    for found in (contrast(catalog, codes({1: 0.5}, {1: 0.5})), contrast(catalog, codes({1: 0.5}))):
        assert found.warning is None


def test_what_is_rare_is_not_said_to_be_nowhere(catalog: FeatureCatalog) -> None:
    found = contrast(catalog, codes({1: 0.5}))
    assert "<0.1% of the corpus" in found.explain(found.reasons[0]._replace(frequency=1e-5))


def test_a_dead_feature_is_no_reason(catalog: FeatureCatalog) -> None:
    found = contrast(catalog, codes({9: 2.0, 5: 0.5}))
    assert [reason.feature for reason in found.reasons] == [5]
    with pytest.raises(SteeringError, match="no feature tells these examples apart"):
        contrast(catalog, codes({9: 2.0}))


@settings(max_examples=50, deadline=None)
@given(strength=st.floats(0.1, 3.0), seed=st.integers(0, 1000), rows=st.integers(1, 5))
def test_strengths_times_what_the_positives_have_is_what_was_asked_for_on_average(
    strength: float, seed: int, rows: int
) -> None:
    sae = random_sae(1)
    catalog = catalog_for(sae, unit_rows(2, 400))
    positive = sae.encode(unit_rows(seed, rows), k=sae.config.k_labels)
    latents = positive.indices[positive.values > 0]
    assume(not hubs(catalog.calibration)[latents].all())
    try:
        found = contrast(catalog, positive, strength=strength, limit=N)
    except SteeringError:  # all that these passages have is as frequent in the corpus
        reject()
    average, rounding = 0.0, 0.006 * len(found.reasons)
    for reason in found.reasons:
        had = np.where(positive.indices == reason.feature, positive.values, 0).max(axis=1)
        average += reason.strength * float(np.minimum(1, had / catalog.calibration.unit[reason.feature]).mean())
    assert average <= strength + rounding
    assert all(0 < reason.strength <= strength + 0.005 for reason in found.reasons)
    if max(reason.strength for reason in found.reasons) < strength - 0.01:  # nothing was cut
        assert average == pytest.approx(strength, abs=rounding)


def test_a_contrast_is_a_policy_that_can_be_stored(catalog: FeatureCatalog) -> None:
    found = contrast(catalog, codes({1: 0.5, 2: 0.4}), side="query")
    again = Steering.from_json(found.to_json())
    assert again == found.steering
    assert {edit.side for edit in again.edits} == {"query"}
    assert json.loads(json.dumps(found.to_dict()))["steer"] == found.steer


def test_labels_are_escaped_in_a_notebook() -> None:
    sae = random_sae()
    toy = catalog_for(sae, unit_rows(0, 200))
    features = [
        Feature(one.id, "<script>alert(1)</script>", ("x",), one.score, one.frequency, one.unit, ())
        for one in toy.features
    ]
    catalog = FeatureCatalog(features, toy.calibration, toy.fingerprint)
    page = contrast(catalog, sae.encode(unit_rows(5, 2), k=sae.config.k_labels))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("strength", "limit"),
    [(0.0, 5), (-1.0, 5), (float("nan"), 5), (11.0, 5), (1.0, 0), ("1", 5), (1.0, 2.5), (None, 5)],
)
def test_numbers_out_of_range_are_refused(catalog: FeatureCatalog, strength: Any, limit: Any) -> None:
    with pytest.raises(ValueError, match="expected a strength above 0"):
        contrast(catalog, codes({1: 0.5}), strength=strength, limit=limit)


# -- on real text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", sorted(EXAMPLES))
def test_a_few_examples_of_a_topic_bring_it_up(retriever: SteeredRetriever, topic: str) -> None:
    steering = retriever.contrast(EXAMPLES[topic])
    rises = []
    for question in QUESTIONS:
        plain = retriever.search(question, k=10)
        steered = retriever.search(question, k=10, steer=steering)
        before, after = (sum(hit.metadata["module"] == topic for hit in hits) for hits in (plain, steered))
        rises.append(after - before)
    assert min(rises) >= 1, (topic, rises)
    assert np.mean(rises) >= 3, (topic, rises)


def test_the_mapping_steers_as_the_contrast_does(retriever: SteeredRetriever) -> None:
    found = retriever.contrast(EXAMPLES["threading"], EXAMPLES["socket"])
    one = retriever.search("wait", k=5, steer=found)
    other = retriever.search("wait", k=5, steer=found.steer)
    assert [(hit.id, hit.score) for hit in one] == [(hit.id, hit.score) for hit in other]
    attribution = one[0].attribution
    assert attribution is not None
    assert attribution.total == pytest.approx(one[0].score, abs=1e-5)


def test_negatives_push_their_topic_down(retriever: SteeredRetriever) -> None:
    question = "numbers"
    steering = retriever.contrast(EXAMPLES["calendar"], EXAMPLES["statistics"])
    assert any(reason.strength < 0 for reason in steering.reasons)

    def share(hits: list) -> int:  # type: ignore[type-arg]
        return sum(hit.metadata["module"] == "statistics" for hit in hits)

    plain = retriever.search(question, k=20)
    assert share(retriever.search(question, k=20, steer=steering)) < share(plain)


def test_stored_passages_are_examples_without_embedding(retriever: SteeredRetriever, world: World) -> None:
    ids = [name for name, data in zip(world.ids, world.metadatas, strict=True) if data["module"] == "zipfile"][:3]
    assert len(ids) == 3
    found = retriever.from_examples(ids)
    assert isinstance(found, Contrast)
    assert found.positives == 3
    texts = [world.texts[world.ids.index(name)] for name in ids]
    assert [reason.feature for reason in found.reasons] == [
        reason.feature for reason in retriever.contrast(texts).reasons
    ]
    assert retriever.from_examples([*ids, ids[0]]) == found  # an example given twice is one


def test_examples_that_are_none_are_refused(retriever: SteeredRetriever, world: World) -> None:
    with pytest.raises(StoreError, match="'no such passage' is not in collection 'docs'"):
        retriever.from_examples([world.ids[0], "no such passage"])
    with pytest.raises(StoreError, match="'one', 'two' are not in collection 'docs': give ids"):
        retriever.from_examples([world.ids[0], "one", "two"])
    with pytest.raises(TypeError, match="must be a list of texts"):
        retriever.contrast("one text")
    with pytest.raises(TypeError, match="must be a list of texts"):
        retriever.contrast(None)  # type: ignore[arg-type]
    given = (text for text in EXAMPLES["socket"])
    assert retriever.contrast(given) == retriever.contrast(EXAMPLES["socket"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive holds an empty text"):
        retriever.contrast(["a text", "  "])
    with pytest.raises(ValueError, match="at least one positive"):
        retriever.contrast([])
    with pytest.raises(ValueError, match="at least one positive"):
        retriever.from_examples([], [world.ids[0]])
    with pytest.raises(SteeringError, match="no feature tells these examples apart"):
        retriever.contrast(EXAMPLES["socket"], EXAMPLES["socket"])


# -- on the command line ----------------------------------------------------------------------------------------------


def test_contrast_prints_a_line_that_search_understands(sae_steer: Run, filled_folder: Path, world: World) -> None:
    sae, store = filled_folder / "sae", filled_folder / "chroma"
    found = sae_steer("features", "contrast", "--sae", sae, "--positive", *EXAMPLES["threading"], "--json").data
    steer = found["options"].replace("'", "").split()
    hits = sae_steer("search", "create an object", "--store", store, *steer, "-k", 10, "--json").data["hits"]
    assert sum(hit["metadata"]["module"] == "threading" for hit in hits) >= 2
    text = sae_steer("features", "contrast", "--sae", sae, "--positive", *EXAMPLES["threading"]).out
    assert text.rstrip().endswith(found["options"])
    assert "in 3 of 3 positives" in text
    ids = [name for name, data in zip(world.ids, world.metadatas, strict=True) if data["module"] == "zipfile"][:3]
    both = sae_steer(
        "features", "contrast", "--store", store, "--like", *ids, "--positive", "an archive", "--unlike", world.ids[0],
        "--limit", 2, "--json",
    ).data  # fmt: skip
    assert (both["positives"], both["negatives"]) == (4, 1)
    assert len(both["features"]) <= 4


def test_contrast_says_what_it_lacks(sae_steer: Run, filled_folder: Path) -> None:
    sae, store = filled_folder / "sae", filled_folder / "chroma"
    nothing = sae_steer("features", "contrast", "--sae", sae)
    assert nothing.code == 2
    assert "--positive" in nothing.error
    no_store = sae_steer("features", "contrast", "--sae", sae, "--like", "a")
    assert no_store.code == 2
    assert "--store" in no_store.error
    unknown = sae_steer("features", "contrast", "--store", store, "--like", "nowhere")
    assert unknown.code == 1
    assert "'nowhere' is not in collection" in unknown.error
