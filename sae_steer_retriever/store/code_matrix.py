"""All codes of a store as a sparse matrix in memory: exact search by what codes have in common."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.codes import Array, Codes, power_normalised
from sae_steer_retriever.store.connection import translated

if TYPE_CHECKING:
    from sae_steer_retriever.sae.config import SAEConfig
    from sae_steer_retriever.store.sidecar import CodePage, SidecarReader

logger = logging.getLogger(__name__)

Similarity = Literal["dot", "cosine", "damped"]
SIMILARITIES: tuple[Similarity, ...] = ("dot", "cosine", "damped")
"""Similarities of codes: dot product, as in arXiv 2411.00786; cosine; cosine of power-normalised codes."""

# Reading all codes again takes at most this share of the time while a write to the sidecar is unfinished.
_LARGEST_SHARE = 0.1


class LatentHits(NamedTuple):
    """The rows of the passages that one query has found, best first, and their scores by the similarity."""

    rows: NDArray[np.int64]
    scores: Array


class CodeMatrix:
    """The codes of N passages, by row, and for each latent the passages that have it.

    Attributes:
        codes: (N, K) as the SAE gives them.
        ids: The passages' ids, if known.
        digests: The digests of the unit vectors that were encoded, if known.
    """

    def __init__(
        self, codes: Codes[NDArray[Any]], n: int, ids: Sequence[str] = (), digests: Sequence[str] = ()
    ) -> None:
        """Takes the parts; `n` is the number of latents.

        Raises:
            MismatchError: The codes have a latent that is not below `n`.
        """
        _require_known(codes.indices, n)
        self.codes = codes
        self.ids = ids
        self.digests = digests
        self._n = n
        self._columns: dict[Similarity, Any] = {}
        self._making = threading.Lock()

    @classmethod
    def read(cls, pages: Iterable[CodePage], n: int, k: int) -> CodeMatrix:
        """Returns the matrix of a sidecar's pages, with `k` latents a passage."""
        ids: list[str] = []
        digests: list[str] = []
        indices, values = [np.empty((0, k), dtype=np.int32)], [np.empty((0, k), dtype=np.float32)]
        for page in pages:
            ids += page.ids
            digests += page.digests
            indices.append(page.codes.indices)
            values.append(page.codes.values)
        row_of = {
            name: row for row, name in enumerate(ids)
        }  # pages repeat what is written again meanwhile: the last one
        rows = list(row_of.values())
        codes = Codes(np.concatenate(indices)[rows], np.concatenate(values)[rows])
        return cls(codes, n, list(row_of), [digests[row] for row in rows])

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.codes.indices)

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Returns the rows of those of the passages that the matrix has."""
        return np.array([self._row_of[name] for name in ids if name in self._row_of], dtype=np.int64)

    def take(self, rows: NDArray[np.integer[Any]]) -> Codes[NDArray[Any]]:
        """Returns the (len(rows), K) codes of rows."""
        return Codes(self.codes.indices[rows], self.codes.values[rows])

    def project(self, along: Array) -> Array:
        """Returns the (N,) dot products of every passage's code, as the SAE gives it, with (n,) numbers."""
        return np.asarray(self._rows(self.codes) @ along)

    def scores(self, similarity: Similarity, latents: NDArray[np.integer[Any]], weights: Array) -> Array:
        """Returns the (N,) dot products of every passage's code, as `compared` gives it, with one query.

        `latents` are the query's, each once; `weights` are as `compared` gives them, or edited and maybe negative.

        Raises:
            MismatchError: A latent is not below `n`.
            ValueError: The similarity is unknown.
        """
        _require_known(latents, self._n)
        used = weights != 0
        # Slicing columns and multiplying is the fastest of what was measured: twice as fast as np.bincount over the
        # concatenated lists, four times as fast as adding list after list.
        columns = self._columns_of(similarity)[:, latents[used]]
        return np.asarray(columns @ weights[used].astype(np.float32), dtype=np.float32)

    def search(self, similarity: Similarity, codes: Codes[NDArray[Any]], k: int) -> list[LatentHits]:
        """Returns the hits of each query: the passages with the most similar codes.

        Only passages with a score above 0 are found, so there may be fewer than `k`. Equal scores are in row order.
        The (batch, K) codes are as the SAE gives them.
        """
        return [
            best(self.scores(similarity, latents, weights), k)
            for latents, weights in zip(*compared(codes, similarity), strict=True)
        ]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def _columns_of(self, similarity: Similarity) -> Any:  # noqa: ANN401 - scipy has no types
        with self._making:
            if similarity not in self._columns:
                columns = self._rows(compared(self.codes, similarity)).tocsc()
                columns.eliminate_zeros()  # empty places
                self._columns[similarity] = columns
            return self._columns[similarity]

    def _rows(self, codes: Codes[NDArray[Any]]) -> Any:  # noqa: ANN401 - scipy has no types
        """Returns (N, n) codes as a matrix by rows; a view of the arrays, not a copy."""
        from scipy.sparse import csr_array

        count, k = codes.indices.shape
        # Narrow pointers keep the latents from being copied.
        starts = np.arange(0, count * k + 1, k, dtype=np.int32 if count * k < 2**31 else np.int64)
        return csr_array((codes.values.reshape(-1), codes.indices.reshape(-1), starts), (count, self._n), copy=False)


