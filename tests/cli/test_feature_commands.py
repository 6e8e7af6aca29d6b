"""`sae-steer features` as it is typed: every action through the real command line, on a small real world."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from small_world import World

from sae_steer_retriever.cli import feature_tries
from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import MismatchError, UnknownFeatureError
from sae_steer_retriever.features.calibration import Calibration
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.evidence import EVIDENCE_FILE, read_evidence
from sae_steer_retriever.features.trie import Trie, detection
from sae_steer_retriever.labelling.gather_evidence import read_label_latents
from sae_steer_retriever.labelling.keyword_labels import split_halves
from sae_steer_retriever.labelling.measured_tries import MeasuredTrie, measured_tries
from sae_steer_retriever.labelling.neuron2graph import _MOST_PASSAGES, PASSAGES
from sae_steer_retriever.labelling.word_attribution import Reading
from sae_steer_retriever.sae.config import EncoderSpec
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.connection import connect


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all tests here."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def _one_encoder(
    embedder: SentenceTransformerEmbedder, kept: Path, _private_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packaged encoder loaded once, and each text embedded once: neither is what is tested here."""
    monkeypatch.setattr("sae_steer_retriever.encoders.embedders.as_embedder", lambda _: embedder)
    monkeypatch.setenv("SAE_STEER_CACHE", str(kept))


@pytest.fixture
def store(filled_folder: Path) -> Path:
    """A store to read from."""
    return filled_folder / "chroma"


@pytest.fixture
def sae(filled_folder: Path, tmp_path: Path) -> Path:
    """An SAE's folder to write to."""
    shutil.copytree(filled_folder / "sae", tmp_path / "sae")
    return tmp_path / "sae"


@pytest.fixture
def corpus(world: World, tmp_path: Path) -> Path:
    """The world's passages as a file."""
    rows = [json.dumps({"_id": name, "text": text}) for name, text in zip(world.ids, world.texts, strict=True)]
    (tmp_path / "passages.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path / "passages.jsonl"


@pytest.fixture
def frequent(world: World) -> list[int]:
    """The four most frequent named features."""
    named = sorted(world.catalog.labelled, key=lambda feature: (-feature.frequency, feature.id))
    return [feature.id for feature in named[:4]]


# -- what all actions share -------------------------------------------------------------------------------------------


def test_help_names_every_action(sae_steer: Run) -> None:
    helped = sae_steer("features", "--help")
    assert helped.code == 0
    for action in ("list", "search", "show", "families", "contrast", "annotate", "label", "tries"):
        assert f"\n    {action} " in helped.out
        assert sae_steer("features", action, "--help").code == 0


def test_the_sae_may_stand_before_or_after_the_word(
    sae_steer: Run, sae: Path, corpus: Path, frequent: list[int]
) -> None:
    for action in (
        ["families"],
        ["contrast", "--positive", "a thread of execution"],
        ["tries", frequent[0], "--corpus", corpus, "--passages", 2],
        ["label", "--corpus", corpus],
    ):
        before = sae_steer("features", "--sae", sae, *action, "--json")
        after = sae_steer("features", *action, "--json", "--sae", sae)
        assert before.code == 0, before.err
        assert before.data == after.data


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["label", "--corpus", "."], "whose features? Name an SAE"),
        (["label", "--corpus", ".", "--sae", "nowhere"], "no such folder: nowhere"),
        (["--store", ".", "label", "--corpus", "."], "give --sae DIR in place of --store"),
        # Both sides of the word: it would be asked for every feature else, and that may cost money.
        (["--sae", ".", "--limit", "3", "label", "--corpus", "."], "--limit and --price-per-million go with"),
        (["tries", "--sae", "."], "whose tries?"),
        (["tries", "1", "--all", "--sae", "."], "whose tries?"),
        (["tries", "1", "--sae", "."], "give --corpus PATH, or --store DIR"),
        (["tries", "1", "--corpus", "nowhere", "--sae", "."], "no such file or folder: nowhere"),
        (["tries", "1", "--corpus", ".", "--store", "."], "give either --corpus PATH or --store DIR"),
        (["tries", "1", "--corpus", ".", "--sae", ".", "--limit", "3"], "--limit goes with --all"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_opened(
    arguments: list[str], said: str, sae_steer: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = sae_steer("features", *arguments)
    assert ran.code == 2
    assert said in ran.error
    assert ran.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tries", "1", "--passages", "513"], "expected at most 512 passages"),
        (["tries", "1", "--passages", "0"], "expected a whole number of at least 1"),
        (["tries", "1", "--how", "magic"], "invalid choice"),
        (["label"], "required: --corpus"),
    ],
)
def test_options_out_of_range_are_usage_errors(arguments: list[str], said: str, sae_steer: Run) -> None:
    ran = sae_steer("features", *arguments)
    assert (ran.code, said in ran.err, ran.out) == (2, True, "")


