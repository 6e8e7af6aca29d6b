"""The same search through Seismic: approximate, for collections where reading every list of a query takes too long."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MissingExtraError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.store.latent_index import (
    LatentHits,
    Similarity,
    best,
    compared,
    require_known,
    require_similarity,
)

# Passages handed over at a time.
_TILE = 16_384
# What Seismic reads of a query: its strongest latents, and blocks that may reach this share of the worst hit so far.
_QUERY_LATENTS = 20
_HEAP_FACTOR = 0.9
# Up to here latents fit the 16 bits of Seismic's smaller index.
_NARROW = 2**16


class SeismicIndex:
    """Seismic (Bruch, Nardini, Rulli & Venturini, arXiv 2404.18812) over the latents of all passages.

    It finds most of the nearest passages; the scores of those it finds are exact, they are computed from the codes.
    """

    def __init__(self, index: Any, codes: Codes[NDArray[Any]], n: int, similarity: Similarity) -> None:  # noqa: ANN401
        """Take the parts; `build` makes them.

        Args:
            index: Seismic's index of the codes.
            codes: (N, K) the codes, for the scores; may be memory-mapped.
            n: Number of latents.
            similarity: What codes are compared by.
        """
        self._index = index
        self._codes = codes
        self.n = n
        self.similarity: Similarity = similarity

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._codes.indices)

    @classmethod
    def build(cls, codes: Codes[NDArray[Any]], n: int, *, similarity: Similarity = "damped") -> SeismicIndex:
        """Hand all codes to Seismic. It takes half a minute for 100,000 passages on one core, and reports on stdout.

        Args:
            codes: (N, K), may be memory-mapped. An empty place (value 0) is in no list.
            n: Number of latents.
            similarity: What codes are compared by.

        Raises:
            MissingExtraError: `pyseismic-lsr` is not installed.
            MismatchError: The codes name a latent that is not below `n`.
            ValueError: There is no such similarity.
        """
        require_similarity(similarity)
        seismic = require_seismic()
        narrow = n <= _NARROW
        dataset = (seismic.SeismicDataset if narrow else seismic.SeismicDatasetLV)(dim=n)
        for start in range(0, len(codes.indices), _TILE):
            part: Codes[NDArray[Any]] = Codes(*(np.asarray(array[start : start + _TILE]) for array in codes))
            require_known(part.indices[part.values > 0], n)
            indices, values = compared(part, similarity)
            order = np.argsort(indices, axis=1)
            indices, values = np.take_along_axis(indices, order, 1), np.take_along_axis(values, order, 1)
            active = values > 0
            offsets = np.concatenate([[0], np.cumsum(active.sum(axis=1))])
            names = [str(row) for row in range(start, start + len(indices))]
            dataset.add_documents_by_id(
                names, indices[active].astype(np.int64), values[active].astype(np.float32), offsets.astype(np.int64)
            )
        kind = seismic.SeismicIndex if narrow else seismic.SeismicIndexLV
        return cls(kind.build_from_dataset(dataset) if dataset.len else None, codes, n, similarity)

    def search(
        self, codes: Codes[NDArray[Any]], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> list[LatentHits]:
        """The passages whose codes are about the most similar; see `LatentIndex.search`.

        Args:
            codes: (batch, K) the queries' codes, as the SAE gives them.
            k: How many passages a query.
            allowed: (N,) which passages may be found; all if not given.

        Returns:
            For each query its hits, with exact scores.

        Raises:
            MismatchError: A latent is not below `n`.
        """
        pairs = zip(*compared(codes, self.similarity), strict=True)
        return [self.nearest(latents, weights, k, allowed=allowed) for latents, weights in pairs]

    def nearest(
        self,
        latents: NDArray[np.integer[Any]],
        weights: Array,
        k: int,
        *,
        allowed: NDArray[np.bool_] | None = None,
    ) -> LatentHits:
        """The passages with about the largest dot products; see `LatentIndex.nearest`.

        Seismic knows no filter and no negative weights: with `allowed` it is asked for more until enough of them are
        allowed, and it looks for the positive part of a query.

        Args:
            latents: The query's latents, each once.
            weights: What it has of them where codes are compared.
            k: How many passages.
            allowed: (N,) which passages may be found; all if not given.

        Raises:
            MismatchError: A latent is not below `n`.
        """
        require_known(latents, self.n)
        latents, weights = latents[weights != 0], weights[weights != 0]
        if self._index is None or not (weights > 0).any():
            return LatentHits(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        wanted = k
        while True:
            found = np.sort(self._candidates(latents[weights > 0], weights[weights > 0], wanted))
            rows = found if allowed is None else found[allowed[found]]
            if len(rows) >= k or len(found) < wanted or wanted >= len(self):
                break
            wanted = min(4 * wanted, len(self))
        hits = best(self._scores(rows, latents, weights), k)
        return LatentHits(rows[hits.rows], hits.scores)

    def _candidates(self, latents: NDArray[np.integer[Any]], weights: Array, k: int) -> NDArray[np.int64]:
        tokens = latents.astype(require_seismic().get_seismic_string())
        found = self._index.search("", tokens, weights.astype(np.float32), k, _QUERY_LATENTS, _HEAP_FACTOR)
        return np.array([int(name) for _, _, name in found], dtype=np.int64)

    def _scores(self, rows: NDArray[np.int64], latents: NDArray[np.integer[Any]], weights: Array) -> Array:
        codes: Codes[NDArray[Any]] = Codes(*(np.asarray(array[rows]) for array in self._codes))
        along = np.zeros(self.n, dtype=np.float32)
        along[latents] = weights
        ready = compared(codes, self.similarity)
        return np.asarray((ready.values * along[ready.indices]).sum(axis=1), dtype=np.float32)


def require_seismic() -> Any:  # noqa: ANN401 - a module without types
    """The package `seismic`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("seismic")
    except ImportError as error:
        raise MissingExtraError("latent_engine='seismic'", "scale") from error
