"""Embeddings on disk, keyed by content: each encoder embeds a text once."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from sae_steer_retriever.encoders.cache_root import CACHE_VARIABLE, cache_root
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import ArtifactError, MismatchError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.malloc import keep_large_buffers

_DIGEST_BYTES = 16
# Long enough for the encoder to sort texts by length, short enough that an interruption costs seconds of work.
_CHUNK = 512
_UNIT_TOLERANCE = 1e-3
# Rows checked at once.
_CHECKED = 16_384


class CachedEmbedder:
    """An `Embedder` that keeps its embeddings on disk.

    Two append-only files hold 16-byte digests of (role, prefix, text) and float32 rows. A process that is killed
    between the two writes leaves a tail that the next opening ignores, so earlier embeddings are never lost. A row that
    is not a unit vector (a crash of the machine, a damaged disk) is embedded again. Processes and threads may share a
    folder.

    A row with a key never moves and never changes, so `vectors` may stay mapped while other processes append.

    Example:
        >>> from pathlib import Path
        >>> from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
        >>> cached = CachedEmbedder(embedder, Path("./cache"))
        >>> cached.embed_documents(["We refund within 14 days."]).shape  # the next call reads it from disk
        (1, 384)
    """

    def __init__(self, embedder: Embedder, folder: Path | None = None, *, progress: bool = False) -> None:
        """Wrap `embedder`, which embeds the texts that are not in the cache yet.

        The cache is in `folder`, or under `cache_root()`. `progress` shows a bar on stderr while embedding.

        Raises:
            ArtifactError: The folder cannot be made.
        """
        self.embedder, self.spec = embedder, embedder.spec
        spec = embedder.spec
        identity = f"{spec.name}|{spec.revision}|{spec.dimension}|{spec.pooling}".encode()
        slug = re.sub(r"[^\w.-]+", "-", spec.name)[-60:]
        name = f"{slug}-{hashlib.blake2b(identity, digest_size=4).hexdigest()}"
        self._folder = (folder or cache_root() / "embeddings") / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"cannot keep embeddings in {self._folder}: {error.strerror or error}; the environment variable "
                f"{CACHE_VARIABLE} names another folder."
            ) from error
        self._keys_path, self._rows_path = self._folder / "keys.bin", self._folder / "vectors.f32"
        self._lock = FileLock(self._folder / "lock")
        # The file lock is for processes, this one for threads, which share the fields below.
        self._reading = threading.RLock()
        self._row_bytes = 4 * spec.dimension
        self._rows: dict[bytes, int] = {}
        # Not len(self._rows): two processes may have embedded the same text.
        self._count = 0
        self._read_new_keys()
        self.progress = progress

    def embed_queries(self, texts: Sequence[str]) -> Array:
        """Returns (batch, d) unit vectors of queries, those of known texts from the cache."""
        return self._read(self.query_places(texts))

    def embed_documents(self, texts: Sequence[str]) -> Array:
        """Returns (batch, d) unit vectors of documents, those of known texts from the cache."""
        return self._read(self.document_places(texts))

    def query_places(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Returns the (batch,) rows of `vectors` that hold the queries; embeds those that are not known yet."""
        return self._places(texts, "query")

    def document_places(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Returns the (batch,) rows of `vectors` that hold the documents; embeds those that are not known yet."""
        return self._places(texts, "document")

    def vectors(self) -> Array:
        """Returns the (rows, d) vectors of this encoder so far, memory-mapped and read-only."""
        with self._reading:
            # Not the whole file: another process may be in the middle of a row.
            shape = (self._count, self.spec.dimension)
        if not shape[0]:  # nothing to map
            return np.empty(shape, dtype=np.float32)
        return np.memmap(self._rows_path, dtype=np.float32, mode="r", shape=shape)

    def _read(self, places: NDArray[np.int64]) -> Array:
        return np.array(self.vectors()[places])

    def _places(self, texts: Sequence[str], role: str) -> NDArray[np.int64]:
        keys = [self._key(text, role) for text in texts]
        if any(key not in self._rows for key in keys):
            self._read_new_keys()
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        for _ in range(2):  # the second time for damaged rows
            if missing:
                self._embed_missing(missing, role)
            with self._reading:
                places = np.array([self._rows[key] for key in keys], dtype=np.int64)
            missing = {keys[row]: texts[row] for row in self._damaged(places)}
            if not missing:
                break
        return places

    def _damaged(self, places: NDArray[np.int64]) -> list[int]:
        """Returns which of the rows at `places` are not unit vectors."""
        vectors, found = self.vectors(), []
        for start in range(0, len(places), _CHECKED):
            norms = np.linalg.norm(vectors[places[start : start + _CHECKED]], axis=1)
            # Not "> tolerance", which is false for a NaN.
            found.extend((start + np.nonzero(~(np.abs(norms - 1.0) <= _UNIT_TOLERANCE))[0]).tolist())
        return found

    def _embed_missing(self, missing: dict[bytes, str], role: str) -> None:
        keep_large_buffers()
        embed = self.embedder.embed_queries if role == "query" else self.embedder.embed_documents
        # Texts of similar length share a chunk, so little of a batch is padding.
        keys = sorted(missing, key=lambda key: len(missing[key]), reverse=True)
        with tqdm(total=len(keys), desc="embedding", unit="text", disable=None if self.progress else True) as bar:
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK]
                self._append(chunk, embed([missing[key] for key in chunk]))
                bar.update(len(chunk))

    def _append(self, keys: list[bytes], rows: Array) -> None:
        if rows.shape != (len(keys), self.spec.dimension):
            raise MismatchError(
                f"the encoder gave vectors of shape {rows.shape}, expected {(len(keys), self.spec.dimension)}."
            )
        content = np.ascontiguousarray(rows, dtype=np.float32).tobytes()
        with self._lock, self._reading:
            self._read_new_keys()
            self._keys_path.touch()
            self._rows_path.touch()
            with self._keys_path.open("r+b") as keys_stream, self._rows_path.open("r+b") as rows_stream:
                # Keys that a crash left without rows must not name the next rows.
                keys_stream.truncate(self._count * _DIGEST_BYTES)
                # Rows that a crash left without keys are overwritten: Windows cannot cut a mapped file.
                rows_stream.seek(self._count * self._row_bytes)
                rows_stream.write(content)
                rows_stream.flush()
                keys_stream.seek(0, os.SEEK_END)
                keys_stream.write(b"".join(keys))
            self._read_new_keys()

    def _read_new_keys(self) -> None:
        with self._reading:
            if not self._keys_path.exists() or not self._rows_path.exists():
                return
            known = self._count
            complete = min(
                self._keys_path.stat().st_size // _DIGEST_BYTES, self._rows_path.stat().st_size // self._row_bytes
            )
            if complete <= known:
                return
            with self._keys_path.open("rb") as stream:
                stream.seek(known * _DIGEST_BYTES)
                data = stream.read((complete - known) * _DIGEST_BYTES)
            # Fewer than a moment ago, if another process has just cut off what a crash left.
            complete = known + len(data) // _DIGEST_BYTES
            for position in range(complete - known):
                self._rows[data[position * _DIGEST_BYTES : (position + 1) * _DIGEST_BYTES]] = known + position
            self._count = complete

    def _key(self, text: str, role: str) -> bytes:
        prefix = self.spec.query_prefix if role == "query" else self.spec.document_prefix
        # With the same prefix a query and a document of the same text have the same vector, except in adapters, whose
        # prefixes are not known.
        symmetric = self.spec.pooling is not None
        content = f"{prefix}\0{'' if symmetric else role}\0{text}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
