"""A person's own names: they win, they are kept, and after retraining they follow their feature."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import World
from toy import N, catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import ArtifactError, UnknownFeatureError
from sae_steer_retriever.features.annotations import (
    ANNOTATIONS_FILE,
    Annotation,
    Annotations,
    carry,
    checked_label,
    read_annotations,
    write_annotations,
)
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.chroma_store import ChromaStore

VECTORS = unit_rows(7, 300)


def trained(folder: Path, sae: TopKSAE) -> FeatureCatalog:
    """What a training run leaves in a folder, loaded again."""
    sae.save_pretrained(folder)
    catalog_for(sae, VECTORS).save(folder)
    return FeatureCatalog.load(folder, sae.fingerprint)


def shuffled(sae: TopKSAE, *, noise: float = 0.1, lost: int | None = None, seed: int = 3) -> tuple[TopKSAE, list[int]]:
    """A later SAE with the same directions in another order, slightly moved; where each old feature went.

    Args:
        sae: The first one.
        noise: Length of what is added to each direction.
        lost: A feature that becomes something else entirely.
        seed: Of the order.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(sae.decoder))
    moved = sae.decoder.copy()
    if lost is not None:
        # Across all others would be best; in 16 dimensions their opposite is no one's neighbour.
        moved[lost] = -moved[lost]
    moved = moved[order] + noise * random.normal(size=moved.shape) / np.sqrt(moved.shape[1])
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    rows = torch.tensor(moved, dtype=torch.float32)
    later = TopKSAE(rows.clone(), torch.zeros(len(rows)), rows, torch.tensor(sae.bias), sae.config)
    return later, [int(np.nonzero(order == feature)[0][0]) for feature in range(len(order))]


@pytest.fixture
def sae() -> TopKSAE:
    return random_sae(0)


def test_a_persons_name_wins_and_the_words_before_still_find_the_feature(sae: TopKSAE) -> None:
    catalog = catalog_for(sae, VECTORS)
    named = catalog.annotate(3, "  ice   hockey, NHL ", note="see p. 12")
    assert (named.label, named.label_by, named.score, named.name) == ("ice hockey, NHL", "person", None, named.label)
    assert named.keywords == ("ice hockey", "NHL", "feature 3 name")
    assert catalog[3] == named
    assert catalog.name(3) == "ice hockey, NHL"
    assert catalog.resolve("Ice hockey, nhl") == ((3,), (1.0,), "label")
    assert catalog.resolve("nhl").features == (3,)
    assert catalog.search("feature 3 name")[0].id == 3
    assert catalog.show(3).note == "see p. 12"
    assert "generated: feature 3 name" in str(catalog.show(3))
    with pytest.raises(UnknownFeatureError):
        catalog.resolve("basketball")
    assert catalog.remove_annotation(3).label == "feature 3 name"
    assert catalog.generated == catalog.features
    with pytest.raises(UnknownFeatureError, match="no name given by a person"):
        catalog.remove_annotation(3)


def test_names_are_kept_with_the_sae_and_the_generated_ones_below_them(sae: TopKSAE, tmp_path: Path) -> None:
    catalog = trained(tmp_path, sae)
    catalog.annotate(3, "ice hockey", note="a note")
    again = FeatureCatalog.load(tmp_path, sae.fingerprint)
    assert again.features == catalog.features
    assert again.annotations.names[3] == Annotation(3, "ice hockey", "a note")
    again.save(tmp_path)
    assert FeatureCatalog.load(tmp_path, sae.fingerprint).features == catalog.features
    features = json.loads((tmp_path / "features.json").read_text(encoding="utf-8"))["features"]
    assert features[3]["label"] == "feature 3 name"
    # Elsewhere they go along, with what finds the feature after a retraining.
    elsewhere = tmp_path / "elsewhere"
    sae.save_pretrained(elsewhere)
    catalog.save(elsewhere)
    copied = read_annotations(elsewhere)
    assert copied is not None
    np.testing.assert_allclose(copied.names[3].direction, sae.decoder[3], atol=1e-3)  # type: ignore[arg-type]


def test_names_given_before_saving_can_be_carried_too(sae: TopKSAE, tmp_path: Path) -> None:
    catalog = catalog_for(sae, VECTORS)
    catalog.annotate(3, "ice hockey")
    sae.save_pretrained(tmp_path)
    catalog.save(tmp_path)
    later, places = shuffled(sae)
    assert list(carry(tmp_path, later).names) == [places[3]]


def test_what_two_catalogs_of_one_folder_name_is_all_kept(sae: TopKSAE, tmp_path: Path) -> None:
    one = trained(tmp_path, sae)
    other = FeatureCatalog.load(tmp_path, sae.fingerprint)
    one.annotate(1, "first")
    other.annotate(2, "second")
    assert other.name(1) == "first"
    assert {feature.label for feature in FeatureCatalog.load(tmp_path, sae.fingerprint).labelled} >= {"first", "second"}


