"""A fit's curves for TensorBoard, where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_steer_retriever.errors import ArtifactError, MissingExtraError
from sae_steer_retriever.train.metrics_log import Measured


class ScalarWriter:
    """Writes the loss of every step, and every measurement, as scalars."""

    def __init__(self, folder: Path) -> None:
        """Make sure that there is something to write with and somewhere to write to.

        Args:
            folder: Of the event files; `tensorboard --logdir` takes it or a folder above it.

        Raises:
            MissingExtraError: TensorBoard is not installed.
            ArtifactError: The folder cannot be made.
        """
        require_tensorboard()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot make the folder {folder}: {error.strerror or error}.") from error
        self._folder = folder
        self._writer: Any = None

    def start(self, first: int) -> None:
        """Open the event file; of what is in the folder, TensorBoard forgets all that lies after step `first`."""
        from torch.utils.tensorboard.writer import SummaryWriter

        new_writer: Any = SummaryWriter  # torch has left its methods untyped
        self._writer = new_writer(str(self._folder), purge_step=first + 1)

    def step(self, done: int, loss: float) -> None:
        """Write the loss."""
        self._writer.add_scalar("fit/loss", loss, done)

    def measured(self, record: Measured) -> None:
        """Write what was measured: without the refinement, as the journal has it."""
        for name, value in (
            ("held out/FVU", record.fvu),
            ("held out/overlap@10", record.overlap),
            ("latents/dead share", record.dead),
            ("latents/L0", record.l0),
            ("fit/learning rate", record.lr),
        ):
            self._writer.add_scalar(name, value, record.step)
        if record.coherence is not None:
            self._writer.add_scalar("latents/coherence", record.coherence, record.step)
        self._writer.flush()

    def close(self) -> None:
        """Write out what is waiting."""
        self._writer.close()


def require_tensorboard() -> None:
    """Make sure that TensorBoard can be used.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import torch.utils.tensorboard.writer  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("writing curves for TensorBoard", "tensorboard") from error
