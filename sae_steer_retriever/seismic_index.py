"""The same search through Seismic: approximate, for collections where reading every list of a query takes too long."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MissingExtraError
from sae_steer_retriever.latent_index import LatentHits, best, lengths, require_known
from sae_steer_retriever.sae import Array, Codes

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

    def __init__(self, index: Any, codes: Codes[NDArray[Any]], n: int, *, normalise: bool) -> None:  # noqa: ANN401
        """Take the parts; `build` makes them.

        Args:
            index: Seismic's index of the codes.
            codes: (N, K) the codes, for the scores; may be memory-mapped.
            n: Number of latents.
            normalise: Whether scores are of codes at unit length.
        """
        self._index = index
        self._codes = codes
        self._normalise = normalise
        self.n = n

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._codes.indices)

    @classmethod
    def build(cls, codes: Codes[NDArray[Any]], n: int, *, normalise: bool = True) -> SeismicIndex:
        """Hand all codes to Seismic. It takes half a minute for 100,000 passages on one core, and reports on stdout.

        Args:
            codes: (N, K), may be memory-mapped. An empty place (value 0) is in no list.
            n: Number of latents.
            normalise: Whether each passage's code is scaled to unit length.

        Raises:
            MissingExtraError: `pyseismic-lsr` is not installed.
            MismatchError: The codes name a latent that is not below `n`.
        """
        seismic = require_seismic()
        narrow = n <= _NARROW
        dataset = (seismic.SeismicDataset if narrow else seismic.SeismicDatasetLV)(dim=n)
        for start in range(0, len(codes.indices), _TILE):
            indices, values = (np.asarray(array[start : start + _TILE]) for array in codes)
            require_known(indices[values > 0], n)
            if normalise:
                values = values / lengths(Codes(indices, values))[:, None]
            order = np.argsort(indices, axis=1)
            indices, values = np.take_along_axis(indices, order, 1), np.take_along_axis(values, order, 1)
            active = values > 0
            offsets = np.concatenate([[0], np.cumsum(active.sum(axis=1))])
            names = [str(row) for row in range(start, start + len(indices))]
            dataset.add_documents_by_id(
                names, indices[active].astype(np.int64), values[active].astype(np.float32), offsets.astype(np.int64)
            )
        kind = seismic.SeismicIndex if narrow else seismic.SeismicIndexLV
        return cls(kind.build_from_dataset(dataset) if dataset.len else None, codes, n, normalise=normalise)

    def search(
        self, codes: Codes[NDArray[Any]], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> list[LatentHits]:
        """The passages with about the largest dot products; see `LatentIndex.search`.

        Seismic knows no filter and no negative weights: with `allowed` it is asked for more until enough of them are
        allowed, and it looks for the positive part of a code.

        Args:
            codes: (batch, K) the queries' codes.
            k: How many passages a query.
            allowed: (N,) which passages may be found; all if not given.

        Returns:
            For each query its hits, with exact scores.

        Raises:
            MismatchError: A latent is not below `n`.
        """
        require_known(codes.indices, self.n)
        return [
            self._search(latents[weights != 0], weights[weights != 0], k, allowed)
            for latents, weights in zip(codes.indices, codes.values, strict=True)
        ]

    def _search(
        self, latents: NDArray[np.integer[Any]], weights: Array, k: int, allowed: NDArray[np.bool_] | None
    ) -> LatentHits:
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
        scores = (codes.values * along[codes.indices]).sum(axis=1)
        return np.asarray(scores / lengths(codes) if self._normalise else scores, dtype=np.float32)


def require_seismic() -> Any:  # noqa: ANN401 - a module without types
    """The package `seismic`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("seismic")
    except ImportError as error:
        raise MissingExtraError("latent_engine='seismic'", "scale") from error
