"""Training callbacks: their base class, the metrics log, and curves for TensorBoard."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sae_steer_retriever.errors import ArtifactError, MissingExtraError
from sae_steer_retriever.sae.atomic_files import write_files

METRICS_LOG_FILE = "training.jsonl"
# TensorBoard's names of the figures.
_CURVES = {
    "held out/FVU": "fvu",
    "held out/overlap@10": "overlap",
    "latents/dead share": "dead",
    "latents/L0": "l0",
    "fit/learning rate": "lr",
    "latents/coherence": "coherence",
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measurement during a fit.

    FVU and retention are those of the encoder's TopK, without the refinement. The finished SAE is measured with its
    refinement and scores better. `fvu`, `overlap`, `coherence`, `dead` and `l0` are those of `measure.Measurement`.
    """

    step: int  # steps done
    seconds: float  # of fitting so far, without the steps that an interrupted run did after its last measurement
    loss: float  # of this step
    fvu: float
    overlap: float
    coherence: float | None
    dead: float
    l0: float
    lr: float  # learning rate of this step


class Callback:
    """Base class of the training callbacks; its methods do nothing.

    A callback observes: a fit gives the same SAE with and without it.
    """

    def start(self, first: int) -> None:
        """The fit begins. An interrupted run has done `first` steps of it; 0 for a new fit."""

    def measured(self, record: Measured) -> None:
        """The fit was measured. The `step` call of the same step follows."""

    def ended_early(self, done: int, steps: int, why: str) -> None:
        """The first part of the fit ends after `done` steps, because of `why`; the whole fit now has `steps` steps."""

    def step(self, done: int, loss: float) -> None:
        """A step ended, the `done`-th, with this loss."""

    def close(self) -> None:
        """The fit ended or failed."""


class MetricsLog(Callback):
    """A file with one line of JSON per measurement; a resumed fit appends to it."""

    def __init__(self, folder: Path) -> None:
        """Keep the file in `folder` while the fit runs; nothing is read or written before `start`."""
        self._path = folder / METRICS_LOG_FILE
        self.records: list[Measured] = []
        self._seconds_before = 0.0

    def to_bytes(self) -> bytes:
        """The file's content."""
        return b"".join(_line(record) for record in self.records)

    def start(self, first: int) -> None:
        """Keep the measurements up to step `first` of an earlier run, and drop the others; a new fit drops all.

        Raises:
            ArtifactError: The file cannot be written.
        """
        self.records = [record for record in _read(self._path) if record.step <= first] if first else []
        self._seconds_before = self.records[-1].seconds if self.records else 0.0
        write_files(self._path.parent, {self._path.name: self.to_bytes()})

    def measured(self, record: Measured) -> None:
        """Append a measurement to the file; an ArtifactError says that it cannot be written."""
        record = dataclasses.replace(record, seconds=round(record.seconds + self._seconds_before, 3))
        self.records.append(record)
        try:
            # Appended, not replaced: another program may have the file open, and Windows then forbids replacing it.
            with self._path.open("ab") as stream:
                stream.write(_line(record))
        except OSError as error:
            raise ArtifactError(f"cannot write {self._path}: {error.strerror or error}; free some space.") from error

    def remove(self) -> None:
        """Delete the file of a finished fit, and its folder if that is empty then."""
        remove_file(self._path)


def remove_file(path: Path) -> None:
    """Delete a file, and its folder if that is empty then."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _line(record: Measured) -> bytes:
    return json.dumps(dataclasses.asdict(record)).encode() + b"\n"


def _read(path: Path) -> list[Measured]:
    """The measurements in a file, up to a line that a killed process left incomplete."""
    records: list[Measured] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            records.append(Measured(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return records


class ScalarWriter(Callback):
    """Writes the loss of every step, and every measurement, as scalars for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Make `folder` for the event files; a MissingExtraError says that TensorBoard is not installed."""
        require_tensorboard()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot make the folder {folder}: {error.strerror or error}.") from error
        self._folder = folder
        self._writer: Any = None

    def start(self, first: int) -> None:
        """Open the event file; TensorBoard drops what an earlier run wrote after step `first`."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=first + 1)

    def step(self, done: int, loss: float) -> None:
        """Write the loss."""
        self._writer.add_scalar("fit/loss", loss, done)

    def measured(self, record: Measured) -> None:
        """Write a measurement; a coherence of None is left out."""
        for name, figure in _CURVES.items():
            if (value := getattr(record, figure)) is not None:
                self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def require_tensorboard() -> None:
    """Raises a MissingExtraError if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard.writer  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("writing curves for TensorBoard", "tensorboard") from error
