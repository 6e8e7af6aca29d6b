"""Evidence for each feature: the passages in which it is strongest, and near misses that lack it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from sae_steer_retriever.sae import Array, Codes, TopKSAE

_NEIGHBOURS = 5


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Who has which feature, over some passages.

    Attributes:
        presence: (n, N) sparse activations, feature by passage, of the naming reading.
        neighbours: (n, 5) the features nearest by decoder direction.
    """

    presence: csr_matrix
    neighbours: NDArray[np.int64]

    def passages(self, feature: int) -> tuple[NDArray[np.int64], Array]:
        """Rows and activations of the passages that have a feature, strongest first."""
        start, end = self.presence.indptr[feature], self.presence.indptr[feature + 1]
        rows, values = self.presence.indices[start:end], self.presence.data[start:end]
        order = np.argsort(-values, kind="stable")
        return rows[order].astype(np.int64), values[order]

    def near_misses(self, feature: int) -> NDArray[np.int64]:
        """Rows of the passages that have a neighbouring feature but not this one: hard negatives."""
        others = [self.passages(int(neighbour))[0] for neighbour in self.neighbours[feature]]
        return np.setdiff1d(np.concatenate(others), self.passages(feature)[0])


def gather_evidence(sae: TopKSAE, names: Codes[NDArray[Any]]) -> Evidence:
    """Turn the naming readings of passages into evidence by feature.

    Args:
        sae: The dictionary.
        names: (N, k_names) codes of the passages.
    """
    n, count = sae.config.n, len(names.indices)
    row, place = np.nonzero(names.values > 0)
    latents, values = names.indices[row, place], names.values[row, place]
    presence = csr_matrix((values, (latents, row)), shape=(n, count), dtype=np.float32)
    return Evidence(presence, nearest_features(sae))


def nearest_features(sae: TopKSAE) -> NDArray[np.int64]:
    """(n, 5) the features whose decoder directions are nearest by cosine, in tiles of rows."""
    decoder = sae.decoder
    limit = min(_NEIGHBOURS, sae.config.n - 1)
    nearest = np.empty((sae.config.n, limit), dtype=np.int64)
    for start in range(0, sae.config.n, 1024):
        cosines = decoder[start : start + 1024] @ decoder.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -np.inf
        nearest[start : start + 1024] = np.argsort(-cosines, axis=1, kind="stable")[:, :limit]
    return nearest
