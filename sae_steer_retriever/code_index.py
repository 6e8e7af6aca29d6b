"""Codes at query time: a memory-mapped copy of the companion's codes, with inverted lists of named features."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.latent_index import LatentEngine, LatentIndex
from sae_steer_retriever.sae import Codes

if TYPE_CHECKING:
    from sae_steer_retriever.seismic_index import SeismicIndex

_META_FILE = "meta.json"
_FORMAT_VERSION = 1


class CodeIndex:
    """Every passage's codes, by row, and for each feature the rows that have it among their names.

    A derived copy: it is made from the companion collection, bears its stamp, and is made again when that differs.
    """

    def __init__(
        self,
        ids: list[str],
        codes: Codes[NDArray[Any]],
        offsets: NDArray[np.int64],
        rows: NDArray[np.int32],
        k_names: int,
    ) -> None:
        """Take the arrays; `build` and `load` make them.

        Args:
            ids: Passage ids, by row.
            codes: (N, K), may be memory-mapped.
            offsets: (n + 1,) where each feature's list begins in `rows`.
            rows: The rows of all lists, feature after feature.
            k_names: How many of a code's strongest latents the lists cover.
        """
        self.ids = ids
        self.codes = codes
        self._offsets = offsets
        self._rows = rows
        self._k_names = k_names
        self._row_of = {name: row for row, name in enumerate(ids)}
        self._sparse: Any = None
        self._engines: dict[LatentEngine, LatentIndex | SeismicIndex] = {}
        self._making = threading.Lock()

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.ids)

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """(len(ids),) rows, -1 for a passage that is not here."""
        return np.array([self._row_of.get(name, -1) for name in ids], dtype=np.int64)

    def take(self, rows: NDArray[np.integer[Any]]) -> Codes[NDArray[Any]]:
        """(len(rows), K) codes of some rows."""
        return Codes(np.asarray(self.codes.indices[rows]), np.asarray(self.codes.values[rows]))

    def names(self, rows: NDArray[np.integer[Any]]) -> Codes[NDArray[Any]]:
        """(len(rows), k_names) naming reading of some rows."""
        return self.take(rows).leading(self._k_names)

    def posting(self, feature: int) -> NDArray[np.int32]:
        """Rows of the passages that have a feature among their names."""
        return np.asarray(self._rows[self._offsets[feature] : self._offsets[feature + 1]])

    def having(self, feature: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows of the passages that have a feature among their names, and its activation in each."""
        rows = self.posting(feature)
        names = self.names(rows)
        return rows, np.where(names.indices == feature, names.values, np.float32(0)).max(axis=1, initial=0)

    def project(self, along: NDArray[np.float32]) -> NDArray[np.float32]:
        """For every passage the sum of its activations times `along` their latents.

        Args:
            along: (n, m) weights of the latents, m at a time.

        Returns:
            (N, m).
        """
        return np.asarray(self._matrix(len(along)) @ along)

    def latent_engine(self, engine: LatentEngine, n: int) -> LatentIndex | SeismicIndex:
        """The search over all K latents of the codes, made in memory at its first use.

        Args:
            engine: "exact" or "seismic".
            n: Number of latents.

        Raises:
            MissingExtraError: The engine's package is not installed.
        """
        with self._making:
            if engine not in self._engines:
                self._engines[engine] = self._make_engine(engine, n)
            return self._engines[engine]

    def _make_engine(self, engine: LatentEngine, n: int) -> LatentIndex | SeismicIndex:
        if engine == "exact":
            return LatentIndex.build(self.codes, n)
        from sae_steer_retriever.seismic_index import SeismicIndex

        return SeismicIndex.build(self.codes, n)

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
    def build(cls, pages: Iterable[tuple[list[str], Codes[NDArray[Any]]]], n: int, k: int, k_names: int) -> CodeIndex:
        """Make an index in memory.

        Args:
            pages: Batches of ids and their codes.
            n: Number of latents.
            k: Latents per code.
            k_names: How many of them are names.
        """
        ids: list[str] = []
        indices, values = [np.empty((0, k), dtype=np.int32)], [np.empty((0, k), dtype=np.float32)]
        for page_ids, codes in pages:
            ids.extend(page_ids)
            indices.append(codes.indices.astype(np.int32))
            values.append(codes.values.astype(np.float32))
        whole: Codes[NDArray[Any]] = Codes(np.concatenate(indices), np.concatenate(values))
        names = whole.leading(k_names)
        row, place = np.nonzero(names.values > 0)
        latents = names.indices[row, place]
        order = np.argsort(latents, kind="stable")
        offsets = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(np.bincount(latents, minlength=n), out=offsets[1:])
        return cls(ids, whole, offsets, row[order].astype(np.int32), k_names)

    def save(self, folder: Path, stamp: str) -> None:
        """Write the index as `folder/stamp` and drop older stamps. A reader never sees half of one."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / stamp
        if target.exists():
            if CodeIndex.load(folder, stamp) is not None:
                return
            shutil.rmtree(target, ignore_errors=True)  # damaged
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
        arrays = {
            "indices": self.codes.indices,
            "values": self.codes.values,
            "offsets": self._offsets,
            "rows": self._rows,
        }
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        meta = {"format_version": _FORMAT_VERSION, "k_names": self._k_names, "ids": self.ids}
        (temporary / _META_FILE).write_text(json.dumps(meta), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was first: its copy is the same
            os.replace(temporary, target)
        for other in folder.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, stamp: str) -> CodeIndex | None:
        """Open the index of this stamp, memory-mapped, or None where there is none that can be read."""
        path = folder / stamp
        try:
            meta = json.loads((path / _META_FILE).read_text(encoding="utf-8"))
            if meta["format_version"] != _FORMAT_VERSION:
                return None
            indices, values = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("indices", "values"))
            offsets, rows = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("offsets", "rows"))
            ids, k_names = list(meta["ids"]), int(meta["k_names"])
            if not len(ids) == len(indices) == len(values) or int(offsets[-1]) != len(rows):
                return None
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        return cls(ids, Codes(indices, values), offsets, rows, k_names)
