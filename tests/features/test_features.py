"""The catalog: from what a person types to the features it means, and its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import World
from toy import D, random_sae, unit_rows

from sae_steer_retriever.errors import AmbiguousFeatureError, ArtifactError, UnknownFeatureError
from sae_steer_retriever.features.calibration import Calibration, calibrate
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.evidence import Example, FeatureEvidence, Neighbour
from sae_steer_retriever.features.feature import Family, Feature, LabelScore
from sae_steer_retriever.features.text_reading import Concept, read_concept
from sae_steer_retriever.features.trie import Trie, Window
from sae_steer_retriever.sae.codes import Codes

# id: keywords; the label is their list. 5 never fires, 6 is not labelled, 7 is not to be trusted.
KEYWORDS = {
    0: ("employment", "salary", "wages"),
    1: ("tax", "income", "revenue"),
    2: ("court", "tennis", "wimbledon"),
    3: ("court", "judge", "lawsuit"),
    4: ("family", "children", "salary"),
    5: ("dodo", "extinct"),
    6: (),
    7: ("misc", "other"),
    8: ("tax", "income", "revenue"),
}
# Labels about work and money lie near 0, sport near 1, law near 2.
DIRECTIONS = {0: 0, 1: 0, 2: 1, 3: 2, 4: 0, 5: 3, 7: 4, 8: 0}


def embedding(*weights: float) -> np.ndarray:
    vector = np.zeros(D, dtype=np.float32)
    vector[: len(weights)] = weights
    return vector / np.linalg.norm(vector)


@pytest.fixture
def catalog() -> FeatureCatalog:
    count = np.array([9, 9, 9, 9, 9, 0, 9, 9, 9])
    calibration = Calibration(
        100, count, np.full(9, 0.5, np.float32), np.ones(9, np.float32), 0.2, np.full(9, 0.5, np.float32)
    )
    labels = np.zeros((9, D), dtype=np.float32)
    for latent, direction in DIRECTIONS.items():
        labels[latent, direction] = 1.0
    features = [
        Feature(latent, ", ".join(words), words, LabelScore(0.9, 0.5 if latent == 7 else 0.9), 0.09, 0.5, ("p1",))
        for latent, words in KEYWORDS.items()
    ]
    return FeatureCatalog(features, calibration, "f" * 16, labels)


def concept(vector: np.ndarray, **activations: float) -> Any:
    """A text's embedding and code: `_3=0.5` is feature 3 at 0.5."""
    latents = sorted(activations, key=lambda name: -activations[name])
    codes: Codes[np.ndarray] = Codes(
        np.array([[int(name[1:]) for name in latents]]),
        np.array([[activations[name] for name in latents]], dtype=np.float32),
    )
    matches = np.zeros(len(KEYWORDS), dtype=np.float32)
    for name, activation in activations.items():
        matches[int(name[1:])] = activation
    return lambda text: Concept(vector, codes, matches)


def nothing(text: str) -> Concept:
    """A text that activates nothing and is near no label."""
    return concept(embedding(0, 0, 0, 0, 0, 0, 1))(text)


@pytest.mark.parametrize("name", [3, "3", "#3", " #3 ", np.int64(3)])
def test_an_id_is_the_feature_itself(catalog: FeatureCatalog, name: Any) -> None:
    assert catalog.resolve(name, nothing) == ((3,), (1.0,), "id")


@pytest.mark.parametrize("name", [9, "#9", -1, "99999999999999999999", 10**30])
def test_an_id_that_is_not_there_is_unknown(catalog: FeatureCatalog, name: Any) -> None:
    with pytest.raises(UnknownFeatureError):
        catalog.resolve(name, nothing)
    with pytest.raises(UnknownFeatureError):
        catalog.resolve(name)


def test_a_dead_feature_is_refused_by_id_and_not_found_by_name(catalog: FeatureCatalog) -> None:
    with pytest.raises(UnknownFeatureError, match="#5 is dead"):
        catalog.resolve("#5", nothing)


@pytest.mark.parametrize("name", ["court, judge, lawsuit", "Court, Judge, LAWSUIT", "  court, judge, lawsuit "])
def test_a_whole_label_is_its_feature_whatever_its_words_may_mean(catalog: FeatureCatalog, name: str) -> None:
    assert catalog.resolve(name, concept(embedding(0, 1), _2=1.0)) == ((3,), (1.0,), "label")


