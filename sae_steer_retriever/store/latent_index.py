"""Search among sparse codes by their latents: an inverted index over all K latents of each passage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.codes import Array, Codes, power_normalised

Similarity = Literal["dot", "cosine", "damped"]
SIMILARITIES: tuple[Similarity, ...] = ("dot", "cosine", "damped")
"""Similarities of codes: dot product, as in arXiv 2411.00786; cosine; cosine of power-normalised codes."""

# Passages that are sorted at a time while an index is made: 4096 of 64 latents need a few megabytes.
_TILE = 4096


class LatentHits(NamedTuple):
    """The rows of the passages that one query has found, best first, and their scores by the index's similarity."""

    rows: NDArray[np.int64]
    scores: Array


class LatentIndex:
    """For each latent, the passages that have it and their activations: an exact search that reads only these lists.

    Scores are the index's similarity in float32: dot products of codes that `compared` has normalised. `search` takes
    codes as the SAE gives them, `scores` a normalised query, which may be edited.
    """

    def __init__(
        self, offsets: NDArray[np.int64], rows: NDArray[np.int32], values: Array, count: int, similarity: Similarity
    ) -> None:
        """Takes the arrays of `build`: the lists' rows and activations, and (n + 1,) offsets where each list begins.

        `count` is the number of passages, with those that have no latent.
        """
        from scipy.sparse import csc_array

        # Slicing columns and multiplying is the fastest of what was measured: twice as fast as np.bincount over the
        # concatenated lists, four times as fast as adding list after list. Narrow pointers keep rows from being copied.
        pointers = offsets.astype(np.int32 if len(rows) < 2**31 else np.int64)
        self._columns = csc_array((values, rows, pointers), shape=(count, len(offsets) - 1), copy=False)
        self.similarity: Similarity = similarity

    def __len__(self) -> int:
        """Number of passages."""
        return int(self._columns.shape[0])

    @property
    def n(self) -> int:
        """Number of latents."""
        return int(self._columns.shape[1])

    @classmethod
    def build(cls, codes: Codes[NDArray[Any]], n: int, *, similarity: Similarity = "damped") -> LatentIndex:
        """Returns the index of (N, K) codes, without activations of 0; it needs memory for few passages at a time.

        Raises:
            MismatchError: The codes have a latent that is not below `n`.
            ValueError: The similarity is unknown.
        """
        require_similarity(similarity)
        counts = np.zeros(n, dtype=np.int64)
        for _, part in _tiles(codes):
            latents = part.indices[part.values > 0]
            require_known(latents, n)
            counts += np.bincount(latents, minlength=n)
        offsets = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        rows, values = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.float32)
        ends = offsets[:-1].copy()
        for start, part in _tiles(codes):
            active = part.values > 0
            places, activations = np.nonzero(active)[0], compared(part, similarity).values[active]
            order = np.argsort(part.indices[active], kind="stable")
            latents = part.indices[active][order]
            added = np.bincount(latents, minlength=n)
            first = np.cumsum(added) - added
            slots = ends[latents] + np.arange(len(latents)) - first[latents]
            rows[slots] = start + places[order]
            values[slots] = activations[order]
            ends += added
        return cls(offsets, rows, values, len(codes.indices), similarity)

    def scores(self, latents: NDArray[np.integer[Any]], weights: Array) -> Array:
        """Returns the (N,) dot products of every passage's code, as `compared` gives it, with one query.

        `latents` are the query's, each once; `weights` are as `compared` gives them, or edited and maybe negative.

        Raises:
            MismatchError: A latent is not below `n`.
        """
        require_known(latents, self.n)
        used = weights != 0
        return np.asarray(self._columns[:, latents[used]] @ weights[used].astype(np.float32), dtype=np.float32)

    def search(
        self, codes: Codes[NDArray[Any]], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> list[LatentHits]:
        """Returns the hits of each query: the passages with the most similar codes.

        Only passages with a score above 0 are found, so there may be fewer than `k`. Equal scores are in row order.
        The (batch, K) codes are as the SAE gives them; `allowed`, (N,), limits the passages that may be found.

        Raises:
            MismatchError: A latent is not below `n`.
        """
        found = []
        for latents, weights in zip(*compared(codes, self.similarity), strict=True):
            scores = self.scores(latents, weights)
            if allowed is not None:
                scores[~allowed] = 0.0
            found.append(best(scores, k))
        return found


def compared(codes: Codes[NDArray[Any]], similarity: Similarity) -> Codes[NDArray[Any]]:
    """Returns the (batch, K) codes normalised for a similarity, which is then their dot product."""
    if similarity == "dot":
        return codes
    read = power_normalised(codes) if similarity == "damped" else codes
    return Codes(read.indices, np.asarray(read.values / lengths(read)[:, None], dtype=np.float32))


def best(scores: Array, k: int, *, above: float = 0.0) -> LatentHits:
    """Returns the `k` largest of (N,) scores among those above the bar `above`, equal ones in the order of rows."""
    bar = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else above
    if bar > above:
        over = np.nonzero(scores > bar)[0]
        rows = np.concatenate([over, np.nonzero(scores == bar)[0][: k - len(over)]])
    else:
        rows = np.nonzero(scores > above)[0]
    rows = rows[np.lexsort((rows, -scores[rows]))]
    return LatentHits(rows, scores[rows])


def lengths(codes: Codes[NDArray[Any]]) -> Array:
    """Returns the (batch,) Euclidean norms of codes, at least the smallest positive float32."""
    norms = np.linalg.norm(codes.values, axis=1)
    return np.asarray(np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def require_known(latents: NDArray[np.integer[Any]], n: int) -> None:
    """Refuses latents outside [0, n).

    Raises:
        MismatchError: A latent is outside.
    """
    if len(latents) and not 0 <= int(latents.min()) <= int(latents.max()) < n:
        worst = int(latents.min()) if int(latents.min()) < 0 else int(latents.max())
        raise MismatchError(f"codes name latent {worst}, but the index has #0 to #{n - 1}: they are of another SAE.")


def require_similarity(similarity: Similarity) -> None:
    """Refuses an unknown similarity.

    Raises:
        ValueError: The similarity is unknown.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}, expected one of {', '.join(SIMILARITIES)}.")


def _tiles(codes: Codes[NDArray[Any]]) -> Iterator[tuple[int, Codes[NDArray[Any]]]]:
    """Yields the first row and the codes of some passages at a time."""
    for start in range(0, len(codes.indices), _TILE):
        yield start, Codes(*(np.asarray(array[start : start + _TILE]) for array in codes))
