"""Codes at query time: a memory-mapped copy of the sidecar's codes, with an inverted list for every feature."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.store.latent_index import LatentIndex

_META_FILE = "meta.json"
_FORMAT_VERSION = 2
# Answers about all passages are remembered up to this many bytes.
_REMEMBERED_BYTES = 64 * 2**20


class StoredVectors(NamedTuple):
    """The documents' vectors in score space: `vectors @ q + offsets` are the (N,) scores of a unit query `q`.

    The (N, d) vectors may be memory-mapped. The row of a deleted passage is NaN.
    """

    vectors: NDArray[np.float32]
    offsets: NDArray[np.float32]


class CodeIndex:
    """Every passage's code and vector, by row, and for each feature the rows of the passages that have it.

    The index is a copy made from the sidecar collection. It has the sidecar's generation and is made again when that
    changes.
    """

    def __init__(
        self,
        ids: list[str],
        codes: Codes[NDArray[Any]],
        offsets: NDArray[np.int64],
        rows: NDArray[np.int32],
        k_labels: int,
        stored: StoredVectors,
    ) -> None:
        """Takes the arrays of `build` or `load`: ids and (N, K) codes by row, and the lists of label latents.

        `rows` are the rows of all lists, feature after feature; `offsets`, (n + 1,), says where each list begins.
        """
        self.ids = ids
        self.codes = codes
        self._offsets = offsets
        self._rows = rows
        self._k_labels = k_labels
        self._stored = stored
        self._row_of = {name: row for row, name in enumerate(ids)}
        self._sparse: Any = None
        self._latent_index: LatentIndex | None = None
        self._making = threading.Lock()
        self._answers: OrderedDict[Hashable, NDArray[np.float32]] = OrderedDict()
        self._answering = threading.Lock()

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.ids)

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Returns the (len(ids),) rows of passages, -1 for an unknown one."""
        return np.array([self._row_of.get(name, -1) for name in ids], dtype=np.int64)

    def take(self, rows: NDArray[np.integer[Any]]) -> Codes[NDArray[Any]]:
        """Returns the (len(rows), K) codes of rows."""
        return Codes(np.asarray(self.codes.indices[rows]), np.asarray(self.codes.values[rows]))

    def names(self, rows: NDArray[np.integer[Any]]) -> Codes[NDArray[Any]]:
        """Returns the (len(rows), k_labels) label latents of rows."""
        return self.take(rows).truncate(self._k_labels)

    def posting(self, feature: int) -> NDArray[np.int32]:
        """Returns the rows of the passages that have a feature among their label latents."""
        return np.asarray(self._rows[self._offsets[feature] : self._offsets[feature + 1]])

    def having(self, feature: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Returns the rows of the passages that have a feature among their label latents, and its activations."""
        rows = self.posting(feature)
        names = self.names(rows)
        return rows, np.where(names.indices == feature, names.values, np.float32(0)).max(axis=1, initial=0)

    def project(self, along: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns (N, m) dot products of every passage's code with the (n, m) columns of `along`."""
        return np.asarray(self._matrix(len(along)) @ along)

    def scores(self, rows: NDArray[np.integer[Any]], q: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the (len(rows),) plain scores of rows for a (d,) unit query; NaN for a deleted passage."""
        vectors, offsets = self._stored
        if not vectors.shape[1]:  # no document is left, and no size is known
            return np.full(len(rows), np.nan)
        # To copy many rows takes longer than to multiply all of them.
        products = (vectors @ q)[rows] if len(rows) > len(self) // 4 else vectors[rows] @ q
        return np.asarray(products + offsets[rows], dtype=np.float64)

    @property
    def stored(self) -> StoredVectors:
        """The vectors of all passages, by row; not to be written to."""
        return self._stored

    def vectors(self, rows: NDArray[np.integer[Any]]) -> StoredVectors:
        """Returns the vectors of rows."""
        return StoredVectors(*(np.asarray(part[rows]) for part in self._stored))

    def remembered(self, key: Hashable, answer: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Returns an answer about all passages; computes it unless it is among the latest ones."""
        with self._answering:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
        found = answer()
        found.flags.writeable = False
        with self._answering:
            self._answers[key] = found
            while len(self._answers) > 1 and sum(kept.nbytes for kept in self._answers.values()) > _REMEMBERED_BYTES:
                self._answers.popitem(last=False)
        return found

    def latent_index(self, n: int) -> LatentIndex:
        """Returns the search over all K of the `n` latents, made in memory at its first use."""
        with self._making:
            if self._latent_index is None:
                self._latent_index = LatentIndex.build(self.codes, n)
            return self._latent_index

    def _matrix(self, n: int) -> Any:  # noqa: ANN401 - scipy has no types
        if self._sparse is None:
            from scipy.sparse import csr_array

            count, k = self.codes.indices.shape
            starts = np.arange(0, count * k + 1, k, dtype=np.int32 if count * k < 2**31 else np.int64)
            # A view of the mapped arrays, not a copy of them.
            self._sparse = csr_array(
                (self.codes.values.reshape(-1), self.codes.indices.reshape(-1), starts), shape=(count, n), copy=False
            )
        return self._sparse

    @classmethod
    def build(
        cls,
        pages: Iterable[tuple[list[str], Codes[NDArray[Any]]]],
        n: int,
        k: int,
        k_labels: int,
        stored: Iterable[tuple[list[str], NDArray[np.float32], NDArray[np.float32]]] = (),
    ) -> CodeIndex:
        """Returns an index made in memory from batches of ids and codes.

        `stored` are batches of ids, the documents' vectors and offsets, in any order; without them, scores are NaN.
        """
        ids: list[str] = []
        indices, values = [np.empty((0, k), dtype=np.int32)], [np.empty((0, k), dtype=np.float32)]
        for page_ids, codes in pages:
            ids.extend(page_ids)
            indices.append(codes.indices.astype(np.int32))
            values.append(codes.values.astype(np.float32))
        whole: Codes[NDArray[Any]] = Codes(np.concatenate(indices), np.concatenate(values))
        names = whole.truncate(k_labels)
        row, place = np.nonzero(names.values > 0)
        latents = names.indices[row, place]
        order = np.argsort(latents, kind="stable")
        offsets = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(np.bincount(latents, minlength=n), out=offsets[1:])
        return cls(ids, whole, offsets, row[order].astype(np.int32), k_labels, _placed(ids, stored))

    def save(self, folder: Path, generation: str) -> None:
        """Writes the index as `folder/generation` and removes older ones. A reader never sees half of one."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / generation
        if target.exists():
            if CodeIndex.load(folder, generation) is not None:
                return
            shutil.rmtree(target, ignore_errors=True)  # damaged
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
        arrays = {
            "indices": self.codes.indices,
            "values": self.codes.values,
            "offsets": self._offsets,
            "rows": self._rows,
            "vectors": self._stored.vectors,
            "vector_offsets": self._stored.offsets,
        }
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        meta = {"format_version": _FORMAT_VERSION, "k_names": self._k_labels, "ids": self.ids}
        (temporary / _META_FILE).write_text(json.dumps(meta), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was first: its copy is the same
            os.replace(temporary, target)
        for other in folder.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, generation: str) -> CodeIndex | None:
        """Returns the index of a generation, memory-mapped; None if it is absent or damaged."""
        path = folder / generation
        try:
            meta = json.loads((path / _META_FILE).read_text(encoding="utf-8"))
            if meta["format_version"] != _FORMAT_VERSION:
                return None
            indices, values = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("indices", "values"))
            offsets, rows = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("offsets", "rows"))
            stored = StoredVectors(
                *(np.load(path / f"{name}.npy", mmap_mode="r") for name in ("vectors", "vector_offsets"))
            )
            ids, k_labels = list(meta["ids"]), int(meta["k_names"])
            if len({len(ids), len(indices), len(values), *map(len, stored)}) != 1 or int(offsets[-1]) != len(rows):
                return None
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        return cls(ids, Codes(indices, values), offsets, rows, k_labels, stored)


def _placed(
    ids: list[str], stored: Iterable[tuple[list[str], NDArray[np.float32], NDArray[np.float32]]]
) -> StoredVectors:
    """Returns vectors in the order of `ids`."""
    row_of = {name: row for row, name in enumerate(ids)}
    placed = StoredVectors(np.empty((len(ids), 0), dtype=np.float32), np.full(len(ids), np.nan, dtype=np.float32))
    for names, vectors, offsets in stored:
        if not placed.vectors.shape[1]:
            placed = placed._replace(vectors=np.full((len(ids), vectors.shape[1]), np.nan, dtype=np.float32))
        known = [(row_of[name], place) for place, name in enumerate(names) if name in row_of]
        if known:
            rows, places = np.array(known).T
            placed.vectors[rows], placed.offsets[rows] = vectors[places], offsets[places]
    return placed
