"""Curves for TensorBoard."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

from sae_steer_retriever.errors import ArtifactError, MissingExtraError
from sae_steer_retriever.train.callbacks import Measured, ScalarWriter
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.pipeline import fit


def write(folder: Path, first: int, last: int, loss: float, coherence: float | None = 0.375) -> None:
    """Steps from `first` to `last`, measured every tenth."""
    board = ScalarWriter(folder)
    board.start(first)
    for step in range(first + 1, last + 1):
        if step % 10 == 0:
            board.measured(
                Measured(step, 1.0, loss, fvu=0.5, overlap=step / 100, coherence=coherence, dead=0.25, l0=8.0, lr=0.125)
            )
        board.step(step, loss)
    board.close()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events: Any = loading.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(event.step, round(event.value, 4)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_losses_of_all_steps_and_all_measurements_are_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path / "new" / "run", 0, 20, loss=0.5)
    found = curves(tmp_path / "new" / "run")
    assert found["fit/loss"] == [(step, 0.5) for step in range(1, 21)]
    assert found["held out/overlap@10"] == [(10, 0.1), (20, 0.2)]
    assert found["held out/FVU"] == [(10, 0.5), (20, 0.5)]
    assert found["latents/dead share"] == [(10, 0.25), (20, 0.25)]
    assert found["latents/L0"] == [(10, 8.0), (20, 8.0)]
    assert found["latents/coherence"] == [(10, 0.375), (20, 0.375)]
    assert found["fit/learning rate"] == [(10, 0.125), (20, 0.125)]


def test_a_coherence_that_could_not_be_measured_is_no_point(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path, 0, 20, loss=0.5, coherence=None)
    found = curves(tmp_path)
    assert "latents/coherence" not in found
    assert len(found["held out/FVU"]) == 2


def test_a_resumed_fit_goes_on_with_the_curves(tmp_path: Path) -> None:
    """The steps that are done again replace those that were lost."""
    pytest.importorskip("tensorboard")
    write(tmp_path, 0, 17, loss=0.5)
    write(tmp_path, 10, 20, loss=0.25)
    found = curves(tmp_path)
    assert found["fit/loss"] == [*((step, 0.5) for step in range(1, 11)), *((step, 0.25) for step in range(11, 21))]
    assert [step for step, _ in found["held out/FVU"]] == [10, 20]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "taken").write_text("")
    with pytest.raises(ArtifactError, match="cannot make the folder"):
        ScalarWriter(tmp_path / "taken" / "run")


def _without_tensorboard(real: Callable[..., Any]) -> Callable[..., Any]:
    """An `__import__` of an interpreter that lacks it."""

    def absent(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError(name, name=name)
        return real(name, *arguments, **keywords)

    return absent


class MustNotEmbed:
    """An encoder that has come too far."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the encoder was asked for {name}")


def test_without_tensorboard_nothing_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra, and comes first."""
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text("".join(f'{{"text": "passage number {number}"}}\n' for number in range(30)))
    monkeypatch.setattr(builtins, "__import__", _without_tensorboard(builtins.__import__))
    with pytest.raises(MissingExtraError, match=r"sae-steer-retriever\[tensorboard\]"):
        fit(
            corpus, tmp_path / "sae", TrainConfig(), embedder=MustNotEmbed(),
            progress=False, tensorboard=tmp_path / "runs",
        )  # fmt: skip
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "sae").exists()


def test_the_command_complains_before_it_reads_anything(
    sae_steer: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, taken = tmp_path / "docs.jsonl", tmp_path / "taken"
    corpus.write_text("")
    taken.write_text("")
    arguments = ["train", "--corpus", corpus, "--output", tmp_path / "sae", "--tensorboard"]
    refused = sae_steer(*arguments, taken)
    assert refused.code == 2
    assert "--tensorboard" in refused.error
    monkeypatch.setattr(builtins, "__import__", _without_tensorboard(builtins.__import__))
    for more in ([], ["--dry-run"]):
        missing = sae_steer(*arguments, tmp_path / "runs", *more)
        assert missing.code == 1
        assert "sae-steer-retriever[tensorboard]" in missing.error
    assert not (tmp_path / "runs").exists()
