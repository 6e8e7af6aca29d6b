"""What was measured while an SAE was fitted: one line of JSON each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.atomic_files import write_files

METRICS_LOG_FILE = "training.jsonl"


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measurement of a fit under way, without the refinement: FVU and retention are those of the encoder's TopK.

    The finished SAE, measured with the refinement it is used with, is better by what that gains.

    Attributes:
        step: Steps done.
        seconds: Of fitting until then; steps that an interrupted run did after its last measurement do not count.
        loss: Of that step's rows.
        fvu: Fraction of variance unexplained, of held-out rows.
        overlap: overlap@10 of held-out queries, reconstructions on both sides: the retention.
        coherence: Median over features of how alike their strongest passages are; None if no feature has five.
        dead: Share of latents that no passage activates.
        l0: Mean active latents per passage.
        lr: Learning rate of that step.
    """

    step: int
    seconds: float
    loss: float
    fvu: float
    overlap: float
    coherence: float | None
    dead: float
    l0: float
    lr: float


class MetricsLog:
    """A file of measurements that grows with the fit and goes on with a resumed one."""

    def __init__(self, folder: Path) -> None:
        """Name the place; nothing is read or written before `start`.

        Args:
            folder: Where the file is kept while the fit runs.
        """
        self._path = folder / METRICS_LOG_FILE
        self._records: list[Measured] = []
        self._seconds_before = 0.0

    @property
    def records(self) -> tuple[Measured, ...]:
        """All measurements, in the order of the steps."""
        return tuple(self._records)

    def to_bytes(self) -> bytes:
        """The file's content."""
        return b"".join(_line(record) for record in self._records)

    def start(self, first: int) -> None:
        """Begin with what an earlier run measured up to the step that is taken up, and drop what lies beyond.

        Args:
            first: Steps that were done before; 0 for a new fit, which drops everything.

        Raises:
            ArtifactError: The file cannot be written.
        """
        self._records = [record for record in _read(self._path) if record.step <= first] if first else []
        self._seconds_before = self._records[-1].seconds if self._records else 0.0
        write_files(self._path.parent, {self._path.name: self.to_bytes()})

    def step(self, done: int, loss: float) -> None:
        """Nothing: only measurements are kept."""

    def measured(self, record: Measured) -> None:
        """Add a measurement to the file.

        Raises:
            ArtifactError: The disk is full or the file cannot be written.
        """
        record = dataclasses.replace(record, seconds=round(record.seconds + self._seconds_before, 3))
        self._records.append(record)
        try:
            # Appended, not replaced: someone may have the file open to watch, which on Windows forbids replacing it.
            with self._path.open("ab") as stream:
                stream.write(_line(record))
        except OSError as error:
            raise ArtifactError(f"cannot write {self._path}: {error.strerror or error}; free some space.") from error

    def close(self) -> None:
        """Nothing: every line is on its way to the disk already."""

    def remove(self) -> None:
        """Drop the file of a finished fit, and its folder if that was all."""
        self._path.unlink(missing_ok=True)
        if self._path.parent.is_dir() and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()


def _line(record: Measured) -> bytes:
    return json.dumps(dataclasses.asdict(record)).encode() + b"\n"


def _read(path: Path) -> list[Measured]:
    """The measurements of a file, without a last line that a kill cut short."""
    records: list[Measured] = []
    if not path.is_file():
        return records
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(Measured(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return records
