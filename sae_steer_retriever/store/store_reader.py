"""Reads a documents collection and its sidecar; creates and writes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError, StaleSidecarWarning, StoreError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import encoder_base_name
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.code_matrix import CodeMatrix, CurrentMatrix
from sae_steer_retriever.store.connection import connect, translated
from sae_steer_retriever.store.documents import DocumentCollection, digest, in_score_space
from sae_steer_retriever.store.reconstructions import Reconstructed, Reconstructions
from sae_steer_retriever.store.recorded_sae import ENCODER_KEY
from sae_steer_retriever.store.sidecar import SidecarReader, SidecarRow, sidecar_of

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

# Rows that are read at once.
_PAGE = 1000
# The passages that are measured when a collection is opened.
_SAMPLE = 256
# Lengths this near to 1 are those of unit vectors.
_ROUNDING = 1e-3


class Lengths(NamedTuple):
    """How long a collection's vectors are, for terms that read them.

    Attributes:
        vector: The median length of a stored vector; 1 for unit vectors and in cosine collections.
        reconstruction: The median length of a reconstruction.
        match: How large the matches of reconstructions with their label latents are in relation to the matches of the
            unit vectors that they reconstruct.
    """

    vector: float
    reconstruction: float
    match: float


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
        self._reconstructions = Reconstructions(self.sidecar, sae)
        self._matrix = CurrentMatrix(self.sidecar, sae.config)
        self._lengths = self._measure()

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

    def codes(self, ids: Sequence[str]) -> Codes[NDArray[Any]]:
        """Returns the (len(ids), K) codes of passages; a deleted passage has an empty code.

        They are read from the sidecar, or encoded if the sidecar has no row of a passage's stored vector.

        Raises:
            StoreError: The store does not answer.
        """
        shape = (len(ids), self.sae.config.k)
        codes: Codes[NDArray[Any]] = Codes(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32))
        place_of = {name: place for place, name in enumerate(ids)}
        for start in range(0, len(ids), _PAGE):
            names, vectors = self.vectors_of(ids[start : start + _PAGE])
            with translated("reading codes"):
                rows = self.sidecar.rows(names)
            fresh = np.array([_is_of(rows.get(name), x) for name, x in zip(names, vectors, strict=True)], dtype=bool)
            places = np.array([place_of[name] for name in names], dtype=np.int64)
            if fresh.any():
                packed = [rows[name].packed for name, own in zip(names, fresh, strict=True) if own]
                codes.indices[places[fresh]], codes.values[places[fresh]] = self.sidecar.unpack(packed)
            if not fresh.all():
                codes.indices[places[~fresh]], codes.values[places[~fresh]] = self.sae.encode(vectors[~fresh])
        return codes

    def code_matrix(self) -> CodeMatrix:
        """Returns all codes of the sidecar as they are now; read at the first call and again when they have changed.

        Raises:
            StoreError: The store does not answer.
        """
        return self._matrix.read(self.__len__)

    def reconstructions(self, ids: Sequence[str], vectors: Array) -> Reconstructed:
        """Returns the reconstructions that the sidecar has of passages' vectors, and warns of those it lacks.

        Args:
            ids: N passages.
            vectors: (N, d) their vectors in score space.

        Raises:
            StoreError: The store does not answer.
        """
        found = self._reconstructions.of(ids, self.units_of(vectors))
        if self.sidecar.exists and not found.known.all():
            self.warn_stale(int((~found.known).sum()), len(ids))
        return found

    def warn_stale(self, stale: int, of: int) -> None:
        """Warns that passages have no current row in the sidecar, or rows no current passage."""
        warnings.warn(
            f"{self.sidecar.name!r} is out of step with {self.documents.name!r} for {stale} of {of} candidates: run "
            "`sae-steer index --attach`, or call ChromaStore.attach().",
            StaleSidecarWarning,
            stacklevel=2,
        )

    def lengths(self) -> Lengths:
        """Returns the typical lengths of this collection's vectors, measured once on its first passages.

        Raises:
            StoreError: The store does not answer.
        """
        if self._lengths is None:
            self._lengths = self._measure()
        return self._lengths or Lengths(1.0, 1.0, 1.0)

    def _measure(self) -> Lengths | None:
        """Returns the lengths; None if the collection is empty."""
        with translated("reading the collection"):
            page = self.documents.get(limit=_SAMPLE, include=["embeddings"])
            if not page["ids"]:
                return None
            vectors, _ = in_score_space(page["embeddings"], self.space)
            rows = self.sidecar.rows(page["ids"])
        norms = np.linalg.norm(vectors, axis=1)
        typical = float(np.median(norms))
        # Rounding is no length: unit vectors are read as they are.
        typical = 1.0 if np.abs(norms - 1.0).max() < _ROUNDING or not typical else typical
        units = self.units_of(vectors)
        names = [name for name, x in zip(page["ids"], units, strict=True) if _is_of(rows.get(name), x)]
        if not names:
            return Lengths(typical, 1.0, 1.0)
        codes = self.sidecar.unpack([rows[name].packed for name in names])
        x_hat, labels = self.sae.decode(codes), codes.truncate(self.sae.config.k_labels)
        places = {name: place for place, name in enumerate(page["ids"])}
        x = units[[places[name] for name in names]]
        directions = self.sae.decoder[labels.indices] * (labels.values > 0)[:, :, None]
        matched, own = (float(np.einsum("nd,nkd->", side - self.sae.bias, directions)) for side in (x_hat, x))
        ratio = matched / own if matched > 0 and own > 0 else 1.0
        return Lengths(typical, float(np.median(np.linalg.norm(x_hat, axis=1))) or 1.0, ratio)

    def _open_sidecar(self) -> SidecarReader:
        return SidecarReader.open(self._client, self.documents.name, self.sae)


def _is_of(row: SidecarRow | None, vector: Array) -> bool:
    return row is not None and row.source == digest(vector)
