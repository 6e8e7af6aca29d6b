"""A store as an audit sees it: everything can be read and searched, nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_steer_retriever.encoders.embedders import unit_rows
from sae_steer_retriever.errors import CorpusError, MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import encoder_base_name
from sae_steer_retriever.sae.malloc import keep_large_buffers
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.code_index import CodeIndex, StoredVectors
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.documents import DocumentCollection
from sae_steer_retriever.store.live_index import LiveIndex
from sae_steer_retriever.store.recorded_sae import ENCODER_KEY
from sae_steer_retriever.store.sidecar import SUFFIX, Sidecar, require_ours, sidecar_of

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_PAGE = 5000
FEWEST = 20
"""Passages below which a distribution over passages says nothing."""


class ReadOnlyStore(ChromaStore):
    """A documents collection with codes that are read from its sidecar or, without one, made in memory.

    Attributes:
        ids: The ids of all N passages.
        stored: Their vectors, in score space.
        coded: (M,) rows of the passages whose codes are known, ascending: all, or a sample of them.
        has_sidecar: Whether the codes are those of the sidecar.
    """

    def __init__(
        self,
        client: ClientAPI,
        collection: str,
        sae: TopKSAE,
        *,
        limit: int | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        """Read the vectors, and the codes or make them.

        A sidecar's codes are used if it was made by this SAE and has every passage. Otherwise the stored vectors are
        encoded; nothing is embedded.

        Args:
            client: A Chroma client.
            collection: Name of the documents collection.
            sae: The SAE.
            limit: Passages to encode at most, drawn at random, where there is no sidecar; all if None.
            seed: Of that draw.
            progress: Whether to show progress bars on stderr.

        Raises:
            CorpusError: There are fewer than 20 passages.
            MismatchError: The collection's vectors are of another encoder, or one is zero.
            StoreError: It is itself a sidecar, or Chroma does not answer.
        """
        self._client = client
        self.sae = sae
        with translated(f"opening collection {collection!r}"):
            self.documents = client.get_collection(collection, embedding_function=None)
        self._require_readable()
        with translated("reading the collection"):
            self._passages = DocumentCollection(self.documents, sae.config.d)
            count = self.documents.count()
            if count < FEWEST:
                what = "is empty" if not count else f"holds {count} passages"
                raise CorpusError(
                    f"collection {collection!r} {what}: an audit needs at least {FEWEST}. Fill it with "
                    "`sae-steer index`, or name another one with --collection."
                )
            index = self._of_sidecar(count)
            self.has_sidecar = index is not None
            if index is not None:
                self.ids, self.stored = index.ids, index.stored
                self.coded = _drawn(len(index), None, seed)
            else:
                self.ids, self.stored = self._read(count, progress)
                self.coded = _drawn(len(self.ids), limit, seed)
                index = self._encoded(progress)
        self._index = index

    def __repr__(self) -> str:
        """One line: the collection, and whether its codes were stored."""
        codes = "stored" if self.has_sidecar else "in memory"
        return f"ReadOnlyStore({self.documents.name!r}, {len(self.ids)} passages, codes {codes}, {self.sae!r})"

    @property
    def index(self) -> CodeIndex:
        """The codes of the coded passages."""
        return self._index

    @property
    def has_all_codes(self) -> bool:
        """Whether that is all of them: otherwise a steered search encodes what else it comes across."""
        return len(self.coded) == len(self.ids)

    def unit_vectors(self, rows: NDArray[np.integer[Any]]) -> Array:
        """(len(rows), d) the passages' vectors at unit length."""
        return unit_rows(np.asarray(self.stored.vectors[rows], dtype=np.float32), self.sae.config.d)

    def codes_at(self, rows: NDArray[np.integer[Any]]) -> Codes[NDArray[Any]]:
        """(len(rows), K) codes of any passages; those that are not known are made."""
        place = np.searchsorted(self.coded, rows)
        known = np.take(self.coded, place, mode="clip") == rows
        shape = (len(rows), self.sae.config.k)
        codes: Codes[NDArray[Any]] = Codes(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32))
        codes.indices[known], codes.values[known] = self._index.take(place[known])
        if not known.all():
            codes.indices[~known], codes.values[~known] = self.sae.encode(self.unit_vectors(rows[~known]))
        return codes

    def text_pages(self) -> Iterator[tuple[list[str], list[str]]]:
        """All ids and texts, in pages; a passage without a text has an empty one."""
        for offset in range(0, len(self.ids), _PAGE):
            with translated("reading passages"):
                page = self.documents.get(limit=_PAGE, offset=offset, include=["documents"])
            yield page["ids"], [text or "" for text in page["documents"] or [""] * len(page["ids"])]

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """The texts of some passages, by id."""
        found: dict[str, str] = {}
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), _PAGE):
            records = self.find(wanted[start : start + _PAGE], vectors=False)
            found |= {name: record.text for name, record in records.items()}
        return found

    # -- inside -------------------------------------------------------------------------------------------------------

    def _require_readable(self) -> None:
        metadata = self.documents.metadata or {}
        source = sidecar_of(metadata)
        if source is not None:
            raise StoreError(f"collection {self.documents.name!r} is the sidecar of {source!r}: audit {source!r}.")
        recorded = metadata.get(ENCODER_KEY)
        encoder = self.sae.config.encoder
        if recorded is not None and encoder_base_name(str(recorded)) != encoder.base_name:
            raise MismatchError(
                f"collection {self.documents.name!r} was embedded by {recorded!r}, but the SAE is for "
                f"{encoder.name!r}: give an SAE of that encoder with --sae."
            )

    def _of_sidecar(self, count: int) -> CodeIndex | None:
        """The sidecar's codes, if it is this SAE's and complete."""
        name = self.documents.name
        if name + SUFFIX not in {found.name for found in self._client.list_collections()}:
            return None
        try:
            require_ours(self._client.get_collection(name + SUFFIX, embedding_function=None), self.sae)
        except (MismatchError, StoreError):  # another SAE's, or somebody else's collection
            return None
        sidecar = Sidecar(self._client, name, self.sae)
        if sidecar.generation() is None or sidecar.count() != count:
            return None
        index = LiveIndex(sidecar, self._passages, self.sae.config).current(lambda: count)
        return index if len(index) == count and bool(np.isfinite(index.stored.offsets).all()) else None

    def _read(self, count: int, progress: bool) -> tuple[list[str], StoredVectors]:
        ids: list[str] = []
        stored = StoredVectors(np.empty((count, self.sae.config.d), np.float32), np.empty(count, np.float32))
        with tqdm(total=count, desc="reading", unit="passage", disable=None if progress else True) as bar:
            for page, vectors, offsets in self._passages.score_pages(_PAGE):
                own = slice(len(ids), len(ids) + len(page))
                stored.vectors[own], stored.offsets[own] = vectors, offsets
                ids += page
                bar.update(len(page))
        return ids, StoredVectors(*(part[: len(ids)] for part in stored))

    def _encoded(self, progress: bool) -> CodeIndex:
        """Codes made of the vectors, in memory."""
        keep_large_buffers()
        config, ids = self.sae.config, [self.ids[row] for row in self.coded.tolist()]
        pages = []
        with tqdm(total=len(ids), desc="encoding", unit="passage", disable=None if progress else True) as bar:
            for start in range(0, len(ids), _PAGE):
                rows = self.coded[start : start + _PAGE]
                pages.append((ids[start : start + _PAGE], self.sae.encode(self.unit_vectors(rows))))
                bar.update(len(rows))
        own = self.stored.vectors[self.coded], self.stored.offsets[self.coded]
        return CodeIndex.build(pages, config.n, config.k, config.k_labels, [(ids, *own)])


def _drawn(count: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


__all__ = ["FEWEST", "ReadOnlyStore"]
