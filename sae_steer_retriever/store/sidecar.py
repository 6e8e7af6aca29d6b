"""The sidecar collection `NAME.sae`: reconstructed embeddings and codes, beside a collection we never modify."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array, Codes, pack, unpack
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.documents import NeighbourLists, digest, neighbour_lists

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

SUFFIX = ".sae"
_LIBRARY = "sae_steer_retriever"
_FORMAT_VERSION = 1
_PAGE = 2000


class SidecarRow(NamedTuple):
    """The row of one passage.

    Attributes:
        source: The digest of the embedding that was encoded.
        packed: Its codes; see `SidecarReader.unpack`.
    """

    source: str
    packed: str


class CodePage(NamedTuple):
    """Some passages of a sidecar.

    Attributes:
        ids: The passages.
        codes: (len(ids), K) their codes, as the SAE gives them.
        digests: `digest` of the vectors that were encoded.
    """

    ids: list[str]
    codes: Codes[NDArray[Any]]
    digests: list[str]


class SidecarReader:
    """Reads one sidecar collection, or an absent one as if it were empty.

    Each item has the id of its passage, the reconstructed embedding as its vector, and as metadata: `codes` (packed),
    `names` (the label latents, a list that Chroma can filter on) and `source` (a digest of the embedding that was
    encoded, so that a changed embedding is noticed). The collection's metadata hold the SAE's fingerprint and K, and
    the generation ("stamp"), which changes with every write. `source` names the documents collection.
    """

    def __init__(self, client: ClientAPI, name: str, sae: TopKSAE, collection: Collection | None) -> None:
        self._client = client
        self._sae = sae
        self._collection = collection
        self.source = name
        self.name = name + SUFFIX

    @classmethod
    def open(cls, client: ClientAPI, name: str, sae: TopKSAE) -> SidecarReader:
        """Returns the sidecar of collection `name`, which may be absent.

        Raises:
            MismatchError: The sidecar was made by another SAE.
            StoreError: Another tool's collection has the sidecar's name.
        """
        from chromadb.errors import NotFoundError

        try:
            collection = client.get_collection(name + SUFFIX, embedding_function=None)
        except NotFoundError:
            return SidecarReader(client, name, sae, None)
        require_ours(collection, sae)
        return SidecarReader(client, name, sae, collection)

    @property
    def exists(self) -> bool:
        """Whether there is a sidecar collection."""
        return self._collection is not None

    @property
    def id(self) -> str:
        """The collection's unique id; empty if the collection is absent."""
        return "" if self._collection is None else str(self._collection.id)

    def generation(self) -> str | None:
        """Returns the version of the sidecar, read from the store; None while a write is unfinished or if absent."""
        if self._collection is None:
            return None
        metadata = self._client.get_collection(self.name, embedding_function=None).metadata or {}
        return str(metadata["stamp"]) if metadata.get("complete") else None

    def count(self) -> int:
        """Returns the number of passages with codes."""
        return 0 if self._collection is None else self._collection.count()

    def pages(self) -> Iterator[CodePage]:
        """Yields all ids, codes and digests, in pages."""
        if self._collection is None:
            return
        for offset in range(0, self.count(), _PAGE):
            page = self._collection.get(limit=_PAGE, offset=offset, include=["metadatas"])
            rows: Any = page["metadatas"] or []
            codes = unpack([row["codes"] for row in rows], self._sae.config.n, self._sae.config.k)
            yield CodePage(page["ids"], codes, [str(row.get("source")) for row in rows])

    def rows(self, ids: Sequence[str]) -> dict[str, SidecarRow]:
        """Returns the rows of some passages, by id, without missing ones.

        The reconstructions are not read: codes decode to them, and Chroma would load the vectors of all passages.
        """
        if self._collection is None or not len(ids):
            return {}
        found = self._collection.get(ids=list(ids), include=["metadatas"])
        return {
            name: SidecarRow(str((metadata or {}).get("source")), str((metadata or {}).get("codes")))
            for name, metadata in zip(found["ids"], found["metadatas"] or [], strict=True)
        }

    def unpack(self, packed: Sequence[str]) -> Codes[NDArray[Any]]:
        """Returns the (len(packed), K) codes of rows."""
        return unpack(packed, self._sae.config.n, self._sae.config.k)

    def having(self, feature: int) -> list[str]:
        """Returns the ids of the rows that have a feature among their label latents, stale rows included."""
        if self._collection is None:
            return []
        has: Any = {"$contains": feature}
        return self._collection.get(where={"names": has}, include=[])["ids"]

    def neighbours(self, probes: NDArray[np.float64], k: int, ids: Sequence[str] | None = None) -> NeighbourLists:
        """Returns the `k` nearest reconstructions of each of (probes, d) vectors, with their rows' metadata.

        `ids` restricts the search to these passages, if given; unknown ids are left out.

        Raises:
            StoreError: The store does not answer.
        """
        if ids is not None and self._collection is not None:
            with translated("searching"):
                ids = self._collection.get(ids=list(ids), include=[])["ids"] if ids else []
        if self._collection is None or (ids is not None and not ids):
            empty, last = np.empty((0, probes.shape[1]), np.float32), np.full(len(probes), np.inf)
            return NeighbourLists([[] for _ in probes], [], empty, np.empty(0, np.float32), [], last, False)
        if ids is None:
            return neighbour_lists(self._collection, "cosine", probes, k, metadatas=True)
        found = neighbour_lists(self._collection, "cosine", probes, min(k, len(ids)), ids=ids, metadatas=True)
        return found._replace(full=found.full and k <= len(ids))