def test_two_features_of_one_label_are_both_meant(catalog: FeatureCatalog) -> None:
    assert catalog.resolve("tax, income, revenue", nothing) == ((1, 8), (1.0, 1.0), "label")


def test_what_is_shown_can_be_asked_for(catalog: FeatureCatalog, world: World) -> None:
    assert catalog.name(7) == "unclear #7 (misc, other)"
    assert catalog.name(6) == "#6"
    for shown in (catalog, world.catalog):
        for feature in shown.features:
            if shown.calibration.count[feature.id]:
                assert feature.id in shown.resolve(feature.name, nothing).features


def test_a_keyword_is_the_family_its_embedding_activates(catalog: FeatureCatalog) -> None:
    resolution = catalog.resolve("salary", concept(embedding(1), _0=0.8, _4=0.6, _1=0.5, _3=0.7))
    # 3 points there too, but its label has nothing to do with the word; 1 has, though it lacks the word.
    assert resolution.features == (0, 4, 1)
    assert resolution.weights == pytest.approx((1.0, (1.6 / 1.8) ** 2, (1.5 / 1.8) ** 2))
    assert resolution.how == "keyword"


def test_weak_members_do_not_join_the_family(catalog: FeatureCatalog) -> None:
    assert catalog.resolve("salary", concept(embedding(1), _0=1.0, _4=0.1)).features == (0,)


def test_a_keyword_no_code_activates_is_found_by_its_word(catalog: FeatureCatalog) -> None:
    assert catalog.resolve("wimbledon", nothing) == ((2,), (1.0,), "keyword")
    resolution = catalog.resolve("salary")
    assert resolution.features == (0, 4)
    assert resolution.weights[0] == 1.0 > resolution.weights[1]


@pytest.mark.parametrize(
    ("written", "feature"),
    [
        ("Wages", 0),
        ("wage", 0),
        ("taxes", 1),
        ("families", 4),
        ("lawsuits", 3),
        ("judges", 3),
        ("  COURTS\t", None),
    ],
)
def test_case_spaces_and_plurals_make_no_other_name(catalog: FeatureCatalog, written: str, feature: int | None) -> None:
    if feature is None:
        with pytest.raises(AmbiguousFeatureError):
            catalog.resolve(written)
    else:
        assert feature in catalog.resolve(written).features


@pytest.mark.parametrize(("one", "other"), [("rats", "rates"), ("bus", "bu"), ("glass", "glas"), ("plans", "planes")])
def test_words_that_only_look_like_plurals_stay_apart(one: str, other: str) -> None:
    calibration = calibrate([Codes(np.array([[0]]), np.ones((1, 1), np.float32))], n=1, score_spread=0.2)
    catalog = FeatureCatalog([Feature(0, one, (one,), None, 1.0, 1.0, ())], calibration, "f" * 16)
    assert catalog.resolve(one).features == (0,)
    with pytest.raises(UnknownFeatureError):
        catalog.resolve(other)


def test_an_accent_typed_as_a_character_of_its_own_makes_no_other_name(catalog: FeatureCatalog) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for written, asked in ((composed, decomposed), (decomposed, composed)):
        features = [dataclasses.replace(catalog.features[0], label=f"{written}, bar", keywords=(written, "bar"))]
        families = [Family(0, f"{written} and more", (0, 1))]
        named = FeatureCatalog(
            [*features, *catalog.features[1:]], catalog.calibration, catalog.fingerprint, families=families
        )
        assert named.resolve(f"{asked}, bar") == ((0,), (1.0,), "label")
        assert named.resolve(asked.upper()).features == (0,)
        assert named.resolve(f"{asked} and more").how == "family"
        assert [feature.id for feature in named.search(asked)] == [0]


@pytest.mark.parametrize("name", ["x" * 100_000, "court " * 20_000, "\x00" * 5000, "family:" + "x" * 100_000])
def test_of_a_huge_name_an_error_shows_the_beginning(catalog: FeatureCatalog, name: str) -> None:
    for ask in (None, nothing):
        with pytest.raises((UnknownFeatureError, AmbiguousFeatureError)) as caught:
            catalog.resolve(name, ask)
        assert len(str(caught.value)) < 500
        assert "characters)" in str(caught.value)


