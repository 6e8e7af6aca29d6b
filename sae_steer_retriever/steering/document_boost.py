"""The feature match of passages, read from their codes: what a document boost is proportional to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

if TYPE_CHECKING:
    from sae_steer_retriever.store.code_index import CodeIndex

# The ramp: no match below the first share of the features' units, a full match from the second on.
_NOTHING, _ALL = 0.25, 0.6


class FeatureMatch:
    """How well passages match a weighted group of features, from 0 to 1.

        match_f = clip(<d_f, x_hat - b> / u_f, 0, 1)
        mean    = sum_f w_f match_f / sum_f w_f
        match   = clip((mean - .25) / (.6 - .25), 0, 1)

    A passage matches a feature by its reconstruction's projection on the direction, whether or not the feature is among
    its latents: TopK gives one of several near directions the whole activation, and which one is chance. `u_f` is the
    match of a passage that strongly has the feature. The ramp ignores what all passages have a little of, and counts
    in full what clearly has the features: repeating a topic more often does not rank a passage higher.
    """

    def __init__(self, sae: TopKSAE, unit: Array, features: Sequence[int], weights: Sequence[float]) -> None:
        """Prepares the match, once for any number of passages.

        Args:
            sae: The dictionary.
            unit: (n,) the match of a passage that strongly has each feature: `Calibration.match_unit`.
            features: Latent ids.
            weights: Their shares, above 0.
        """
        self._sae = sae
        self._features = tuple(features)
        self._unit = unit[np.asarray(self._features, dtype=np.int64)]
        self._weights = np.asarray(weights, dtype=np.float32) / np.float32(np.sum(weights))

    def of(self, codes: Codes[NDArray[Any]]) -> Array:
        """Returns (batch,) the match of passages.

        Args:
            codes: (batch, K) their codes, all K latents.
        """
        along = self._sae.overlaps(self._features)[codes.indices]
        return self._feature_match(np.einsum("bk,bkm->bm", codes.values, along))

    def everywhere(self, index: CodeIndex) -> Array:
        """Returns (N,) the match of all passages of an index, which caches it; do not write to it."""
        key = (self._features, self._weights.tobytes(), self._unit.tobytes())
        return index.remembered(key, lambda: self._feature_match(index.project(self._sae.overlaps(self._features))))

    def _feature_match(self, projections: Array) -> Array:
        """Returns (N,) matches from (N, m) projections."""
        mean = np.clip(projections / self._unit, 0.0, 1.0) @ self._weights
        return np.asarray(np.clip((mean - _NOTHING) / (_ALL - _NOTHING), 0.0, 1.0), dtype=np.float32)
