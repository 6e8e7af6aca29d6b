"""`fit` from a folder of text to a labelled SAE."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_world import World, collect

from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.errors import ArtifactError, CorpusError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.embedded_corpus import embed_corpus
from sae_steer_retriever.train.pipeline import fit
from sae_steer_retriever.train.report import TrainReport

SETTINGS = TrainConfig(epochs=20, latents=64, k=16, k_labels=4, sentences=1, batch_size=128)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's docstrings as JSON Lines."""
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    ids, texts, metadatas = collect()
    rows = [{"_id": i, "text": t, **m} for i, t, m in zip(ids, texts, metadatas, strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One embedding cache for this file: the same texts are embedded once."""
    return tmp_path_factory.mktemp("pipeline-cache")


@pytest.fixture(autouse=True)
def _use_shared_cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_STEER_CACHE", str(shared_cache))


@pytest.fixture
def trained(corpus: Path, embedder: SentenceTransformerEmbedder, tmp_path: Path) -> tuple[Path, TrainReport]:
    output = tmp_path / "sae"
    return output, fit(corpus, output, SETTINGS, embedder=embedder, progress=False)


def test_the_folder_holds_a_loadable_labelled_sae(trained: tuple[Path, TrainReport], world: World) -> None:
    output, report = trained
    sae = TopKSAE.from_pretrained(output)
    catalog = FeatureCatalog.load(output, sae.fingerprint)
    assert (sae.config.n, sae.config.k, sae.config.k_labels) == (64, 16, 4)
    assert len(catalog.labelled) == report.labelled > 30
    shown = [catalog.evidence(feature.id) for feature in catalog.labelled]
    assert [tuple(example.id for example in found.top[:5]) for found in shown] == [
        feature.examples for feature in catalog.labelled
    ]
    assert {feature.family for feature in catalog.features} - {None} == {family.id for family in catalog.families}
    assert catalog.families
    # A held-out docstring's reconstruction is far nearer to it than the mean is.
    assert report.fvu_held_out < 0.8
    assert report.fvu < report.fvu_held_out
    x = world.vectors
    assert np.mean(np.sum((x - sae.reconstruct(x)) ** 2, axis=1)) < 0.6 * np.mean(np.sum((x - x.mean(0)) ** 2, axis=1))
    assert sae.config.metrics["fvu_held_out"] == pytest.approx(report.fvu_held_out, abs=1e-3)
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2" in card
    assert not (output / "checkpoint").exists()


def test_the_summary_says_what_matters_and_what_to_type_next(trained: tuple[Path, TrainReport]) -> None:
    output, report = trained
    *_, command, last = report.summary().splitlines()
    assert f"{report.overlap:.3f} overlap@10" in last
    assert last.endswith(str(output))
    assert command.split()[1:3] == ["sae-steer", "index"]
    assert json.loads(json.dumps(report.to_json()))["latents"] == 64


def test_labels_tell_their_passages_from_others(trained: tuple[Path, TrainReport]) -> None:
    """On passages that no label was made of; a random dictionary's labels do worse against near misses."""
    _, report = trained
    assert report.auroc_random > 0.75
    assert report.auroc_hard > report.random_auroc_hard


def test_held_out_rows_are_not_fitted(corpus: Path, embedder: SentenceTransformerEmbedder) -> None:
    """Before the measurement neither they nor the sentences taken from them are seen; afterwards all are."""
    data = embed_corpus(read_corpus(corpus), SETTINGS, embedder).data
    left_out = len(data.everything.documents) - len(data.fitted.documents)
    assert left_out == round(0.1 * len(data.everything.documents))

    def seen(rows: Vectors) -> float:
        """Share of the held-out rows that are among `rows`."""
        return float(((data.held_out.rows @ np.asarray(rows).T).max(axis=1) > 0.9999).mean())

    # A few one-line docstrings stand under two names.
    assert seen(data.fitted.documents) < 0.05
    assert seen(data.fitted.rows) < 0.05
    assert seen(data.everything.rows) == 1


@pytest.mark.parametrize(
    ("loss", "asked", "steps", "candidates"),
    [("paper", 0, 0, None), ("rkl", 8, 12, 16), ("rkl", 15, 12, 16), ("rkl", 16, 8, None), ("rkl", 0, 8, None)],
)
def test_the_papers_sae_is_one_product_and_the_default_refines(
    loss: str,
    asked: int,
    steps: int,
    candidates: int | None,
    corpus: Path,
    embedder: SentenceTransformerEmbedder,
    tmp_path: Path,
) -> None:
    """Among a share of the latents where there are more than four times as many; never fewer than a code has."""
    config = TrainConfig(loss=loss, steps=2, latents=64, k=16, refine_candidates=asked)  # type: ignore[arg-type]
    fit(corpus, tmp_path / "sae", config, embedder=embedder)
    fitted = TopKSAE.from_pretrained(tmp_path / "sae").config
    assert (fitted.refine_steps, fitted.refine_candidates) == (steps, candidates)


@pytest.mark.parametrize("resume", [True, False])
def test_a_killed_run_ends_as_an_undisturbed_one(
    corpus: Path, trained: tuple[Path, TrainReport], tmp_path: Path, resume: bool
) -> None:
    """kill -9 in the middle of the fit; the same command, with or without --resume, ends with the same SAE."""
    expected = TopKSAE.from_pretrained(trained[0]).fingerprint
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "import sae_steer_retriever.train.checkpoint as checkpoint\n"
        "from sae_steer_retriever.train.config import TrainConfig\n"
        "from sae_steer_retriever.train.pipeline import fit\n"
        "checkpoint._INTERVAL = 0.0\n"
        "resume, slow = sys.argv[3] == 'True', sys.argv[4] == 'slow'\n"
        "def on_step(step):\n"
        "    if slow and step == 20:\n"
        "        print('half way', flush=True)\n"
        "        time.sleep(60)\n"
        f"config = TrainConfig(**{dataclasses.asdict(SETTINGS)!r})\n"
        "corpus, output = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "fit(corpus, output, config, resume=resume and not slow, progress=False, on_step=on_step)\n"
    )
    output = tmp_path / "killed"
    command = [sys.executable, str(script), str(corpus), str(output), str(resume)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([*command, "slow"], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half way\n"
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    assert not (output / "model.safetensors").exists()
    started = time.monotonic()
    subprocess.run([*command, "again"], check=True, env=environment, timeout=120)
    assert TopKSAE.from_pretrained(output).fingerprint == expected, f"after {time.monotonic() - started:.0f} s"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "empty|no "),
        (["one passage only, and nothing else to learn from"], "1 passage"),
        (["the same"] * 40, "same embedding"),
    ],
)
def test_too_little_to_learn_from(
    texts: list[str], message: str, tmp_path: Path, embedder: SentenceTransformerEmbedder
) -> None:
    """An empty corpus, one passage, or copies of one: one clear line, and nothing is written."""
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    with pytest.raises(CorpusError, match=message):
        fit(path, tmp_path / "sae", TrainConfig(sentences=0), embedder=embedder, progress=False)
    assert not (tmp_path / "sae").exists()


def test_output_must_be_a_folder(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "sae").write_text("a file of the user's")
    with pytest.raises(ArtifactError, match="is a file"):
        fit(corpus, tmp_path / "sae", SETTINGS, progress=False)
    assert (tmp_path / "sae").read_text() == "a file of the user's"