@pytest.mark.parametrize("name", [None, 1.5, ["court"], b"court"])
def test_what_is_neither_an_id_nor_a_text_names_no_feature(catalog: FeatureCatalog, name: Any) -> None:
    for look in (catalog.show, catalog.resolve, catalog.family):
        with pytest.raises(TypeError, match=f"by its id or by a text, got {type(name).__name__}"):
            look(name)
    with pytest.raises(TypeError, match=f"whole number, got {type(name).__name__}"):
        catalog.name(name)


def test_free_text_is_resolved_by_its_meaning(catalog: FeatureCatalog) -> None:
    resolution = catalog.resolve("what people earn", concept(embedding(0.9, 0, 0, 0, 0.3), _0=0.6, _7=0.5, _2=0.4))
    assert resolution == ((0,), (1.0,), "meaning")


def test_a_word_of_two_unrelated_features_is_ambiguous_unless_its_code_decides(catalog: FeatureCatalog) -> None:
    for ask in (None, concept(embedding(0, 1, 1), _2=0.5, _3=0.5)):
        with pytest.raises(AmbiguousFeatureError, match=r"'court' is ambiguous.*#[23] court.*#[23] court"):
            catalog.resolve("court", ask)
    assert catalog.resolve("court", concept(embedding(0, 1), _2=0.9, _3=0.1)).features == (2,)


@pytest.mark.parametrize(
    ("name", "suggested"), [("employmnt", "'employment'"), ("wimbeldon", "'wimbledon'"), ("famly", "'family'")]
)
def test_a_misspelt_name_is_answered_with_words_that_exist(catalog: FeatureCatalog, name: str, suggested: str) -> None:
    for ask in (None, nothing, concept(embedding(0.5, 0, 0, 0, 0, 0, 0.8), _0=0.3)):
        with pytest.raises(UnknownFeatureError, match=f"Did you mean .*{suggested}") as caught:
            catalog.resolve(name, ask)
        assert "\n" not in str(caught.value)
    words = {word for keywords in KEYWORDS.values() for word in keywords}
    suggestion = str(caught.value).partition("Did you mean ")[2].partition("?")[0]
    assert {word.strip("' ") for word in suggestion.split(",")} <= words


def test_a_feature_with_a_weak_label_answers_to_its_id_alone(catalog: FeatureCatalog) -> None:
    for ask in (None, concept(embedding(0, 0, 0, 0, 1), _7=0.9)):
        with pytest.raises(UnknownFeatureError, match=r"'misc' fits only unclear #7 .*\(0.50, .*and write '#7'"):
            catalog.resolve("misc", ask)
        for name in (7, "#7", "misc, other", "unclear #7 (misc, other)"):
            assert catalog.resolve(name, ask).features == (7,)


def test_a_family_is_steered_by_its_name_or_number(catalog: FeatureCatalog) -> None:
    families = [Family(0, "employment, tax", (0, 1, 8)), Family(1, "court", (2, 3))]
    grouped = FeatureCatalog(
        catalog.features, catalog.calibration, catalog.fingerprint, catalog.label_embeddings, families
    )
    for name in ("employment, tax", "Family: employment, tax", "family:0"):
        assert grouped.resolve(name, nothing) == ((0, 1, 8), (1.0, 1.0, 1.0), "family")
    assert grouped.resolve("0", nothing) == ((0,), (1.0,), "id")
    assert grouped.resolve("court", nothing).how == "family"
    for wrong in ("family:99", "family:", "family: hocky"):
        with pytest.raises(UnknownFeatureError, match="unknown family .*There are 2"):
            grouped.resolve(wrong, nothing)


def test_a_dead_feature_is_not_steered_by_its_name_either(catalog: FeatureCatalog) -> None:
    for name in (5, "dodo, extinct"):
        with pytest.raises(UnknownFeatureError, match="#5 is dead"):
            catalog.resolve(name, nothing)


def test_a_name_that_means_nothing_lists_the_nearest_features(catalog: FeatureCatalog) -> None:
    with pytest.raises(UnknownFeatureError, match="Nearest features: #"):
        catalog.resolve("xylophone", nothing)
    with pytest.raises(UnknownFeatureError, match="8 features have names"):
        catalog.resolve("xylophone")


