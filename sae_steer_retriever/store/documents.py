"""The documents collection: reads any Chroma collection without changing it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
# The largest error of a float32 product of two vectors, in relation to their squared lengths.
_FLOAT32 = 2e-6


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


class NeighbourLists(NamedTuple):
    """The neighbours of several probes, each passage once.

    Attributes:
        lists: The ids of each probe's neighbours, nearest first.
        ids: The M passages of all lists.
        vectors: (M, d) in score space; see `Record`.
        offsets: (M,) see `Record`.
        metadatas: M mappings; empty if they were not asked for.
        last: (probes,) `probe . x + offset` of no passage outside a probe's list exceeds this number, as far as the
            store's neighbours are exact. Minus infinity if a list holds the whole collection, infinity if it is empty.
        full: Whether some list has as many neighbours as were asked for.
    """

    lists: list[list[str]]
    ids: list[str]
    vectors: Array
    offsets: Array
    metadatas: list[Mapping[str, Any]]
    last: NDArray[np.float64]
    full: bool


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

    def neighbours(self, probes: NDArray[np.float64], k: int, where: Metadata | None = None) -> NeighbourLists:
        """Returns the `k` nearest passages of each of (probes, d) vectors of any norm, from one query to the store.

        Raises:
            StoreError: The store does not answer.
        """
        return neighbour_lists(self.documents, self.space, probes, k, where=where)

    @translated("searching")
    def existing(self, ids: Sequence[str] | None = None, where: Metadata | None = None) -> list[str]:
        """Returns those of `ids` (of all ids if None) that are in the collection and pass the filter."""
        if ids is not None and not ids:
            return []
        wanted = None if ids is None else list(ids)
        return self.documents.get(ids=wanted, where=dict(where) if where else None, include=[])["ids"]

    @translated("fetching passages")
    def find(self, ids: Sequence[str], where: Metadata | None = None, *, vectors: bool = True) -> dict[str, Record]:
        """Returns the passages with these ids, by id, without missing and filtered ones.

        Text, metadata and vector of a passage are of one version. Without `vectors`, theirs are empty.
        """
        if not len(ids):
            return {}
        include = ["documents", "metadatas", *(["embeddings"] if vectors else [])]
        found = self.documents.get(ids=list(ids), where=dict(where) if where else None, include=include)  # type: ignore[arg-type]
        return self._records(found["ids"], found["documents"], found["metadatas"], found["embeddings"])

    @translated("fetching vectors")
    def holds(self, records: Mapping[str, Record]) -> bool:
        """Returns whether the collection still has the vectors of these records.

        A query reads vectors first and texts after. If vectors are the same afterwards, the texts are theirs.
        """
        if not records:
            return True
        found = self.documents.get(ids=list(records), include=["embeddings"])
        if len(found["ids"]) < len(records):
            return False
        vectors, _ = in_score_space(found["embeddings"], self.space)
        return all(np.array_equal(x, records[name].vector) for name, x in zip(found["ids"], vectors, strict=True))

    def unchanged(self, digests: Mapping[str, str], where: Metadata | None = None) -> dict[str, Record]:
        """Returns those passages, by id, whose stored vectors at unit norm still have the given digests.

        Deleted, changed and filtered passages are left out. Text, metadata and vector of a passage are of one version.

        Raises:
            StoreError: The store does not answer.
        """
        found = self.find(list(digests), where)
        if not found:
            return {}
        units = self.units_of(np.array([record.vector for record in found.values()]))
        return {
            name: record
            for (name, record), unit in zip(found.items(), units, strict=True)
            if digest(unit) == digests[name]
        }

    def units_of(self, vectors: Array) -> Array:
        """Returns (N, d) vectors in score space at unit norm, as digests read them; zeros stay zero."""
        if self.space == "cosine":
            return vectors
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)

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
            yield ids, *in_score_space(embeddings, self.space)

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
            vectors, offsets = in_score_space(embeddings, self.space)
        return {
            name: Record(texts[row] or "", dict(metadatas[row] or {}), vectors[row], float(offsets[row]))
            for row, name in enumerate(ids)
        }


def digest(vector: Array) -> str:
    """Returns 16 hex digits of a (d,) unit vector, which tell an embedding from a changed one."""
    return hashlib.blake2b(np.ascontiguousarray(vector, dtype=np.float32).tobytes(), digest_size=8).hexdigest()


def in_score_space(embeddings: Any, space: str) -> tuple[Array, Array]:  # noqa: ANN401 - as Chroma gives them
    """Returns vectors and offsets: `vectors @ q + offsets` are the store's scores for a unit query `q`."""
    vectors = np.asarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    offsets = np.zeros(len(vectors), dtype=np.float32)
    if space == "cosine":
        return np.asarray(vectors / np.where(norms > 0, norms, 1)[:, None], dtype=np.float32), offsets
    return vectors, np.asarray((1.0 - norms * norms) / 2, dtype=np.float32) if space == "l2" else offsets


