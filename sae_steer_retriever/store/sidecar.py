"""The sidecar collection `NAME.sae`: reconstructed embeddings and codes, beside a collection we never modify."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array, Codes, pack, unpack
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.connection import translated

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

Answer = TypeVar("Answer")
SUFFIX = ".sae"
_LIBRARY = "sae_steer_retriever"
_FORMAT_VERSION = 1
_PAGE = 2000


class Sidecar:
    """Reads and writes one sidecar collection.

    Each item has the id of the passage it belongs to, `x_hat` as its vector, and as metadata: `codes` (packed),
    `names` (the naming features, a list Chroma can filter on) and `source` (a digest of the embedding it was made
    from, so that a changed embedding is noticed). The collection's metadata pins the SAE's fingerprint, and bears a
    stamp that changes with every write.
    """

    def __init__(self, client: ClientAPI, name: str, sae: TopKSAE, *, sae_location: str | None = None) -> None:
        """Open the sidecar of collection `name`, or make it.

        Args:
            client: A Chroma client.
            name: The documents collection's name.
            sae: The SAE whose codes it holds.
            sae_location: Where the SAE was loaded from, for the command line to find it again.

        Raises:
            MismatchError: The sidecar was made by another SAE.
            StoreError: A collection of that name exists that is none of ours.
        """
        self._sae = sae
        self._client = client
        self.source = name
        self.name = name + SUFFIX
        metadata = {
            "library": _LIBRARY,
            "format_version": _FORMAT_VERSION,
            "sae_fingerprint": sae.fingerprint,
            "k": sae.config.k,
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

    def generation(self) -> str | None:
        """The version of what is stored now, read from the store; None while a write is unfinished."""
        metadata = self._client.get_collection(self.name, embedding_function=None).metadata or {}
        return str(metadata["stamp"]) if metadata.get("complete") else None

    def count(self) -> int:
        """Number of passages with codes."""
        return self._collection.count()

    @contextlib.contextmanager
    def writing(self) -> Iterator[SidecarWriter]:
        """Writes to the sidecar; its stamp changes before the first and again after the last.

        A kill in between leaves it incomplete, so no local copy is trusted until a later run has finished. A block
        that writes nothing changes nothing.
        """
        writer = SidecarWriter(self._collection, self._sae)
        try:
            yield writer
        finally:  # after a failure, too, the sidecar is what its stamp says
            writer.finish()

    def outdated(self, ids: Sequence[str], vectors: Array) -> NDArray[np.bool_]:
        """(len(ids),) which passages have no codes here, or codes of another embedding."""
        found = self._collection.get(ids=list(ids), include=["metadatas"])
        sources = {
            name: (metadata or {}).get("source")
            for name, metadata in zip(found["ids"], found["metadatas"] or [], strict=True)
        }
        return np.array([sources.get(name) != _digest(row) for name, row in zip(ids, vectors, strict=True)], dtype=bool)

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
        if ids is None:
            return self._query(vector, k, None)
        nothing: tuple[list[str], Array] = ([], np.empty(0, dtype=np.float32))
        if not ids:
            return nothing
        return query_known(self._collection, list(ids), lambda known: self._query(vector, k, known), nothing)

    def _query(self, vector: Array, k: int, ids: list[str] | None) -> tuple[list[str], Array]:
        found = self._collection.query(
            query_embeddings=[vector],  # type: ignore[arg-type]
            n_results=k if ids is None else min(k, len(ids)),
            include=["distances"],
            ids=ids,
        )
        distances = np.asarray((found["distances"] or [[]])[0], dtype=np.float64)
        return found["ids"][0], (1.0 - distances).astype(np.float32)


class SidecarWriter:
    """Writes codes and reconstructions; made by `Sidecar.writing`."""

    def __init__(self, collection: Collection, sae: TopKSAE) -> None:
        self._collection = collection
        self._sae = sae
        self._began = False

    def write(self, ids: Sequence[str], vectors: Array) -> None:
        """Encode unit vectors and store their codes and reconstructions.

        Args:
            ids: Passage ids.
            vectors: (batch, d) unit embeddings of the passages.
        """
        codes = self._sae.encode(vectors)
        names = codes.truncate(self._sae.config.k_labels)
        metadatas: list[dict[str, Any]] = []
        for row, vector in enumerate(vectors):
            # An update merges: what is absent now must be said to be absent. Chroma refuses empty lists.
            metadatas.append(
                {
                    "codes": pack(codes.indices[row], codes.values[row], self._sae.config.n),
                    "source": _digest(vector),
                    "names": names.indices[row][names.values[row] > 0].tolist() or None,
                }
            )
        self._begin()
        self._collection.upsert(
            ids=list(ids),
            embeddings=self._sae.decode(codes),
            metadatas=metadatas,  # type: ignore[arg-type]
        )

    def delete(self, ids: Sequence[str]) -> None:
        """Remove passages; unknown ids are no error."""
        self._begin()
        self._collection.delete(ids=list(ids))

    def finish(self) -> None:
        """Declare what is stored now complete, after these writes or after those that a kill cut short."""
        if self._began or not (self._collection.metadata or {}).get("complete"):
            self._write_generation(complete=True)

    def _begin(self) -> None:
        if not self._began:
            self._write_generation(complete=False)
            self._began = True

    def _write_generation(self, *, complete: bool) -> None:
        metadata = {**(self._collection.metadata or {}), "stamp": uuid.uuid4().hex, "complete": complete}
        self._collection.modify(metadata=metadata)


def query_known(
    collection: Collection, ids: list[str], query: Callable[[list[str]], Answer], nothing: Answer
) -> Answer:
    """Query among some ids; those that are not in the collection any more are left out instead of failing it.

    Chroma refuses a query that names an id it does not have, e.g. one that another process has just deleted.

    Args:
        collection: The collection.
        ids: The ids, at least one.
        query: Asks for the ids it is given.
        nothing: The answer where none of them is left.
    """
    from chromadb.errors import ChromaError

    try:
        return query(ids)
    except ChromaError:
        known = set(collection.get(ids=ids, include=[])["ids"])
        if len(known) == len(ids):
            raise
        return query([name for name in ids if name in known]) if known else nothing


def rebuild(client: ClientAPI, collection: str) -> None:
    """Drop a sidecar, so that another SAE can make a new one; the documents are not touched.

    Raises:
        StoreError: A collection of that name exists that is none of ours.
    """
    from chromadb.errors import NotFoundError

    with translated("dropping the sidecar"), contextlib.suppress(NotFoundError):
        _require_library(client.get_collection(collection + SUFFIX, embedding_function=None))
        client.delete_collection(collection + SUFFIX)


def require_ours(collection: Collection, sae: TopKSAE) -> None:
    """Refuse a sidecar of another SAE, or a collection that is no sidecar.

    Raises:
        MismatchError: It was made by another SAE, or at another K.
        StoreError: It is none of ours.
    """
    _require_library(collection)
    metadata = collection.metadata or {}
    if metadata.get("sae_fingerprint") != sae.fingerprint:
        raise MismatchError(
            f"sidecar {collection.name!r} was made by SAE {metadata.get('sae_fingerprint')} (encoder "
            f"{metadata.get('encoder')!r}), but SAE {sae.fingerprint} (encoder {sae.config.encoder.name!r}) was given: "
            "give that SAE, or rebuild the sidecar (`sae-steer index --rebuild`, `store.rebuild`)."
        )
    k = k_of(metadata, sae)
    if k != sae.config.k:
        raise MismatchError(
            f"sidecar {collection.name!r} holds codes of k = {k}, but the SAE was given at k = {sae.config.k}: load "
            f"it with k={k}, or rebuild the sidecar (`sae-steer index --rebuild`, `store.rebuild`)."
        )


def k_of(metadata: Mapping[str, Any], sae: TopKSAE) -> int:
    """The K of a sidecar's codes, by its metadata; earlier versions have none: it is the K of the fit."""
    return int(metadata.get("k") or sae.config.fitted_k or sae.config.k)


def sidecar_of(metadata: Mapping[str, Any] | None) -> str | None:
    """The documents collection that a collection with this metadata is the sidecar of, None if it is none."""
    metadata = metadata or {}
    return str(metadata.get("source")) if metadata.get("library") == _LIBRARY else None


def _require_library(collection: Collection) -> None:
    if sidecar_of(collection.metadata) is None:
        raise StoreError(
            f"collection {collection.name!r} exists but is none of this library's: rename one of the two collections."
        )


def _digest(vector: Array) -> str:
    return hashlib.blake2b(np.ascontiguousarray(vector, dtype=np.float32).tobytes(), digest_size=8).hexdigest()