@settings(max_examples=100, deadline=None)
@given(name=st.one_of(st.text(max_size=20), st.integers()))
def test_any_name_is_resolved_or_refused_never_a_crash(name: Any) -> None:
    calibration = Calibration(
        10, np.array([1, 0]), np.ones(2, np.float32), np.ones(2, np.float32), 0.2, np.ones(2, np.float32)
    )
    features = [Feature(0, "tax", ("tax",), LabelScore(0.9, 0.9), 0.1, 1.0, ()), Feature(1, "", (), None, 0.0, 1.0, ())]
    labels = np.stack([embedding(1), np.zeros(D, np.float32)])
    catalog = FeatureCatalog(features, calibration, "f" * 16, labels)
    for ask in (None, lambda text: nothing(text)._replace(matches=np.zeros(2, np.float32))):
        try:
            resolution = catalog.resolve(name, ask)
        except (UnknownFeatureError, AmbiguousFeatureError):
            continue
        assert resolution.features == (0,)


def test_every_label_of_a_real_catalog_resolves_to_its_feature(world: World) -> None:
    def ask(text: str) -> Concept:
        vector = world.embedder.embed_queries([text])
        return read_concept(world.sae, vector[0])

    for feature in world.catalog.labelled[:15]:
        assert feature.id in world.catalog.resolve(feature.label, ask).features
    resolution = world.catalog.resolve("thread", ask)
    assert any("thread" in world.catalog[latent].label for latent in resolution.features)


def test_search_finds_words_first_and_then_meanings(catalog: FeatureCatalog) -> None:
    assert [feature.id for feature in catalog.search("salary")] == [0, 4]
    assert [feature.id for feature in catalog.search("tennis court")] == [2, 3]
    assert [feature.id for feature in catalog.search("salary", limit=1)] == [0]
    assert catalog.search("nothing at all") == []
    meant = catalog.search(
        "earning",
        concept=concept(embedding(1))(""),
    )
    assert {feature.id for feature in meant} == {0, 1, 4, 8}


def dictionary(*rows: tuple[str, float | None, float]) -> FeatureCatalog:
    """Features of (label, score, frequency), and as many more without a label that 1 % of the passages have."""
    features = [
        Feature(
            latent,
            label,
            tuple(label.split(", ")) if label else (),
            None if score is None else LabelScore(0.9, score),
            share,
            0.5,
            (),
        )
        for latent, (label, score, share) in enumerate([*rows, *[("", None, 0.01)] * 20])
    ]
    count = np.array([round(1000 * feature.frequency) for feature in features])
    ones = np.ones(len(features), np.float32)
    return FeatureCatalog(features, Calibration(1000, count, ones, ones, 0.2, ones), "f" * 16)


def test_search_hides_hubs_and_dead_features_unless_they_are_asked_for() -> None:
    catalog = dictionary(("tax", 0.9, 0.02), ("tax, law", 0.9, 0.3), ("tax, income", 0.9, 0.0))
    assert [one.id for one in catalog.search("tax")] == [0]
    assert {one.id for one in catalog.search("tax", include_hubs=True)} == {0, 1}
    assert {one.id for one in catalog.search("tax", include_dead=True)} == {0, 2}


def test_in_a_dictionary_of_frequent_features_none_is_a_hub_for_that() -> None:
    count = np.full(8, 400)
    features = [Feature(i, f"word{i}", (f"word{i}",), None, 0.4, 0.5, ()) for i in range(8)]
    catalog = FeatureCatalog(features, Calibration(1000, count, np.ones(8), np.ones(8), 0.2, np.ones(8)), "f" * 16)  # type: ignore[arg-type]
    assert [one.id for one in catalog.search("word3")] == [3]


def test_what_cannot_be_looked_for_is_refused(catalog: FeatureCatalog) -> None:
    assert catalog.search("  ", concept=None) == []
    with pytest.raises(ValueError, match="limit is -1"):
        catalog.search("salary", limit=-1)
    with pytest.raises(TypeError, match="got NoneType"):
        catalog.search(None)  # type: ignore[arg-type]


def test_search_shows_labels_that_can_be_trusted_first() -> None:
    catalog = dictionary(("tax", 0.55, 0.02), ("tax", None, 0.02), ("tax", 0.95, 0.02), ("tax", 0.8, 0.02))
    assert [one.id for one in catalog.search("tax")] == [2, 3, 1, 0]
    catalog.annotate(0, "tax")
    assert catalog.search("tax")[0].id == 0


