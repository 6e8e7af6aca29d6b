"""What document boosts and exclusions measure by, worked out a second time: in float64, by the definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


def exact_x_hat(sae: TopKSAE, codes: Codes[NDArray[Any]]) -> NDArray[np.float64]:
    """(N, d) reconstructions of passages from all latents of their codes."""
    dense = np.zeros((len(codes.indices), sae.config.n))
    row = np.broadcast_to(np.arange(len(dense))[:, None], codes.indices.shape)
    np.add.at(dense, (row, codes.indices), codes.values.astype(np.float64))
    return np.asarray(dense @ sae.decoder.astype(np.float64) + sae.bias.astype(np.float64))


def exact_match(
    sae: TopKSAE, unit: NDArray[Any], features: Sequence[int], weights: Sequence[float], vectors: NDArray[Any]
) -> NDArray[np.float64]:
    """(N,) how much of some features (N, d) vectors have, between 0 and 1: a ramp over the mean of their matches."""
    centred = vectors.astype(np.float64) - sae.bias.astype(np.float64)
    total = np.zeros(len(centred))
    for feature, weight in zip(features, weights, strict=True):
        total += weight * (centred @ sae.decoder[feature].astype(np.float64)) / float(unit[feature])
    return np.asarray(np.clip((total / sum(weights) - 0.25) / 0.35, 0.0, 1.0))
