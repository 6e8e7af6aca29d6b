"""The command line: what it prints where, its exit codes, and what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from command_line import Run
from hypothesis import given
from hypothesis import strategies as st
from small_world import World

from sae_steer_retriever import __version__
from sae_steer_retriever.cli import search as search_command
from sae_steer_retriever.cli.runner import UsageError
from sae_steer_retriever.cli.search import steer_of
from sae_steer_retriever.cli.train import main as train_main
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.config import former_keys
from sae_steer_retriever.search.options import LATENT_SCORES, READ_ON, SPACES, Space
from sae_steer_retriever.steering.operations import SIDES, AddRaw, Clamp, Scale, Suppress
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "wait for a thread to finish"


@pytest.fixture
def store(filled_folder: Path) -> Path:
    """A store to read from."""
    return filled_folder / "chroma"


@pytest.fixture
def sae(filled_folder: Path) -> Path:
    """The SAE of that store."""
    return filled_folder / "sae"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three small documents, and a file of a kind that is not read."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "threads.md").write_text("# Threads\n\nA thread runs code.\n\n# Locks\n\nA lock keeps others out.\n")
    (folder / "sockets.txt").write_text("A socket connects two hosts over a network.")
    (folder / "bytes.txt").write_text("Bytes are immutable sequences of small integers.")
    (folder / "logo.xyz").write_bytes(b"\x00")
    return folder


def subprocess_run(*arguments: object, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """`python ...` with its output taken through pipes, as a program would."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        encoding=encoding,
        env=environment,
        check=False,
        cwd=ROOT,
    )


# -- the frame: help, versions, encodings, interruptions --------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["index"], ["--version"], ["nonsense"]])
def test_help_and_usage_errors_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from sae_steer_retriever.__main__ import main\n"
        f"code = main({arguments!r})\n"
        "print('\\n' + json.dumps([code, [m for m in ('torch', 'chromadb', 'numpy') if m in sys.modules]]))"
    )
    done = subprocess_run("-c", code)
    returned, loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded == []
    assert returned == (0 if arguments[-1].startswith("--") else 2)


def test_help_names_every_command_and_the_version_is_the_package_s(sae_steer: Run) -> None:
    helped = sae_steer("--help")
    assert helped.code == 0
    for command in ("train", "index", "search", "features"):
        assert f"\n    {command} " in helped.out
    assert sae_steer("--version").out == f"sae-steer {__version__}\n"
    assert sae_steer().code == 2


def test_module_and_console_script_show_the_same_options_of_train(sae_steer: Run) -> None:
    by_module = subprocess_run("-m", "sae_steer_retriever.train", "--help").stdout
    assert by_module.startswith("usage: python -m sae_steer_retriever.train ")
    by_script = sae_steer("train", "--help").out
    assert by_module[by_module.index("options:") :] == by_script[by_script.index("options:") :]
    for field in dataclasses.fields(TrainConfig):
        assert f" --{field.name.replace('_', '-')} " in by_script
    assert " -k N, --k N " in by_script


def test_choices_are_those_of_the_core() -> None:
    assert search_command.SPACE_CHOICES == SPACES
    assert search_command.LATENT_SCORE_CHOICES == LATENT_SCORES
    assert search_command.READ_ON_CHOICES == READ_ON
    assert search_command.SIDE_CHOICES == SIDES


def test_output_of_a_program_is_clean(store: Path) -> None:
    """Not a terminal and no UTF-8: JSON stays whole, text loses only what cannot be shown, no bars on stderr."""
    arguments = ["-m", "sae_steer_retriever", "search", QUESTION, "--store", store, "--steer", "#40=1", "-k", 3]
    as_json = subprocess_run(*arguments, "--json", encoding="ascii")
    assert as_json.returncode == 0, as_json.stderr
    assert len(json.loads(as_json.stdout)["hits"]) == 3
    assert as_json.stderr == ""
    as_text = subprocess_run(*arguments, encoding="ascii")
    assert as_text.returncode == 0, as_text.stderr
    assert "(was " in as_text.stdout