def test_after_retraining_into_the_folder_names_are_on_the_features_that_match(
    sae: TopKSAE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = trained(tmp_path, sae)
    for feature in (3, 8, 11):
        catalog.annotate(feature, f"mine {feature}", note=f"note {feature}")
    later, places = shuffled(sae, lost=8)
    with caplog.at_level(logging.WARNING, logger="sae_steer_retriever"):
        again = trained(tmp_path, later)
    assert {feature: one.label for feature, one in again.annotations.names.items()} == {
        places[3]: "mine 3",
        places[11]: "mine 11",
    }
    assert again.resolve("mine 3").features == (places[3],)
    assert [one.label for one in again.annotations.unmatched] == ["mine 8"]
    assert "1 of 3 labels" in caplog.text
    assert "'mine 8'" in caplog.text
    # The next name that is given is written with all of these, and nothing is lost by it.
    again.annotate(0, "another")
    kept = read_annotations(tmp_path)
    assert kept is not None
    assert kept.fingerprint == later.fingerprint
    assert {one.label for one in kept.names.values()} == {"mine 3", "mine 11", "another"}
    assert [(one.label, one.note) for one in kept.unmatched] == [("mine 8", "note 8")]
    # And where a feature like the lost one comes back, its name does too.
    assert trained(tmp_path, sae).name(8) == "mine 8"


def test_names_are_carried_from_one_folder_to_another_sae(sae: TopKSAE, tmp_path: Path) -> None:
    old = trained(tmp_path / "old", sae)
    for feature in range(N):
        old.annotate(feature, f"mine {feature}")
    later, places = shuffled(sae)
    carried = carry(tmp_path / "old", later)
    assert {feature: one.label for feature, one in carried.names.items()} == {
        places[feature]: f"mine {feature}" for feature in range(N)
    }
    trained(tmp_path / "new", later)
    write_annotations(tmp_path / "new", carried)
    assert FeatureCatalog.load(tmp_path / "new", later.fingerprint).name(places[5]) == "mine 5"
    with pytest.raises(ArtifactError, match="no feature was named there"):
        carry(tmp_path / "new" / "..", later)


def test_a_direction_that_is_another_features_by_right_gets_no_name(sae: TopKSAE, tmp_path: Path) -> None:
    # Feature 1 is much like feature 0, and only feature 0 is in the later dictionary.
    near = 0.8 * sae.decoder[0] + 0.6 * sae.decoder[1]
    decoder = sae.decoder.copy()
    decoder[1] = near / np.linalg.norm(near)
    rows = torch.tensor(decoder)
    old = TopKSAE(rows.clone(), torch.zeros(N), rows, torch.tensor(sae.bias), sae.config)
    without = decoder.copy()
    without[1] = -decoder[1]
    rows = torch.tensor(without)
    later = TopKSAE(rows.clone(), torch.zeros(N), rows, torch.tensor(sae.bias), sae.config)
    assert float(decoder[1] @ without[0]) > 0.7
    trained(tmp_path, old).annotate(1, "mine")
    for found in (carry(tmp_path, later).unmatched, trained(tmp_path, later).annotations.unmatched):
        assert [one.label for one in found] == ["mine"]


def test_an_sae_of_another_width_takes_no_name_and_loses_none(sae: TopKSAE, tmp_path: Path) -> None:
    trained(tmp_path, sae).annotate(3, "mine")
    wide = random_sae(0, d=24)
    wide.save_pretrained(tmp_path)
    catalog_for(wide, unit_rows(0, 100, 24)).save(tmp_path)
    again = FeatureCatalog.load(tmp_path, wide.fingerprint)
    assert not again.annotations.names
    assert [one.label for one in again.annotations.unmatched] == ["mine"]


# -- what cannot be a name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("", "no letter"),
        ("  \t ", "no letter"),
        ("...", "no letter"),
        ("12", "reads as the id"),
        (" #12 ", "reads as the id"),
        ("unclear #7 (tax)", "reads as the id"),
        ("family:1", "reads as a family"),
        ("x" * 1000, "1,000 characters, expected at most 120"),
        ("a\x1b[2Jb", "cannot be shown"),
        ("half \ud800 pair", "cannot be shown"),
    ],
)
def test_a_label_that_cannot_be_one_is_refused_and_nothing_changes(
    sae: TopKSAE, tmp_path: Path, label: str, message: str
) -> None:
    catalog = trained(tmp_path, sae)
    with pytest.raises(ValueError, match=message):
        catalog.annotate(3, label)
    assert catalog.name(3) == "feature 3 name"
    assert not (tmp_path / ANNOTATIONS_FILE).exists()
    assert catalog.revision == 0


def test_other_wrong_input_is_refused(sae: TopKSAE) -> None:
    catalog = catalog_for(sae, VECTORS)
    for feature in (-1, N, 10**12):
        with pytest.raises(UnknownFeatureError, match="#0 to #31"):
            catalog.annotate(feature, "a name")
    with pytest.raises(TypeError, match="a label is a text"):
        catalog.annotate(3, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="note has 3,000"):
        catalog.annotate(3, "a name", note="x" * 3000)
    with pytest.raises(TypeError, match="a note is a text"):
        catalog.annotate(3, "a name", note=7)  # type: ignore[arg-type]


