"""The companion collection `NAME.sae`: reconstructed embeddings and codes, beside a collection we never modify."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError, StoreError
from sae_steer_retriever.sae import Array, Codes, TopKSAE

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

SUFFIX = ".sae"
_LIBRARY = "sae_steer_retriever"
_FORMAT_VERSION = 1
_PAGE = 2000


class Companion:
    """Reads and writes one companion collection.

    Each item has the id of the passage it belongs to, `x_hat` as its vector, and as metadata: `codes` (packed),
    `names` (the naming features, a list Chroma can filter on) and `source` (a digest of the embedding it was made
    from, so that a changed embedding is noticed). The collection's metadata pins the SAE's fingerprint, and bears a
    stamp that changes with every write.
    """

    def __init__(self, client: ClientAPI, name: str, sae: TopKSAE, *, sae_location: str | None = None) -> None:
        """Open the companion of collection `name`, or make it.

        Args:
            client: A Chroma client.
            name: The documents collection's name.
            sae: The SAE whose codes it holds.
            sae_location: Where the SAE was loaded from, for the command line to find it again.

        Raises:
            MismatchError: The companion was made by another SAE.
            StoreError: A collection of that name exists that is none of ours.
        """
        self._sae = sae
        self._client = client
        self.name = name + SUFFIX
        metadata = {
            "library": _LIBRARY,
            "format_version": _FORMAT_VERSION,
            "sae_fingerprint": sae.fingerprint,
            "encoder": sae.config.encoder.name,
            "source": name,
            "stamp": uuid.uuid4().hex,
            "complete": True,
        }
        self._collection: Collection = client.get_or_create_collection(
            self.name,
            embedding_function=None,
            metadata=metadata,
            # Reconstructions are shorter than the originals, unevenly: cosine re-normalises them in the search.
            configuration={"hnsw": {"space": "cosine", "ef_search": 200}},
        )
        require_ours(self._collection, sae)
        if sae_location is not None and (self._collection.metadata or {}).get("sae_location") != sae_location:
            self._collection.modify(metadata={**(self._collection.metadata or {}), "sae_location": sae_location})

    @property
    def id(self) -> str:
        """The collection's unique id."""
        return str(self._collection.id)

    def stamp(self) -> str | None:
        """The version of what is stored now, read from the store; None while a write is unfinished."""
        metadata = self._client.get_collection(self.name, embedding_function=None).metadata or {}
        return str(metadata["stamp"]) if metadata.get("complete") else None

    def count(self) -> int:
        """Number of passages with codes."""
        return self._collection.count()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Change the stamp before the first write and declare it complete after the last.

        A kill in between leaves it incomplete, so no local copy is trusted until a later run has finished.
        """
        metadata = {**(self._collection.metadata or {}), "stamp": uuid.uuid4().hex, "complete": False}
        self._collection.modify(metadata=metadata)
        yield
        self._collection.modify(metadata={**metadata, "complete": True})

    def outdated(self, ids: Sequence[str], vectors: Array) -> NDArray[np.bool_]:
        """(len(ids),) which passages have no codes here, or codes of another embedding."""
        found = self._collection.get(ids=list(ids), include=["metadatas"])
        sources = {
            name: (metadata or {}).get("source")
            for name, metadata in zip(found["ids"], found["metadatas"] or [], strict=True)
        }
        return np.array([sources.get(name) != _digest(row) for name, row in zip(ids, vectors, strict=True)], dtype=bool)

    def write(self, ids: Sequence[str], vectors: Array) -> None:
        """Encode unit vectors and store their codes and reconstructions.

        Args:
            ids: Passage ids.
            vectors: (batch, d) unit embeddings of the passages.
        """
        codes = self._sae.encode(vectors)
        names = codes.leading(self._sae.config.k_names)
        metadatas: list[dict[str, Any]] = []
        for row, vector in enumerate(vectors):
            metadata: dict[str, Any] = {
                "codes": pack(codes.indices[row], codes.values[row], self._sae.config.n),
                "source": _digest(vector),
            }
            named = names.indices[row][names.values[row] > 0].tolist()
            if named:  # Chroma refuses empty lists
                metadata["names"] = named
            metadatas.append(metadata)
        self._collection.upsert(
            ids=list(ids),
            embeddings=self._sae.decode(codes),
            metadatas=metadatas,  # type: ignore[arg-type]
        )

    def delete(self, ids: Sequence[str]) -> None:
        """Remove passages; unknown ids are no error."""
        self._collection.delete(ids=list(ids))

    def ids(self) -> Iterator[list[str]]:
        """All ids, in pages."""
        for offset in range(0, self.count(), _PAGE):
            yield self._collection.get(limit=_PAGE, offset=offset, include=[])["ids"]

    def pages(self) -> Iterator[tuple[list[str], Codes[NDArray[Any]]]]:
        """All ids and codes, in pages."""
        for offset in range(0, self.count(), _PAGE):
            page = self._collection.get(limit=_PAGE, offset=offset, include=["metadatas"])
            packed = [str((metadata or {})["codes"]) for metadata in page["metadatas"] or []]
            yield page["ids"], unpack(packed, self._sae.config.n, self._sae.config.k)

    def nearest(self, vector: Array, k: int, ids: Sequence[str] | None = None) -> tuple[list[str], Array]:
        """The passages whose reconstructions are nearest by cosine: ids and cosines, best first.

        Args:
            vector: (d,) any norm.
            k: How many.
            ids: Restricts the search to these, where given.
        """
        if ids is not None and not ids:
            return [], np.empty(0, dtype=np.float32)
        restriction = {} if ids is None else {"ids": list(ids)}
        found = self._collection.query(
            query_embeddings=[vector],  # type: ignore[arg-type]
            n_results=k if ids is None else min(k, len(ids)),
            include=["distances"],
            **restriction,  # type: ignore[arg-type]
        )
        distances = np.asarray((found["distances"] or [[]])[0], dtype=np.float64)
        return found["ids"][0], (1.0 - distances).astype(np.float32)


def require_ours(collection: Collection, sae: TopKSAE) -> None:
    """Refuse a companion of another SAE, or a collection that is no companion.

    Raises:
        MismatchError: It was made by another SAE.
        StoreError: It is none of ours.
    """
    metadata = collection.metadata or {}
    if metadata.get("library") != _LIBRARY:
        raise StoreError(
            f"collection {collection.name!r} exists but was not made by this library: rename one of the two collections."
        )
    if metadata.get("sae_fingerprint") != sae.fingerprint:
        raise MismatchError(
            f"companion {collection.name!r} was made by SAE {metadata.get('sae_fingerprint')} (encoder "
            f"{metadata.get('encoder')!r}), but SAE {sae.fingerprint} (encoder {sae.config.encoder.name!r}) was given: "
            "give that SAE, or rebuild the companion (`sae-steer index --rebuild`, `ChromaStore.rebuild`)."
        )


def pack(indices: NDArray[np.integer[Any]], values: Array, n: int) -> str:
    """One code as text: base64 of the indices (16 bits where `n` allows) followed by float32 values."""
    width = np.uint16 if n <= 2**16 else np.uint32
    return base64.b64encode(indices.astype(width).tobytes() + values.astype(np.float32).tobytes()).decode("ascii")


def unpack(packed: Sequence[str], n: int, k: int) -> Codes[NDArray[Any]]:
    """The codes of `pack`, (len(packed), k)."""
    width = np.dtype(np.uint16 if n <= 2**16 else np.uint32)
    raw = np.frombuffer(b"".join(base64.b64decode(text) for text in packed), dtype=np.uint8)
    rows = raw.reshape(len(packed), k * (width.itemsize + 4))
    indices = np.ascontiguousarray(rows[:, : k * width.itemsize]).view(width)
    values = np.ascontiguousarray(rows[:, k * width.itemsize :]).view(np.float32)
    return Codes(indices.astype(np.int32), values)


def _digest(vector: Array) -> str:
    return hashlib.blake2b(np.ascontiguousarray(vector, dtype=np.float32).tobytes(), digest_size=8).hexdigest()
