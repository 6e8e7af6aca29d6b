"""A bundled SAE: found by its encoder's name, taken where none is given, and half the size of the one it is of."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import chromadb
import numpy as np
import pytest
import torch
from command_line import Run
from safetensors.torch import load_file
from shipment import write_shipment
from small_world import World
from toy import catalog_for, random_sae, unit_rows

from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.errors import ArtifactError, MismatchError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.loading import load_sae
from sae_steer_retriever.integrations.sources import adopt_store, load_parts
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae import bundled as bundled
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.recorded_sae import at_recorded_k, recorded_sae

NAME = "all-MiniLM-L6-v2"
QUERY = "how do I run work in the background and wait for it?"
REAL = bundled.BUNDLED_FOLDER / NAME
needs_weights = pytest.mark.skipif(
    not (REAL / "model.safetensors").is_file(), reason=f"this copy of the package has no weights in {REAL}"
)


@pytest.fixture(scope="session")
def shipment(filled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's SAE as it would ship, in a folder of such."""
    root = tmp_path_factory.mktemp("pretrained").resolve()
    write_shipment(filled_folder / "sae", root / NAME)
    return root


@pytest.fixture
def ships(shipment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world's SAE ships with the package; its folder."""
    monkeypatch.setattr(bundled, "BUNDLED_FOLDER", shipment)
    return shipment / NAME


@pytest.fixture
def corpus(world: World, tmp_path: Path) -> Path:
    """A folder of text files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in zip(world.ids[:60], world.texts[:60], strict=True):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


# -- which there are --------------------------------------------------------------------------------------------------


def test_it_is_found_by_its_encoders_name(ships: Path) -> None:
    assert bundled.bundled_names() == (NAME,)
    for name in (NAME, f"sentence-transformers/{NAME}", NAME.lower()):
        assert bundled.bundled_sae(name) == ships
    assert bundled.bundled_sae("BAAI/bge-small-en-v1.5") is None
    assert bundled.bundled_sae("") is None


def test_an_encoder_without_one_is_told_what_ships_and_what_to_do(ships: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=rf"'BAAI/bge-small-en-v1.5' \(only for {NAME}\): train one .*sae-steer train"
    ):
        load_sae(embedding="BAAI/bge-small-en-v1.5")
    with pytest.raises(ArtifactError, match=f"the name of a bundled one: {NAME}"):
        TopKSAE.from_pretrained(tmp_path / "nowhere")


def test_a_copy_without_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sae_steer: Run) -> None:
    monkeypatch.setattr(bundled, "BUNDLED_FOLDER", tmp_path / "pretrained")
    assert bundled.bundled_names() == ()
    with pytest.raises(ArtifactError, match="none with this copy of the package"):
        load_sae()
    listed = sae_steer("features")
    assert listed.code == 1
    assert "none with this copy of the package" in listed.error
    (tmp_path / "a.txt").write_text("Some words.")
    ran = sae_steer("index", "--corpus", tmp_path / "a.txt", "--store", tmp_path / "chroma")
    assert ran.code == 2
    assert not (tmp_path / "chroma").exists()


def test_a_name_means_the_one_that_ships_unless_a_folder_here_has_it(
    ships: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = TopKSAE.from_pretrained(NAME)
    assert found.fingerprint == TopKSAE.from_pretrained(ships).fingerprint
    own = random_sae()
    own.save_pretrained(tmp_path / NAME)
    assert TopKSAE.from_pretrained(NAME).fingerprint == own.fingerprint
    assert bundled.bundled_name(NAME) is None
    # What a store has recorded does not depend on where one stands.
    assert bundled.recorded(bundled.recordable(ships)) == str(ships)
    assert bundled.recordable(NAME) == str(tmp_path / NAME)


# -- as it ships ------------------------------------------------------------------------------------------------------


def test_the_same_sae_gives_the_same_bytes(filled_folder: Path, shipment: Path, tmp_path: Path) -> None:
    write_shipment(filled_folder / "sae", tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["calibration.safetensors", "config.json", "features.json", "model.safetensors"]
    for name in files:
        assert (tmp_path / name).read_bytes() == (shipment / NAME / name).read_bytes()


def test_it_takes_half_the_room_and_holds_nothing_of_the_corpus(
    filled_folder: Path, shipment: Path, world: World
) -> None:
    source, folder = filled_folder / "sae", shipment / NAME
    weights = load_file(folder / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in weights.items()} == {
        "W_enc": torch.float16, "W_dec": torch.float16, "b_enc": torch.float32, "b_dec": torch.float32
    }  # fmt: skip
    assert sum(path.stat().st_size for path in folder.iterdir()) < 0.55 * sum(
        path.stat().st_size for path in source.iterdir()
    )
    written = (folder / "features.json").read_text() + (folder / "config.json").read_text()
    assert not [name for name in world.ids if f'"{name}"' in written]
    (source / "README.md").unlink(missing_ok=True)
    assert (
        write_shipment(source, folder.parent / "again").sae.fingerprint == TopKSAE.from_pretrained(folder).fingerprint
    )
    shutil.rmtree(folder.parent / "again")


def test_a_card_comes_along_and_a_persons_names_stay(world: World, tmp_path: Path) -> None:
    world.sae.save_pretrained(tmp_path / "sae")
    world.catalog.save(tmp_path / "sae")
    FeatureCatalog.load(tmp_path / "sae", world.sae.fingerprint).annotate(3, "my own")
    (tmp_path / "sae" / "README.md").write_text("what it is")
    made = write_shipment(tmp_path / "sae", tmp_path / "out")
    assert made.size == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "README.md").read_text() == "what it is"
    assert "my own" not in (tmp_path / "out" / "features.json").read_text()
    assert not (tmp_path / "out" / "annotations.json").exists()
    with pytest.raises(ValueError, match="is the SAE itself"):
        write_shipment(tmp_path / "sae", tmp_path / "sae")


def test_names_codes_and_scores_are_those_of_the_sae_it_was_made_of(world: World, shipment: Path) -> None:
    sae, catalog, _ = load_sae(shipment / NAME, embedding=world.embedder)
    before, after = world.sae.encode(world.vectors), sae.encode(world.vectors)
    alike = np.mean([set(a) == set(b) for a, b in zip(before.indices, after.indices, strict=True)])
    assert alike > 0.97  # two latents at the end of a code may be level
    same = (before.indices == after.indices).all(axis=1)
    assert same.mean() > 0.95
    np.testing.assert_allclose(after.values[same], before.values[same], atol=1e-3)
    np.testing.assert_allclose(sae.decode(after)[same], world.sae.decode(before)[same], atol=1e-3)
    assert [feature.name for feature in catalog.features] == [feature.name for feature in world.catalog.features]
    assert [feature.keywords for feature in catalog.features] == [
        feature.keywords for feature in world.catalog.features
    ]
    assert catalog.families == world.catalog.families
    np.testing.assert_array_equal(catalog.calibration.match_unit, world.catalog.calibration.match_unit)
    for feature in (0, 7, 33):
        presences = [
            FeatureMatch.of_features(one, catalog.calibration.match_unit, [feature], [1.0]).of(one.decode(codes))
            for one, codes in ((world.sae, before), (sae, after))
        ]
        np.testing.assert_allclose(presences[1][same], presences[0][same], atol=5e-3)


def test_a_page_without_passages_says_why_and_shows_neighbours(shipment: Path, world: World) -> None:
    sae = TopKSAE.from_pretrained(shipment / NAME)
    catalog = FeatureCatalog.load(shipment / NAME, sae.fingerprint)
    feature = next(feature for feature in catalog.labelled if feature.frequency > 0)
    page = catalog.show(feature.id, directions=sae.decoder)
    assert "none are kept with this SAE" in str(page)
    assert "none are kept with this SAE" in page._repr_html_()
    assert page.passages == ()
    assert len(page.neighbours) == 5
    assert json.dumps(page.to_dict())
    assert "none are kept" not in str(world.catalog.show(feature.id, directions=sae.decoder))


# -- where none is given ----------------------------------------------------------------------------------------------


def test_the_core_takes_it_and_a_store_remembers_it_by_name(
    ships: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = SteeredRetriever.open(embedding=world.embedder, path=tmp_path / "chroma")
    assert retriever.sae.fingerprint == TopKSAE.from_pretrained(ships).fingerprint
    retriever.store.add(world.ids[:40], world.texts[:40], embedder=world.embedder)
    hits = [hit.id for hit in retriever.search(QUERY)]
    client = connect(path=tmp_path / "chroma")
    assert client.get_collection("docs.sae").metadata["sae_location"] == NAME
    # Another environment, and one stands in a folder with the encoder's own files.
    moved = tmp_path.resolve() / "elsewhere"
    shutil.copytree(ships.parent, moved)
    monkeypatch.setattr(bundled, "BUNDLED_FOLDER", moved)
    (tmp_path / "here" / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert recorded_sae(client, "docs") == str(moved / NAME)
    again = SteeredRetriever.open(embedding=world.embedder, path=tmp_path / "chroma")
    assert [hit.id for hit in again.search(QUERY)] == hits


def test_a_store_of_another_sae_keeps_its_own(ships: Path, filled_folder: Path, world: World) -> None:
    own = SteeredRetriever.open(embedding=world.embedder, path=filled_folder / "chroma")
    assert own.sae.fingerprint == world.sae.fingerprint != TopKSAE.from_pretrained(ships).fingerprint
    collection = connect(path=filled_folder / "chroma").get_collection("docs", embedding_function=None)
    assert adopt_store(collection, None, world.embedder).sae.fingerprint == world.sae.fingerprint
    assert load_parts(None, world.embedder).location == NAME


def test_langchain_takes_it(ships: Path, world: World) -> None:
    langchain = pytest.importorskip("sae_steer_retriever.integrations.langchain")
    made = langchain.SAESteeredRetriever.from_texts(world.texts[:40], embedding=world.embedder, k=3)
    found = made.invoke(QUERY, steer={"#3": 0.5})
    assert len(found) == 3
    assert found[0].metadata["sae"]["features"]


def test_llama_index_takes_it(ships: Path, world: World, tmp_path: Path) -> None:
    llama_index = pytest.importorskip("sae_steer_retriever.integrations.llama_index")
    schema = pytest.importorskip("llama_index.core.schema")
    nodes = [schema.TextNode(text=text, id_=name) for name, text in zip(world.ids[:40], world.texts[:40], strict=True)]
    made = llama_index.SAESteeredRetriever.from_nodes(nodes, embed_model=world.embedder, persist_directory=tmp_path)
    found = [node.node.node_id for node in made.retrieve(QUERY)]
    again = llama_index.SAESteeredRetriever.open(tmp_path, embed_model=world.embedder)
    assert [node.node.node_id for node in again.retrieve(QUERY)] == found
    processor = llama_index.SAESteerPostprocessor.from_defaults(embed_model=world.embedder)
    assert processor.reranker.sae.fingerprint == made.retriever.sae.fingerprint


def test_from_a_folder_of_texts_to_a_steered_result_with_reasons(
    ships: Path, world: World, corpus: Path, tmp_path: Path, sae_steer: Run
) -> None:
    store = tmp_path / "chroma"
    indexed = sae_steer("index", "--corpus", corpus, "--store", store, "--quiet", "--json")
    assert indexed.code == 0, indexed.err
    assert (indexed.data["sae"], indexed.data["k"], indexed.data["passages"]) == (NAME, 16, 60)
    assert f"the bundled SAE for {NAME}" in sae_steer("index", "--corpus", corpus, "--store", store, "--quiet").out
    feature = next(one.id for one in world.catalog.labelled)
    asked = ("search", QUERY, "--store", store, "--steer", f"#{feature}=+0.5", "--explain", "--json")
    found = sae_steer(*asked)
    assert found.code == 0, found.err
    assert all(hit["explanation"] for hit in found.data["hits"])
    assert sae_steer(*asked, "--sae", NAME).data["hits"] == found.data["hits"]


def test_features_are_those_of_the_one_that_ships(ships: Path, world: World, sae_steer: Run) -> None:
    listed = sae_steer("features", "--json")
    assert listed.code == 0, listed.err
    assert listed.data["named"] == len(world.catalog.labelled)
    assert sae_steer("features", "--sae", NAME, "--json").data == listed.data


def test_evaluate_measures_the_one_that_ships(ships: Path, corpus: Path, sae_steer: Run) -> None:
    named = sae_steer("evaluate", "--corpus", corpus, "--sae", NAME, "--quiet", "--json")
    assert named.code == 0, named.err
    assert sae_steer("evaluate", "--corpus", corpus, "--quiet", "--json").data == named.data
    assert sae_steer("evaluate", "--corpus", corpus, "--sae", "nowhere").error.endswith(f"bundled: {NAME}")
    other = sae_steer("evaluate", "--corpus", corpus, "--quiet", "--json", "--k", 32)
    assert other.code == 0, other.err
    assert other.data != named.data
    assert "--k: k = 99" in sae_steer("evaluate", "--corpus", corpus, "--k", 99).error
    moved = sae_steer("evaluate", "--figure", 4, "--dataset", corpus).error
    assert "python -m benchmarks.paper figure-2, figure-3 or figure-4" in moved


def test_a_name_for_a_bundled_feature_is_kept_by_the_user(
    ships: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sae_steer: Run
) -> None:
    monkeypatch.setenv(bundled.NAMES_VARIABLE, str(tmp_path / "names"))
    before = {path.name: path.read_bytes() for path in ships.iterdir()}
    assert sae_steer("features", "annotate", 3, "my own name").code == 0
    assert {path.name: path.read_bytes() for path in ships.iterdir()} == before
    assert (tmp_path / "names" / NAME / "annotations.json").is_file()
    _, catalog, _ = load_sae()
    assert catalog[3].name == "my own name"
    assert catalog.resolve("my own name").features == (3,)
    assert sae_steer("features", "annotate", 3, "--remove").code == 0
    assert not load_sae()[1].annotations.names


# -- K at load --------------------------------------------------------------------------------------------------------


def test_one_dictionary_is_read_at_several_k(world: World, filled_folder: Path) -> None:
    errors = []
    for k in (4, 8, 16, 32):
        sae, catalog, _ = load_sae(filled_folder / "sae", embedding=world.embedder, k=k)
        assert sae.config.k == k
        assert sae.fingerprint == world.sae.fingerprint == catalog.fingerprint
        assert sae.encode(world.vectors).indices.shape[1] == k
        errors.append(float(np.square(world.vectors - sae.reconstruct(world.vectors)).sum()))
    assert errors == sorted(errors, reverse=True)
    assert world.sae.with_k(16) is world.sae
    assert world.sae.with_k(32).with_k(16).config == world.sae.config


def test_a_k_that_cannot_be_read_is_refused(filled_folder: Path) -> None:
    for k, said in ((3, "at least k_labels = 4"), (65, "1 <= k <= n = 64"), (0, "at least 1")):
        with pytest.raises(ValueError, match=said):
            TopKSAE.from_pretrained(filled_folder / "sae", k=k)


def test_an_sae_saved_at_another_k_is_still_itself(world: World, tmp_path: Path) -> None:
    world.sae.with_k(32).save_pretrained(tmp_path)
    read = TopKSAE.from_pretrained(tmp_path)
    assert (read.config.k, read.config.fitted_k, read.fingerprint) == (32, 16, world.sae.fingerprint)


def test_a_store_keeps_to_its_k(
    filled_folder: Path, world: World, corpus: Path, tmp_path: Path, sae_steer: Run
) -> None:
    store, sae = tmp_path / "chroma", filled_folder / "sae"
    index = ("index", "--corpus", corpus, "--store", store, "--quiet", "--json")
    assert sae_steer(*index, "--sae", sae, "--k", 8).data["k"] == 8
    assert sae_steer(*index).data["k"] == 8
    assert sae_steer("search", QUERY, "--store", store, "--steer", "#3=+0.5", "--explain").code == 0
    assert sae_steer("features", "show", "#3", "--store", store).code == 0
    retriever = SteeredRetriever.open(path=store, embedding=world.embedder)
    assert retriever.sae.config.k == 8
    assert retriever.store.codes(retriever.store.existing()[:2]).indices.shape == (2, 8)
    client = connect(path=store)
    with pytest.raises(MismatchError, match="holds codes of k = 8, but the SAE was given at k = 16"):
        ChromaStore.open(world.sae, client=client)
    assert "--rebuild" in sae_steer(*index, "--k", 16).error
    assert sae_steer(*index, "--k", 16, "--rebuild").data["k"] == 16
    assert "--k: k = 2: expected at least k_labels" in sae_steer(*index, "--k", 2).error
    assert at_recorded_k(random_sae(), client, "docs").config.k == random_sae().config.k


def test_a_policy_holds_at_any_k(world: World, filled_folder: Path, tmp_path: Path) -> None:
    at = [
        SteeredRetriever.open(filled_folder / "sae", embedding=world.embedder, path=tmp_path / str(k), sae_k=k)
        for k in (8, 16)
    ]
    for retriever in at:
        retriever.store.add(world.ids[:60], world.texts[:60], embedder=world.embedder)
    policy = at[0].resolve({"#3": 0.5})
    hits = [retriever.search(QUERY, steer=policy) for retriever in at]
    assert all(hit.attribution is not None for hit in hits[0] + hits[1])


def test_a_sidecar_of_an_earlier_version_is_of_the_k_of_its_fit(world: World, filled_folder: Path) -> None:
    client = connect(path=filled_folder / "chroma")
    collection = client.get_collection("docs.sae", embedding_function=None)
    kept = dict(collection.metadata)
    collection.modify(metadata={key: value for key, value in kept.items() if key != "k"})
    try:
        ChromaStore.open(world.sae, client=client)
        with pytest.raises(MismatchError, match="codes of k = 16"):
            ChromaStore.open(world.sae.with_k(32), client=client)
    finally:
        collection.modify(metadata=kept)


def test_a_toy_catalog_of_an_adapter_keeps_its_pair(world: World) -> None:
    toy = random_sae(encoder=world.embedder.spec.name, d=384)
    assert load_parts((toy, catalog_for(toy, unit_rows(0, 20, 384))), world.embedder).location is None


# -- the real one -----------------------------------------------------------------------------------------------------


@needs_weights
def test_the_real_one_loads_in_less_than_a_second() -> None:
    began = time.process_time()
    sae = TopKSAE.from_pretrained(NAME)
    catalog = FeatureCatalog.load(REAL, sae.fingerprint)
    assert time.process_time() - began < 1.0
    assert len(catalog.labelled) > 0.3 * sae.config.n
    assert sum(path.stat().st_size for path in REAL.iterdir()) < 38 * 2**20


@needs_weights
def test_the_real_one_reads_what_it_never_saw_the_better_the_larger_k(world: World) -> None:
    unexplained = []
    for k in (32, 64, 128):
        sae = TopKSAE.from_pretrained(NAME, k=k)
        left = np.square(world.vectors - sae.reconstruct(world.vectors)).sum()
        unexplained.append(float(left / np.square(world.vectors - world.vectors.mean(axis=0)).sum()))
    assert unexplained == sorted(unexplained, reverse=True)
    assert unexplained[1] < 0.5
    assert unexplained[2] < 0.85 * unexplained[1]


@needs_weights
def test_vectors_of_another_encoder_are_noticed(world: World, embedder: SentenceTransformerEmbedder) -> None:
    client = chromadb.EphemeralClient()
    # What a second encoder of the same size makes of the texts is, to the first one's SAE, turned at random.
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(384, 384)))
    for name, vectors in (("shipped-own", world.vectors), ("shipped-other", (world.vectors @ turn).astype(np.float32))):
        collection = client.create_collection(name, embedding_function=None)
        collection.add(ids=world.ids, embeddings=vectors, documents=world.texts)
    adopt_store(client.get_collection("shipped-own", embedding_function=None), None)
    with pytest.raises(MismatchError, match="they are another encoder's"):
        adopt_store(client.get_collection("shipped-other", embedding_function=None), None)
    assert "shipped-other.sae" not in [collection.name for collection in client.list_collections()]