@translated("searching")
def neighbour_lists(
    collection: Collection,
    space: str,
    probes: NDArray[np.float64],
    k: int,
    *,
    where: Metadata | None = None,
    ids: Sequence[str] | None = None,
    metadatas: bool = False,
) -> NeighbourLists:
    """Returns the `k` nearest items of a collection for each of (probes, d) vectors, from one query to the store.

    Args:
        collection: The collection.
        space: Its distance.
        probes: The vectors, of any norm but zero.
        k: Items a list.
        where: Chroma's metadata filter.
        ids: The items to search among; all if None.
        metadatas: Whether to read the items' metadata.
    """
    include = ["distances", "embeddings", *(["metadatas"] if metadatas else [])]
    found = collection.query(
        query_embeddings=list(probes.astype(np.float32)),
        n_results=k,
        include=include,  # type: ignore[arg-type]
        where=dict(where) if where else None,
        ids=None if ids is None else list(ids),
    )
    lists = found["ids"]
    place_of: dict[str, int] = {}
    rows: list[Any] = []
    items: list[Mapping[str, Any]] = []
    for place, names in enumerate(lists):
        for row, name in enumerate(names):
            if name not in place_of:
                place_of[name] = len(rows)
                rows.append(found["embeddings"][place][row])  # type: ignore[index]
                if metadatas:
                    items.append(found["metadatas"][place][row] or {})  # type: ignore[index]
    last = np.full(len(probes), np.inf)
    if not rows:
        empty = np.empty((0, probes.shape[1]), np.float32)
        return NeighbourLists(lists, [], empty, np.empty(0, np.float32), [], last, False)
    vectors, offsets = in_score_space(rows, space)
    longest = float(np.linalg.norm(vectors, axis=1).max())
    whole = None
    for place, names in enumerate(lists):
        if not names:
            continue
        if len(names) < k and where is None and ids is None:
            whole = collection.count() if whole is None else whole
            if len(names) >= whole:
                last[place] = -np.inf
                continue
        row = place_of[names[-1]]
        # The store orders by float32 distances, which are this exact.
        slack = _FLOAT32 * (float(np.linalg.norm(probes[place])) + longest) ** 2
        last[place] = vectors[row].astype(np.float64) @ probes[place] + float(offsets[row]) + slack
    full = any(len(names) >= k for names in lists)
    return NeighbourLists(lists, list(place_of), vectors, offsets, items, last, full)


def _space_of(collection: Collection) -> str:
    configuration = collection.configuration.get("hnsw") or collection.configuration.get("spann") or {}
    space = configuration.get("space") or (collection.metadata or {}).get("hnsw:space") or "l2"
    if space not in _SPACES:
        raise StoreError(f"collection {collection.name!r} uses distance {space!r}, expected {' or '.join(_SPACES)}.")
    return str(space)