class _Held(NamedTuple):
    """A matrix, the sidecar's generation when it was read, and until when it serves an unfinished one."""

    matrix: CodeMatrix
    generation: str | None
    until: float


class CurrentMatrix:
    """A sidecar's `CodeMatrix`: read at its first use, and again once the sidecar has changed.

    Threads may share it. Each use asks the sidecar for its generation, so what other processes write is seen at once.
    While a write is unfinished, codes may be those from before it.
    """

    def __init__(self, sidecar: SidecarReader, config: SAEConfig) -> None:
        """Takes the source of the codes, and the SAE's settings; reads nothing."""
        self._sidecar = sidecar
        self._config = config
        self._lock = threading.Lock()
        self._held: _Held | None = None

    def read(self, passages: Callable[[], int]) -> CodeMatrix:
        """Returns the codes as they are stored now; `passages` counts the documents, to warn of missing codes.

        Raises:
            StoreError: The store does not answer.
        """
        with translated("reading codes"):
            held = self._current(self._sidecar.generation())
            if held is not None:
                return held
            with self._lock:
                generation = self._sidecar.generation()  # before the codes, so that no later write is overlooked
                held = self._current(generation)  # another thread may have read them meanwhile
                if held is not None:
                    return held
                began = time.monotonic()
                matrix = CodeMatrix.read(self._sidecar.pages(), self._config.n, self._config.k)
                ended = time.monotonic()
                self._held = _Held(matrix, generation, ended + (ended - began) / _LARGEST_SHARE)
            missing = passages() - len(matrix)
        if missing > 0:
            logger.warning(
                "%d passages of %r have no codes: run `sae-steer index --attach` or ChromaStore.attach()",
                missing,
                self._sidecar.source,
            )
        return matrix

    def _current(self, generation: str | None) -> CodeMatrix | None:
        held = self._held
        if held is None:
            return None
        serves = time.monotonic() < held.until if generation is None else generation == held.generation
        return held.matrix if serves else None


def compared(codes: Codes[NDArray[Any]], similarity: Similarity) -> Codes[NDArray[Any]]:
    """Returns the (batch, K) codes normalised for a similarity, which is then their dot product.

    Raises:
        ValueError: The similarity is unknown.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}, expected one of {', '.join(SIMILARITIES)}.")
    if similarity == "dot":
        return codes
    read = power_normalised(codes) if similarity == "damped" else codes
    # An empty code scores 0, whatever it is divided by.
    norms = np.maximum(np.linalg.norm(read.values, axis=1), np.finfo(np.float32).tiny)
    return Codes(read.indices, np.asarray(read.values / norms[:, None], dtype=np.float32))


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


def _require_known(latents: NDArray[np.integer[Any]], n: int) -> None:
    if latents.size and not 0 <= int(latents.min()) <= int(latents.max()) < n:
        worst = int(latents.min()) if int(latents.min()) < 0 else int(latents.max())
        raise MismatchError(f"codes name latent {worst}, but the matrix has #0 to #{n - 1}: they are of another SAE.")
