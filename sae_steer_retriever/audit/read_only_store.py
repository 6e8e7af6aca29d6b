"""A store read for an audit: passages, vectors and codes; nothing is created or written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_steer_retriever.encoders.embedders import unit_rows
from sae_steer_retriever.errors import CorpusError, MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.malloc import keep_large_buffers
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.code_index import CodeIndex, StoredVectors
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.sidecar import SidecarReader
from sae_steer_retriever.store.store_reader import StoreReader

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_PAGE = 5000
FEWEST = 20
"""Smallest number of passages to audit: distributions over fewer passages say nothing."""


class ReadOnlyStore(StoreReader):
    """A documents collection with the codes of its sidecar or, without one, codes made in memory.

    The sidecar's codes are used if this SAE made it and it holds every passage. Otherwise the stored vectors are
    encoded; no text is embedded.

    Args:
        client: A Chroma client.
        collection: Name of the documents collection.
        sae: The SAE.
        limit: Most passages to encode, drawn at random, if there is no sidecar; all if None.
        seed: Seed of that draw.
        progress: Whether to show progress bars on stderr.

    Attributes:
        ids: The ids of all N passages.
        stored: Their vectors, in score space.
        coded: (M,) ascending rows of the passages with known codes: all passages, or a sample.
        has_sidecar: Whether the codes are the sidecar's.

    Raises:
        CorpusError: There are fewer than 20 passages.
        MismatchError: The collection's vectors are another encoder's, or one is zero.
        StoreError: The collection is itself a sidecar, or Chroma does not answer.
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
        with translated(f"opening collection {collection!r}"):
            documents = client.get_collection(collection, embedding_function=None)
        super().__init__(client, documents, sae)
        count = len(self)
        if count < FEWEST:
            found = "is empty" if not count else f"holds {count} passages"
            raise CorpusError(
                f"collection {collection!r} {found}: an audit needs at least {FEWEST}. Fill it with "
                "`sae-steer index`, or name another one with --collection."
            )
        with translated("reading the collection"):
            index = self._sidecar_codes(count)
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
        """Whether every passage is coded; otherwise a steered search encodes further passages as it meets them."""
        return len(self.coded) == len(self.ids)

    def unit_vectors(self, rows: NDArray[np.integer[Any]]) -> Array:
        """Returns the passages' (len(rows), d) vectors at unit norm."""
        return unit_rows(np.asarray(self.stored.vectors[rows], dtype=np.float32), self.sae.config.d)

    def codes_at(self, rows: NDArray[np.integer[Any]]) -> Codes[NDArray[Any]]:
        """Returns the (len(rows), K) codes of passages; unknown codes are computed."""
        place = np.searchsorted(self.coded, rows)
        known = np.take(self.coded, place, mode="clip") == rows
        shape = (len(rows), self.sae.config.k)
        codes: Codes[NDArray[Any]] = Codes(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32))
        codes.indices[known], codes.values[known] = self._index.take(place[known])
        if not known.all():
            codes.indices[~known], codes.values[~known] = self.sae.encode(self.unit_vectors(rows[~known]))
        return codes

    def text_pages(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yields all ids and texts, in pages; a passage without a text has an empty one."""
        for offset in range(0, len(self.ids), _PAGE):
            with translated("reading passages"):
                page = self.documents.get(limit=_PAGE, offset=offset, include=["documents"])
            yield page["ids"], [text or "" for text in page["documents"] or [""] * len(page["ids"])]

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """Returns the texts of passages, by id."""
        found: dict[str, str] = {}
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), _PAGE):
            records = self.find(wanted[start : start + _PAGE], vectors=False)
            found |= {name: record.text for name, record in records.items()}
        return found

    # -- inside -------------------------------------------------------------------------------------------------------

    def _open_sidecar(self) -> SidecarReader:
        try:
            return super()._open_sidecar()
        except (MismatchError, StoreError):  # another SAE's sidecar, or another tool's collection
            return SidecarReader(self._client, self.documents.name, self.sae, None)

    def _sidecar_codes(self, count: int) -> CodeIndex | None:
        """Returns the sidecar's codes; None unless it is complete."""
        if self.sidecar.generation() is None or self.sidecar.count() != count:
            return None
        index = super().index
        return index if len(index) == count and bool(np.isfinite(index.stored.offsets).all()) else None

    def _read(self, count: int, progress: bool) -> tuple[list[str], StoredVectors]:
        ids: list[str] = []
        stored = StoredVectors(np.empty((count, self.sae.config.d), np.float32), np.empty(count, np.float32))
        with tqdm(total=count, desc="reading", unit="passage", disable=None if progress else True) as bar:
            for page, vectors, offsets in self.score_pages(_PAGE):
                own = slice(len(ids), len(ids) + len(page))
                stored.vectors[own], stored.offsets[own] = vectors, offsets
                ids += page
                bar.update(len(page))
        return ids, StoredVectors(*(part[: len(ids)] for part in stored))

    def _encoded(self, progress: bool) -> CodeIndex:
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
