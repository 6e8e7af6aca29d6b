"""Two Chroma collections with the same ids: the user's documents, and their companion of reconstructions."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_steer_retriever.code_index import CodeIndex
from sae_steer_retriever.companion import SUFFIX, Companion
from sae_steer_retriever.embedders import Embedder, unit_rows
from sae_steer_retriever.embedding_cache import cache_root
from sae_steer_retriever.errors import MismatchError, SAESteerError, StoreError
from sae_steer_retriever.sae import Array, Codes, TopKSAE

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

logger = logging.getLogger(__name__)

Metadata = Mapping[str, Any]
_SPACES = ("ip", "cosine", "l2")
_BATCH = 1000
# How often a steered search may ask whether another process has written, in seconds.
_STAMP_INTERVAL = 1.0


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


@dataclasses.dataclass(frozen=True)
class _Batch:
    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, Any]]


class ChromaStore:
    """A documents collection and its companion.

    `documents` is a plain Chroma collection that any other tool can read. It may exist already; only `add` and
    `delete` write to it. The companion can be made from its stored vectors (`attach`) and removed (`detach`).
    """

    def __init__(
        self, client: ClientAPI, documents: Collection, sae: TopKSAE, *, sae_location: str | None = None
    ) -> None:
        """Put a companion beside a collection. Use `open` or `from_collection`.

        Raises:
            MismatchError: The collection holds vectors of another encoder, or the companion is another SAE's.
        """
        self._client = client
        self.documents = documents
        self.sae = sae
        self.space = _space_of(documents)
        recorded = (documents.metadata or {}).get("sae_steer_encoder")
        if recorded is not None and recorded != sae.config.encoder.name:
            raise MismatchError(
                f"collection {documents.name!r} was embedded by {recorded!r}, but the SAE is for "
                f"{sae.config.encoder.name!r}: use an SAE of that encoder, or another collection."
            )
        with _translated("reading the collection"):
            sample = documents.get(limit=1, include=["embeddings"])["embeddings"]
            if sample is not None and len(sample) and len(sample[0]) != sae.config.d:
                raise MismatchError(
                    f"collection {documents.name!r} holds vectors of {len(sample[0])} dimensions, but the SAE reads "
                    f"{sae.config.d} (encoder {sae.config.encoder.name!r}): they are of different encoders."
                )
            self.companion = Companion(client, documents.name, sae, sae_location=sae_location)
        self._index: CodeIndex | None = None
        self._index_stamp: str | None = None
        self._checked_at = 0.0

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
        """Open, or make, a collection and its companion.

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
        with _translated(f"opening collection {collection!r}"):
            if create:
                documents = client.get_or_create_collection(
                    collection,
                    embedding_function=None,
                    metadata={"sae_steer_encoder": sae.config.encoder.name},
                    configuration={"hnsw": {"space": "ip", "ef_search": 200}},
                )
            else:
                documents = client.get_collection(collection, embedding_function=None)
        return cls(client, documents, sae, sae_location=sae_location)

    @classmethod
    def from_collection(cls, collection: Any, sae: TopKSAE) -> ChromaStore:  # noqa: ANN401 - three kinds of object
        """Put a companion beside a collection that exists, e.g. one that another tool made.

        Args:
            collection: A chromadb `Collection`, or an object that wraps one (`langchain_chroma.Chroma`,
                LlamaIndex' `ChromaVectorStore`).
            sae: The SAE.

        Raises:
            TypeError: No collection can be found in it.
        """
        from chromadb.api.client import Client
        from chromadb.api.models.Collection import Collection

        for candidate in (collection, getattr(collection, "_collection", None)):
            if isinstance(candidate, Collection):
                server = candidate._client
                model = candidate.get_model() if hasattr(candidate, "get_model") else candidate._model
                client = Client.from_system(server._system, tenant=model.tenant, database=model.database)
                return cls(client, client.get_collection(candidate.name, embedding_function=None), sae)
        raise TypeError(
            f"expected a chromadb Collection, a langchain_chroma.Chroma or a ChromaVectorStore, got "
            f"{type(collection).__name__}."
        )

    def __len__(self) -> int:
        """Number of passages in the documents collection."""
        with _translated("counting"):
            return self.documents.count()

    def __repr__(self) -> str:
        """One line: names, space and the SAE."""
        return f"ChromaStore({self.documents.name!r} + {self.companion.name!r}, space={self.space!r}, {self.sae!r})"

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        metadatas: Sequence[Metadata | None] | None = None,
        *,
        embedder: Embedder,
        progress: bool = False,
    ) -> AddReport:
        """Add or replace passages in both collections; what is there already and unchanged costs no embedding.

        A kill at any moment leaves a state that the same call completes.

        Args:
            ids: Unique ids.
            texts: The passages, none empty.
            metadatas: One mapping (or None) per passage.
            embedder: Embeds what is new or changed.
            progress: Whether to show a progress bar on stderr.

        Raises:
            ValueError: Lengths differ, an id occurs twice, or a text is empty.
            MismatchError: The embedder is not the SAE's encoder.
        """
        self.sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
        batches = _batches(ids, texts, metadatas, self._batch_size())
        added = updated = unchanged = 0
        with (
            _translated("writing"),
            self._writing(),
            tqdm(total=len(ids), desc="indexing", unit="passage", disable=None if progress else True) as bar,
        ):
            for batch in batches:
                report = self._add_batch(batch, embedder)
                added, updated, unchanged = added + report.added, updated + report.updated, unchanged + report.unchanged
                bar.update(len(batch.ids))
        return AddReport(added, updated, unchanged)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove passages from both collections; unknown ids are no error."""
        if not len(ids):
            return
        with _translated("deleting"), self._writing():
            size = self._batch_size()
            for start in range(0, len(ids), size):
                part = list(ids[start : start + size])
                self.documents.delete(ids=part)
                self.companion.delete(part)

    def attach(self, *, progress: bool = False) -> int:
        """Bring the companion in step with the documents' stored vectors, embedding nothing.

        Returns:
            How many passages were encoded; those whose codes were in step cost only a look.
        """
        encoded = 0
        total = len(self)
        size = self._batch_size()
        with (
            _translated("attaching"),
            self._writing(),
            tqdm(total=total, desc="attaching", unit="passage", disable=None if progress else True) as bar,
        ):
            known: set[str] = set()
            for offset in range(0, total, size):
                page = self.documents.get(limit=size, offset=offset, include=["embeddings"])
                known.update(page["ids"])
                encoded += self._write_companion(page["ids"], unit_rows(page["embeddings"], self.sae.config.d))
                bar.update(len(page["ids"]))
            orphans = [name for names in self.companion.ids() for name in names if name not in known]
            for start in range(0, len(orphans), size):
                self.companion.delete(orphans[start : start + size])
        return encoded

    def detach(self) -> None:
        """Remove the companion and its local copy; the documents collection is as it was before."""
        with _translated("detaching"):
            shutil.rmtree(self._index_folder, ignore_errors=True)
            self._client.delete_collection(self.companion.name)

    # -- reading ------------------------------------------------------------------------------------------------------

    def nearest(self, vector: Array, k: int, where: Metadata | None = None) -> Neighbours:
        """The plain search of the documents collection.

        Args:
            vector: (d,) the query, any norm.
            k: How many passages.
            where: Chroma's metadata filter.
        """
        return self._query(vector, k, where, None)

    def scores(self, vector: Array, ids: Sequence[str], where: Metadata | None = None) -> Neighbours:
        """The plain scores of some passages, without those that `where` leaves out."""
        if not ids:
            return Neighbours([], np.empty(0))
        return self._query(vector, len(ids), where, list(ids))

    def nearest_reconstructed(self, vector: Array, k: int, where: Metadata | None = None) -> Neighbours:
        """The search of the companion: cosine between `vector` and the reconstructed embeddings."""
        with _translated("searching"):
            allowed = None
            if where is not None:
                allowed = self.documents.get(where=dict(where), include=[])["ids"]
            ids, scores = self.companion.nearest(vector, k, allowed)
        return Neighbours(ids, scores.astype(np.float64))

    def records(self, ids: Sequence[str]) -> list[Record]:
        """The passages with these ids, in the order given.

        Raises:
            StoreError: An id is not there.
        """
        with _translated("fetching passages"):
            found = self.documents.get(ids=list(ids), include=["documents", "metadatas", "embeddings"])
        place = {name: row for row, name in enumerate(found["ids"])}
        missing = [name for name in ids if name not in place]
        if missing:
            raise StoreError(f"passage {missing[0]!r} is not in collection {self.documents.name!r}.")
        embeddings = np.asarray(found["embeddings"], dtype=np.float32)
        documents, metadatas = found["documents"] or [], found["metadatas"] or []
        records = []
        for name in ids:
            row = place[name]
            vector, offset = self._in_score_space(embeddings[row])
            records.append(Record(documents[row] or "", dict(metadatas[row] or {}), vector, offset))
        return records

    def codes(self, ids: Sequence[str]) -> Codes[NDArray[Any]]:
        """(len(ids), K) codes; passages that the companion does not know yet are encoded from their vectors."""
        index = self.index
        rows = index.rows_of(ids)
        shape = (len(ids), self.sae.config.k)
        codes: Codes[NDArray[Any]] = Codes(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32))
        known = rows >= 0
        codes.indices[known], codes.values[known] = index.take(rows[known])
        missing = np.nonzero(~known)[0].tolist()
        if missing:
            with _translated("fetching vectors"):
                wanted = [ids[position] for position in missing]
                found = self.documents.get(ids=wanted, include=["embeddings"])
            vectors = dict(zip(found["ids"], np.asarray(found["embeddings"]), strict=True))
            fresh = self.sae.encode(unit_rows([vectors[name] for name in wanted], self.sae.config.d))
            codes.indices[missing], codes.values[missing] = fresh.indices, fresh.values
        return codes

    @property
    def index(self) -> CodeIndex:
        """The local copy of the codes, made or refreshed when the companion's stamp says so."""
        if self._index is not None and time.monotonic() - self._checked_at < _STAMP_INTERVAL:
            return self._index
        with _translated("reading codes"):
            stamp = self.companion.stamp()
            self._checked_at = time.monotonic()
            if self._index is not None and stamp is not None and stamp == self._index_stamp:
                return self._index
            loaded = CodeIndex.load(self._index_folder, stamp) if stamp is not None else None
            if loaded is None:
                config = self.sae.config
                loaded = CodeIndex.build(self.companion.pages(), config.n, config.k, config.k_names)
                if stamp is not None and stamp == self.companion.stamp():
                    with contextlib.suppress(OSError):  # a full or read-only cache costs time, not results
                        loaded.save(self._index_folder, stamp)
        self._index, self._index_stamp = loaded, stamp
        if len(loaded) != len(self):
            logger.warning(
                "%d of %d passages of %r have codes: run `sae-steer index --attach` or ChromaStore.attach()",
                len(loaded),
                len(self),
                self.documents.name,
            )
        return loaded

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _index_folder(self) -> Path:
        return cache_root() / "codes" / self.companion.id

    def _batch_size(self) -> int:
        return min(_BATCH, self._client.get_max_batch_size())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._checked_at = 0.0
        with self.companion.writing():
            yield

    def _add_batch(self, batch: _Batch, embedder: Embedder) -> AddReport:
        found = self.documents.get(ids=batch.ids, include=["documents", "metadatas", "embeddings"])
        place = {name: row for row, name in enumerate(found["ids"])}
        documents, metadatas = found["documents"] or [], found["metadatas"] or []
        vectors = np.empty((len(batch.ids), self.sae.config.d), dtype=np.float32)
        new: list[int] = []
        changed: list[int] = []
        relabelled: list[int] = []
        for position, name in enumerate(batch.ids):
            row = place.get(name)
            if row is None:
                new.append(position)
            elif documents[row] != batch.texts[position]:
                changed.append(position)
            else:
                vectors[position] = np.asarray(found["embeddings"])[row]
                if dict(metadatas[row] or {}) != batch.metadatas[position]:
                    relabelled.append(position)
        embed = new + changed
        if embed:
            vectors[embed] = embedder.embed_documents([batch.texts[position] for position in embed])
        replaced = changed + relabelled
        if replaced:  # an upsert would merge the old metadata into the new
            self.documents.delete(ids=[batch.ids[position] for position in replaced])
        written = new + replaced
        if written:
            self.documents.add(
                ids=[batch.ids[position] for position in written],
                embeddings=vectors[written],
                documents=[batch.texts[position] for position in written],
                metadatas=[batch.metadatas[position] or None for position in written],  # type: ignore[misc]
            )
        self._write_companion(batch.ids, unit_rows(vectors, self.sae.config.d))
        return AddReport(len(new), len(replaced), len(batch.ids) - len(written))

    def _write_companion(self, ids: Sequence[str], vectors: Array) -> int:
        if not len(ids):
            return 0
        outdated = np.nonzero(self.companion.outdated(ids, vectors))[0].tolist()
        if outdated:
            self.companion.write([ids[position] for position in outdated], vectors[outdated])
        return len(outdated)

    def _query(self, vector: Array, k: int, where: Metadata | None, ids: list[str] | None) -> Neighbours:
        filters: dict[str, Any] = {}
        if where is not None:
            filters["where"] = dict(where)
        if ids is not None:
            filters["ids"] = ids
        with _translated("searching"):
            found = self.documents.query(
                query_embeddings=[vector],  # type: ignore[arg-type]
                n_results=k,
                include=["distances"],
                **filters,
            )
        distances = np.asarray((found["distances"] or [[]])[0], dtype=np.float64)
        return Neighbours(found["ids"][0], 1.0 - (distances / 2 if self.space == "l2" else distances))

    def _in_score_space(self, vector: Array) -> tuple[Array, float]:
        if self.space == "ip":
            return vector, 0.0
        norm = float(np.linalg.norm(vector))
        if self.space == "cosine":
            return (vector / norm).astype(np.float32), 0.0
        return vector, (1.0 - norm * norm) / 2


