"""Two Chroma collections with the same ids: the user's documents, and their sidecar of reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import encoder_base_name
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.batches import Metadata, batches, check_ids
from sae_steer_retriever.store.code_index import CodeIndex
from sae_steer_retriever.store.connection import connect, translated
from sae_steer_retriever.store.documents import AddReport, DocumentCollection, Neighbours, Record
from sae_steer_retriever.store.live_index import LiveIndex
from sae_steer_retriever.store.recorded_sae import ENCODER_KEY, recorded_sae
from sae_steer_retriever.store.sidecar import Sidecar, SidecarWriter, rebuild, sidecar_of

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

__all__ = [
    "AddReport",
    "ChromaStore",
    "Metadata",
    "Neighbours",
    "Record",
    "client_of",
    "connect",
    "rebuild",
    "recorded_sae",
]

# Passages a write or a page; more would only need more memory.
_BATCH = 1000


class ChromaStore:
    """A documents collection and its sidecar.

    `documents` is a plain Chroma collection that any other tool can read. It may exist already; only `add` and
    `delete` write to it. The sidecar can be made from its stored vectors (`attach`) and removed (`detach`).
    """

    def __init__(
        self, client: ClientAPI, documents: Collection, sae: TopKSAE, *, sae_location: str | None = None
    ) -> None:
        """Put a sidecar beside a collection. Use `open` or `from_collection`.

        Raises:
            MismatchError: The collection holds vectors of another encoder, or the sidecar is another SAE's.
            StoreError: The collection is itself a sidecar, or Chroma does not answer.
        """
        source = sidecar_of(documents.metadata)
        if source is not None:
            raise StoreError(f"collection {documents.name!r} is the sidecar of {source!r}: open {source!r}.")
        self._client = client
        self.documents = documents
        self.sae = sae
        recorded = (documents.metadata or {}).get(ENCODER_KEY)
        if recorded is not None and encoder_base_name(str(recorded)) != sae.config.encoder.base_name:
            raise MismatchError(
                f"collection {documents.name!r} was embedded by {recorded!r}, but the SAE is for "
                f"{sae.config.encoder.name!r}: use an SAE of that encoder, or another collection."
            )
        with translated("reading the collection"):
            self._passages = DocumentCollection(documents, sae.config.d)
            self.sidecar = Sidecar(client, documents.name, sae, sae_location=sae_location)
        self._live_index = LiveIndex(self.sidecar, self._passages, sae.config)

    @classmethod
    def open(
        cls,
        sae: TopKSAE,
        *,
        path: str | Path | None = None,
        host: str | None = None,
        port: int = 8000,
        client: ClientAPI | None = None,
        collection: str = "docs",
        create: bool = True,
        sae_location: str | None = None,
    ) -> ChromaStore:
        """Open, or make, a collection and its sidecar.

        Args:
            sae: The SAE.
            path: Folder of an embedded Chroma; "./chroma" if neither path, host nor client is given.
            host: A Chroma server's host, instead of a folder.
            port: The server's port.
            client: A ready Chroma client, instead of either.
            collection: Name of the documents collection.
            create: Whether to make it if it is absent.
            sae_location: Where the SAE was loaded from, recorded for the command line.

        Raises:
            StoreError: The server or the collection cannot be reached.
            MismatchError: See `ChromaStore`.
        """
        client = client or connect(path=path, host=host, port=port)
        with translated(f"opening collection {collection!r}"):
            if create:
                documents = client.get_or_create_collection(
                    collection,
                    embedding_function=None,
                    metadata={ENCODER_KEY: sae.config.encoder.name},
                    configuration={"hnsw": {"space": "ip", "ef_search": 200}},
                )
            else:
                documents = client.get_collection(collection, embedding_function=None)
        return cls(client, documents, sae, sae_location=sae_location)

    @classmethod
    def from_collection(
        cls,
        collection: Any,  # noqa: ANN401 - three kinds of object
        sae: TopKSAE,
        *,
        sae_location: str | None = None,
    ) -> ChromaStore:
        """Put a sidecar beside a collection that exists, e.g. one that another tool made.

        Args:
            collection: A chromadb `Collection`, or an object that wraps one (`langchain_chroma.Chroma`,
                LlamaIndex' `ChromaVectorStore`).
            sae: The SAE.
            sae_location: Where the SAE was loaded from, recorded for the command line.

        Raises:
            TypeError: No collection can be found in it.
        """
        client, name = client_of(collection)
        return cls(client, client.get_collection(name, embedding_function=None), sae, sae_location=sae_location)

    @property
    def space(self) -> str:
        """The documents collection's distance: "ip", "cosine" or "l2"."""
        return self._passages.space

    def __len__(self) -> int:
        """Number of passages in the documents collection."""
        with translated("counting"):
            return self.documents.count()

    def __repr__(self) -> str:
        """One line: names, space and the SAE."""
        return f"ChromaStore({self.documents.name!r} + {self.sidecar.name!r}, space={self.space!r}, {self.sae!r})"

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        metadatas: Sequence[Metadata | None] | None = None,
        *,
        embedder: Embedder,
        embedded_as: Sequence[str] | None = None,
        progress: bool = False,
    ) -> AddReport:
        """Add or replace passages in both collections; what is there already and unchanged costs no embedding.

        A kill at any moment leaves a state that the same call completes.

        Args:
            ids: Unique ids.
            texts: The passages, none empty.
            metadatas: One mapping (or None) per passage.
            embedder: Embeds what is new or changed.
            embedded_as: What to embed in place of each text, where that is not the text itself (LlamaIndex puts
                metadata before it). Then changed metadata count as a changed text.
            progress: Whether to show a progress bar on stderr.

        Raises:
            TypeError: One text is given instead of a sequence, or an id is no text.
            ValueError: Lengths differ, an id occurs twice, a text is empty, or metadata are of a type that Chroma does
                not keep; nothing was written.
            MismatchError: The embedder is not the SAE's encoder.
            StoreError: The store does not answer.
        """
        self.sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
        parts = batches(ids, texts, metadatas, embedded_as, self._batch_size())
        added = updated = unchanged = 0
        with (
            translated("writing"),
            self._writing() as writer,
            tqdm(total=len(ids), desc="indexing", unit="passage", disable=None if progress else True) as bar,
        ):
            for batch in parts:
                report, vectors = self._passages.write(batch, embedder.embed_documents)
                self._write_sidecar(batch.ids, vectors, writer)
                added, updated, unchanged = added + report.added, updated + report.updated, unchanged + report.unchanged
                bar.update(len(batch.ids))
        return AddReport(added, updated, unchanged)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove passages from both collections; unknown ids are no error.

        Raises:
            TypeError: One text is given instead of a sequence, or an id is no text.
            StoreError: The store does not answer.
        """
        check_ids(list(dict.fromkeys(ids)) if not isinstance(ids, str) else ids)
        if not len(ids):
            return
        with translated("deleting"), self._writing() as writer:
            size = self._batch_size()
            for start in range(0, len(ids), size):
                part = list(dict.fromkeys(ids[start : start + size]))
                self.documents.delete(ids=part)
                writer.delete(part)

    def attach(self, *, progress: bool = False) -> int:
        """Bring the sidecar in step with the documents' stored vectors, embedding nothing.

        Returns:
            How many passages were encoded; those whose codes were in step cost only a look.

        Raises:
            MismatchError: A stored vector is zero, so that it has no direction; its passage is named.
            StoreError: The store does not answer.
        """
        encoded = 0
        size = self._batch_size()
        with (
            translated("attaching"),
            self._writing() as writer,
            tqdm(total=len(self), desc="attaching", unit="passage", disable=None if progress else True) as bar,
        ):
            known: set[str] = set()
            for ids, vectors in self._passages.pages(size):
                known.update(ids)
                encoded += self._write_sidecar(ids, vectors, writer)
                bar.update(len(ids))
            orphans = [name for names in self.sidecar.ids() for name in names if name not in known]
            for start in range(0, len(orphans), size):
                writer.delete(orphans[start : start + size])
        return encoded

    def detach(self) -> None:
        """Remove the sidecar and its local copy; the documents collection is as it was before."""
        with translated("detaching"):
            self._live_index.remove()
            self._client.delete_collection(self.sidecar.name)

    # -- reading ------------------------------------------------------------------------------------------------------

    def nearest(self, vector: Array, k: int, where: Metadata | None = None) -> Neighbours:
        """The plain search of the documents collection.

        Args:
            vector: (d,) the query, any norm.
            k: How many passages.
            where: Chroma's metadata filter.
        """
        with translated("searching"):
            return self._passages.query(vector, k, where)

    def scores(self, vector: Array, ids: Sequence[str], where: Metadata | None = None) -> Neighbours:
        """The plain scores of some passages, without those that `where` leaves out or that are gone."""
        if not ids:
            return Neighbours([], np.empty(0))
        with translated("searching"):
            return self._passages.scores(vector, ids, where)

    def nearest_reconstructed(self, vector: Array, k: int, where: Metadata | None = None) -> Neighbours:
        """The search of the sidecar: cosine between `vector` and the reconstructed embeddings."""
        with translated("searching"):
            allowed = self._passages.existing(where=where) if where else None
            wanted = k
            while True:
                ids, scores = self.sidecar.nearest(vector, wanted, allowed)
                # Other tools may have deleted documents and left their sidecars.
                there = set(ids if allowed is not None else self._passages.existing(ids))
                kept = [row for row, name in enumerate(ids) if name in there][:k]
                if len(kept) == k or len(ids) < wanted:
                    return Neighbours([ids[row] for row in kept], scores[kept].astype(np.float64))
                wanted *= 2

    def scores_reconstructed(self, vector: Array, ids: Sequence[str], where: Metadata | None = None) -> Neighbours:
        """Cosines between `vector` and the reconstructions of some passages, without those `where` leaves out."""
        with translated("searching"):
            there = set(self._passages.existing(ids, where))
            found, scores = self.sidecar.nearest(vector, max(len(ids), 1), [name for name in ids if name in there])
        return Neighbours(found, scores.astype(np.float64))

    def existing(self, ids: Sequence[str] | None = None, where: Metadata | None = None) -> list[str]:
        """Those of `ids` (of all, if not given) that are in the documents collection and pass the filter."""
        with translated("searching"):
            return self._passages.existing(ids, where)

    def records(self, ids: Sequence[str]) -> list[Record]:
        """The passages with these ids, in the order given.

        Raises:
            StoreError: An id is not there.
        """
        found = self.find(ids)
        missing = [name for name in ids if name not in found]
        if missing:
            raise StoreError(f"passage {missing[0]!r} is not in collection {self.documents.name!r}.")
        return [found[name] for name in ids]

    def nearest_records(
        self, vector: Array, k: int, where: Metadata | None = None, *, vectors: bool = True
    ) -> tuple[Neighbours, dict[str, Record]]:
        """The plain search with what is stored of its hits, in one question.

        Args:
            vector: (d,) the query.
            k: How many passages.
            where: Chroma's metadata filter.
            vectors: Whether their vectors are wanted; empty if not.
        """
        with translated("searching"):
            return self._passages.query_records(vector, k, where, vectors=vectors)

    def find(self, ids: Sequence[str], *, vectors: bool = True) -> dict[str, Record]:
        """The passages with these ids that are there, by id; with empty vectors where they are not wanted."""
        with translated("fetching passages"):
            return self._passages.find(ids, vectors=vectors)

    def codes(self, ids: Sequence[str]) -> Codes[NDArray[Any]]:
        """(len(ids), K) codes; passages that the sidecar does not know yet are encoded from their vectors.

        A passage that is in neither collection any more has empty codes.
        """
        index = self.index
        rows = index.rows_of(ids)
        shape = (len(ids), self.sae.config.k)
        codes: Codes[NDArray[Any]] = Codes(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32))
        known = rows >= 0
        codes.indices[known], codes.values[known] = index.take(rows[known])
        missing = {ids[position]: position for position in np.nonzero(~known)[0].tolist()}
        if missing:
            with translated("fetching vectors"):
                found, vectors = self._passages.unit_vectors(list(missing))
            places = [missing[name] for name in found]
            codes.indices[places], codes.values[places] = self.sae.encode(vectors)
        return codes

    @property
    def index(self) -> CodeIndex:
        """The local copy of the codes, made or refreshed when the sidecar's stamp says so."""
        return self._live_index.current(self.__len__)

    @property
    def has_all_codes(self) -> bool:
        """Whether every passage had codes when the local copy was last read."""
        return self._live_index.complete

    # -- inside -------------------------------------------------------------------------------------------------------

    def _batch_size(self) -> int:
        return min(_BATCH, self._client.get_max_batch_size())

    @contextmanager
    def _writing(self) -> Iterator[SidecarWriter]:
        try:
            with self.sidecar.writing() as writer:
                yield writer
        finally:
            self._live_index.forget()

    def _write_sidecar(self, ids: Sequence[str], vectors: Array, writer: SidecarWriter) -> int:
        if not len(ids):
            return 0
        outdated = np.nonzero(self.sidecar.outdated(ids, vectors))[0].tolist()
        if outdated:
            writer.write([ids[position] for position in outdated], vectors[outdated])
        return len(outdated)


def client_of(collection: Any) -> tuple[ClientAPI, str]:  # noqa: ANN401 - see ChromaStore.from_collection
    """A client of the store that a collection is in, and the collection's name.

    Args:
        collection: See `ChromaStore.from_collection`.

    Raises:
        TypeError: No collection can be found in it.
    """
    from chromadb.api.client import Client
    from chromadb.api.models.Collection import Collection

    for candidate in (collection, getattr(collection, "_collection", None)):
        if isinstance(candidate, Collection):
            server = candidate._client
            model = candidate.get_model() if hasattr(candidate, "get_model") else candidate._model
            return Client.from_system(server._system, tenant=model.tenant, database=model.database), candidate.name
    raise TypeError(
        f"expected a chromadb Collection, a langchain_chroma.Chroma or a ChromaVectorStore, got "
        f"{type(collection).__name__}."
    )