def test_a_reader_that_leaves_early_is_no_traceback(sae: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sae_steer_retriever", "features", "--sae", str(sae)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 1
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr


def test_ctrl_c_exits_with_130(sae_steer: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SteeredRetriever, "open", interrupted)
    ran = sae_steer("search", QUESTION, "--store", store)
    assert ran.code == 130
    assert ran.error == "error: interrupted"


def test_verbose_shows_where_an_error_came_from(sae_steer: Run, tmp_path: Path) -> None:
    arguments = ["features", "--sae", tmp_path]
    assert "Traceback" not in sae_steer(*arguments).err
    assert "Traceback" in sae_steer(*arguments, "-v").err


# -- search -----------------------------------------------------------------------------------------------------------


def test_search_without_steering_is_the_plain_search(sae_steer: Run, store: Path, retriever: SteeredRetriever) -> None:
    found = sae_steer("search", QUESTION, "--store", store, "-k", 5, "--json").data
    expected = retriever.search(QUESTION, k=5)
    assert [(hit["id"], hit["text"], hit["metadata"]) for hit in found["hits"]] == [
        (hit.id, hit.text, hit.metadata) for hit in expected
    ]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert [hit["base_rank"] for hit in found["hits"]] == [1, 2, 3, 4, 5]
    assert found["steering"] == found["left"] == []
    assert "attribution" not in found["hits"][0]


def test_search_with_steering_shows_before_and_after(
    sae_steer: Run, store: Path, world: World, retriever: SteeredRetriever
) -> None:
    plain = [hit.id for hit in retriever.search(QUESTION, k=5, explain=False)]
    best = world.vectors[[world.ids.index(plain[0])]]
    feature = world.catalog[int(world.sae.encode(best, k=1).indices[0, 0])]
    arguments = ["search", QUESTION, "--store", store, "-k", 5, "--steer", f"#{feature.id}=-2"]
    found = sae_steer(*arguments, "--json").data
    ids = [hit["id"] for hit in found["hits"]]
    assert ids == [hit.id for hit in retriever.search(QUESTION, k=5, steer={feature.id: -2.0})]
    assert ids != plain
    assert [hit["id"] for hit in found["left"]] == [name for name in plain if name not in ids]
    assert found["steering"][0]["features"] == [{"id": feature.id, "label": feature.name, "weight": 1.0}]
    text = sae_steer(*arguments).out
    assert text.startswith(f"steering #{feature.id} -2 (both): #{feature.id} {feature.name}\n")
    assert "↑" in text
    assert "no longer among them:\n" in text
    for name in found["left"]:
        assert f"    {name['id']} (was {name['base_rank']})" in text


def test_explain_sums_to_the_score(sae_steer: Run, store: Path) -> None:
    arguments = ["search", QUESTION, "--store", store, "--steer", "#40=+1", "--explain"]
    for hit in sae_steer(*arguments, "--json").data["hits"]:
        why = hit["attribution"]
        parts = [part["value"] for part in why["features"] + why["steering"]]
        assert sum(parts) + why["bias"] + why["residual"] == pytest.approx(hit["score"], abs=1e-4)
    text = sae_steer(*arguments).out
    assert "steering: #40 (document)" in text
    assert "bias: what every query has in common" in text
    assert "unexplained: what no feature holds of the query" in text
    assert "This passage ranks 1st" in text
    assert "Score: the cosine similarity of the embeddings of query and passage, plus what the steering adds." in text


@pytest.mark.parametrize("space", ["reconstructed", "latent"])
def test_search_options_reach_the_core(sae_steer: Run, store: Path, retriever: SteeredRetriever, space: Space) -> None:
    where = {"module": "threading"}
    found = sae_steer(
        *("search", QUESTION, "--store", store, "--where", json.dumps(where), "--space", space),
        *("--side", "document", "--fetch-k", 7, "--steer", "40=0.5", "-k", 3, "--json"),
    ).data
    expected = retriever.search(QUESTION, k=3, where=where, space=space, side="document", fetch_k=7, steer={40: 0.5})
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]
    assert {hit["metadata"]["module"] for hit in found["hits"]} == {"threading"}
    assert found["steering"][0]["side"] == "document"