def test_what_a_text_activates_is_found_though_no_word_is_shared(world: World) -> None:
    text = "wait until another thread has released it"
    concept_ = read_concept(world.sae, world.embedder.embed_queries([text])[0])
    found = world.catalog.search(text, concept=concept_)
    assert any("lock" in one.label or "thread" in one.label for one in found[:3])
    assert len({one.id for one in found}) == len(found) <= 10


# -- pages and families -----------------------------------------------------------------------------------------------


EVIDENCE = FeatureEvidence(
    top=(Example("p1", 0.9), Example("p2", 0.8)),
    middle=(Example("p3", 0.4),),
    near_misses=(Example("p4", 0.0),),
    quantiles=(0.1, 0.2, 0.3, 0.4, 0.5),
    neighbours=(Neighbour(4, 0.75), Neighbour(6, 0.5)),
)


@pytest.fixture
def evident(catalog: FeatureCatalog) -> FeatureCatalog:
    """The catalog with evidence for feature 0, and two families."""
    families = [Family(0, "work, pay", (0, 4)), Family(1, "court", (2, 3))]
    return FeatureCatalog(
        catalog.features, catalog.calibration, "f" * 16, catalog.label_embeddings, families, {0: EVIDENCE}
    )


def test_a_page_has_all_that_is_known(evident: FeatureCatalog) -> None:
    page = evident.show(0).with_texts({"p1": "A  wage\nis paid.", "p4": "Nobody is paid."})
    text = str(page)
    for part in (
        "#0  employment, salary, wages", "0.90 against near misses", "9 of 100 passages", "0.300 (50%)",
        "work, pay (2 features, family #0)", "+0.75  #4 family, children, salary", "+0.50  #6 (no label)",
        "0.900  p1\n        A wage is paid.", "near misses", "Nobody is paid.",
    ):  # fmt: skip
        assert part in text, part
    assert page.passages == ("p1", "p2", "p3", "p4")
    data = json.loads(json.dumps(page.to_dict()))
    assert data["top"][0] == {"id": "p1", "strength": 0.9, "text": "A  wage\nis paid."}
    assert data["quantiles"]["0.5"] == 0.3
    assert data["family"] == {"id": 0, "name": "work, pay"}
    assert "dead" in str(evident.show("#5"))
    assert str(evident.show("#6")).startswith("#6  (no label)\n")
    assert evident.show("wimbledon").feature.id == 2
    with pytest.raises(AmbiguousFeatureError, match="means 2 features: #0 .*; #4 "):
        evident.show("salary")


def test_without_evidence_neighbours_come_from_the_directions(catalog: FeatureCatalog) -> None:
    directions = np.eye(9, D, dtype=np.float32)
    directions[3] = embedding(0.8, 0, 0, 0.6)
    assert catalog.evidence(0) is None
    assert catalog.show(0).neighbours == ()
    first = catalog.show(0, directions=directions).neighbours[0]
    assert (first.feature.id, first.cosine) == (3, pytest.approx(0.8))
    assert "p1" in str(catalog.show(0))


def test_passages_and_labels_of_others_are_only_text_on_a_page(catalog: FeatureCatalog) -> None:
    evil = "<img src=x onerror=alert(1)>\x1b[2J"
    feature = dataclasses.replace(catalog.features[0], label=evil, keywords=(evil,))
    features = [feature, *catalog.features[1:]]
    evidence = dataclasses.replace(EVIDENCE, top=(Example(evil, 0.9),), neighbours=(Neighbour(0, 0.5),))
    spoilt = FeatureCatalog(features, catalog.calibration, "f" * 16, None, [Family(0, evil, (0,))], {0: evidence})
    page = spoilt.show(0).with_texts({evil: evil})
    shown = page._repr_html_()
    assert "<img" not in shown
    assert shown.count("&lt;img") >= 5
    assert "\x1b" not in shown
    assert "\x1b" not in str(page)


def test_a_page_of_real_features_can_be_printed(world: World) -> None:
    for feature in world.catalog.features:
        page = world.catalog.show(feature.id, directions=world.sae.decoder)
        assert (feature.name if feature.label else f"#{feature.id}  (no label)") in str(page)
        assert ("it has no label" in str(page)) == (not feature.label)
        assert f"#{feature.id}" in page._repr_html_()


