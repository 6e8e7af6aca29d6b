"""Calibration: statistics of each feature's activations over a corpus, and its unit of strength."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.codes import Array, Codes

logger = logging.getLogger(__name__)

CALIBRATION_FILE = "calibration.safetensors"
# The unit of a feature seen this many times is half its own percentile, half the median of all features.
_SHRINKAGE = 20
# Quantiles are taken over at most this many activations of a feature.
_SAMPLE = 4096


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Per-feature statistics, over the label latents (the `k_labels` strongest latents) of a corpus.

    Attributes:
        rows: How many passages were read.
        count: (n,) passages in which each feature is active.
        unit: (n,) u_f, the activation in a passage that strongly has the feature: the 95th percentile of its
            positive activations, shrunk towards the median feature where there are few. 1.0 in `steer=` is one unit.
        maximum: (n,) the largest activation seen.
        score_spread: A typical distance between the scores of a query's second and hundredth neighbour: steering by
            +0.5 adds that much to a passage that strongly has the feature.
        match_unit: (n,) the same percentile of matches `<d_f, x - b>`: the unit of a passage's feature match.
    """

    rows: int
    count: NDArray[np.int64]
    unit: Array
    maximum: Array
    score_spread: float
    match_unit: Array

    @property
    def frequency(self) -> NDArray[np.float64]:
        """(n,) share of the passages in which each feature is active."""
        return self.count / max(self.rows, 1)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays to save."""
        spread = np.array([self.score_spread], dtype=np.float32)
        return {**vars(self), "rows": np.array([self.rows], dtype=np.int64), "score_spread": spread}


def calibrate(
    codes: Iterable[Codes[NDArray[Any]]],
    n: int,
    score_spread: float,
    matches: Iterable[Codes[NDArray[Any]]] | None = None,
    prior: Calibration | None = None,
) -> Calibration:
    """Returns the statistics of each feature, streamed over batches of codes.

    Args:
        codes: Batches of label latents, (batch, k_labels) each.
        n: Number of latents.
        score_spread: See `Calibration`.
        matches: The same latents with their matches in place of activations (`name_matches`); activations if not
            given.
        prior: Calibration of the first features on another corpus: units are shrunk towards its units, on the scale
            of this corpus, and not towards the median feature. For a corpus that has each feature a few times at most.
    """
    activations = _Quantiles(n, codes)
    matched = activations if matches is None else _Quantiles(n, matches)
    unit = activations.unit(None if prior is None else prior.unit)
    match_unit = matched.unit(None if prior is None else prior.match_unit)
    return Calibration(activations.rows, activations.count, unit, activations.maximum, score_spread, match_unit)


class _Quantiles:
    """Counts, maxima and percentiles of each feature's activations, in bounded memory."""

    def __init__(self, n: int, batches: Iterable[Codes[NDArray[Any]]]) -> None:
        self.rows = 0
        self.count = np.zeros(n, dtype=np.int64)
        self.maximum = np.zeros(n, dtype=np.float32)
        self._samples: list[list[NDArray[np.float32]]] = [[] for _ in range(n)]
        self._kept = np.zeros(n, dtype=np.int64)
        for batch in batches:
            self.rows += len(batch.indices)
            active = batch.values > 0
            if active.any():
                self._add(batch.indices[active], batch.values[active])

    def _add(self, latents: NDArray[Any], values: NDArray[Any]) -> None:
        order = np.argsort(latents, kind="stable")
        found, starts = np.unique(latents[order], return_index=True)
        for latent, part in zip(found, np.split(values[order], starts[1:]), strict=True):
            self.count[latent] += len(part)
            self.maximum[latent] = max(self.maximum[latent], part.max())
            room = _SAMPLE - self._kept[latent]
            if room > 0:
                self._samples[latent].append(part[:room])
                self._kept[latent] += min(room, len(part))

    def unit(self, prior: Array | None = None) -> Array:
        """(n,) the 95th percentiles, shrunk towards their median or the prior units."""
        percentile = np.array(
            [np.percentile(np.concatenate(parts), 95) if parts else 0.0 for parts in self._samples], dtype=np.float32
        )
        median = float(np.median(percentile[self.count > 0])) if (self.count > 0).any() else 1.0
        typical = np.full(len(percentile), median)
        if prior is not None:
            typical[: len(prior)] = prior * self._scale(percentile[: len(prior)] / prior)
        shrunk = (self.count * percentile + _SHRINKAGE * typical) / (self.count + _SHRINKAGE)
        return np.asarray(shrunk, dtype=np.float32)

    def _scale(self, ratio: Array) -> float:
        """How much larger units are here than in a prior: the median ratio, features weighted by their count."""
        count = self.count[: len(ratio)]
        if not count.any():
            return 1.0
        order = np.argsort(ratio, kind="stable")
        seen = np.cumsum(count[order])
        return float(ratio[order][np.searchsorted(seen, seen[-1] / 2)])


def save_calibration(calibration: Calibration, label_embeddings: Array | None) -> bytes:
    """The content of `calibration.safetensors`, with the (n, d) embeddings of the labels as float16."""
    tensors = calibration.tensors()
    if label_embeddings is not None:
        tensors["label_embeddings"] = label_embeddings.astype(np.float16)
    return save(tensors)


def load_calibration(path: Path, n: int) -> tuple[Calibration, Array | None]:
    """Returns the content of `calibration.safetensors`: the statistics, and the label embeddings if it has them.

    Raises:
        ArtifactError: The file is missing, truncated or of another dictionary.
    """
    if not path.is_file():
        raise ArtifactError(f"{path.parent} holds no {path.name}: train again, or copy the whole SAE folder.")
    try:
        tensors = load(path.read_bytes())
        rows, score_spread = int(tensors["rows"][0]), float(tensors["score_spread"][0])
        count, unit, maximum = (tensors[name] for name in ("count", "unit", "maximum"))
        calibration = Calibration(rows, count, unit, maximum, score_spread, tensors.get("match_unit", unit))
        if "match_unit" not in tensors:
            logger.warning(
                "%s was written by an earlier version and has no units of match: steering measures feature matches in "
                "units of activation. `sae-steer features label` with the SAE's own corpus adds them.",
                path,
            )
    except (SafetensorError, KeyError, IndexError, OSError) as error:
        raise ArtifactError(f"{path} is truncated or not a calibration of this library ({error}).") from error
    labels = tensors.get("label_embeddings")
    units = (unit, calibration.match_unit)
    if any(array is not None and len(array) != n for array in (count, *units, maximum, labels)):
        raise ArtifactError(f"{path} describes {len(unit)} latents, the SAE has {n}.")
    if not all(np.isfinite(unit).all() and (unit > 0).all() for unit in units):
        raise ArtifactError(f"{path} holds units that are not above zero: train again.")
    return calibration, None if labels is None else labels.astype(np.float32)