# -- families, contrast, annotate -------------------------------------------------------------------------------------


def test_families_list_and_a_family_shows_its_features(sae_steer: Run, sae: Path, world: World) -> None:
    assert world.catalog.families, "the small world has families"
    listed = sae_steer("features", "families", "--sae", sae, "--json").data
    sizes = [len(family["features"]) for family in listed["families"]]
    assert sizes == sorted(sizes, reverse=True)
    assert listed["count"] == len(world.catalog.families)
    family = listed["families"][0]
    members = sae_steer("features", "families", family["name"], "--sae", sae, "--json").data
    assert [feature["id"] for feature in members["features"]] == family["features"]
    text = sae_steer("features", "families", f"#{family['id']}", "--sae", sae).out
    assert text.startswith(f"family #{family['id']}  {family['name']}\n")
    assert sae_steer("features", "families", f"family:{family['id']}", "--sae", sae).out == text
    unknown = sae_steer("features", "families", "no such family", "--sae", sae)
    assert unknown.code == 1
    assert "unknown family 'no such family'" in unknown.error


@pytest.mark.parametrize(("action", "asked"), [("search", "what"), ("show", "what"), ("families", "which family")])
def test_an_empty_text_is_a_usage_error(action: str, asked: str, sae_steer: Run, sae: Path) -> None:
    for empty in ("", "  "):
        ran = sae_steer("features", action, empty, "--sae", sae)
        assert (ran.code, ran.out) == (2, "")
        assert asked in ran.error


@pytest.mark.parametrize("action", [["show", "#1"], ["list"], ["search", "threads"]])
def test_the_features_of_another_sae_are_not_shown_for_a_store(
    action: list[str], sae_steer: Run, store: Path, world: World, tmp_path: Path
) -> None:
    config = dataclasses.replace(world.sae.config, k_labels=3)
    other = TopKSAE(world.sae.W_enc, world.sae.b_enc, world.sae.W_dec, world.sae.b_dec, config)
    other.save_pretrained(tmp_path / "other")
    FeatureCatalog(world.catalog.features, world.catalog.calibration, other.fingerprint).save(tmp_path / "other")
    alone = sae_steer("features", *action, "--sae", tmp_path / "other")
    assert alone.code == 0, alone.err
    both = sae_steer("features", *action, "--sae", tmp_path / "other", "--store", store)
    assert both.code == 1
    assert f"was made by SAE {world.sae.fingerprint}" in both.error
    assert other.fingerprint in both.error


def test_naming_a_dead_feature_says_that_it_is_dead(sae_steer: Run, sae: Path, world: World) -> None:
    count = world.catalog.calibration.count.copy()
    count[3] = 0
    calibration = dataclasses.replace(world.catalog.calibration, count=count)
    FeatureCatalog(world.catalog.generated, calibration, world.sae.fingerprint).save(sae)
    assert "no passage of the corpus has this feature" in sae_steer("features", "annotate", 3, "gone", "--sae", sae).out
    assert "no passage" not in sae_steer("features", "annotate", 4, "here", "--sae", sae).out


def test_the_wrong_corpus_does_not_cost_the_labels(sae_steer: Run, sae: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"_id": "a", "text": "One short passage of something else."}\n')
    before = {path.name: path.read_bytes() for path in sae.iterdir()}
    ran = sae_steer("features", "label", "--sae", sae, "--corpus", tmp_path / "other.jsonl")
    assert (ran.code, ran.out) == (1, "")
    assert "keeps its labels" in ran.error
    assert {path.name: path.read_bytes() for path in sae.iterdir()} == before


