"""Whether the passages in which a feature is strongest are alike: a measure of meaning that needs no label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes

# A feature is measured on this many passages, and only if it is active in as many.
GROUP = 5
_TILE = 1024


def corpus_mean(vectors: Array) -> Array:
    """(d,) the mean of (N, d) embeddings, summed in double precision."""
    mean: Array = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def feature_coherence(codes: Codes[NDArray[Any]], n: int, vectors: Array, mean: Array) -> NDArray[np.float64]:
    """The mean pairwise cosine of each feature's five strongest passages, of the features that have five.

    Cosines are of embeddings less the corpus' mean, so that unrelated passages have about 0.

    Args:
        codes: (N, K) codes of the passages.
        n: Number of latents.
        vectors: (N, d) the passages' embeddings.
        mean: (d,) mean of the corpus.

    Returns:
        (features,) in the order of the ids of the features that are active in at least five passages.
    """
    row, place = np.nonzero(codes.values > 0)
    latent, value = codes.indices[row, place], codes.values[row, place]
    order = np.lexsort((row, -value, latent))
    count = np.bincount(latent, minlength=n)
    start = np.cumsum(count) - count
    chosen = start[count >= GROUP, None] + np.arange(GROUP)
    return group_coherence(row[order][chosen], vectors, mean)


def group_coherence(groups: NDArray[np.int64], vectors: Array, mean: Array) -> NDArray[np.float64]:
    """The mean pairwise cosine within groups of passages, centred.

    Args:
        groups: (G, size) rows of `vectors`.
        vectors: (N, d) embeddings.
        mean: (d,) mean of the corpus.
    """
    found = np.empty(len(groups))
    size = groups.shape[1]
    for begin in range(0, len(groups), _TILE):
        centred = vectors[groups[begin : begin + _TILE]] - mean
        unit = centred / np.maximum(np.linalg.norm(centred, axis=2, keepdims=True), 1e-12)
        # The sum over all pairs is |sum of the unit vectors|^2, which also counts each vector with itself.
        squared = np.square(unit.sum(axis=1), dtype=np.float64).sum(axis=1)
        found[begin : begin + _TILE] = (squared - size) / (size * (size - 1))
    return found


def random_groups(passages: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(count, 5) groups of five different passages each: what coherence is without any feature."""
    return np.stack([generator.choice(passages, GROUP, replace=False, shuffle=False) for _ in range(count)])
