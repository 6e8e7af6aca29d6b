"""`feature-tables`: which features are shown, how far labels are to be trusted, and what is written."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Ran, Run
from hypothesis import given
from hypothesis import strategies as st
from small_world import World
from toy import catalog_for, random_sae, unit_rows

from benchmarks.paper.__main__ import main
from benchmarks.paper.feature_samples import frequency_regions, sample_region, strongest_features
from benchmarks.paper.feature_tables import document_table, query_table, region_tables
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import LabelScore
from sae_steer_retriever.labelling.gather_evidence import read_label_latents, strengths
from sae_steer_retriever.store.connection import connect

QUESTIONS = ("wait for a thread to finish", "a socket over a network", "parse a date")


def catalog_of(counts: list[int], labels: Callable[[int], str] = "label {}".format) -> FeatureCatalog:
    """A catalog whose features are active in so many passages."""
    sae = random_sae(n=max(len(counts), 8))
    made = catalog_for(sae, unit_rows(0, 4))
    count = np.zeros(len(made), dtype=np.int64)
    count[: len(counts)] = counts
    calibration = dataclasses.replace(made.calibration, rows=1000, count=count)
    features = [
        dataclasses.replace(feature, frequency=float(count[feature.id]) / 1000, label=labels(feature.id))
        for feature in made.features
    ]
    return FeatureCatalog(features, calibration, sae.fingerprint)


@pytest.fixture
def tables(sae_steer: Run) -> Callable[..., Ran]:
    """Runs the command."""
    return lambda *arguments: sae_steer("feature-tables", *arguments, entry=main)


@pytest.fixture
def corpus(world: World, tmp_path: Path) -> Path:
    """Some of the world's passages as a file."""
    passages = list(zip(world.ids, world.texts, strict=True))[:40]
    rows = [json.dumps({"_id": name, "text": text}) for name, text in passages]
    (tmp_path / "passages.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path / "passages.jsonl"


# --- regions by frequency ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_regions_hold_every_live_feature_once_by_falling_frequency(counts: list[int]) -> None:
    regions = frequency_regions(catalog_of(counts))
    assert [region.name for region in regions] == ["head", "torso", "tail"]
    features = [feature for region in regions for feature in region.features]
    assert {feature.id for feature in features} == {latent for latent, count in enumerate(counts) if count}
    order = [(-feature.frequency, feature.id) for feature in features]
    assert order == sorted(order)
    first = 1
    for region in regions:
        assert region.first == first
        first += len(region.features)


def test_the_head_is_a_tenth_and_the_tail_a_half() -> None:
    regions = frequency_regions(catalog_of(list(range(100, 0, -1))))
    assert [len(region.features) for region in regions] == [10, 40, 50]
    assert [len(region.features) for region in frequency_regions(catalog_of([3, 2, 1]))] == [1, 1, 1]
    assert [len(region.features) for region in frequency_regions(catalog_of([0]))] == [0, 0, 0]


def test_a_sample_is_by_its_seed_and_of_labelled_features() -> None:
    catalog = catalog_of(list(range(100, 0, -1)), labels=lambda latent: f"label {latent}" if latent % 2 else "")
    tail = frequency_regions(catalog)[2]
    drawn = sample_region(tail, 6, seed=1)
    assert drawn == sample_region(tail, 6, seed=1)
    assert drawn != sample_region(tail, 6, seed=2)
    assert len({entry.feature.id for entry in drawn}) == 6
    assert all(entry.feature.label for entry in drawn)
    # Frequencies fall with the id here: the rank is the id, from 1.
    assert [entry.rank for entry in drawn] == sorted(entry.feature.id + 1 for entry in drawn)
    bare = frequency_regions(catalog_of([3, 2, 1], labels=lambda _: ""))[0]
    assert [entry.feature.id for entry in sample_region(bare, 6)] == [0]


def test_weak_labels_are_marked_and_the_rule_is_said() -> None:
    made = catalog_of([30, 20, 10])
    scores = {0: LabelScore(0.8, 0.55, (0.7, 0.9), (0.4, 0.7), 9), 1: None, 2: LabelScore(0.9, 0.9)}
    features = [
        dataclasses.replace(feature, score=scores.get(feature.id), label="" if feature.id == 2 else feature.label)
        for feature in made.features
    ]
    small, large = region_tables(FeatureCatalog(features, made.calibration, made.fingerprint))
    assert [row["label"] for row in small.records()] == ["unclear: label 0", "label 1", None]
    assert [row["rank"] for row in small.records()] == [1, 2, 3]
    assert "0.55 (0.40 to 0.70)" in small.to_text()
    assert "3 features that are active in the corpus" in small.notes[0]
    assert "head 1 to 1 (1 labelled), torso 2 to 2 (1 labelled), tail 3 to 3 (0 labelled)" in small.notes[0]
    assert (small.name, large.name) == ("table-2", "table-6")


def test_labels_are_data_for_a_terminal_and_for_markdown() -> None:
    (table, _) = region_tables(catalog_of([3], labels=lambda _: "<b>x</b>\x1b[31m | y\nz"))
    assert "\x1b" not in table.to_text()
    assert "&lt;b&gt;" in table.to_markdown()
    assert r"\| y z" in table.to_markdown()


# --- features of texts -------------------------------------------------------------------------------------------


def test_the_strongest_features_are_ordered_by_strength(world: World) -> None:
    # A refinement gives activations an order of their own: the match decides, as it does for labels.
    config = dataclasses.replace(world.sae.config, refine_steps=4)
    sae = type(world.sae)(world.sae.W_enc, world.sae.b_enc, world.sae.W_dec, world.sae.b_dec, config)
    vectors = world.vectors[:20]
    found = strongest_features(sae, world.catalog, vectors, limit=3)
    names = read_label_latents(sae, vectors)
    matches = strengths(sae, vectors, names)
    for row, features in enumerate(found):
        expected = sorted(matches.values[row], reverse=True)[:3]
        assert [strong.strength for strong in features] == pytest.approx(expected)
        own = dict(zip(matches.indices[row].tolist(), matches.values[row].tolist(), strict=True))
        assert all(own[strong.feature.id] == pytest.approx(strong.strength) for strong in features)
    assert any(
        [strong.feature.id for strong in features] != names.indices[row][np.argsort(-names.values[row])][:3].tolist()
        for row, features in enumerate(found)
    )


def test_a_text_without_features_has_no_rows() -> None:
    sae = random_sae(shift=-50.0)
    vectors = unit_rows(0, 2)
    assert strongest_features(sae, catalog_for(sae, vectors), vectors) == [(), ()]
    assert query_table(sae, catalog_for(sae, vectors), ["a", "b"], vectors).rows == ()


def test_features_of_most_queries_are_noted() -> None:
    sae = random_sae()
    vectors = np.repeat(unit_rows(0, 1), 3, axis=0)
    catalog = catalog_for(sae, vectors)
    table = query_table(sae, catalog, ["a", "b", "c"], vectors)
    first = table.records()[0]["id"]
    assert f"Feature {first} is among the strongest of 3 of the 3 queries." in table.notes
    assert not any("is among" in note for note in document_table(sae, catalog, ["a"], vectors[:1]).notes)


# --- the command -------------------------------------------------------------------------------------------------


def test_a_corpus_gives_all_tables_and_the_figure(
    tables: Callable[..., Ran], filled_folder: Path, corpus: Path, world: World, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    given = ["--sae", filled_folder / "sae", "--corpus", corpus, "--document", *world.ids[:2], "--query", *QUESTIONS]
    ran = tables(*given, "--output", output, "--json")
    assert ran.code == 0, ran.err
    assert list(ran.data["tables"]) == ["table-2", "table-6", "table-3", "table-7"]
    names = ("table-2", "table-6", "table-3", "table-7", "figure-3")
    expected = {f"{name}.{ending}" for name in names for ending in ("md", "csv", "json")}
    assert {Path(file).name for file in ran.data["files"]} == expected | {"figure-3.png", "figure-3.svg"}
    assert (output / "figure-3.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((output / "table-7.csv").read_text(encoding="utf-8").splitlines()))
    assert list(dict.fromkeys(row["query"] for row in rows)) == list(QUESTIONS)
    # The world's names are four.
    assert [row["rank"] for row in rows[:4]] == ["1", "2", "3", "4"]
    strong = [float(row["strength"]) for row in rows[:4]]
    assert strong == sorted(strong, reverse=True)
    text = tables(*given).out
    for title in ("Table 2: ", "Table 6: ", "Table 3: ", "Table 7: ", "Figure 3: "):
        assert title in text
    assert "written:" not in text


def test_a_store_is_read_with_its_own_vectors(tables: Callable[..., Ran], filled_folder: Path, world: World) -> None:
    wanted = ["--document", *world.ids[3:6], "--limit", 2, "--json"]
    found = tables("--store", filled_folder / "chroma", *wanted).data
    rows = [(row["document"], row["id"], row["strength"]) for row in found["tables"]["table-3"]["rows"]]
    expected = strongest_features(world.sae, world.catalog, world.vectors[3:6], limit=2)
    assert rows == [
        (name, str(strong.feature.id), pytest.approx(strong.strength, abs=1e-5))
        for name, features in zip(world.ids[3:6], expected, strict=True)
        for strong in features
    ]
    assert f"{len(world.ids)} passages" in found["figure"]["notes"][0]
    assert "files" not in found


def test_an_sae_alone_gives_the_samples_and_the_queries(tables: Callable[..., Ran], filled_folder: Path) -> None:
    found = tables("--sae", filled_folder / "sae", "--query", QUESTIONS[0], "--seed", 3, "--json").data
    assert list(found["tables"]) == ["table-2", "table-6", "table-7"]
    assert "figure" not in found
    again = tables("--sae", filled_folder / "sae", "--seed", 3, "--json").data
    assert again["tables"]["table-6"] == found["tables"]["table-6"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sae", "x", "--document", "a"), "--document names passages of --corpus PATH or of --store DIR"),
        (("--sae", "x", "--corpus", "nowhere"), "no such file or folder"),
        (("--store", ".", "--corpus", "."), "give either --corpus PATH or --store DIR"),
        (("--sae", "x", "--query", " "), "a question is empty"),
        (("--sae", "x", "--seed", "-1"), "expected a whole number of at least 0"),
    ],
)
def test_impossible_options_are_usage_errors(tables: Callable[..., Ran], arguments: tuple[str, ...], said: str) -> None:
    ran = tables(*arguments)
    assert ran.code == 2
    assert said in ran.error


def test_an_unknown_document_names_the_nearest(tables: Callable[..., Ran], filled_folder: Path, world: World) -> None:
    wanted = world.ids[0]
    ran = tables("--store", filled_folder / "chroma", "--document", wanted + "x")
    assert ran.code == 2
    assert f"no such passage among {len(world.ids)}, e.g. " in ran.error
    assert repr(wanted) in ran.error


def test_a_store_without_texts_gives_tables_but_no_figure(
    tables: Callable[..., Ran], filled_folder: Path, world: World, tmp_path: Path
) -> None:
    collection = connect(path=tmp_path / "chroma").create_collection("docs", metadata={"hnsw:space": "cosine"})
    collection.add(ids=world.ids[:9], embeddings=list(world.vectors[:9]))
    ran = tables(
        *("--store", tmp_path / "chroma", "--sae", filled_folder / "sae", "--document", world.ids[0], "--json")
    )
    assert ran.code == 0, ran.err
    assert "figure" not in ran.data
    assert ran.data["tables"]["table-3"]["rows"]
    assert "the store holds no texts" in ran.err