def test_a_contrast_names_features_that_a_person_has_renamed(sae_steer: Run, sae: Path) -> None:
    asked = ("features", "contrast", "--positive", "a thread of execution", "start a thread", "--sae", sae, "--json")
    first = sae_steer(*asked).data["features"][0]
    annotated = sae_steer("features", "annotate", first["feature"], "my threads", "--sae", sae)
    assert annotated.out.startswith(f"#{first['feature']} is now 'my threads'")
    again = sae_steer(*asked).data
    assert again["features"][0]["label"] == "my threads"
    assert f"--steer '#{first['feature']}=" in again["options"]
    nothing = sae_steer("features", "contrast", "--positive", " ", "--sae", sae)
    assert nothing.code == 1
    assert "empty text" in nothing.error


# -- label ------------------------------------------------------------------------------------------------------------


def test_labelling_again_adds_what_files_of_an_earlier_version_lack(
    sae_steer: Run, sae: Path, corpus: Path, world: World
) -> None:
    tensors = Calibration.tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Calibration, "tensors", lambda own: {k: v for k, v in tensors(own).items() if k != "match_unit"})
        world.catalog.save(sae)
    warned = sae_steer("features", "show", 3, "--sae", sae)
    assert "no units of match" in warned.err
    done = sae_steer("features", "label", "--sae", sae, "--corpus", corpus)
    assert done.code == 0, done.err
    again = FeatureCatalog.load(sae, world.sae.fingerprint).calibration
    np.testing.assert_allclose(again.match_unit, world.catalog.calibration.match_unit, atol=1e-5)
    assert "no units of match" not in sae_steer("features", "show", 3, "--sae", sae).err


def test_labelling_again_keeps_a_persons_names(sae_steer: Run, sae: Path, corpus: Path, world: World) -> None:
    feature = world.catalog.labelled[0]
    sae_steer("features", "annotate", feature.id, "a name of mine", "--sae", sae)
    (sae / EVIDENCE_FILE).unlink()
    done = sae_steer("features", "label", "--sae", sae, "--corpus", corpus)
    assert done.code == 0, done.err
    assert f"{len(world.catalog.labelled)} features labelled by keywords\n" in done.out
    catalog = FeatureCatalog.load(sae, world.sae.fingerprint)
    assert catalog[feature.id].name == "a name of mine"
    assert [one.label for one in catalog.generated] == [one.label for one in world.catalog.features]
    assert set(read_evidence(sae, world.sae.fingerprint)) >= {one.id for one in world.catalog.labelled}


def test_labelling_again_keeps_tries_and_mends_damaged_evidence(
    sae_steer: Run, sae: Path, corpus: Path, store: Path, world: World, frequent: list[int]
) -> None:
    sae_steer("features", "tries", frequent[0], "--store", store, "--sae", sae, "--passages", 2, "--save")
    trie = read_evidence(sae, world.sae.fingerprint)[frequent[0]].trie
    assert trie is not None
    assert sae_steer("features", "label", "--sae", sae, "--corpus", corpus).code == 0
    assert read_evidence(sae, world.sae.fingerprint)[frequent[0]].trie == trie
    (sae / EVIDENCE_FILE).write_text("[]")
    shown = sae_steer("features", "show", frequent[0], "--sae", sae)
    assert shown.code == 1
    assert "sae-steer features label" in shown.error
    assert sae_steer("features", "label", "--sae", sae, "--corpus", corpus).code == 0
    assert frequent[0] in read_evidence(sae, world.sae.fingerprint)


def test_the_tables_have_moved(sae_steer: Run) -> None:
    for arguments in (("tables",), ("tables", "--query", "x", "--output", "y"), ("--limit", 2, "tables", "--help")):
        refused = sae_steer("features", *arguments)
        assert refused.code == 2
        assert "python -m benchmarks.paper feature-tables" in refused.error


# -- tries ------------------------------------------------------------------------------------------------------------


def test_choices_are_those_of_the_core() -> None:
    assert typing.get_args(Reading) == feature_tries.HOW_CHOICES
    assert (feature_tries.PASSAGES, feature_tries.MOST_PASSAGES) == (PASSAGES, _MOST_PASSAGES)


