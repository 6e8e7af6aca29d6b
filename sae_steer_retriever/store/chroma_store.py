"""Writes two Chroma collections with the same ids: the user's documents, and their sidecar of reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from sae_steer_retriever.encoders.embedders import Embedder, unit_rows
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.batches import Batch, Metadata, batches, changes, check_ids
from sae_steer_retriever.store.connection import connect, translated
from sae_steer_retriever.store.recorded_sae import ENCODER_KEY
from sae_steer_retriever.store.sidecar import Sidecar, SidecarWriter
from sae_steer_retriever.store.store_reader import StoreReader

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

# Passages per write or page; larger batches only need more memory.
_BATCH = 1000


class AddReport(NamedTuple):
    """Numbers of passages that `ChromaStore.add` added, replaced, and left unchanged."""

    added: int
    updated: int
    unchanged: int


class ChromaStore(StoreReader):
    """A documents collection and its sidecar, opened for reading and writing.

    `documents` is a plain Chroma collection that any other tool can read. It may exist already; only `add` and
    `delete` write to it. The sidecar can be made from the stored vectors (`attach`) and removed (`detach`).

    Example:
        >>> len(store) == len(texts)
        True
        >>> store.nearest(embedder.embed_queries(["wait for a thread"])[0], k=2).scores.shape
        (2,)
    """

    sidecar: Sidecar

    def __init__(
        self, client: ClientAPI, documents: Collection, sae: TopKSAE, *, sae_location: str | None = None
    ) -> None:
        """Opens the sidecar of a collection, and creates it if it is absent. Use `open` or `from_collection`.

        Raises:
            MismatchError: The collection holds vectors of another encoder, or the sidecar is another SAE's.
            StoreError: The collection is itself a sidecar, or Chroma does not answer.
        """
        self._sae_location = sae_location
        super().__init__(client, documents, sae)

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
        """Opens a collection and its sidecar, and creates what is absent.

        Args:
            sae: The SAE.
            path: Folder of an embedded Chroma; "./chroma" if neither path, host nor client is given.
            host: A Chroma server's host, instead of a folder.
            port: The server's port.
            client: A Chroma client, instead of either.
            collection: Name of the documents collection.
            create: Whether to create the documents collection if it is absent. The sidecar is created in any case.
            sae_location: The SAE's folder or hub id, recorded so that commands find the SAE again.

        Returns:
            The store.

        Raises:
            StoreError: The server or the collection cannot be reached.
            MismatchError: The collection holds vectors of another encoder, or the sidecar is another SAE's.

        Example:
            >>> from sae_steer_retriever import ChromaStore
            >>> handbook = ChromaStore.open(sae, path="./chroma", collection="handbook")
            >>> handbook.add(["leave"], ["Parental leave is paid."], embedder=embedder)
            AddReport(added=1, updated=0, unchanged=0)
            >>> handbook.records(["leave"])[0].text
            'Parental leave is paid.'
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
        """Opens a sidecar beside an existing collection, for example one that another tool made.

        Args:
            collection: A chromadb `Collection`, or an object that wraps one (`langchain_chroma.Chroma`, LlamaIndex'
                `ChromaVectorStore`).
            sae: The SAE.
            sae_location: The SAE's folder or hub id, recorded so that commands find the SAE again.

        Returns:
            The store; `attach` then fills the sidecar.

        Raises:
            TypeError: The object is none of these.

        Example:
            >>> from sae_steer_retriever import ChromaStore
            >>> client = connect(path="./chroma")
            >>> theirs = client.create_collection("theirs", embedding_function=None)
            >>> theirs.add(ids=["a", "b"], embeddings=vectors[:2], documents=texts[:2])
            >>> ChromaStore.from_collection(theirs, sae).attach()
            2
        """
        client, name = client_of(collection)
        return cls(client, client.get_collection(name, embedding_function=None), sae, sae_location=sae_location)

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
        """Adds or replaces passages in both collections; unchanged passages are not embedded again.

        An interrupted call is completed by the same call.

        Args:
            ids: Unique ids.
            texts: The passages, none empty.
            metadatas: One mapping (or None) per passage.
            embedder: The SAE's encoder; it embeds the new and the changed passages.
            embedded_as: Texts to embed instead of `texts`, one per passage (LlamaIndex embeds metadata, too). Changed
                metadata then count as a changed text.
            progress: Whether to show a progress bar on stderr.

        Returns:
            Numbers of passages.

        Raises:
            TypeError: One text is given instead of a sequence, or an id is not a text.
            ValueError: Lengths differ, an id occurs twice, a text is empty, or Chroma does not keep the type of a
                metadata value; nothing was written.
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
                report, vectors = self._write_documents(batch, embedder)
                self._write_sidecar(batch.ids, vectors, writer)
                added, updated, unchanged = added + report.added, updated + report.updated, unchanged + report.unchanged
                bar.update(len(batch.ids))
        return AddReport(added, updated, unchanged)

    def delete(self, ids: Sequence[str]) -> None:
        """Removes passages from both collections; unknown ids are ignored.

        Raises:
            TypeError: One text is given instead of a sequence, or an id is not a text.
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
        """Brings the sidecar in step with the documents' stored vectors; no text is embedded.

        Args:
            progress: Whether to show a progress bar on stderr.

        Returns:
            Number of passages that were encoded; passages with current codes are only read.

        Raises:
            MismatchError: A stored vector is zero; the message names its passage.
            StoreError: The store does not answer.

        Example:
            >>> store.attach()  # `add` has written the codes already
            0
        """
        encoded, size = 0, self._batch_size()
        known: set[str] = set()
        with (
            translated("attaching"),
            self._writing() as writer,
            tqdm(total=len(self), desc="attaching", unit="passage", disable=None if progress else True) as bar,
        ):
            for ids, vectors in self.pages(size):
                known.update(ids)
                encoded += self._write_sidecar(ids, vectors, writer)
                bar.update(len(ids))
            orphans = [name for names in self.sidecar.ids() for name in names if name not in known]
            for start in range(0, len(orphans), size):
                writer.delete(orphans[start : start + size])
        return encoded

    def detach(self) -> None:
        """Removes the sidecar; the documents collection stays as it is."""
        with translated("detaching"):
            self._client.delete_collection(self.sidecar.name)

    def _open_sidecar(self) -> Sidecar:
        return Sidecar(self._client, self.documents.name, self.sae, sae_location=self._sae_location)

    def _batch_size(self) -> int:
        return min(_BATCH, self._client.get_max_batch_size())

    @contextmanager
    def _writing(self) -> Iterator[SidecarWriter]:
        with self.sidecar.writing() as writer:
            yield writer
        if self._lengths is None or self._lengths.match == 1.0:  # measured without passages, or without reconstructions
            self._lengths = self._measure()

    def _write_documents(self, batch: Batch, embedder: Embedder) -> tuple[AddReport, Array]:
        """Returns the report, and the passages' (batch, d) vectors at unit norm as they are stored."""
        found = self.documents.get(ids=batch.ids, include=["documents", "metadatas", "embeddings"])
        texts = dict(zip(found["ids"], found["documents"] or [], strict=True))
        todo = changes(batch, texts, dict(zip(found["ids"], found["metadatas"] or [], strict=True)))
        vectors = np.empty((len(batch.ids), self._d), dtype=np.float32)
        place_of = {name: place for place, name in enumerate(batch.ids)}
        if found["ids"]:
            vectors[[place_of[name] for name in found["ids"]]] = np.asarray(found["embeddings"])
        embedded = todo.new + todo.changed
        if embedded:
            to_embed = batch.texts if batch.embedded_as is None else batch.embedded_as
            fresh = unit_rows(embedder.embed_documents([to_embed[place] for place in embedded]), self._d)
            if len(fresh) != len(embedded):
                raise MismatchError(f"the embedder gave {len(fresh)} vectors for {len(embedded)} texts.")
            vectors[embedded] = fresh
        # Updates in place: a kill between a deletion and an addition would lose the passage.
        add, update = self.documents.add, self.documents.update
        for write, places, whole in (
            (add, todo.new, True),
            (update, todo.changed, True),
            (update, todo.relabelled, False),
        ):
            if places:
                write(
                    ids=[batch.ids[place] for place in places],
                    embeddings=vectors[places] if whole else None,
                    documents=[batch.texts[place] for place in places] if whole else None,
                    metadatas=[todo.metadatas[place] for place in places],  # type: ignore[misc]
                )
        if embedded and self.space == "cosine":  # Chroma scales vectors and scales them back: read what is stored
            stored = self.documents.get(ids=[batch.ids[place] for place in embedded], include=["embeddings"])
            vectors[[place_of[name] for name in stored["ids"]]] = np.asarray(stored["embeddings"])
        updated = len(todo.changed) + len(todo.relabelled)
        report = AddReport(len(todo.new), updated, len(batch.ids) - len(todo.new) - updated)
        return report, self._unit(batch.ids, vectors)

    def _write_sidecar(self, ids: Sequence[str], vectors: Array, writer: SidecarWriter) -> int:
        if not len(ids):
            return 0
        outdated = np.nonzero(self.sidecar.outdated(ids, vectors))[0].tolist()
        if outdated:
            writer.write([ids[position] for position in outdated], vectors[outdated])
        return len(outdated)


def client_of(collection: Any) -> tuple[ClientAPI, str]:  # noqa: ANN401 - see ChromaStore.from_collection
    """Returns a client of the store that holds a collection, and the collection's name.

    Raises:
        TypeError: The object is none of those that `ChromaStore.from_collection` takes.
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