def test_an_accent_of_its_own_makes_no_other_name(sae: TopKSAE) -> None:
    catalog = catalog_for(sae, VECTORS)
    assert catalog.annotate(3, "cafe\u0301").label == "caf\u00e9"
    assert catalog.resolve("caf\u00e9").features == (3,)


def test_two_features_of_one_name_are_steered_together(sae: TopKSAE) -> None:
    catalog = catalog_for(sae, VECTORS)
    catalog.annotate(3, "hockey")
    catalog.annotate(4, "Hockey")
    assert catalog.resolve("hockey").features == (3, 4)


@settings(max_examples=200, deadline=None)
@given(label=st.text(max_size=200), note=st.one_of(st.none(), st.text(max_size=50)))
def test_any_label_is_kept_as_it_is_or_refused(
    label: str, note: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "labels"
    try:
        clean = checked_label(label)
    except ValueError:
        return
    assert checked_label(clean) == clean
    made = Annotations("f" * 16, {3: Annotation(3, clean)}, (Annotation(5, clean),))
    write_annotations(folder, made)
    assert read_annotations(folder) == made


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"format_version": 1', '"format_version": 9'),
        lambda text: text.replace('"label": "mine"', '"label": "12"'),
        lambda text: text.replace('"feature": 3', '"feature": "3"'),
        lambda text: text.replace('"direction": "', '"direction": "!'),
    ],
)
def test_damaged_names_are_refused_in_one_line(sae: TopKSAE, tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    trained(tmp_path, sae).annotate(3, "mine")
    path = tmp_path / ANNOTATIONS_FILE
    before = path.read_text(encoding="utf-8")
    path.write_text(spoil(before), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    with pytest.raises(ArtifactError, match="annotations.json") as caught:
        FeatureCatalog.load(tmp_path, sae.fingerprint)
    assert "\n" not in str(caught.value)


def test_names_of_a_newer_version_say_what_to_do(sae: TopKSAE, tmp_path: Path) -> None:
    trained(tmp_path, sae).annotate(3, "mine")
    path = tmp_path / ANNOTATIONS_FILE
    path.write_text(path.read_text(encoding="utf-8").replace('"format_version": 1', '"format_version": 9'), "utf-8")
    with pytest.raises(ArtifactError, match="version 9, this version of the library reads 1: upgrade .*, or move"):
        FeatureCatalog.load(tmp_path, sae.fingerprint)


# -- in use -----------------------------------------------------------------------------------------------------------


def test_a_retriever_sees_a_new_name_at_once(world: World, filled_folder: Path) -> None:
    catalog = FeatureCatalog(
        world.catalog.generated, world.catalog.calibration, world.sae.fingerprint, world.catalog.label_embeddings
    )
    store = ChromaStore.open(world.sae, path=filled_folder / "chroma")
    retriever = SteeredRetriever(store, world.embedder, catalog)
    before = retriever.resolve_name("thread").features
    other = next(one.id for one in catalog.labelled if one.id not in before and one.frequency > 0)
    catalog.annotate(other, "thread")
    assert other in retriever.resolve_name("thread").features
    assert retriever.resolve_name("thread").how == "label"
    hits = retriever.search("wait", k=3, steer={"thread": 0.5})
    assert hits[0].attribution is not None
    catalog.remove_annotation(other)
    assert retriever.resolve_name("thread").features == before


def test_annotate_on_the_command_line(sae_steer: Run, world: World, filled_folder: Path, tmp_path: Path) -> None:
    sae = tmp_path / "sae"
    shutil.copytree(filled_folder / "sae", sae)
    feature, other = world.catalog.labelled[:2]
    said = sae_steer("features", "annotate", f"#{feature.id}", "my", "own name", "--note", "why", "--sae", sae)
    assert said.out == f"#{feature.id} is now 'my own name', was {feature.name!r}\n"
    shown = sae_steer("features", "show", "my own name", "--sae", sae, "--json").data["features"][0]
    assert (shown["id"], shown["label_by"], shown["note"]) == (feature.id, "person", "why")
    # The name's meaning is known too, not that of the words it replaces.
    kept = FeatureCatalog.load(sae, world.sae.fingerprint).label_embeddings
    assert kept is not None
    vector = world.embedder.embed_queries(["my own name"])[0]
    np.testing.assert_allclose(kept[feature.id], vector, atol=2e-3)
    twice = sae_steer("features", "annotate", other.id, "my own name", "--sae", sae)
    assert f"#{feature.id} has this name, too" in twice.out
    removed = sae_steer("features", "annotate", feature.id, "--remove", "--sae", sae, "--json").data
    assert removed["name"] == feature.name
    for wrong, code, message in (
        (["12345", "x"], 1, "#0 to #63"),
        (["hockey", "x"], 2, "no feature's id"),
        ([feature.id], 2, "--remove"),
        ([feature.id, "12"], 1, "reads as the id"),
        ([feature.id, "x" * 1000], 1, "1,000 characters"),
    ):
        ran = sae_steer("features", "annotate", *wrong, "--sae", sae)
        assert (ran.code, message in ran.error) == (code, True), ran.err
