"""Evidence for each feature: the passages in which it is strongest, and near misses that lack it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from sae_steer_retriever.sae import Array, Codes, TopKSAE
from sae_steer_retriever.vector_rows import Vectors

_NEIGHBOURS = 5
# Passages read at once, and elements of the directions gathered for some of them.
_TILE, _GATHERED = 16_384, 2**24


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
        own = self._places(feature)
        rows, values = self.presence.indices[own], self.presence.data[own]
        order = np.argsort(-values, kind="stable")
        return rows[order].astype(np.int64), values[order]

    def near_misses(self, feature: int) -> NDArray[np.int64]:
        """Rows of the passages that have a neighbouring feature but not this one, ascending: hard negatives."""
        others = [self.presence.indices[self._places(int(neighbour))] for neighbour in self.neighbours[feature]]
        found = np.setdiff1d(np.concatenate(others), self.presence.indices[self._places(feature)])
        return found.astype(np.int64)

    def _places(self, feature: int) -> slice:
        return slice(int(self.presence.indptr[feature]), int(self.presence.indptr[feature + 1]))


def gather_evidence(names: Codes[NDArray[Any]], neighbours: NDArray[np.int64]) -> Evidence:
    """Turn the naming readings of passages into evidence by feature.

    Args:
        names: (N, k_names) codes of the passages.
        neighbours: (n, 5) of `nearest_features`.
    """
    row, place = np.nonzero(names.values > 0)
    latents, values = names.indices[row, place], names.values[row, place]
    presence = csr_matrix((values, (latents, row)), shape=(len(neighbours), len(names.indices)), dtype=np.float32)
    return Evidence(presence, neighbours)


def read_names(sae: TopKSAE, vectors: Vectors) -> Codes[NDArray[Any]]:
    """The naming reading of passages, (N, k_names), in batches: neither all vectors nor all K latents are in memory.

    Args:
        sae: The dictionary.
        vectors: (N, d) unit embeddings.
    """
    shape = (len(vectors), sae.config.k_names)
    found: Codes[NDArray[Any]] = Codes(np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float32))
    for start in range(0, len(vectors), _TILE):
        own = slice(start, start + _TILE)
        found.indices[own], found.values[own] = sae.encode(vectors[own]).leading(sae.config.k_names)
    return found


def strengths(sae: TopKSAE, vectors: Vectors, names: Codes[NDArray[Any]]) -> Codes[NDArray[Any]]:
    """Names with how strongly a passage has each: of which passages a label is made, and which it must detect.

    That is the activation or, after a pursuit, the match `<d_i, x - b>` that also orders the names: a pursuit sets
    values so that they add up, and a passage that needs much of a latent is not the one that is most about it.

    Args:
        sae: The dictionary.
        vectors: (N, d) unit embeddings.
        names: (N, k_names) their naming reading.
    """
    if not sae.config.pursuit_steps:
        return names
    matches = np.zeros(names.values.shape, dtype=np.float32)
    tile = max(1, _GATHERED // (names.values.shape[1] * sae.config.d))
    for start in range(0, len(names.values), tile):
        own = slice(start, start + tile)
        directions = sae.decoder[names.indices[own]]
        found = np.einsum("bkd,bd->bk", directions, np.asarray(vectors[own]) - sae.bias)
        # An active latent stays a name, however small its match.
        matches[own] = np.where(names.values[own] > 0, np.maximum(found, np.finfo(np.float32).tiny), 0)
    return Codes(names.indices, matches)


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