def test_a_page_has_the_words_that_carry_the_feature(catalog: FeatureCatalog) -> None:
    trie = Trie.build([Window(("minimum", "wage"), 0.9), Window(("salary",), 0.4)])
    evidence = dataclasses.replace(EVIDENCE, trie=trie.to_json())
    page = FeatureCatalog(catalog.features, catalog.calibration, "f" * 16, None, (), {0: evidence}).show(0)
    for word in ("minimum", "wage", "salary"):
        assert word in str(page).partition("words that carry it")[2]
        assert word in page._repr_html_().partition("<pre>")[2]
    assert page.to_dict()["trie"] == trie.to_json()


def test_a_family_is_found_by_name_and_number(evident: FeatureCatalog, catalog: FeatureCatalog) -> None:
    assert evident.family("Work, Pay").features == (0, 4)
    assert evident.family(1) == evident.family("#1") == evident.family("court")
    with pytest.raises(UnknownFeatureError, match=r"unknown family 'pay'\. Did you mean 'work, pay'\?"):
        evident.family("pay")
    with pytest.raises(UnknownFeatureError, match="There are 2"):
        evident.family(7)
    with pytest.raises(UnknownFeatureError, match="without families"):
        catalog.family("court")


def test_families_and_evidence_are_kept_and_evidence_is_read_when_asked_for(
    evident: FeatureCatalog, tmp_path: Path
) -> None:
    evident.save(tmp_path)
    again = FeatureCatalog.load(tmp_path, "f" * 16)
    assert again.families == evident.families
    assert again.evidence(0) == EVIDENCE
    assert again.evidence(1) is None
    (tmp_path / "evidence.json").write_text("{", encoding="utf-8")
    later = FeatureCatalog.load(tmp_path, "f" * 16)  # nothing is wrong yet
    assert later.resolve("wages").features == (0,)
    with pytest.raises(ArtifactError, match="no evidence of this library"):
        later.show(0)


def test_families_and_pages_on_the_command_line(
    sae_steer: Run, world: World, filled_folder: Path, tmp_path: Path
) -> None:
    world.sae.save_pretrained(tmp_path)
    one, two, three = (feature.id for feature in world.catalog.labelled[:3])
    evidence = dataclasses.replace(EVIDENCE, top=(Example(world.ids[0], 0.9),), neighbours=())
    families = [Family(0, "small", (one,)), Family(1, "large", (two, three))]
    FeatureCatalog(
        world.catalog.generated,
        world.catalog.calibration,
        world.sae.fingerprint,
        world.catalog.label_embeddings,
        families,
        {one: evidence},
    ).save(tmp_path)
    listed = sae_steer("features", "families", "--sae", tmp_path)
    assert [line.split()[-1] for line in listed.out.splitlines()[2:]] == ["large", "small"]
    members = sae_steer("features", "families", "large", "--sae", tmp_path, "--json").data
    assert [row["id"] for row in members["features"]] == [two, three]
    assert "Did you mean 'large'" in sae_steer("features", "families", "larg", "--sae", tmp_path).error
    shown = sae_steer("features", "show", one, "--sae", tmp_path, "--store", filled_folder / "chroma", "--json").data
    assert shown["features"][0]["top"] == [{"id": world.ids[0], "strength": 0.9, "text": world.texts[0]}]
    assert shown["features"][0]["family"] == {"id": 0, "name": "small"}


# -- files ------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(catalog: FeatureCatalog, tmp_path: Path) -> None:
    catalog.save(tmp_path)
    again = FeatureCatalog.load(tmp_path, "f" * 16)
    assert again.features == catalog.features
    for name in ("count", "unit", "maximum"):
        np.testing.assert_array_equal(getattr(again.calibration, name), getattr(catalog.calibration, name))
    assert (again.calibration.rows, again.calibration.score_spread) == (100, pytest.approx(0.2))
    np.testing.assert_allclose(again.label_embeddings, catalog.label_embeddings, atol=1e-3)  # type: ignore[arg-type]
    assert "9 features, 8 labelled" in repr(again)


