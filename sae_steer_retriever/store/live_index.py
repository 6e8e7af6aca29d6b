"""The local copy of a sidecar's codes, kept in step with the sidecar."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sae_steer_retriever.encoders.cache_root import cache_root
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.store.code_index import CodeIndex
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.documents import DocumentCollection
from sae_steer_retriever.store.sidecar import SidecarReader

logger = logging.getLogger(__name__)

# How often the sidecar may be asked whether another process has written, in seconds.
_INTERVAL = 1.0
# Reading all codes again takes at most this share of the time while others keep writing.
_LARGEST_SHARE = 0.1
# Vectors read at once.
_PAGE = 5000


class LiveIndex:
    """A `CodeIndex` that is made again when the sidecar's generation changes; safe to share between threads.

    Writes of this process are seen at once (`forget`), writes of other processes within a second. While others keep
    writing and reading all codes is slow, they are seen later.
    """

    def __init__(self, sidecar: SidecarReader, documents: DocumentCollection, config: SAEConfig) -> None:
        """Takes the sources of the codes and of the vectors, and the SAE's config."""
        self._sidecar = sidecar
        self._documents = documents
        self._config = config
        self._lock = threading.Lock()
        self._index: CodeIndex | None = None
        self._write_generation: str | None = None
        self._next_look = float("-inf")
        self.complete = False

    @property
    def folder(self) -> Path:
        """The folder of the copies, which can be deleted at any time."""
        return cache_root() / "codes" / self._sidecar.id

    def forget(self) -> None:
        """Makes the next use read the generation first."""
        with self._lock:
            self._next_look = float("-inf")

    def remove(self) -> None:
        """Deletes the copy on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def current(self, passages: Callable[[], int]) -> CodeIndex:
        """Returns the codes as they are stored now; `passages` counts the documents, to warn of missing codes."""
        with self._lock:
            if self._index is not None and time.monotonic() < self._next_look:
                return self._index
            # Set before reading, so that a write in the meantime is not overlooked.
            self._next_look = time.monotonic() + _INTERVAL
            with translated("reading codes"):
                generation = self._sidecar.generation()
                if self._index is None or generation is None or generation != self._write_generation:
                    began = time.monotonic()
                    self._index, self._write_generation = self._load(generation), generation
                    took = time.monotonic() - began
                    self._next_look = max(self._next_look, time.monotonic() + took / _LARGEST_SHARE)
                    self._compare(self._index, passages())
            return self._index

    def _compare(self, index: CodeIndex, passages: int) -> None:
        self.complete = len(index) == passages
        if not self.complete:
            logger.warning(
                "%d of %d passages of %r have codes: run `sae-steer index --attach` or ChromaStore.attach()",
                len(index),
                passages,
                self._sidecar.source,
            )

    def _load(self, generation: str | None) -> CodeIndex:
        found = CodeIndex.load(self.folder, generation) if generation is not None else None
        if found is not None:
            return found
        config = self._config
        stored = self._documents.score_pages(_PAGE)
        made = CodeIndex.build(self._sidecar.pages(), config.n, config.k, config.k_labels, stored)
        if generation is not None and generation == self._sidecar.generation():
            with contextlib.suppress(OSError):  # a full or read-only cache costs time, not results
                made.save(self.folder, generation)
                return CodeIndex.load(self.folder, generation) or made  # memory-mapped from now on
        return made