@pytest.fixture(scope="module")
def measured(world: World, cached_embedder: CachedEmbedder) -> dict[int, MeasuredTrie]:
    """Tries of the six most frequent features."""
    frequent = np.argsort(-world.catalog.calibration.count, kind="stable")[:6].tolist()
    return measured_tries(world.sae, world.texts, world.vectors, cached_embedder, frequent, limit=6)


def test_tries_are_made_of_one_half_and_measured_on_the_other(
    measured: dict[int, MeasuredTrie], world: World, cached_embedder: CachedEmbedder
) -> None:
    made_of, unseen = split_halves(len(world.texts))
    names = read_label_latents(world.sae, world.vectors)
    for feature, one in measured.items():
        has = ((names.indices == feature) & (names.values > 0)).any(axis=1)
        assert one.made_of == min(6, has[made_of].sum())
        assert one.having == one.lacking == has[unseen].sum()
        texts = [world.texts[row] for row in unseen[has[unseen]]]
        assert one.score.recall == detection(one.trie, texts, []).recall
    # Neither depends on what the other half says: only scores change with its texts.
    feature = next(iter(measured))
    others = [text if row in set(made_of.tolist()) else "nothing" for row, text in enumerate(world.texts)]
    blind = measured_tries(world.sae, others, world.vectors, cached_embedder, [feature], limit=6)[feature]
    # Activations are sums over other batches: their last digits differ.
    assert blind.trie.words() == measured[feature].trie.words()
    assert (blind.score.recall, math.isnan(blind.score.precision)) == (0.0, True)


def test_a_trie_tells_its_features_passages_from_others(measured: dict[int, MeasuredTrie]) -> None:
    assert all(one.trie.words() for one in measured.values())
    # A trie that matched by chance would have a precision of a half.
    assert np.nanmedian([one.score.precision for one in measured.values()]) >= 0.7
    assert np.median([one.score.recall for one in measured.values()]) >= 0.3


def test_measured_tries_refuse_what_cannot_be(world: World, cached_embedder: CachedEmbedder) -> None:
    with pytest.raises(MismatchError, match=r"3 texts came with \d+ vectors"):
        measured_tries(world.sae, world.texts[:3], world.vectors, cached_embedder, [0])
    for wrong in (-1, 64):
        with pytest.raises(UnknownFeatureError, match=f"#{wrong}: this SAE has features #0 to #63"):
            measured_tries(world.sae, world.texts, world.vectors, cached_embedder, [wrong])


def test_tries_are_printed_with_what_they_are_worth(
    sae_steer: Run, store: Path, world: World, frequent: list[int]
) -> None:
    feature, other = frequent[:2]
    asked = ("features", "tries", f"#{feature}", world.catalog[other].label, feature, "--store", store, "--passages", 4)
    rows = sae_steer(*asked, "--json").data["features"]
    assert [row["id"] for row in rows] == [feature, other]
    text = sae_steer(*asked).out
    for row in rows:
        assert row["made_of"] == 4
        trie = Trie.from_json(row["trie"])
        assert row["words"] == list(trie.words())
        assert f"#{row['id']}  {row['name']}\n" in text
        assert (
            f"precision {row['precision']:.2f}, recall {row['recall']:.2f} on {row['having']} unseen passages with it"
        ) in text
        assert "".join(f"    {line}\n" for line in trie.to_text().splitlines()) in text
    unknown = sae_steer("features", "tries", "64", "--store", store)
    assert unknown.code == 1
    assert "#0 to #63" in unknown.error
    misspelt = sae_steer("features", "tries", "sockt", "--store", store)
    assert misspelt.code == 1
    assert "Did you mean 'socket'" in misspelt.error


def test_tries_of_all_are_a_table_of_the_most_frequent(sae_steer: Run, store: Path, frequent: list[int]) -> None:
    asked = ("features", "tries", "--all", "--limit", 4, "--store", store, "--passages", 2)
    assert [row["id"] for row in sae_steer(*asked, "--json").data["features"]] == frequent
    head, _, *lines = sae_steer(*asked).out.splitlines()
    assert head.startswith("4 tries, ")
    assert "median precision" in head
    assert [line.split()[0] for line in lines] == [f"#{feature}" for feature in frequent]


