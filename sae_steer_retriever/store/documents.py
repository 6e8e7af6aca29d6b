"""The documents collection: reads any Chroma collection without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import unit_rows
from sae_steer_retriever.errors import MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.connection import translated

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

_SPACES = ("ip", "cosine", "l2")


class Record(NamedTuple):
    """A stored passage.

    Attributes:
        text: The passage; empty if the collection stores no texts.
        metadata: The user's metadata.
        vector: (d,) in score space: `vector @ q + offset` is the store's score for a unit query `q`.
        offset: 0, except for squared distance ("l2") on vectors that are not unit vectors.
    """

    text: str
    metadata: dict[str, Any]
    vector: Array
    offset: float


class Neighbours(NamedTuple):
    """Search results: ids and similarity scores (larger is better), best first."""

    ids: list[str]
    scores: NDArray[np.float64]


class DocumentCollection:
    """Reads a Chroma collection of embeddings of dimension `d`, of unit or any other norm.

    Attributes:
        documents: The collection.
        space: The collection's distance: "ip", "cosine" or "l2".
    """

    def __init__(self, documents: Collection, d: int) -> None:
        """Reads the collection's distance and checks the dimension of one stored vector.

        Raises:
            MismatchError: The stored vectors are of another dimension.
            StoreError: The collection's distance is not supported.
        """
        self.documents = documents
        self._d = d
        self.space = _space_of(documents)
        sample = documents.get(limit=1, include=["embeddings"])["embeddings"]
        if sample is not None and len(sample) and len(sample[0]) != d:
            raise MismatchError(
                f"collection {documents.name!r} holds vectors of {len(sample[0])} dimensions, but the SAE reads "
                f"{d}: they are of different encoders."
            )

    @translated("counting")
    def __len__(self) -> int:
        """Returns the number of passages in the documents collection."""
        return self.documents.count()

    def nearest(self, vector: Array, k: int, where: Metadata | None = None) -> Neighbours:
        """Returns the `k` passages nearest to a (d,) query of any norm; `where` is Chroma's metadata filter.

        Raises:
            StoreError: The store does not answer.
        """
        return self._query(vector, k, where, [])[0]

    def nearest_records(
        self, vector: Array, k: int, where: Metadata | None = None, *, vectors: bool = True
    ) -> tuple[Neighbours, dict[str, Record]]:
        """Returns the results of `nearest` and the stored passages, from one query to the store.

        Without `vectors`, the records' vectors are not read and are empty.

        Raises:
            StoreError: The store does not answer.
        """
        include = ["documents", "metadatas", *(["embeddings"] if vectors else [])]
        neighbours, found = self._query(vector, k, where, include)
        parts = (None if found[name] is None else found[name][0] for name in ("documents", "metadatas", "embeddings"))
        return neighbours, self._records(neighbours.ids, *parts)

    @translated("searching")
    def scores(self, vector: Array, ids: Sequence[str], where: Metadata | None = None) -> Neighbours:
        """Returns the plain scores of the given passages, in any order; deleted and filtered ones are left out."""
        if not ids:
            return Neighbours([], np.empty(0))
        # Chroma's query with `ids` gives the same scores, but takes many times longer.
        found = self.documents.get(ids=list(ids), where=dict(where) if where else None, include=["embeddings"])
        if not found["ids"]:
            return Neighbours([], np.empty(0))
        vectors, offsets = self._in_score_space(found["embeddings"])
        return Neighbours(found["ids"], (vectors @ vector + offsets).astype(np.float64))

    @translated("searching")
    def existing(self, ids: Sequence[str] | None = None, where: Metadata | None = None) -> list[str]:
        """Returns those of `ids` (of all ids if None) that are in the collection and pass the filter."""
        if ids is not None and not ids:
            return []
        wanted = None if ids is None else list(ids)
        return self.documents.get(ids=wanted, where=dict(where) if where else None, include=[])["ids"]

    @translated("fetching passages")
    def find(self, ids: Sequence[str], *, vectors: bool = True) -> dict[str, Record]:
        """Returns the passages with these ids, by id, without missing ones; without `vectors`, theirs are empty."""
        if not len(ids):
            return {}
        include = ["documents", "metadatas", *(["embeddings"] if vectors else [])]
        found = self.documents.get(ids=list(ids), include=include)  # type: ignore[arg-type]
        return self._records(found["ids"], found["documents"], found["metadatas"], found["embeddings"])

    def records(self, ids: Sequence[str]) -> list[Record]:
        """Returns the passages with these ids, in the given order.

        Raises:
            StoreError: An id is not in the collection.
        """
        found = self.find(ids)
        missing = [name for name in ids if name not in found]
        if missing:
            raise StoreError(f"passage {missing[0]!r} is not in collection {self.documents.name!r}.")
        return [found[name] for name in ids]

    @translated("fetching vectors")
    def vectors_of(self, ids: Sequence[str]) -> tuple[list[str], Array]:
        """Returns those of `ids` that are in the collection, and their vectors at unit norm."""
        if not len(ids):
            return [], np.empty((0, self._d), dtype=np.float32)
        found = self.documents.get(ids=list(ids), include=["embeddings"])
        rows = np.asarray(found["embeddings"]).reshape(-1, self._d)  # an empty result has another shape
        return found["ids"], self._unit(found["ids"], rows)

    def pages(self, size: int) -> Iterator[tuple[list[str], Array]]:
        """Yields all ids and their vectors at unit norm, in pages.

        Raises:
            MismatchError: A vector is zero; the message names its passage.
        """
        for ids, embeddings in self._vector_pages(size):
            yield ids, self._unit(ids, embeddings)

    def score_pages(self, size: int) -> Iterator[tuple[list[str], Array, Array]]:
        """Yields all ids, their vectors in score space, and their offsets (see `Record`), in pages."""
        for ids, embeddings in self._vector_pages(size):
            yield ids, *self._in_score_space(embeddings)

    @translated("searching")
    def _query(self, vector: Array, k: int, where: Metadata | None, include: list[str]) -> tuple[Neighbours, Any]:
        found = self.documents.query(
            query_embeddings=[vector],  # type: ignore[arg-type]
            n_results=k,
            include=["distances", *include],  # type: ignore[list-item]
            where=dict(where) if where else None,
        )
        distances = np.asarray((found["distances"] or [[]])[0], dtype=np.float64)
        return Neighbours(found["ids"][0], 1.0 - distances / (2 if self.space == "l2" else 1)), found

    def _vector_pages(self, size: int) -> Iterator[tuple[list[str], Any]]:
        for offset in range(0, len(self), size):
            with translated("reading vectors"):
                page = self.documents.get(limit=size, offset=offset, include=["embeddings"])
            if page["ids"]:
                yield page["ids"], page["embeddings"]

    def _unit(self, ids: Sequence[str], vectors: Any) -> Array:  # noqa: ANN401 - as Chroma gives them
        rows = np.asarray(vectors, dtype=np.float32)
        zero = np.nonzero(~rows.any(axis=1))[0]
        if len(zero):
            raise MismatchError(
                f"the stored vector of passage {ids[zero[0]]!r} is zero ({len(zero)} such passages): embed it again, "
                f"or delete it from collection {self.documents.name!r}."
            )
        return unit_rows(rows, self._d)

    def _records(self, ids: Sequence[str], texts: Any, metadatas: Any, embeddings: Any) -> dict[str, Record]:
        vectors, offsets = np.empty((len(ids), 0), dtype=np.float32), np.zeros(len(ids), dtype=np.float32)
        if embeddings is not None and len(ids):
            vectors, offsets = self._in_score_space(embeddings)
        return {
            name: Record(texts[row] or "", dict(metadatas[row] or {}), vectors[row], float(offsets[row]))
            for row, name in enumerate(ids)
        }

    def _in_score_space(self, embeddings: Any) -> tuple[Array, Array]:  # noqa: ANN401 - as Chroma gives them
        """Returns vectors and offsets: `vectors @ q + offsets` are the store's scores for a unit query `q`."""
        vectors = np.asarray(embeddings, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1)
        offsets = np.zeros(len(vectors), dtype=np.float32)
        if self.space == "cosine":
            return np.asarray(vectors / np.where(norms > 0, norms, 1)[:, None], dtype=np.float32), offsets
        return vectors, np.asarray((1.0 - norms * norms) / 2, dtype=np.float32) if self.space == "l2" else offsets


def _space_of(collection: Collection) -> str:
    configuration = collection.configuration.get("hnsw") or collection.configuration.get("spann") or {}
    space = configuration.get("space") or (collection.metadata or {}).get("hnsw:space") or "l2"
    if space not in _SPACES:
        raise StoreError(f"collection {collection.name!r} uses distance {space!r}, expected {' or '.join(_SPACES)}.")
    return str(space)
