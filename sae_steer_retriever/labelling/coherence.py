"""Coherence: how similar a feature's strongest passages are; a measure of meaning that needs no label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes

# Passages of a feature that are compared; a feature of fewer passages is not measured.
GROUP = 5
_TILE = 1024


def corpus_mean(vectors: Array) -> Array:
    """(d,) the mean of (N, d) embeddings, summed in double precision."""
    return np.asarray(vectors.mean(axis=0, dtype=np.float64), dtype=np.float32)


def feature_coherence(codes: Codes[NDArray[Any]], n: int, vectors: Array, mean: Array) -> NDArray[np.float64]:
    """Returns (features,) the mean pairwise cosine of the five strongest passages of each feature that has five.

    Cosines are of embeddings less the corpus' mean, so unrelated passages have about 0. The order is that of the
    features' ids.

    Args:
        codes: (N, K) codes of the passages.
        n: Number of latents.
        vectors: (N, d) the passages' embeddings.
        mean: (d,) mean of the corpus.
    """
    row, place = np.nonzero(codes.values > 0)
    latent, value = codes.indices[row, place], codes.values[row, place]
    order = np.lexsort((row, -value, latent))
    count = np.bincount(latent, minlength=n)
    start = np.cumsum(count) - count
    chosen = start[count >= GROUP, None] + np.arange(GROUP)
    return group_coherence(row[order][chosen], vectors, mean)


def group_coherence(groups: NDArray[np.int64], vectors: Array, mean: Array) -> NDArray[np.float64]:
    """(G,) the mean pairwise cosine within (G, size) groups of rows, of (N, d) embeddings less the (d,) mean."""
    found = np.empty(len(groups))
    size = groups.shape[1]
    for begin in range(0, len(groups), _TILE):
        centred = vectors[groups[begin : begin + _TILE]] - mean
        unit = centred / np.maximum(np.linalg.norm(centred, axis=2, keepdims=True), 1e-12)
        # |sum of the unit vectors|^2 is the sum over all pairs, including each vector with itself.
        squared = np.square(unit.sum(axis=1), dtype=np.float64).sum(axis=1)
        found[begin : begin + _TILE] = (squared - size) / (size * (size - 1))
    return found


def random_groups(passages: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(count, 5) random groups of five different passages: their coherence is the baseline."""
    return np.stack([generator.choice(passages, GROUP, replace=False, shuffle=False) for _ in range(count)])
