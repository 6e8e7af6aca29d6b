"""Vectors that are read when they are used: positions in an array that may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array


class VectorRows:
    """(N, d) float32 vectors, by their positions in a store that is memory-mapped or in memory.

    Several may share a store and differ in positions only, at 8 bytes a row. Reading copies, so that the result may be
    changed and keeps no page of a file in use.
    """

    def __init__(self, store: Array, positions: NDArray[np.int64] | None = None) -> None:
        """Take rows of a (M, d) store without copying it: (N,) `positions`, or all rows in order."""
        self._store = store
        self._positions = np.arange(len(store)) if positions is None else positions

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return len(self), self._store.shape[1]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, chosen: slice | NDArray[Any]) -> Array:
        """Returns a copy of some vectors, (..., d) for (...) numbers."""
        return np.asarray(self._store).take(self._positions[chosen], axis=0)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Returns all vectors in memory."""
        return np.asarray(self[:], dtype=dtype)

    def select(self, chosen: slice | NDArray[Any]) -> VectorRows:
        """Returns some of the vectors, by number or by mask, without reading them."""
        return VectorRows(self._store, self._positions[chosen])

    def batches(self, size: int) -> Iterator[Array]:
        """Yields all vectors in order, up to `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @classmethod
    def joined(cls, parts: Sequence[VectorRows]) -> VectorRows:
        """Returns vectors of one store, one part after the other.

        Raises:
            ValueError: The parts are of several stores.
        """
        store = parts[0]._store
        if any(part._store is not store for part in parts):
            raise ValueError("expected rows of one store: only their positions can be joined.")
        return cls(store, np.concatenate([part._positions for part in parts]))


Vectors: TypeAlias = Array | VectorRows
"""(N, d) float32: an array, or rows that are read when they are used."""