def spoil(folder: Path, how: str) -> None:
    features, calibration = folder / "features.json", folder / "calibration.safetensors"
    body = json.loads(features.read_text(encoding="utf-8"))
    if how == "no features":
        features.unlink()
    elif how == "no calibration":
        calibration.unlink()
    elif how == "cut":
        features.write_text(features.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    elif how == "cut calibration":
        calibration.write_bytes(calibration.read_bytes()[:-4])
    elif how == "foreign":
        features.write_text('["tax"]', encoding="utf-8")
    else:
        if how == "newer":
            body["format_version"] = 7
        elif how == "missing row":
            del body["features"][4]
        elif how == "shuffled":
            body["features"].reverse()
        elif how == "unknown field":
            body["features"][0]["future"] = 1
        elif how == "one row less":
            del body["features"][-1]
        features.write_text(json.dumps(body), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no features", "holds no features.json"),
        ("no calibration", "holds no calibration.safetensors"),
        ("cut", "is not a feature catalog"),
        ("cut calibration", "truncated"),
        ("foreign", "is not a feature catalog"),
        ("newer", "format version 7"),
        ("missing row", "not numbered"),
        ("shuffled", "not numbered"),
        ("unknown field", "is not a feature catalog"),
        ("one row less", "9 latents, the SAE has 8"),
    ],
)
def test_a_damaged_catalog_is_refused_in_one_line(
    how: str, message: str, catalog: FeatureCatalog, tmp_path: Path
) -> None:
    catalog.save(tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(ArtifactError, match=message) as caught:
        FeatureCatalog.load(tmp_path, "f" * 16)
    assert "\n" not in str(caught.value)


def test_another_saes_catalog_or_calibration_is_refused(catalog: FeatureCatalog, tmp_path: Path) -> None:
    catalog.save(tmp_path / "one")
    with pytest.raises(ArtifactError, match="ffff.*0000"):
        FeatureCatalog.load(tmp_path / "one", "0" * 16)
    other = Calibration(
        100,
        catalog.calibration.count,
        np.full(9, 2.0, np.float32),
        np.ones(9, np.float32),
        0.2,
        np.full(9, 2.0, np.float32),
    )
    FeatureCatalog(catalog.features, other, "0" * 16).save(tmp_path / "two")
    (tmp_path / "two" / "calibration.safetensors").replace(tmp_path / "one" / "calibration.safetensors")
    with pytest.raises(ArtifactError, match="is not the one that features.json was written with"):
        FeatureCatalog.load(tmp_path / "one", "f" * 16)


# -- units ------------------------------------------------------------------------------------------------------------


def test_units_are_shrunken_percentiles_of_positive_activations() -> None:
    random = np.random.default_rng(0)
    values = random.exponential(size=(1000, 1)).astype(np.float32)
    indices = random.choice([0, 0, 0, 0, 1], size=(1000, 1)).astype(np.int32)
    values[:100] = 0.0  # empty places do not count
    batches: list[Codes[np.ndarray]] = [
        Codes(indices[start : start + 300], values[start : start + 300]) for start in range(0, 1000, 300)
    ]
    calibration = calibrate(batches, n=3, score_spread=0.1)
    assert calibration.rows == 1000
    for latent in (0, 1):
        own = values[(indices == latent) & (values > 0)]
        assert calibration.count[latent] == len(own)
        assert calibration.maximum[latent] == own.max()
        typical = np.median([np.percentile(values[(indices == i) & (values > 0)], 95) for i in (0, 1)])
        expected = (len(own) * np.percentile(own, 95) + 20 * typical) / (len(own) + 20)
        assert calibration.unit[latent] == pytest.approx(expected, rel=1e-4)
    assert calibration.count[2] == 0
    assert calibration.unit[2] == pytest.approx(typical, rel=1e-4)
    assert calibration.frequency.tolist() == pytest.approx((calibration.count / 1000).tolist())
    nothing_fired = calibrate([Codes(indices, np.zeros_like(values))], n=3, score_spread=0.1)
    assert (nothing_fired.unit > 0).all()


def test_batches_do_not_change_the_statistics() -> None:
    sae = random_sae(1)
    codes = sae.encode(unit_rows(2, 500), k=3)
    whole = calibrate([codes], n=32, score_spread=0.1)
    parts = [Codes(codes.indices[start : start + 7], codes.values[start : start + 7]) for start in range(0, 500, 7)]
    again = calibrate(parts, n=32, score_spread=0.1)
    np.testing.assert_array_equal(whole.count, again.count)
    np.testing.assert_allclose(whole.unit, again.unit, rtol=1e-6)
