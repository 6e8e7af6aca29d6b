"""What one unit of a feature is: statistics of its activations over a corpus."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae import Array, Codes

CALIBRATION_FILE = "calibration.safetensors"
# A feature seen this many times weighs as much as the median of all features in its own unit.
_SHRINKAGE = 20
# Quantiles come from at most this many activations of a feature; more would not move them visibly.
_SAMPLE = 4096


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Per-feature statistics, over the naming reading (the `k_names` strongest latents) of a corpus.

    Attributes:
        rows: How many passages were read.
        count: (n,) passages in which each feature is active.
        unit: (n,) u_f, the activation in a passage that strongly has the feature: the 95th percentile of its
            positive activations, shrunk towards the median feature where there are few. 1.0 in `steer=` is one unit.
        maximum: (n,) the largest activation seen.
        score_spread: What a document gate of strength 1 adds to a passage that has the feature in full, in score
            units: a typical distance between a query's second and hundredth neighbour.
    """

    rows: int
    count: NDArray[np.int64]
    unit: Array
    maximum: Array
    score_spread: float

    @property
    def frequency(self) -> NDArray[np.float64]:
        """(n,) share of the passages in which each feature is active."""
        return self.count / max(self.rows, 1)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays to save."""
        return {
            "rows": np.array([self.rows], dtype=np.int64),
            "count": self.count,
            "unit": self.unit,
            "maximum": self.maximum,
            "score_spread": np.array([self.score_spread], dtype=np.float32),
        }


def calibrate(codes: Iterable[Codes[NDArray[Any]]], n: int, score_spread: float) -> Calibration:
    """Statistics of each feature, streamed over batches of codes.

    Args:
        codes: Batches of naming readings, (batch, k_names) each.
        n: Number of latents.
        score_spread: See `Calibration`.
    """
    rows = 0
    count = np.zeros(n, dtype=np.int64)
    maximum = np.zeros(n, dtype=np.float32)
    samples: list[list[NDArray[np.float32]]] = [[] for _ in range(n)]
    kept = np.zeros(n, dtype=np.int64)
    for batch in codes:
        rows += len(batch.indices)
        active = batch.values > 0
        latents, values = batch.indices[active], batch.values[active]
        order = np.argsort(latents, kind="stable")
        latents, values = latents[order], values[order]
        if not len(latents):
            continue
        found, starts = np.unique(latents, return_index=True)
        for latent, part in zip(found, np.split(values, starts[1:]), strict=True):
            count[latent] += len(part)
            maximum[latent] = max(maximum[latent], part.max())
            room = _SAMPLE - kept[latent]
            if room > 0:
                samples[latent].append(part[:room])
                kept[latent] += min(room, len(part))
    percentile = np.array(
        [np.percentile(np.concatenate(parts), 95) if parts else 0.0 for parts in samples], dtype=np.float32
    )
    typical = float(np.median(percentile[count > 0])) if (count > 0).any() else 1.0
    unit = (count * percentile + _SHRINKAGE * typical) / (count + _SHRINKAGE)
    return Calibration(rows, count, unit.astype(np.float32), maximum, score_spread)


def save_calibration(calibration: Calibration, label_embeddings: Array | None) -> bytes:
    """The content of `calibration.safetensors`.

    Args:
        calibration: The statistics.
        label_embeddings: (n, d) unit vectors of the labels, zero rows where there is none; kept as float16.
    """
    tensors = calibration.tensors()
    if label_embeddings is not None:
        tensors["label_embeddings"] = label_embeddings.astype(np.float16)
    return save(tensors)


def load_calibration(path: Path, n: int) -> tuple[Calibration, Array | None]:
    """Read `calibration.safetensors`: the statistics and the label embeddings, where stored.

    Raises:
        ArtifactError: The file is missing, truncated or of another dictionary.
    """
    if not path.is_file():
        raise ArtifactError(f"{path.parent} holds no {path.name}: train again, or copy the whole SAE folder.")
    try:
        tensors = load(path.read_bytes())
        calibration = Calibration(
            rows=int(tensors["rows"][0]),
            count=tensors["count"],
            unit=tensors["unit"],
            maximum=tensors["maximum"],
            score_spread=float(tensors["score_spread"][0]),
        )
    except (SafetensorError, KeyError, IndexError, OSError) as error:
        raise ArtifactError(f"{path} is truncated or not a calibration of this library ({error}).") from error
    labels = tensors.get("label_embeddings")
    arrays: list[NDArray[Any] | None] = [calibration.count, calibration.unit, calibration.maximum, labels]
    if any(array is not None and len(array) != n for array in arrays):
        raise ArtifactError(f"{path} describes {len(calibration.unit)} latents, the SAE has {n}.")
    if not (np.isfinite(calibration.unit).all() and (calibration.unit > 0).all()):
        raise ArtifactError(f"{path} holds units that are not above zero: train again.")
    return calibration, None if labels is None else labels.astype(np.float32)
