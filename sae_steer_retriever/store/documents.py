"""The documents collection: any Chroma collection, read and written without changing what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import unit_rows
from sae_steer_retriever.errors import MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.store.batches import Batch, Metadata, changes

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

_SPACES = ("ip", "cosine", "l2")


class AddReport(NamedTuple):
    """What `ChromaStore.add` did: passages added, replaced, and left as they were."""

    added: int
    updated: int
    unchanged: int


class Record(NamedTuple):
    """A stored passage.

    Attributes:
        text: The passage; empty if the collection has none.
        metadata: The user's metadata.
        vector: (d,) in score space: its dot product with a unit query, plus `offset`, is the store's score.
        offset: What the store's score has beyond the dot product; zero but for squared distance on other norms.
    """

    text: str
    metadata: dict[str, Any]
    vector: Array
    offset: float


class Neighbours(NamedTuple):
    """Passages found: ids and similarity scores (larger is better), best first."""

    ids: list[str]
    scores: NDArray[np.float64]


class DocumentCollection:
    """A Chroma collection of unit, or other, embeddings of dimension `d`."""

    def __init__(self, collection: Collection, d: int) -> None:
        """Read the collection's distance, and look at one of its vectors.

        Raises:
            MismatchError: It holds vectors of another dimension.
            StoreError: Its distance is none that can be turned into a score.
        """
        self._collection = collection
        self._d = d
        self.space = _space_of(collection)
        sample = collection.get(limit=1, include=["embeddings"])["embeddings"]
        if sample is not None and len(sample) and len(sample[0]) != d:
            raise MismatchError(
                f"collection {collection.name!r} holds vectors of {len(sample[0])} dimensions, but the SAE reads "
                f"{d}: they are of different encoders."
            )

    def query(self, vector: Array, k: int, where: Metadata | None) -> Neighbours:
        """The plain search."""
        found = self._collection.query(
            query_embeddings=[vector],  # type: ignore[arg-type]
            n_results=k,
            include=["distances"],
            where=dict(where) if where else None,
        )
        return Neighbours(found["ids"][0], self._as_scores((found["distances"] or [[]])[0]))

    def query_records(
        self, vector: Array, k: int, where: Metadata | None, *, vectors: bool
    ) -> tuple[Neighbours, dict[str, Record]]:
        """The plain search and what is stored of its hits, asked at once."""
        found = self._collection.query(
            query_embeddings=[vector],  # type: ignore[arg-type]
            n_results=k,
            include=["distances", "documents", "metadatas", *(["embeddings"] if vectors else [])],  # type: ignore[list-item]
            where=dict(where) if where else None,
        )
        texts, metadatas = (found["documents"] or [[]])[0], (found["metadatas"] or [[]])[0]
        embeddings = found["embeddings"][0] if vectors and found["embeddings"] is not None else None
        neighbours = Neighbours(found["ids"][0], self._as_scores((found["distances"] or [[]])[0]))
        return neighbours, self._records(neighbours.ids, texts, metadatas, embeddings)

    def scores(self, vector: Array, ids: Sequence[str], where: Metadata | None) -> Neighbours:
        """Scores of those of `ids` that are there and pass the filter, in any order.

        A query among some ids would give them too, in many times the time.
        """
        found = self._collection.get(ids=list(ids), where=dict(where) if where else None, include=["embeddings"])
        if not found["ids"]:
            return Neighbours([], np.empty(0))
        vectors, offsets = self._all_in_score_space(np.asarray(found["embeddings"], dtype=np.float32))
        return Neighbours(found["ids"], (vectors @ vector + offsets).astype(np.float64))

    def existing(self, ids: Sequence[str] | None = None, where: Metadata | None = None) -> list[str]:
        """Those of `ids` (of all, if not given) that are there and pass the filter."""
        if ids is not None and not ids:
            return []
        wanted = None if ids is None else list(ids)
        return self._collection.get(ids=wanted, where=dict(where) if where else None, include=[])["ids"]

    def find(self, ids: Sequence[str], *, vectors: bool = True) -> dict[str, Record]:
        """The passages with these ids that are there, by id; with empty vectors where they are not wanted."""
        if not len(ids):
            return {}
        include = ["documents", "metadatas", *(["embeddings"] if vectors else [])]
        found = self._collection.get(ids=list(ids), include=include)  # type: ignore[arg-type]
        embeddings = found["embeddings"] if vectors else None
        return self._records(found["ids"], found["documents"] or [], found["metadatas"] or [], embeddings)

    def unit_vectors(self, ids: Sequence[str]) -> tuple[list[str], Array]:
        """Ids that are there, and their vectors at unit length."""
        if not len(ids):
            return [], np.empty((0, self._d), dtype=np.float32)
        found = self._collection.get(ids=list(ids), include=["embeddings"])
        rows = np.asarray(found["embeddings"]).reshape(-1, self._d)  # none at all has another shape
        return found["ids"], self._unit(found["ids"], rows)

    def pages(self, size: int) -> Iterator[tuple[list[str], Array]]:
        """All ids and their vectors at unit length, in pages.

        Raises:
            MismatchError: A vector is zero, so that it has no direction; its passage is named.
        """
        for offset in range(0, self._collection.count(), size):
            page = self._collection.get(limit=size, offset=offset, include=["embeddings"])
            if page["ids"]:
                yield page["ids"], self._unit(page["ids"], page["embeddings"])

    def score_pages(self, size: int) -> Iterator[tuple[list[str], Array, Array]]:
        """All ids, their vectors in score space and offsets (see `Record`), in pages."""
        for offset in range(0, self._collection.count(), size):
            page = self._collection.get(limit=size, offset=offset, include=["embeddings"])
            if page["ids"]:
                rows, offsets = self._all_in_score_space(np.asarray(page["embeddings"], dtype=np.float32))
                yield page["ids"], rows, offsets

    def write(self, batch: Batch, embed: Callable[[list[str]], Array]) -> tuple[AddReport, Array]:
        """Add or replace passages; what is there already and unchanged is neither embedded nor written.

        Args:
            batch: The passages.
            embed: (batch, d) unit vectors of texts.

        Returns:
            What was done, and (batch, d) the passages' vectors at unit length, as they are stored.
        """
        found = self._collection.get(ids=batch.ids, include=["documents", "metadatas", "embeddings"])
        texts = dict(zip(found["ids"], found["documents"] or [], strict=True))
        todo = changes(batch, texts, dict(zip(found["ids"], found["metadatas"] or [], strict=True)))
        vectors = np.empty((len(batch.ids), self._d), dtype=np.float32)
        place_of = {name: place for place, name in enumerate(batch.ids)}
        if found["ids"]:
            vectors[[place_of[name] for name in found["ids"]]] = np.asarray(found["embeddings"])
        embedded = todo.new + todo.changed
        if embedded:
            to_embed = batch.texts if batch.embedded_as is None else batch.embedded_as
            fresh = unit_rows(embed([to_embed[place] for place in embedded]), self._d)
            if len(fresh) != len(embedded):
                raise MismatchError(f"the embedder gave {len(fresh)} vectors for {len(embedded)} texts.")
            vectors[embedded] = fresh
        # Updates, because a kill between a deletion and an addition would lose the passage.
        for write, places in ((self._collection.add, todo.new), (self._collection.update, todo.changed)):
            if places:
                write(
                    ids=[batch.ids[place] for place in places],
                    embeddings=vectors[places],
                    documents=[batch.texts[place] for place in places],
                    metadatas=[todo.metadatas[place] for place in places],  # type: ignore[misc]
                )
        if todo.relabelled:
            self._collection.update(
                ids=[batch.ids[place] for place in todo.relabelled],
                metadatas=[todo.metadatas[place] for place in todo.relabelled],  # type: ignore[misc]
            )
        if embedded and self.space == "cosine":  # scaled and scaled back by Chroma: what it gives is what is stored
            stored = self._collection.get(ids=[batch.ids[place] for place in embedded], include=["embeddings"])
            vectors[[place_of[name] for name in stored["ids"]]] = np.asarray(stored["embeddings"])
        updated = len(todo.changed) + len(todo.relabelled)
        report = AddReport(len(todo.new), updated, len(batch.ids) - len(todo.new) - updated)
        return report, self._unit(batch.ids, vectors)

    def _unit(self, ids: Sequence[str], vectors: Any) -> Array:  # noqa: ANN401 - as Chroma gives them
        rows = np.asarray(vectors, dtype=np.float32)
        zero = np.nonzero(~rows.any(axis=1))[0]
        if len(zero):
            raise MismatchError(
                f"the stored vector of passage {ids[zero[0]]!r} is zero ({len(zero)} such passages): embed it again, "
                f"or delete it from collection {self._collection.name!r}."
            )
        return unit_rows(rows, self._d)

    def _as_scores(self, distances: Sequence[float]) -> NDArray[np.float64]:
        return 1.0 - np.asarray(distances, dtype=np.float64) / (2 if self.space == "l2" else 1)

    def _records(
        self,
        ids: Sequence[str],
        texts: Sequence[str | None],
        metadatas: Sequence[Any],
        embeddings: Any,  # noqa: ANN401 - as Chroma gives them
    ) -> dict[str, Record]:
        vectors, offsets = np.empty((len(ids), 0), dtype=np.float32), np.zeros(len(ids), dtype=np.float32)
        if embeddings is not None and len(ids):
            vectors, offsets = self._all_in_score_space(np.asarray(embeddings, dtype=np.float32))
        return {
            name: Record(texts[row] or "", dict(metadatas[row] or {}), vectors[row], float(offsets[row]))
            for row, name in enumerate(ids)
        }

    def _all_in_score_space(self, vectors: Array) -> tuple[Array, Array]:
        """Rows whose dot products with a unit query, plus offsets, are the store's scores."""
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
