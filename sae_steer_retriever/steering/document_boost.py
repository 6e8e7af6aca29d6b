"""The feature match of passages: what a document boost is proportional to, one direction and one constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE

# The ramp: no match below the first share of the features' units, a full match from the second on.
_NOTHING, _ALL = 0.25, 0.6


class FeatureMatch(NamedTuple):
    """How well vectors match a weighted group of features, from 0 to 1: `S(y) = clip(c . y + c0, 0, 1)`.

        mean = sum_f w_f <d_f, y - b> / u_f / sum_f w_f
        S    = clip((mean - .25) / (.6 - .25), 0, 1)

    A vector matches a feature by its projection on the direction, whether or not the feature is among its latents: TopK
    gives one of several near directions the whole activation, and which one is chance. `u_f` is the match of a passage
    that strongly has the feature. The ramp ignores what all passages have a little of, and counts in full what
    clearly has the features: repeating a topic more often does not rank a passage higher. Below the ramp's end the
    match is linear, so that nearest neighbours can find it.

    Attributes:
        direction: (d,) c.
        constant: c0.
    """

    direction: NDArray[np.float64]
    constant: float

    @classmethod
    def of_features(
        cls, sae: TopKSAE, unit: Array, features: Sequence[int], weights: Sequence[float], *, scale: float = 1.0
    ) -> FeatureMatch:
        """Returns the match of a group of features.

        Args:
            sae: The dictionary.
            unit: (n,) the match of a passage that strongly has each feature, in the vectors that are read.
            features: Latent ids.
            weights: Their shares, above 0.
            scale: The length of the vectors that are read, in relation to those that `unit` was measured on.
        """
        chosen = np.asarray(features, dtype=np.int64)
        shares = np.asarray(weights, dtype=np.float64)
        shares = shares / shares.sum() / unit[chosen].astype(np.float64) / (_ALL - _NOTHING)
        direction = shares @ sae.decoder[chosen].astype(np.float64)
        constant = -float(direction @ sae.bias.astype(np.float64)) - _NOTHING / (_ALL - _NOTHING)
        return cls(direction / scale, constant)

    def linear(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Returns (batch,) `c . y + c0` of (batch, d) vectors, without the ramp's ends."""
        return np.asarray(vectors @ self.direction + self.constant, dtype=np.float64)

    def of(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Returns (batch,) the match of (batch, d) vectors."""
        return np.clip(self.linear(vectors), 0.0, 1.0)
