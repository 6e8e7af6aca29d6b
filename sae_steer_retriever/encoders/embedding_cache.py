"""Embeddings on disk, keyed by content: a text is embedded once per encoder, however often it is asked for."""

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
from sae_steer_retriever.sae.config import EncoderSpec
from sae_steer_retriever.sae.malloc import keep_large_buffers

_DIGEST_BYTES = 16
# Long enough for the encoder to sort texts by length, short enough that a kill costs seconds of work.
_CHUNK = 512
_UNIT_TOLERANCE = 1e-3
# Rows that are checked at once.
_CHECKED = 16_384


class CachedEmbedder:
    """An `Embedder` that remembers.

    Two append-only files hold 16-byte digests of (role, prefix, text) and float32 rows. A kill between the two
    writes leaves a tail that the next opening ignores, so what was embedded before it is never lost. A row that is
    no unit vector (a crash of the machine, a damaged disk) is embedded again. Processes and threads may share it.

    A row that has a key never moves and never changes, so `vectors` may stay mapped for as long as a fit takes, while
    other processes append.
    """

    def __init__(self, embedder: Embedder, folder: Path | None = None, *, progress: bool = False) -> None:
        """Wrap `embedder`.

        Args:
            embedder: What embeds the texts that are not known yet.
            folder: Where the cache lives; under `cache_root()` if not given.
            progress: Whether to show a progress bar on stderr while embedding.

        Raises:
            ArtifactError: The folder cannot be made.
        """
        self._embedder = embedder
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
        # The file lock is for processes; what is known of the files is shared by threads.
        self._reading = threading.RLock()
        self._row_bytes = 4 * spec.dimension
        self._rows: dict[bytes, int] = {}
        # Not len(self._rows): two processes may have embedded the same text.
        self._count = 0
        self._read_new_keys()
        self.progress = progress

    @property
    def spec(self) -> EncoderSpec:
        """The wrapped encoder's."""
        return self._embedder.spec

    @property
    def embedder(self) -> Embedder:
        """The wrapped encoder."""
        return self._embedder

    def embed_queries(self, texts: Sequence[str]) -> Array:
        """(batch, d) unit vectors, from the cache where known."""
        return self._embed(texts, "query")

    def embed_documents(self, texts: Sequence[str]) -> Array:
        """(batch, d) unit vectors, from the cache where known."""
        return self._embed(texts, "document")

    def query_places(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(batch,) rows of `vectors` that hold the queries; what is not known yet is embedded."""
        return self._places(texts, "query")

    def document_places(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(batch,) rows of `vectors` that hold the documents; what is not known yet is embedded."""
        return self._places(texts, "document")

    def vectors(self) -> Array:
        """(rows, d) all vectors of this encoder, memory-mapped and read-only; later ones are not among them."""
        with self._reading:
            # Not the whole file: another process may be in the middle of a row.
            shape = (self._count, self.spec.dimension)
        if not shape[0]:  # nothing to map
            return np.empty(shape, dtype=np.float32)
        return np.memmap(self._rows_path, dtype=np.float32, mode="r", shape=shape)

    def _embed(self, texts: Sequence[str], role: str) -> Array:
        places = self._places(texts, role)
        return np.array(self.vectors()[places])

    def _places(self, texts: Sequence[str], role: str) -> NDArray[np.int64]:
        keys = [self._key(text, role) for text in texts]
        if any(key not in self._rows for key in keys):
            self._read_new_keys()
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        if missing:
            self._embed_missing(missing, role)
        places = self._known_places(keys)
        damaged = self._damaged(places)
        if damaged:
            self._embed_missing({keys[row]: texts[row] for row in damaged}, role)
            places = self._known_places(keys)
        return places

    def _known_places(self, keys: list[bytes]) -> NDArray[np.int64]:
        with self._reading:
            return np.array([self._rows[key] for key in keys], dtype=np.int64)

    def _damaged(self, places: NDArray[np.int64]) -> list[int]:
        """Which of the rows at `places` are no unit vectors."""
        vectors, found = self.vectors(), []
        for start in range(0, len(places), _CHECKED):
            norms = np.linalg.norm(vectors[places[start : start + _CHECKED]], axis=1)
            # Not "> tolerance": a NaN is greater than nothing.
            found.extend((start + np.nonzero(~(np.abs(norms - 1.0) <= _UNIT_TOLERANCE))[0]).tolist())
        return found

    def _embed_missing(self, missing: dict[bytes, str], role: str) -> None:
        keep_large_buffers()
        embed = self._embedder.embed_queries if role == "query" else self._embedder.embed_documents
        # Texts of like length share a chunk, so little of a batch is padding.
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
                # Keys that a crash left without rows must not name the rows that come next.
                keys_stream.truncate(self._count * _DIGEST_BYTES)
                # Rows that a kill left without keys are written over: where a file is mapped, Windows cannot cut it.
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
            # Fewer than their number a moment ago, if another process has just cut off what a crash left.
            complete = known + len(data) // _DIGEST_BYTES
            for position in range(complete - known):
                self._rows[data[position * _DIGEST_BYTES : (position + 1) * _DIGEST_BYTES]] = known + position
            self._count = complete

    def _key(self, text: str, role: str) -> bytes:
        prefix = self.spec.query_prefix if role == "query" else self.spec.document_prefix
        # Without a prefix a query and a document of the same text have the same vector; adapters with their own
        # asymmetry (no prefix known to us) must be kept apart.
        symmetric = self.spec.pooling is not None
        content = f"{prefix}\0{'' if symmetric else role}\0{text}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
