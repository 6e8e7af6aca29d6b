"""Reads a documents collection and its sidecar; creates and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import encoder_base_name
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.code_index import CodeIndex
from sae_steer_retriever.store.connection import connect, translated
from sae_steer_retriever.store.documents import DocumentCollection, Neighbours
from sae_steer_retriever.store.live_index import LiveIndex
from sae_steer_retriever.store.recorded_sae import ENCODER_KEY
from sae_steer_retriever.store.sidecar import SidecarReader, sidecar_of

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection


class StoreReader(DocumentCollection):
    """A documents collection and its sidecar, opened for reading.

    A collection without a sidecar can be read, too: passages are encoded when their codes are needed.
    """

    def __init__(self, client: ClientAPI, documents: Collection, sae: TopKSAE) -> None:
        """Checks that the collection, its sidecar and the SAE belong together. Use `open`."""
        source = sidecar_of(documents.metadata)
        if source is not None:
            raise StoreError(f"collection {documents.name!r} is the sidecar of {source!r}: open {source!r}.")
        recorded = (documents.metadata or {}).get(ENCODER_KEY)
        if recorded is not None and encoder_base_name(str(recorded)) != sae.config.encoder.base_name:
            raise MismatchError(
                f"collection {documents.name!r} was embedded by {recorded!r}, but the SAE is for "
                f"{sae.config.encoder.name!r}: use an SAE of that encoder, or another collection."
            )
        self._client = client
        self.sae = sae
        with translated("reading the collection"):
            super().__init__(documents, sae.config.d)
            self.sidecar = self._open_sidecar()
        self._live_index = LiveIndex(self.sidecar, self, sae.config)

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
    ) -> StoreReader:
        """Returns an existing collection, opened for reading; the arguments are those of `ChromaStore.open`.

        Raises:
            StoreError: The folder, the server or the collection does not exist.
            MismatchError: The collection holds vectors of another encoder, or the sidecar is another SAE's.
        """
        client = client or connect(path=path, host=host, port=port, create=False)
        with translated(f"opening collection {collection!r}"):
            documents = client.get_collection(collection, embedding_function=None)
        return StoreReader(client, documents, sae)

    def __repr__(self) -> str:
        """One line: class, collections, space and SAE."""
        names = f"{self.documents.name!r} + {self.sidecar.name!r}"
        return f"{type(self).__name__}({names}, space={self.space!r}, {self.sae!r})"

    @translated("searching")
    def nearest_reconstructed(self, vector: Array, k: int, where: Metadata | None = None) -> Neighbours:
        """Returns the `k` passages whose reconstructed embeddings have the largest cosine with the (d,) `vector`.

        Without a sidecar there are none. `where` is Chroma's metadata filter.

        Raises:
            StoreError: The store does not answer.
        """
        allowed = self.existing(where=where) if where else None
        wanted = k
        while True:
            ids, scores = self.sidecar.nearest(vector, wanted, allowed)
            # Another tool may have deleted documents without their sidecar rows.
            there = set(ids if allowed is not None else self.existing(ids))
            kept = [row for row, name in enumerate(ids) if name in there][:k]
            if len(kept) == k or len(ids) < wanted:
                return Neighbours([ids[row] for row in kept], scores[kept].astype(np.float64))
            wanted *= 2

    @translated("searching")
    def scores_reconstructed(self, vector: Array, ids: Sequence[str], where: Metadata | None = None) -> Neighbours:
        """Returns the cosines of `vector` with the reconstructed embeddings of the given passages.

        Passages that are deleted or that `where` excludes are left out.
        """
        there = set(self.existing(ids, where))
        found, scores = self.sidecar.nearest(vector, max(len(ids), 1), [name for name in ids if name in there])
        return Neighbours(found, scores.astype(np.float64))

    def codes(self, ids: Sequence[str]) -> Codes[NDArray[Any]]:
        """Returns the (len(ids), K) codes of passages, encoded from their vectors if they have no sidecar row.

        A deleted passage has an empty code.

        Raises:
            StoreError: The store does not answer.
        """
        index = self.index
        rows = index.rows_of(ids)
        shape = (len(ids), self.sae.config.k)
        codes: Codes[NDArray[Any]] = Codes(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32))
        known = rows >= 0
        codes.indices[known], codes.values[known] = index.take(rows[known])
        missing = {ids[position]: position for position in np.nonzero(~known)[0].tolist()}
        if missing:
            found, vectors = self.vectors_of(list(missing))
            places = [missing[name] for name in found]
            codes.indices[places], codes.values[places] = self.sae.encode(vectors)
        return codes

    @property
    def index(self) -> CodeIndex:
        """The local copy of the codes, refreshed when the sidecar's generation has changed."""
        if not self.sidecar.exists:
            config = self.sae.config
            return CodeIndex.build([], config.n, config.k, config.k_labels)
        return self._live_index.current(self.__len__)

    @property
    def has_all_codes(self) -> bool:
        """Whether every passage had codes when the local copy was last read."""
        return self._live_index.complete

    def _open_sidecar(self) -> SidecarReader:
        return SidecarReader.open(self._client, self.documents.name, self.sae)
