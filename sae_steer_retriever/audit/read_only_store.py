"""A store read for an audit: passages, vectors and codes; nothing is created or written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_steer_retriever.audit.top_hits import PassageVectors
from sae_steer_retriever.encoders.embedders import unit_rows
from sae_steer_retriever.errors import CorpusError, MismatchError, StoreError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.malloc import keep_large_buffers
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.documents import digest
from sae_steer_retriever.store.sidecar import SidecarReader
from sae_steer_retriever.store.store_reader import StoreReader

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_PAGE = 5000
FEWEST = 20
"""Smallest number of passages to audit: distributions over fewer passages say nothing."""


class ReadOnlyStore(StoreReader):
    """A documents collection whose passages, vectors and codes are read once, in pages, into arrays.

    A passage's code is the sidecar's if this SAE made it from the stored vector. Otherwise the vector is encoded; no
    text is embedded.

    Args:
        client: A Chroma client.
        collection: Name of the documents collection.
        sae: The SAE.
        limit: Most passages to encode; all if None. If more have no current code, features are counted over a random
            sample of all passages, in which about this many have none.
        seed: Seed of that draw.
        progress: Whether to show progress bars on stderr.

    Attributes:
        ids: The ids of all N passages.
        stored: Their vectors, in score space.
        coded: (M,) ascending rows of the passages with known codes: all passages, or a sample.
        encoded: How many of these were encoded.

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
        self.ids, self.stored, codes, known = self._read(count, progress)
        lacking = int((~known).sum())
        size = count if limit is None or lacking <= limit else limit * count // lacking
        self.coded = _drawn(len(self.ids), size, seed)
        to_encode = np.nonzero(~known[self.coded])[0]
        self.encoded = len(to_encode)
        self._codes: Codes[NDArray[Any]] = Codes(codes.indices[self.coded], codes.values[self.coded])
        self._encode(to_encode, progress)

    def __repr__(self) -> str:
        """One line: the collection, its passages, and how many of them were encoded."""
        return f"ReadOnlyStore({self.documents.name!r}, {len(self.ids)} passages, {self.encoded} encoded, {self.sae!r})"

    @property
    def label_latents(self) -> Codes[NDArray[Any]]:
        """(M, k_labels) the label latents of the coded passages."""
        return self._codes.truncate(self.sae.config.k_labels)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each id."""
        return {name: row for row, name in enumerate(self.ids)}

    def unit_vectors(self, rows: NDArray[np.integer[Any]]) -> Array:
        """Returns the passages' (len(rows), d) vectors at unit norm."""
        return unit_rows(np.asarray(self.stored.vectors[rows], dtype=np.float32), self.sae.config.d)

    def codes_at(self, rows: NDArray[np.integer[Any]]) -> Codes[NDArray[Any]]:
        """Returns the (len(rows), K) codes of passages; unknown codes are computed."""
        place = np.searchsorted(self.coded, rows)
        known = np.take(self.coded, place, mode="clip") == rows
        shape = (len(rows), self.sae.config.k)
        codes: Codes[NDArray[Any]] = Codes(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32))
        codes.indices[known], codes.values[known] = (part[place[known]] for part in self._codes)
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

    def _read(
        self, count: int, progress: bool
    ) -> tuple[list[str], PassageVectors, Codes[NDArray[Any]], NDArray[np.bool_]]:
        """Returns ids, vectors, the sidecar's codes, and which passages have one."""
        d, k = self.sae.config.d, self.sae.config.k
        ids: list[str] = []
        stored = PassageVectors(np.empty((count, d), dtype=np.float32), np.empty(count, dtype=np.float32))
        codes: Codes[NDArray[Any]] = Codes(np.zeros((count, k), dtype=np.int32), np.zeros((count, k), dtype=np.float32))
        known = np.zeros(count, dtype=bool)
        with tqdm(total=count, desc="reading", unit="passage", disable=None if progress else True) as bar:
            for names, vectors, offsets in self.score_pages(_PAGE):
                fits = slice(count - len(ids))  # another program may be adding passages
                page = names[fits]
                own = slice(len(ids), len(ids) + len(page))
                stored.vectors[own], stored.offsets[own] = vectors[fits], offsets[fits]
                known[own], found = self._sidecar_codes(page, vectors[fits])
                places = own.start + np.nonzero(known[own])[0]
                codes.indices[places], codes.values[places] = found
                ids += page
                bar.update(len(page))
        stored = PassageVectors(*(part[: len(ids)] for part in stored))
        return ids, stored, Codes(*(part[: len(ids)] for part in codes)), known[: len(ids)]

    @translated("reading the sidecar")
    def _sidecar_codes(self, ids: list[str], vectors: Array) -> tuple[NDArray[np.bool_], Codes[NDArray[Any]]]:
        """Returns which passages have a sidecar row of their stored vector, and the codes of these."""
        # A digest is of the vector at unit norm, normalised once.
        units = vectors if self.space == "cosine" else unit_rows(vectors, self.sae.config.d)
        rows = self.sidecar.rows(ids)
        sources = [rows[name].source if name in rows else "" for name in ids]
        known = np.array([source == digest(x) for source, x in zip(sources, units, strict=True)], dtype=bool)
        return known, self.sidecar.unpack([rows[ids[place]].packed for place in np.nonzero(known)[0].tolist()])

    def _encode(self, places: NDArray[np.int64], progress: bool) -> None:
        """Encodes some of the coded passages."""
        if not len(places):
            return
        keep_large_buffers()
        with tqdm(total=len(places), desc="encoding", unit="passage", disable=None if progress else True) as bar:
            for start in range(0, len(places), _PAGE):
                own = places[start : start + _PAGE]
                codes = self.sae.encode(self.unit_vectors(self.coded[own]))
                self._codes.indices[own], self._codes.values[own] = codes
                bar.update(len(own))


def _drawn(count: int, size: int, seed: int) -> NDArray[np.int64]:
    if size >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
