"""Checkpoints: the state of a fit on disk, from which an interrupted fit resumes with the same result."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.train.callbacks import remove_file

CHECKPOINT_FOLDER = "checkpoint"
_STATE_FILE = "state.safetensors"
_INTERVAL = 20.0


class Checkpoint:
    """Saves and restores model, optimiser, step and the best measured state, in one atomic file without pickles."""

    def __init__(self, folder: Path, identity: dict[str, Any], *, resume: bool) -> None:
        """Open the checkpoint in `folder`; with `resume`, a state that was saved with an equal `identity` is restored.

        `identity` are the settings and a digest of the data.
        """
        self._path = folder / _STATE_FILE
        self._identity = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        self._resume = resume
        self._saved_at = time.monotonic()
        self._tensors: dict[str, Tensor] = {}
        self._best_score: float | None = None

    def is_due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved_at > _INTERVAL

    def save(
        self,
        step: int,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        best: tuple[float, dict[str, Tensor]] | None,
    ) -> None:
        """Write the state after `step` steps."""
        tensors = {f"model.{name}": tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": torch.as_tensor(value).cpu() for name, value in state.items()}
        metadata = {"step": str(step), "identity": self._identity}
        if best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in best[1].items()}
            metadata["best"] = repr(best[0])
        contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        write_files(self._path.parent, {_STATE_FILE: save(contiguous, metadata=metadata)})
        self._saved_at = time.monotonic()

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Returns the number of steps already done, after restoring a saved state if there is one and `resume` is set.

        Raises:
            ArtifactError: The state is damaged, or belongs to a fit with other settings or other data.
        """
        if not self._resume or not self._path.is_file():
            return 0
        try:
            with safe_open(self._path, framework="pt") as stream:
                metadata = stream.metadata()
                self._tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self._path} is damaged ({error}): delete it and start again.") from error
        if metadata.get("identity") != self._identity:
            raise ArtifactError(
                f"{self._path} belongs to a fit with other settings or another corpus: give the same ones, or leave "
                "out --resume to start again."
            )
        model.load_state_dict(self._part("model."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._part("adam.").items():
            number, key = name.split(".", 1)
            state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self._best_score = float(metadata["best"]) if "best" in metadata else None
        return int(metadata["step"])

    def best(self) -> tuple[float, dict[str, Tensor]] | None:
        """The best measured state of the restored fit."""
        return None if self._best_score is None else (self._best_score, self._part("best."))

    def remove(self) -> None:
        """Delete the state of a finished fit."""
        remove_file(self._path)

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in self._tensors.items() if name.startswith(prefix)}