class Sidecar(SidecarReader):
    """Reads and writes one sidecar collection."""

    _collection: Collection

    def __init__(self, client: ClientAPI, name: str, sae: TopKSAE, *, sae_location: str | None = None) -> None:
        """Opens the sidecar of collection `name`, or creates it; records `sae_location`, if given."""
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
        collection = client.get_or_create_collection(
            name + SUFFIX,
            embedding_function=None,
            metadata=metadata,
            # Reconstructions have different norms: cosine normalises them in the search.
            configuration={"hnsw": {"space": "cosine", "ef_search": 200}},
        )
        require_ours(collection, sae)
        if sae_location is not None and (collection.metadata or {}).get("sae_location") != sae_location:
            collection.modify(metadata={**(collection.metadata or {}), "sae_location": sae_location})
        super().__init__(client, name, sae, collection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[SidecarWriter]:
        """Yields a writer; the generation changes before the first write and again after the last.

        A process killed in between leaves the sidecar marked as incomplete, so no local copy is trusted until a later
        run has finished. A block that writes nothing changes nothing.
        """
        writer = SidecarWriter(self._collection, self._sae)
        try:
            yield writer
        finally:  # after an exception, too: what was written is whole
            writer.finish()

    def outdated(self, ids: Sequence[str], vectors: Array) -> NDArray[np.bool_]:
        """Returns which passages have no codes, or codes of another embedding, (len(ids),)."""
        found = self._collection.get(ids=list(ids), include=["metadatas"])
        rows = zip(found["ids"], found["metadatas"] or [], strict=True)
        sources = {name: (metadata or {}).get("source") for name, metadata in rows}
        return np.array([sources.get(name) != digest(row) for name, row in zip(ids, vectors, strict=True)], dtype=bool)

    def ids(self) -> Iterator[list[str]]:
        """Yields all ids, in pages."""
        for offset in range(0, self.count(), _PAGE):
            yield self._collection.get(limit=_PAGE, offset=offset, include=[])["ids"]


@dataclasses.dataclass
class SidecarWriter:
    """Writes codes and reconstructions; made by `Sidecar.writing`."""

    _collection: Collection
    _sae: TopKSAE
    _began: bool = False

    def write(self, ids: Sequence[str], vectors: Array) -> None:
        """Encodes (batch, d) unit vectors of passages and stores their codes and reconstructions."""
        codes = self._sae.encode(vectors)
        names = codes.truncate(self._sae.config.k_labels)
        metadatas: Any = [
            {
                "codes": pack(codes.indices[row], codes.values[row], self._sae.config.n),
                "source": digest(vector),
                # An upsert merges metadata: None deletes an old list. Chroma refuses empty lists.
                "names": names.indices[row][names.values[row] > 0].tolist() or None,
            }
            for row, vector in enumerate(vectors)
        ]
        self._begin()
        self._collection.upsert(ids=list(ids), embeddings=self._sae.decode(codes), metadatas=metadatas)

    def delete(self, ids: Sequence[str]) -> None:
        """Removes passages; unknown ids are ignored."""
        self._begin()
        self._collection.delete(ids=list(ids))

    def finish(self) -> None:
        """Marks the sidecar as complete, after these writes or after interrupted ones."""
        if self._began or not (self._collection.metadata or {}).get("complete"):
            self._write_generation(complete=True)

    def _begin(self) -> None:
        if not self._began:
            self._write_generation(complete=False)
            self._began = True

    def _write_generation(self, *, complete: bool) -> None:
        metadata = {**(self._collection.metadata or {}), "stamp": uuid.uuid4().hex, "complete": complete}
        self._collection.modify(metadata=metadata)


def rebuild(client: ClientAPI, collection: str) -> None:
    """Drops the sidecar of a collection, so that another SAE can make a new one; the documents stay as they are.

    Raises:
        StoreError: Another tool's collection has the sidecar's name.
    """
    from chromadb.errors import NotFoundError

    with translated("dropping the sidecar"), contextlib.suppress(NotFoundError):
        _require_library(client.get_collection(collection + SUFFIX, embedding_function=None))
        client.delete_collection(collection + SUFFIX)


def require_ours(collection: Collection, sae: TopKSAE) -> None:
    """Refuses a sidecar of another SAE, and a collection that is no sidecar.

    Raises:
        MismatchError: The sidecar was made by another SAE, or at another K.
        StoreError: The collection is another tool's.
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
    """Returns the K of a sidecar's codes, from its metadata; sidecars of earlier versions have the fitted K."""
    return int(metadata.get("k") or sae.config.fitted_k or sae.config.k)


def sidecar_of(metadata: Mapping[str, Any] | None) -> str | None:
    """Returns the documents collection that a sidecar belongs to, from its metadata; None if it is no sidecar."""
    metadata = metadata or {}
    return str(metadata.get("source")) if metadata.get("library") == _LIBRARY else None


def _require_library(collection: Collection) -> None:
    if sidecar_of(collection.metadata) is None:
        raise StoreError(
            f"collection {collection.name!r} exists but is none of this library's: rename one of the two collections."
        )