def test_scores_and_vectors_to_read_are_options_of_the_command(
    sae_steer: Run, store: Path, retriever: SteeredRetriever
) -> None:
    given = ["search", QUESTION, "--store", store, "--steer", "40=0.5", "-k", 6, "--explain", "--json"]
    for score in LATENT_SCORES:
        found = sae_steer(*given, "--space", "latent", "--latent-score", score).data
        expected = retriever.search(QUESTION, k=6, space="latent", latent_score=score, steer={40: 0.5})
        assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert found["certified"] is expected.certified
    for read_on in READ_ON:
        found = sae_steer(*given, "--read-on", read_on).data
        expected = retriever.search(QUESTION, k=6, read_on=read_on, steer={40: 0.5})
        assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert {hit["read_on"] for hit in found["hits"]} == {read_on}
    assert {hit["read_on"] for hit in sae_steer("search", QUESTION, "--store", store, "--json").data["hits"]} == {None}


def test_search_finds_nothing_where_the_filter_leaves_nothing(sae_steer: Run, store: Path) -> None:
    ran = sae_steer("search", QUESTION, "--store", store, "--where", '{"module": "none of them"}')
    assert ran.code == 0
    assert ran.out == "nothing found\n"


@given(
    name=st.text(min_size=1).filter(lambda name: name == name.strip()),
    strength=st.floats(-10, 10),
)
def test_steer_splits_at_the_last_equals_sign(name: str, strength: float) -> None:
    assert steer_of([f"{name}={strength!r}"]) == {name: strength}


def test_steer_takes_operations_and_several_names() -> None:
    given = ["a=b=suppress", "work=clamp:1.0", "12=scale:2", "#7=+0.5", "pay = -1", "oil=raw:.25"]
    expected = {"a=b": Suppress(), "work": Clamp(1.0), "12": Scale(2.0), "#7": 0.5, "pay": -1.0, "oil": AddRaw(0.25)}
    assert steer_of(given) == expected
    assert steer_of([]) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("employment", "expected NAME=STRENGTH"),
        ("=0.5", "expected NAME=STRENGTH"),
        ("employment=", "is no strength"),
        ("employment=0,5", "is no strength"),
        ("employment=clamp", "is no strength"),
        ("employment=suppress:1", "is no strength"),
        ("employment=nan", "expected a finite number"),
        ("employment=scale:inf", "expected a finite number"),
        ("employment=500", "expected at most 10"),
    ],
)
def test_malformed_steering_is_a_usage_error_before_anything_is_opened(given: str, said: str, sae_steer: Run) -> None:
    ran = sae_steer("search", QUESTION, "--store", "nowhere", f"--steer={given}")
    assert ran.code == 2
    assert said in ran.error


def test_a_feature_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        steer_of(["a=1", "a=2"])