def connect(*, path: str | Path | None = None, host: str | None = None, port: int = 8000) -> ClientAPI:
    """A Chroma client with telemetry off.

    Args:
        path: Folder of an embedded Chroma; "./chroma" if no host is given either.
        host: A Chroma server's host.
        port: Its port.

    Raises:
        StoreError: The server does not answer, or the folder cannot be used.
    """
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    where = f"Chroma server at {host}:{port}" if host is not None else f"folder {path or './chroma'}"
    with _translated(f"opening the {where}"):
        if host is not None:
            return chromadb.HttpClient(host=host, port=port, settings=settings)
        return chromadb.PersistentClient(path=str(path or "./chroma"), settings=settings)


def recorded_sae(client: ClientAPI, collection: str) -> str | None:
    """Where the SAE of a collection's companion was loaded from when it was indexed, if that is known."""
    from chromadb.errors import NotFoundError

    with _translated("reading the companion"):
        try:
            metadata = client.get_collection(collection + SUFFIX, embedding_function=None).metadata or {}
        except (NotFoundError, ValueError):
            return None
    location = metadata.get("sae_location")
    return None if location is None else str(location)


def rebuild(client: ClientAPI, collection: str) -> None:
    """Drop a companion, so that another SAE can make a new one; the documents are not touched."""
    from chromadb.errors import NotFoundError

    with _translated("dropping the companion"), contextlib.suppress(NotFoundError):
        client.delete_collection(collection + SUFFIX)


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn what Chroma and its transport raise into one clear line."""
    import httpx
    from chromadb.errors import ChromaError

    try:
        yield
    except SAESteerError:
        raise
    except ChromaError as error:
        raise StoreError(f"Chroma failed while {doing}: {error}") from error
    except httpx.HTTPError as error:
        raise StoreError(f"the Chroma server does not answer ({doing}: {error}); is it running?") from error
    except ValueError as error:
        if "connect to" not in str(error):
            raise
        raise StoreError(f"{error} ({doing}) Start it with `chroma run`, or use a folder.") from error


def _space_of(collection: Collection) -> str:
    configuration = collection.configuration.get("hnsw") or collection.configuration.get("spann") or {}
    space = configuration.get("space") or (collection.metadata or {}).get("hnsw:space") or "l2"
    if space not in _SPACES:
        raise StoreError(f"collection {collection.name!r} uses distance {space!r}, expected {' or '.join(_SPACES)}.")
    return str(space)


def _batches(
    ids: Sequence[str], texts: Sequence[str], metadatas: Sequence[Metadata | None] | None, size: int
) -> list[_Batch]:
    rows = [dict(metadata or {}) for metadata in metadatas] if metadatas is not None else [{} for _ in ids]
    if not len(ids) == len(texts) == len(rows):
        raise ValueError(f"{len(ids)} ids, {len(texts)} texts and {len(rows)} metadatas: expected as many of each.")
    seen: set[str] = set()
    for name, text in zip(ids, texts, strict=True):
        if name in seen:
            raise ValueError(f"id {name!r} occurs twice: ids must be unique.")
        seen.add(name)
        if not text or not text.strip():
            raise ValueError(f"the text of passage {name!r} is empty: leave it out.")
    return [
        _Batch(list(ids[start : start + size]), list(texts[start : start + size]), rows[start : start + size])
        for start in range(0, len(ids), size)
    ]
