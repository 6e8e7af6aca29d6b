"""Search among sparse codes by their latents: an inverted index over all K of each passage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae import Array, Codes

_Ints = NDArray[np.integer[Any]]
LatentEngine = Literal["exact", "seismic"]
LATENT_ENGINES: tuple[LatentEngine, ...] = ("exact", "seismic")

# Passages that are sorted at a time while an index is made: 4096 of 64 latents need a few megabytes.
_TILE = 4096


class LatentHits(NamedTuple):
    """What one query has found, best first.

    Attributes:
        rows: The passages' rows.
        scores: (len(rows),) dot products.
    """

    rows: NDArray[np.int64]
    scores: Array


class LatentIndex:
    """For each latent the passages that have it and how strongly: an exact search that reads only what a query has.

    Scores are dot products in float32. With the passages' codes at unit length (`normalise=True`) and a unit query
    they are cosines of codes.
    """

    def __init__(self, offsets: NDArray[np.int64], rows: NDArray[np.int32], values: Array, count: int) -> None:
        """Take the arrays; `build` makes them.

        Args:
            offsets: (n + 1,) where each latent's list begins in `rows` and `values`.
            rows: The rows of all lists, latent after latent, ascending within each.
            values: The activations beside them.
            count: How many passages there are, those without a latent included.
        """
        from scipy.sparse import csc_array

        # Slicing columns and multiplying is the fastest of what was measured: twice as fast as np.bincount over the
        # concatenated lists, four times as fast as adding list after list. Narrow pointers keep rows from being copied.
        pointers = offsets.astype(np.int32 if len(rows) < 2**31 else np.int64)
        self._columns = csc_array((values, rows, pointers), shape=(count, len(offsets) - 1), copy=False)

    def __len__(self) -> int:
        """Number of passages."""
        return int(self._columns.shape[0])

    @property
    def n(self) -> int:
        """Number of latents."""
        return int(self._columns.shape[1])

    @classmethod
    def build(cls, codes: Codes[NDArray[Any]], n: int, *, normalise: bool = True) -> LatentIndex:
        """Sort codes by latent; beyond the index itself this needs memory for some thousand passages only.

        Args:
            codes: (N, K), may be memory-mapped. An empty place (value 0) is in no list.
            n: Number of latents.
            normalise: Whether each passage's code is scaled to unit length.

        Raises:
            MismatchError: The codes name a latent that is not below `n`.
        """
        lengths = np.zeros(n, dtype=np.int64)
        for _, _, latents, _ in _tiles(codes, n, normalise):
            lengths += np.bincount(latents, minlength=n)
        offsets = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        rows, values = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.float32)
        ends = offsets[:-1].copy()
        for start, places, latents, activations in _tiles(codes, n, normalise):
            order = np.argsort(latents, kind="stable")
            latents = latents[order]
            added = np.bincount(latents, minlength=n)
            first = np.cumsum(added) - added
            slots = ends[latents] + np.arange(len(latents)) - first[latents]
            rows[slots] = start + places[order]
            values[slots] = activations[order]
            ends += added
        return cls(offsets, rows, values, len(codes.indices))

    def scores(self, latents: NDArray[np.integer[Any]], weights: Array) -> Array:
        """(N,) dot products of every passage's code with one query's.

        Args:
            latents: The query's latents, each once.
            weights: Its activations; an edited code may have negative ones.

        Raises:
            MismatchError: A latent is not below `n`.
        """
        require_known(latents, self.n)
        used = weights != 0
        return np.asarray(self._columns[:, latents[used]] @ weights[used].astype(np.float32), dtype=np.float32)

    def search(
        self, codes: Codes[NDArray[Any]], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> list[LatentHits]:
        """The passages with the largest dot products.

        Only a passage that shares a latent with the query can score above 0, and only those come back: fewer than
        `k` if there are no more. Equal scores are in the order of their rows.

        Args:
            codes: (batch, K) the queries' codes.
            k: How many passages a query.
            allowed: (N,) which passages may be found; all if not given.

        Returns:
            For each query its hits.

        Raises:
            MismatchError: A latent is not below `n`.
        """
        found = []
        for latents, weights in zip(codes.indices, codes.values, strict=True):
            scores = self.scores(latents, weights)
            if allowed is not None:
                scores[~allowed] = 0.0
            found.append(best(scores, k))
        return found


def best(scores: Array, k: int, *, above: float = 0.0) -> LatentHits:
    """The `k` largest of the scores that are above a bar, equal ones in the order of their rows.

    Args:
        scores: (N,).
        k: How many; fewer come back if fewer are above the bar.
        above: The bar.
    """
    bar = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else above
    if bar > above:
        over = np.nonzero(scores > bar)[0]
        rows = np.concatenate([over, np.nonzero(scores == bar)[0][: k - len(over)]])
    else:
        rows = np.nonzero(scores > above)[0]
    rows = rows[np.lexsort((rows, -scores[rows]))]
    return LatentHits(rows, scores[rows])


def lengths(codes: Codes[NDArray[Any]]) -> Array:
    """(batch,) the codes' Euclidean norms, at least the smallest number that can be divided by."""
    norms = np.linalg.norm(codes.values, axis=1)
    return np.asarray(np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def require_known(latents: NDArray[np.integer[Any]], n: int) -> None:
    """Refuse latents that an index of `n` has not.

    Raises:
        MismatchError: One is not in [0, n).
    """
    if len(latents) and not 0 <= int(latents.min()) <= int(latents.max()) < n:
        worst = int(latents.min()) if int(latents.min()) < 0 else int(latents.max())
        raise MismatchError(f"codes name latent {worst}, but the index has #0 to #{n - 1}: they are of another SAE.")


def _tiles(codes: Codes[NDArray[Any]], n: int, normalise: bool) -> Iterator[tuple[int, _Ints, _Ints, Array]]:
    """Of some passages at a time: the first row, and the places, latents and values of what is active."""
    for start in range(0, len(codes.indices), _TILE):
        part: Codes[NDArray[Any]] = Codes(*(np.asarray(array[start : start + _TILE]) for array in codes))
        places, order = np.nonzero(part.values > 0)
        latents, values = part.indices[places, order], part.values[places, order]
        require_known(latents, n)
        yield start, places, latents, np.asarray(values / lengths(part)[places] if normalise else values, np.float32)