def test_unknown_feature_names_the_nearest(sae_steer: Run, store: Path) -> None:
    ran = sae_steer("search", QUESTION, "--store", store, "--steer", "sockt=1")
    assert ran.code == 1
    assert "unknown feature 'sockt'. Did you mean 'socket'" in ran.error
    assert ran.out == ""
    assert sae_steer("search", QUESTION, "--store", store, "--steer", "#99=1").code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-k", "0"], "expected a whole number of at least 1"),
        (["--fetch-k", "many"], "expected a whole number of at least 1"),
        (["--where", "{module"], "is not JSON"),
        (["--where", "[1]"], "expected a JSON object"),
        (["--space", "outer"], "invalid choice"),
        (["--latent-score", "cosine"], "invalid choice"),
        (["--read-on", "text"], "invalid choice"),
        (["--store", "ftp://host"], "expected a folder or http://host:port"),
        (["--store", "http://host:port"], "expected http://host:port"),
    ],
)
def test_wrong_options_are_usage_errors(arguments: list[str], said: str, sae_steer: Run) -> None:
    ran = sae_steer("search", QUESTION, *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert ran.out == ""


def test_a_filter_that_chroma_refuses_is_one_line(sae_steer: Run, store: Path) -> None:
    ran = sae_steer("search", QUESTION, "--store", store, "--where", '{"module": {"$near": 1}}')
    assert ran.code == 1
    assert "$near" in ran.error


def test_a_missing_store_is_named_and_not_made(sae_steer: Run, tmp_path: Path) -> None:
    ran = sae_steer("search", QUESTION, "--store", tmp_path / "nowhere")
    assert ran.code == 2
    assert f"no store in {tmp_path / 'nowhere'}" in ran.error
    assert not (tmp_path / "nowhere").exists()
    assert sae_steer("search", "  ", "--store", tmp_path / "nowhere").code == 2


def test_a_missing_collection_names_those_there_are(sae_steer: Run, store: Path) -> None:
    ran = sae_steer("search", QUESTION, "--store", store, "--collection", "dogs")
    assert ran.code == 2
    assert "no collection 'dogs'" in ran.error
    assert "it has 'docs';" in ran.error


def test_a_server_that_is_down_is_one_line(sae_steer: Run) -> None:
    ran = sae_steer("search", QUESTION, "--store", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "127.0.0.1:9" in ran.error
    assert "chroma run" in ran.error


def test_an_sae_that_was_moved_is_asked_for(sae_steer: Run, store: Path, sae: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.move(sae, moved)
    try:
        ran = sae_steer("search", QUESTION, "--store", store)
        assert ran.code == 2
        assert "is gone" in ran.error
        assert "--sae" in ran.error
    finally:
        shutil.move(moved, sae)


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_lists_the_most_frequent_names(sae_steer: Run, sae: Path, world: World) -> None:
    listed = sae_steer("features", "--sae", sae, "--limit", 5, "--json").data
    assert listed["latents"] == 64
    assert listed["named"] == len(world.catalog.labelled)
    frequencies = [row["frequency"] for row in listed["features"]]
    assert len(frequencies) == 5
    assert frequencies == sorted(frequencies, reverse=True)
    assert frequencies[0] == max(feature.frequency for feature in world.catalog.labelled)
    text = sae_steer("features", "list", "--sae", sae, "--limit", 5).out
    assert len(text.splitlines()) == 7
    first = listed["features"][0]
    assert f"#{first['id']}  {first['score']:>5.2f}  {first['frequency']:>9.2%}  {first['name']}\n" in text


def test_features_search_finds_by_word(sae_steer: Run, sae: Path, store: Path) -> None:
    before = sae_steer("features", "--sae", sae, "search", "socket", "--json").data["features"]
    after = sae_steer("features", "search", "socket", "--store", store, "--json").data["features"]
    assert before == after  # options may stand on both sides
    assert before
    assert all("socket" in row["label"] for row in before)
    assert "no feature answers to" in sae_steer("features", "search", "zzzz", "qqqq", "--sae", sae).out


def test_features_show_has_keywords_neighbours_and_passages(
    sae_steer: Run, sae: Path, store: Path, world: World
) -> None:
    feature = next(feature for feature in world.catalog.labelled if feature.examples)
    (shown,) = sae_steer("features", "show", f"#{feature.id}", "--store", store, "--json").data["features"]
    assert shown["keywords"] == list(feature.keywords)
    assert shown["unit"] == pytest.approx(feature.unit)
    assert len(shown["nearest"]) == 5
    assert feature.id not in [other["id"] for other in shown["nearest"]]
    cosines = world.sae.decoder @ world.sae.decoder[feature.id]
    expected = sorted((float(cosines[other["id"]]) for other in shown["nearest"]), reverse=True)
    assert [other["cosine"] for other in shown["nearest"]] == pytest.approx(expected, abs=1e-5)
    text_of = dict(zip(world.ids, world.texts, strict=True))
    assert {row["id"]: row["text"] for row in shown["examples"]} == {name: text_of[name] for name in feature.examples}
    without_store = sae_steer("features", "show", feature.label, "--sae", sae)
    assert without_store.out.startswith(f"#{feature.id}  {feature.name}\n")
    assert feature.examples[0] in without_store.out


def test_features_errors(sae_steer: Run, sae: Path, tmp_path: Path) -> None:
    unknown = sae_steer("features", "show", "64", "--sae", sae)
    assert unknown.code == 1
    assert "#0 to #63" in unknown.error
    assert sae_steer("features", "--sae", tmp_path / "nowhere").code == 1
    broken = tmp_path / "broken"
    shutil.copytree(sae, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    ran = sae_steer("features", "--sae", broken)
    assert ran.code == 1
    assert "model.safetensors" in ran.error


# -- index ------------------------------------------------------------------------------------------------------------


def ids_in(store: Path, collection: str = "docs") -> set[str]:
    return set(connect(path=store).get_collection(collection).get(include=[])["ids"])


def test_index_then_search_needs_no_sae(sae_steer: Run, corpus: Path, sae: Path, tmp_path: Path) -> None:
    store = tmp_path / "chroma"
    made = sae_steer("index", "--corpus", corpus, "--sae", sae, "--store", store, "--json").data
    assert (made["added"], made["updated"], made["unchanged"], made["removed"]) == (4, 0, 0, 0)
    assert [row["file"] for row in made["skipped"]] == ["logo.xyz"]
    again = sae_steer("index", "--corpus", corpus, "--store", store)
    assert again.code == 0
    assert again.out.splitlines()[-1] == f"docs: 0 added, 0 updated, 4 unchanged, 0 removed; 4 passages -> {store}"
    assert ids_in(store, "docs.sae") == ids_in(store)
    found = sae_steer("search", "two hosts over a network", "--store", store, "-k", 1, "--json").data
    assert found["hits"][0]["id"] == "sockets.txt#1"
    assert found["hits"][0]["metadata"]["source"] == "sockets.txt"


def test_index_follows_the_files(sae_steer: Run, corpus: Path, sae: Path, tmp_path: Path) -> None:
    store = tmp_path / "chroma"
    arguments = ["index", "--corpus", corpus, "--sae", sae, "--store", store, "--json"]
    sae_steer(*arguments)
    client = connect(path=store)
    client.get_collection("docs").add(ids=["mine"], documents=["not of a file"], embeddings=[[1.0] + [0.0] * 383])
    (corpus / "threads.md").write_text("# Threads\n\nA thread runs code.\n")  # one of its two passages is gone
    (corpus / "bytes.txt").unlink()
    (corpus / "sockets.txt").write_bytes(b"\x00\x01\x02")  # cannot be read now, but is not gone
    changed = sae_steer(*arguments).data
    assert (changed["removed"], changed["pruned"]) == (1, 0)
    assert ids_in(store) == {"threads.md#1", "sockets.txt#1", "bytes.txt#1", "mine"}
    pruned = sae_steer(*arguments, "--prune").data
    assert (pruned["removed"], pruned["pruned"]) == (0, 1)
    assert ids_in(store) == {"threads.md#1", "sockets.txt#1", "mine"}
    assert ids_in(store, "docs.sae") == {"threads.md#1", "sockets.txt#1"}


def test_attach_leaves_the_collection_as_it_was(sae_steer: Run, world: World, sae: Path, tmp_path: Path) -> None:
    store = tmp_path / "chroma"
    client = chromadb.PersistentClient(str(store), settings=Settings(anonymized_telemetry=False))
    theirs = client.create_collection("theirs", configuration={"hnsw": {"space": "cosine"}})
    theirs.add(ids=world.ids[:50], embeddings=world.vectors[:50], documents=world.texts[:50])
    before = theirs.get(include=["embeddings", "documents", "metadatas"])
    arguments = ["index", "--attach", "--sae", sae, "--store", store, "--collection", "theirs"]
    assert sae_steer(*arguments, "--json").data["encoded"] == 50
    assert sae_steer(*arguments, "--json").data["encoded"] == 0
    after = theirs.get(include=["embeddings", "documents", "metadatas"])
    np.testing.assert_array_equal(after.pop("embeddings"), before.pop("embeddings"))
    assert after == before
    assert theirs.metadata is None
    found = sae_steer("search", QUESTION, "--store", store, "--collection", "theirs", "-k", 3, "--json").data
    assert len(found["hits"]) == 3


def test_another_sae_is_refused_until_the_sidecar_is_rebuilt(
    sae_steer: Run, corpus: Path, sae: Path, world: World, tmp_path: Path
) -> None:
    store, other = tmp_path / "chroma", tmp_path / "other"
    sae_steer("index", "--corpus", corpus, "--sae", sae, "--store", store)
    flipped = type(world.sae)(
        world.sae.W_enc, world.sae.b_enc + 0.01, world.sae.W_dec, world.sae.b_dec, world.sae.config
    )
    flipped.save_pretrained(other)
    FeatureCatalog(world.catalog.features, world.catalog.calibration, flipped.fingerprint).save(other)
    (corpus / "bytes.txt").unlink()  # stays in the store, and needs a code of the other SAE too
    arguments = ["index", "--corpus", corpus, "--sae", other, "--store", store]
    refused = sae_steer(*arguments)
    assert refused.code == 1
    assert world.sae.fingerprint in refused.error
    assert flipped.fingerprint in refused.error
    assert "--rebuild" in refused.error
    assert sae_steer("search", QUESTION, "--store", store, "--sae", other).code == 1
    assert sae_steer(*arguments, "--rebuild").code == 0
    assert (
        ids_in(store, "docs.sae") == ids_in(store) == {"threads.md#1", "threads.md#2", "sockets.txt#1", "bytes.txt#1"}
    )
    assert sae_steer("search", QUESTION, "--store", store).code == 0


def test_index_errors(sae_steer: Run, corpus: Path, sae: Path, tmp_path: Path) -> None:
    store, empty = tmp_path / "chroma", tmp_path / "empty"
    empty.mkdir()
    missing = sae_steer("index", "--corpus", tmp_path / "dcos", "--sae", sae, "--store", store)
    assert missing.code == 2
    assert "no such file or folder" in missing.error
    nothing = sae_steer("index", "--corpus", empty, "--sae", sae, "--store", store)
    assert nothing.code == 1
    assert "the folder is empty" in nothing.error
    no_sae = sae_steer("index", "--corpus", corpus, "--sae", tmp_path / "nowhere", "--store", store)
    assert no_sae.code == 1
    assert "no folder" in no_sae.error
    assert sae_steer("index", "--attach", "--sae", sae, "--store", store).code == 2
    assert sae_steer("index", "--attach", "--prune", "--store", store).code == 2
    assert sae_steer("index", "--attach", "--corpus", corpus, "--store", store).code == 2
    assert not store.exists()


# -- train ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def passages(world: World, tmp_path: Path) -> Path:
    """Sixty short texts, one a row."""
    file = tmp_path / "passages.jsonl"
    rows = [json.dumps({"_id": name, "text": text}) for name, text in zip(world.ids, world.texts, strict=True)]
    file.write_text("\n".join(rows[:60]), encoding="utf-8")
    return file


def test_train_index_search(sae_steer: Run, passages: Path, tmp_path: Path) -> None:
    output, store = tmp_path / "sae", tmp_path / "chroma"
    arguments = ["--corpus", passages, "--output", output, "--latents", 64, "-k", 8, "--epochs", 3, "--sentences", 1]
    trained = sae_steer(*arguments, "--json", entry=train_main)
    assert trained.code == 0, trained.err
    assert trained.data["passages"] == 60
    assert (trained.data["latents"], trained.data["k"]) == (64, 8)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert config["training"]["epochs"] == 3
    assert sae_steer("index", "--corpus", passages, "--sae", output, "--store", store).code == 0
    listed = sae_steer("features", "--store", store, "--limit", 1, "--json").data
    assert listed["latents"] == 64
    steer = f"#{listed['features'][0]['id']}=+0.5"
    found = sae_steer("search", "asynchronous queue", "--store", store, "--steer", steer, "--explain", "--json").data
    assert len(found["hits"]) == 4
    assert {term["name"] for term in found["hits"][0]["attribution"]["steering"]} == {steer.split("=")[0]}


def test_train_prints_the_result_last(sae_steer: Run, passages: Path, tmp_path: Path) -> None:
    output = tmp_path / "sae"
    fit = ["--init", "kmeans", "--epochs", 1, "--sentences", 0]
    arguments = ["train", "--corpus", passages, "--output", output, *fit]
    trained = sae_steer(*arguments)
    assert trained.code == 0, trained.err
    last = trained.out.splitlines()[-1]
    assert last.startswith("FVU ")
    assert last.endswith(f"-> {output}")
    assert "warning: k = 16 instead of 64" in trained.err
    assert "warning" not in sae_steer(*arguments, "--quiet").err


def test_dry_run_plans_and_writes_nothing(sae_steer: Run, passages: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "sae", tmp_path / "folder"
    folder.mkdir()
    shutil.copy(passages, folder)
    (folder / "photo.png").write_bytes(b"\x89PNG")
    arguments = ["train", "--corpus", folder, "--output", output, "--init", "kmeans", "--dry-run"]
    plan = sae_steer(*arguments, "--json").data
    assert plan["passages"] == 60
    assert plan["query_texts"] > 0
    assert plan["latents"] == 64
    assert plan["k"] == 16
    assert plan["epochs"] > 1
    assert [row["file"] for row in plan["skipped"]] == ["photo.png"]
    text = sae_steer(*arguments).out
    assert "\npassages     60\n" in text
    assert "photo.png: files of the kind .png are not read" in text
    assert not output.exists()


def test_flag_beats_recipe_beats_default(sae_steer: Run, passages: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("k = 5\nepochs = 7\nbatch-size = 100\nloss = 'mse'\n")
    arguments = ["train", "--corpus", passages, "--output", tmp_path / "sae", "--dry-run", "--json"]
    settings = sae_steer(*arguments, "--config", recipe, "-k", 6).data["settings"]
    expected = dataclasses.replace(TrainConfig(), k=6, epochs=7, batch_size=100, loss="mse")
    assert settings == former_keys(dataclasses.asdict(expected))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("epoch = 3", "Did you mean 'epochs'?"),
        ("k = '64'", "expected a whole number"),
        ("k = true", "expected a whole number"),
        ("lr = 'fast'", "expected a number"),
        ("model = 3", "expected a text"),
        ("k = ", "cannot read the recipe"),
        ("loss = 'l1'", "expected one of rkl, mse, mse-queries, eq2, released, paper"),
    ],
)
def test_wrong_recipes_are_usage_errors(recipe: str, said: str, sae_steer: Run, passages: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(recipe)
    ran = sae_steer("train", "--corpus", passages, "--output", tmp_path / "sae", "--config", file)
    assert ran.code == 2
    assert said in ran.error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-k", "0"], "k = 0"),
        (["--k", "many"], "invalid int value"),
        (["--latents", "16"], "expected at least k latents"),
        (["--loss", "l1"], "invalid choice"),
        (["--holdout", "0.9"], "between 0 and 0.5"),
        (["--config", "nowhere.toml"], "cannot read the recipe"),
        (["--queries", "nowhere.txt"], "--queries: no such file"),
        (["--corpus", "nowhere"], "--corpus: no such file"),
        (["--epoch", "3"], "unrecognized arguments"),
    ],
)
def test_wrong_settings_are_usage_errors(
    options: list[str], said: str, sae_steer: Run, passages: Path, tmp_path: Path
) -> None:
    ran = sae_steer("train", "--corpus", passages, "--output", tmp_path / "sae", *options)
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "sae").exists()


def test_a_corpus_that_is_too_small_fails(sae_steer: Run, corpus: Path, tmp_path: Path) -> None:
    for more in ([], ["--dry-run"]):
        ran = sae_steer("train", "--corpus", corpus, "--output", tmp_path / "sae", *more)
        assert ran.code == 1
        assert "at least 20" in ran.error
    (tmp_path / "taken").write_text("")
    assert sae_steer("train", "--corpus", corpus, "--output", tmp_path / "taken").code == 2