def test_saved_tries_are_shown_and_nothing_else_changes(
    sae_steer: Run, sae: Path, store: Path, world: World, frequent: list[int]
) -> None:
    before = read_evidence(sae, world.sae.fingerprint)
    asked = ("features", "tries", *frequent[:2], "--store", store, "--sae", sae, "--passages", 4, "--save")
    done = sae_steer(*asked, "--json").data
    assert done["saved"] == frequent[:2]
    after = read_evidence(sae, world.sae.fingerprint)
    assert before.keys() == after.keys()
    for feature, evidence in after.items():
        if feature not in frequent[:2]:
            assert evidence == before[feature]
    kept = after[frequent[0]]
    assert kept.trie == done["features"][0]["trie"]
    assert (kept.top, kept.near_misses, kept.quantiles) == (
        before[frequent[0]].top,
        before[frequent[0]].near_misses,
        before[frequent[0]].quantiles,
    )
    shown = sae_steer("features", "show", frequent[0], "--sae", sae).out
    assert "words that carry it\n" in shown
    assert Trie.from_json(done["features"][0]["trie"]).to_text().splitlines()[0] in shown
    (sae / EVIDENCE_FILE).unlink()
    nowhere = sae_steer(*asked)
    assert nowhere.code == 2
    assert "features label" in nowhere.error


def test_a_picture_of_each_trie_is_drawn(sae_steer: Run, store: Path, frequent: list[int], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the `evaluate` extra")
    folder = tmp_path / "pictures"
    given = ("features", "tries", frequent[0], "--store", store, "--passages", 2)
    drawn = sae_steer(*given, "--picture", folder, "--json").data["features"][0]["picture"]
    assert Path(drawn) == folder / f"trie-{frequent[0]}.png"
    assert Path(drawn).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    refused = sae_steer(*given, "--picture", tmp_path / "file")
    assert refused.code == 2
    assert "--picture: cannot make the folder" in refused.error


def test_prefixes_and_substitutes_are_asked_for(sae_steer: Run, store: Path, frequent: list[int]) -> None:
    given = ("features", "tries", frequent[0], "--store", store, "--passages", 2, "--json")
    plain = sae_steer(*given, "--how", "split").data["features"][0]
    assert sae_steer(*given).data["features"][0] == plain  # the packaged encoder mean-pools
    more = sae_steer(*given, "--substitutes").data["features"][0]
    assert set(more["words"]) >= set(plain["words"])
    by_prefixes = sae_steer(*given, "--how", "prefixes").data["features"][0]
    assert by_prefixes["words"]
    assert (by_prefixes["having"], by_prefixes["made_of"]) == (plain["having"], plain["made_of"])


def test_an_encoder_that_shows_no_tokens_is_read_by_prefixes_alone(
    sae_steer: Run, store: Path, world: World, frequent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remote:
        """As an encoder behind an API is: texts in, vectors out."""

        spec: EncoderSpec = world.embedder.spec
        embed_documents = staticmethod(world.embedder.embed_documents)
        embed_queries = staticmethod(world.embedder.embed_queries)

    monkeypatch.setattr("sae_steer_retriever.encoders.embedders.as_embedder", lambda _: Remote())
    given = ("features", "tries", frequent[0], "--store", store, "--passages", 1)
    assert sae_steer(*given).code == 0
    split = sae_steer(*given, "--how", "split")
    assert split.code == 1
    assert "shows no token vectors" in split.error


def test_contrast_reads_a_collection_without_a_sidecar_and_creates_none(
    sae_steer: Run, sae: Path, world: World, tmp_path: Path
) -> None:
    client = connect(path=tmp_path / "plain")
    plain = client.create_collection("docs", embedding_function=None, configuration={"hnsw": {"space": "ip"}})
    plain.add(ids=world.ids, embeddings=world.vectors, documents=world.texts)
    liked = [name for name in world.ids if name.startswith("threading.")][:8]
    ran = sae_steer("features", "contrast", "--like", *liked, "--store", tmp_path / "plain", "--sae", sae)
    assert ran.code == 0, ran.err
    assert "--steer" in ran.out
    assert [collection.name for collection in client.list_collections()] == ["docs"]
