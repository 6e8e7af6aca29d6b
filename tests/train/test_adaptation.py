"""Adapting an SAE to a corpus: features keep ids, meaning and labels, and what the corpus has is live."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from small_world import World

from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import ArtifactError, MismatchError, UnknownFeatureError
from sae_steer_retriever.features.calibration import calibrate
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.labelling.gather_evidence import name_matches, read_label_latents
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae import bundled as bundled
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.train.adaptation import adapted_config
from sae_steer_retriever.train.pipeline import fit
from sae_steer_retriever.train.report import TrainReport
from sae_steer_retriever.train.starting_point import choose_starting_point
from sae_steer_retriever.train.trainable_sae import KEPT_COSINE

LIVE, PASSAGES = 48, 140
SETTINGS = {"latents": LIVE, "steps": 40, "batch_size": 128, "sentences": 1}


@pytest.fixture(scope="module")
def corpus(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the world's passages: of its first modules, so that some features are not there."""
    path = tmp_path_factory.mktemp("adapted-corpus") / "docs.jsonl"
    rows = [{"_id": name, "text": text} for name, text in zip(world.ids[:PASSAGES], world.texts, strict=False)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def parent(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's SAE, with a name that a person gave."""
    folder = tmp_path_factory.mktemp("parent") / "sae"
    world.sae.save_pretrained(folder)
    world.catalog.save(folder)
    FeatureCatalog.load(folder, world.sae.fingerprint).annotate(7, "my own name")
    return folder


@pytest.fixture(scope="module")
def memory(embedder: SentenceTransformerEmbedder, tmp_path_factory: pytest.TempPathFactory) -> CachedEmbedder:
    """One embedding of each text for all tests of this file."""
    return CachedEmbedder(embedder, tmp_path_factory.mktemp("adapted-cache"))


def adapt(
    corpus: Path, output: Path, parent: Path, world: World, memory: CachedEmbedder, **changes: object
) -> TrainReport:
    config = adapted_config(world.sae.config, {**SETTINGS, **changes})
    return fit(corpus, output, config, embedder=memory, progress=False, parent=parent)


@pytest.fixture(scope="module")
def adapted(
    corpus: Path, parent: Path, world: World, memory: CachedEmbedder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainReport]:
    output = tmp_path_factory.mktemp("adapted") / "sae"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_STEER_CACHE", str(tmp_path_factory.mktemp("adapted-cache")))
        return output, adapt(corpus, output, parent, world, memory)


def test_every_feature_keeps_its_id_its_direction_and_its_label(
    adapted: tuple[Path, TrainReport], world: World
) -> None:
    output, report = adapted
    sae = TopKSAE.from_pretrained(output)
    catalog = FeatureCatalog.load(output, sae.fingerprint)
    n = world.sae.config.n
    assert report.adapted is not None
    assert sae.config.n == n + report.adapted.added == len(catalog)
    assert (sae.config.k, sae.config.k_labels) == (world.sae.config.k, world.sae.config.k_labels)
    cosines = (sae.decoder[:n] * world.sae.decoder).sum(axis=1)
    assert cosines.min() > KEPT_COSINE - 1e-4
    assert (cosines < 0.9999).sum() > LIVE / 2  # but it has learnt something
    for before, after in zip(world.catalog.generated, catalog.generated, strict=False):
        if before.label:
            assert (after.label, after.keywords, after.family) == (before.label, before.keywords, before.family)
    assert catalog[7].label == "my own name"
    assert catalog[7].label_by == "person"


def test_live_is_what_the_corpus_has(
    adapted: tuple[Path, TrainReport], corpus: Path, world: World, memory: CachedEmbedder
) -> None:
    output, report = adapted
    sae = TopKSAE.from_pretrained(output)
    catalog = FeatureCatalog.load(output, sae.fingerprint)
    own = memory.embed_documents([passage.text for passage in read_corpus(corpus).passages])
    codes = sae.encode(world.vectors)
    active = np.unique(codes.indices[codes.values > 0])
    assert len(active) <= LIVE
    names = read_label_latents(sae, own)
    count = np.bincount(names.indices[names.values > 0], minlength=sae.config.n)
    assert catalog.calibration.rows == PASSAGES
    np.testing.assert_array_equal(catalog.calibration.count, count)
    assert report.adapted is not None
    assert report.adapted.live == (count > 0).sum()
    # Centred in the corpus: more nearly than its parent.
    mean = own.mean(axis=0)
    assert np.linalg.norm(mean - sae.bias) < np.linalg.norm(mean - world.sae.bias)
    asleep = next(feature for feature in catalog.features if feature.label and not count[feature.id])
    with pytest.raises(UnknownFeatureError, match="active in no passage"):
        catalog.resolve(asleep.id)
    shown = [catalog.evidence(feature) for feature in np.flatnonzero(count >= 5)]
    assert {example.id for found in shown if found for example in found.top} <= set(world.ids[:PASSAGES])
    assert asleep not in catalog.search(asleep.label)


def test_retention_is_not_below_that_of_the_parent(adapted: tuple[Path, TrainReport]) -> None:
    output, report = adapted
    assert report.adapted is not None
    assert report.overlap >= report.adapted.overlap_before
    assert report.fvu_held_out < report.adapted.fvu_before
    assert "adapted  from " in report.summary()
    assert report.adapted.fingerprint in (output / "README.md").read_text(encoding="utf-8")
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert config["adapted_from"] == report.adapted.fingerprint
    assert config["training"]["init"] == "pretrained"
    assert json.dumps(report.to_json())


def test_the_same_seed_gives_the_same_and_an_interrupted_run_goes_on(
    adapted: tuple[Path, TrainReport], corpus: Path, parent: Path, world: World, memory: CachedEmbedder, tmp_path: Path
) -> None:
    expected = TopKSAE.from_pretrained(adapted[0]).fingerprint
    config = adapted_config(world.sae.config, SETTINGS)

    def interrupt(step: int) -> None:
        if step == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(corpus, tmp_path, config, embedder=memory, progress=False, parent=parent, on_step=interrupt)
    assert not (tmp_path / "config.json").exists()
    fit(corpus, tmp_path, config, embedder=memory, progress=False, parent=parent, resume=True)
    assert TopKSAE.from_pretrained(tmp_path).fingerprint == expected
    other = tmp_path / "other"
    adapt(corpus, other, parent, world, memory, seed=1)
    assert TopKSAE.from_pretrained(other).fingerprint != expected


def test_policies_of_the_parent_hold_and_those_of_others_do_not(
    adapted: tuple[Path, TrainReport], world: World, memory: CachedEmbedder, filled_folder: Path, tmp_path: Path
) -> None:
    general = SteeredRetriever(ChromaStore.open(world.sae, path=filled_folder / "chroma"), memory, world.catalog)
    sae = TopKSAE.from_pretrained(adapted[0])
    catalog = FeatureCatalog.load(adapted[0], sae.fingerprint)
    first, second = np.argsort(-catalog.calibration.count[: len(world.catalog)])[:2].tolist()
    policy = Steering.from_json(general.resolve({first: 0.5, second: -0.3}).to_json())
    store = ChromaStore.open(sae, path=tmp_path)
    store.add(world.ids[:PASSAGES], world.texts[:PASSAGES], embedder=memory)
    retriever = SteeredRetriever(store, memory, catalog)
    resolved = retriever.resolve(policy)
    assert [edit.features for edit in resolved.edits] == [(first,), (second,)]
    assert resolved.fingerprint == sae.fingerprint
    query = "run a task in another thread"
    scores = [
        [(hit.id, hit.score) for hit in hits]
        for hits in (
            retriever.search(query),
            retriever.search(query, steer=policy),
            retriever.with_steering(policy).search(query),
        )
    ]
    assert scores[0] != scores[1] == scores[2]
    with pytest.raises(MismatchError, match="was made for SAE 0123"):
        retriever.resolve(dataclasses.replace(policy, fingerprint="0123"))
    with pytest.raises(MismatchError, match="was made for SAE"):  # not the other way round
        general.resolve(resolved)


def test_another_encoder_is_refused(
    parent: Path, corpus: Path, world: World, memory: CachedEmbedder, tmp_path: Path
) -> None:
    spec = dataclasses.replace(world.sae.config.encoder, name="another-encoder", revision=None)
    sae = world.sae
    foreign = TopKSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, dataclasses.replace(sae.config, encoder=spec))
    foreign.save_pretrained(tmp_path / "foreign")
    with pytest.raises(MismatchError, match="another-encoder"):
        adapt(corpus, tmp_path / "sae", tmp_path / "foreign", world, memory)
    assert not (tmp_path / "sae").exists()


def test_units_lean_on_those_of_the_parent_where_there_is_little_to_see(world: World) -> None:
    few = world.vectors[:30]
    names = read_label_latents(world.sae, few)
    matches = [name_matches(world.sae, few, names)]
    prior = world.catalog.calibration
    alone = calibrate([names], 64, 0.2, matches)
    with_prior = calibrate([names], 64, 0.2, matches, prior)
    whole = prior.match_unit

    def off(unit: np.ndarray) -> float:
        return float(np.abs(np.log(unit / whole)).mean())

    assert off(with_prior.match_unit) < 0.7 * off(alone.match_unit)
    # On the scale of the corpus: twice the activations, twice the units.
    doubled = calibrate([Codes(names.indices, 2 * names.values)], 64, 0.2, None, prior)
    np.testing.assert_allclose(doubled.unit, 2 * calibrate([names], 64, 0.2, None, prior).unit, rtol=1e-5)


@pytest.fixture
def ships(parent: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that ships the world's SAE."""
    folder = parent.parent / "all-MiniLM-L6-v2"
    if not folder.exists():
        folder.symlink_to(parent, target_is_directory=True)
    monkeypatch.setattr(bundled, "BUNDLED_FOLDER", parent.parent)
    return folder


@pytest.mark.parametrize(
    ("settings", "passages", "adapts", "why"),
    [
        ({}, 400, True, "fewer than 5,000"),
        ({"epochs": 3}, 400, True, "fewer than 5,000"),
        ({}, 5000, False, "5,000 or more"),
        ({"latents": 512}, 400, False, "latents = 512 is given"),
        ({"labels_weight": 0.3}, 400, False, "labels_weight = 0.3 is given"),
        ({"init": "kmeans"}, 400, False, "init = kmeans"),
        ({"init": "pretrained", "latents": 512}, 50_000, True, "init = pretrained"),
        ({"model": "BAAI/bge-small-en-v1.5"}, 400, False, "no SAE is bundled for BAAI/bge-small-en-v1.5"),
    ],
)
def test_how_a_fit_begins(ships: Path, settings: dict[str, object], passages: int, adapts: bool, why: str) -> None:
    found = choose_starting_point(settings, passages)
    assert found.parent == (ships if adapts else None)
    assert why in found.why


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"init": "kmean"}, ArtifactError, "did you mean kmeans?"),
        ({"init": "no/folder/there"}, ArtifactError, "no folder"),
        (
            {"init": "pretrained", "model": "other/encoder"},
            ArtifactError,
            "no SAE is bundled for the encoder 'other/encoder'",
        ),
        ({"init": "pretrained", "k_labels": 4}, ValueError, "keeps its parent's k_labels"),
    ],
)
def test_what_cannot_begin(ships: Path, settings: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("?", r"\?")):
        choose_starting_point(settings, 400)


def test_the_command_adapts_what_ships_and_says_so(ships: Path, corpus: Path, sae_steer: Run, tmp_path: Path) -> None:
    arguments = ["train", "--corpus", corpus, "--output", tmp_path / "sae", "--sentences", 0, "--batch-size", 64]
    planned = sae_steer(*arguments, "--dry-run", "--json").data
    assert planned["begins"].startswith("from the bundled SAE for all-MiniLM-L6-v2, adapted: 140 passages")
    assert (planned["latents"], planned["settings"]["init"]) == (64, "pretrained")
    ran = sae_steer(*arguments, "--steps", 2, "--json")
    assert ran.code == 0, ran.err
    assert "adapted: 140 passages, fewer than 5,000" in ran.err
    assert ran.data["adapted"]["parent"] == "all-MiniLM-L6-v2"
    wrong = sae_steer(*arguments, "--init", "kmean")
    assert (wrong.code, "did you mean kmeans?" in wrong.error) == (2, True)
