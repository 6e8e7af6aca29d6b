"""The retriever as a LangChain `BaseRetriever`: documents in, documents out, steering per call."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from sae_steer_retriever.errors import MissingExtraError

try:
    importlib.import_module("langchain_core")
except ModuleNotFoundError as error:
    if error.name != "langchain_core":  # it is there, but something it needs is not
        raise
    raise MissingExtraError("the LangChain adapter", "langchain") from error

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict, Field, InstanceOf

from sae_steer_retriever.integrations.langchain_documents import document_of, ids_of, metadata_of, requested
from sae_steer_retriever.integrations.sources import SAESource, adopt_store, open_store, reopen_store
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.options import SearchOptions, Space
from sae_steer_retriever.steering.operations import Side, SteerLike
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun


class SAESteeredRetriever(BaseRetriever):
    """Retrieves documents from Chroma, steered by named features of a sparse autoencoder, with reasons.

    `invoke`, `ainvoke`, `batch` and `abatch` take `steer=`, `k=` and `filter=` for one call; `with_steer` and
    `configurable_fields` set them for a chain. What a call says wins over what the retriever holds: None there means
    "as configured", `steer={}` means "not steered this time". Without steering, ids, order and scores are those of
    the plain collection.

    Each document is a new object with the id of the passage. With `attach_scores` its metadata has two more keys,
    which replace stored ones of the same name: `relevance_score`, what it was ranked by (larger is better), and
    `sae`, a JSON-able dict:

    * `steer`: the steering that was applied, one dict an edit: name, features, weights, op, strength, side;
    * `unsteered_rank` (None if the plain search did not find it) and `unsteered_score`;
    * `features` (the five largest: id, label, contribution), `other_features`, `steering` (name, side,
      contribution), `bias` and `residual`: contributions that sum to `relevance_score`;
    * `unexplained`: the residual's share of all parts by size, in [0, 1].
    """

    model_config = ConfigDict(extra="forbid")

    retriever: SteeredRetriever = Field(exclude=True, repr=False)
    """The core retriever: SAE, encoder, catalog and store. `SteeredRetriever.open` makes one, also over a server."""
    k: int = Field(default=4, ge=1)
    """How many documents."""
    steer: dict[Any, Any] | InstanceOf[Steering] | None = None
    """Feature id, label, keyword or text -> strength or operation; a `Steering` keeps its own sides and drift cap."""
    filter: dict[str, Any] | None = None
    """Chroma's metadata filter (`where`)."""
    space: Space = "original"
    """What is compared: the stored embeddings, their "reconstructed" counterparts, or the codes ("latent")."""
    fetch_k: int | None = Field(default=None, ge=1)
    """Candidates from each source before re-ranking; max(100, 4 k) if None."""
    side: Side | None = None
    """For strengths that do not say: shift the "query", reward the "document" that has the feature, or "both"; if None,
    "both", but "query" in the reconstructed and latent spaces."""
    drift_cap: float = Field(default=DEFAULT_DRIFT_CAP, gt=0, le=1)
    """Smallest cosine allowed between the query and the shifted query."""
    attach_scores: bool = True
    """Whether to add `relevance_score` and `sae`. Off for `MultiQueryRetriever`, which drops equal documents only."""

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        *,
        embedding: Any = None,
        sae: SAESource | None = None,
        ids: Sequence[str] | None = None,
        persist_directory: str | Path | None = None,
        collection_name: str = "docs",
        k: int = 4,
        steer: SteerLike | Steering | None = None,
        **options: Any,
    ) -> Self:
        """Index documents and retrieve from them. Repeating it embeds only what is new or changed.

        Args:
            documents: What to index; see `add_documents`.
            embedding: LangChain `Embeddings`, or anything `as_embedder` takes; the SAE's own encoder if None.
            sae: Folder or hub id of the SAE, the name of one that ships, or the loaded SAE and its catalog. If None,
                the one that the collection was indexed with, else the bundled one for the encoder.
            ids: See `add_documents`.
            persist_directory: Folder of the Chroma store. If None, the store is this retriever's alone and is gone
                with it: unlike Chroma's in-memory client, it shares nothing with other stores of the process.
            collection_name: Name of the documents collection.
            k: How many documents a call returns.
            steer: The default steering; a name that means no feature is refused before anything is embedded.
            options: Further fields of this class; `name`, `tags` and `metadata` as in every LangChain retriever.

        Raises:
            ArtifactError: A damaged SAE, or none was given and none ships for the encoder.
            MismatchError: The encoder, the SAE and the collection do not belong together.
            UnknownFeatureError: `steer` names no feature; see `SteeredRetriever.resolve` for its other errors.
            ValueError: A document cannot be stored, or an option has an unusable value.
        """
        parts, store = open_store(sae, embedding, persist_directory, collection_name)
        made = cls._over(parts.retriever(store), k=k, steer=steer, **options)
        made.add_documents(documents, ids=ids)
        return made

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str] | None = None,
        embedding: Any = None,
        sae: SAESource | None = None,
        **options: Any,
    ) -> Self:
        """Index texts and retrieve from them.

        Args:
            texts: The passages.
            metadatas: One mapping (or None) per text.
            ids: See `add_documents`.
            embedding: See `from_documents`, as for `sae`.
            sae: The SAE; nothing needs to be trained where one ships for the encoder.
            options: Further arguments of `from_documents`.

        Raises:
            ValueError: There are not as many metadatas as texts; otherwise see `from_documents`.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one text: expected a list of texts.")
        contents = list(texts)
        rows: Sequence[Mapping[str, Any] | None] = [None] * len(contents) if metadatas is None else metadatas
        if len(rows) != len(contents):
            raise ValueError(f"{len(contents)} texts and {len(rows)} metadatas: expected as many of each.")
        documents = [Document(text, metadata=dict(row or {})) for text, row in zip(contents, rows, strict=True)]
        return cls.from_documents(documents, ids=ids, embedding=embedding, sae=sae, **options)

    @classmethod
    def from_chroma(
        cls,
        store_or_collection: Any,
        *,
        embedding: Any = None,
        sae: SAESource | None = None,
        attach: bool = True,
        **options: Any,
    ) -> Self:
        """Retrieve from a collection that exists. It is not modified: a sidecar is made beside it.

        Args:
            store_or_collection: A `langchain_chroma.Chroma` or a chromadb `Collection`, of any distance.
            embedding: What it was embedded with; if None, the Chroma's own embedding function, else the SAE's encoder.
            sae: See `from_documents`.
            attach: Whether to bring the sidecar in step first, from the stored vectors: no text is embedded.
            options: Fields of this class: `k`, `steer`, ...

        Raises:
            TypeError: `store_or_collection` holds no Chroma collection; otherwise see `from_documents`.
        """
        own = getattr(store_or_collection, "embeddings", None)
        parts, store = adopt_store(store_or_collection, sae, own if embedding is None else embedding)
        made = cls._over(parts.retriever(store), **options)
        if attach:
            store.attach()
        return made

    @classmethod
    def open(
        cls,
        persist_directory: str | Path,
        *,
        sae: SAESource | None = None,
        embedding: Any = None,
        collection_name: str = "docs",
        **options: Any,
    ) -> Self:
        """Retrieve from a store that was indexed before, here or by `sae-steer index`.

        Args:
            persist_directory: Folder of the Chroma store.
            sae: See `from_documents`; if None, the one that the store was indexed with.
            embedding: See `from_documents`.
            collection_name: Name of the documents collection.
            options: Fields of this class: `k`, `steer`, ...

        Raises:
            StoreError: There is no such folder or collection; otherwise see `from_documents`.
        """
        parts, store = reopen_store(persist_directory, collection_name, sae, embedding)
        return cls._over(parts.retriever(store), **options)

    def with_steer(self, steer: SteerLike | Steering | None, **options: Any) -> Self:
        """The same retriever with another default steering, over the same store.

        Unlike `bind(steer=...)` the result is a retriever that every wrapper accepts.

        Args:
            steer: In place of the present one.
            options: Other fields to change.

        Raises:
            UnknownFeatureError: A name means no feature; see `SteeredRetriever.resolve` for the other errors.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "retriever"}
        return self._over(self.retriever, **{**fields, **options, "steer": steer})

    def add_documents(self, documents: Iterable[Document], *, ids: Sequence[str] | None = None) -> list[str]:
        """Add or replace documents; what is stored already and unchanged costs no embedding.

        Args:
            documents: None with an empty text. Of their metadata, None and empty lists are left out: Chroma keeps none.
            ids: One each; if None, the documents' own, else a digest of the text.

        Returns:
            The ids.

        Raises:
            ValueError: An id occurs twice, a text is empty, or a metadata value is of a kind Chroma cannot store.
        """
        rows = list(documents)
        names = ids_of(rows) if ids is None else list(ids)
        texts, metadatas = [row.page_content for row in rows], [metadata_of(row) for row in rows]
        self.retriever.store.add(names, texts, metadatas, embedder=self.retriever.embedder)
        return names

    @property
    def search_options(self) -> SearchOptions:
        """The options of a call that says nothing else, as the core retriever takes them."""
        return SearchOptions(
            k=self.k,
            steer=self.steer,
            space=self.space,
            where=self.filter or None,
            fetch_k=self.fetch_k,
            side=self.side,
            drift_cap=self.drift_cap,
            explain=self.attach_scores,
        )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        steer: SteerLike | Steering | None = None,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        return self._search(query, steer, k, filter)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        steer: SteerLike | Steering | None = None,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        return await asyncio.to_thread(self._search, query, steer, k, filter)  # Chroma and the encoder are synchronous

    def _search(
        self, query: str, steer: SteerLike | Steering | None, k: int | None, where: Mapping[str, Any] | None
    ) -> list[Document]:
        if not isinstance(query, str):
            raise TypeError(
                f'query must be str, got {type(query).__name__}: put (lambda x: x["input"]) | retriever in the chain'
            )
        steer = self.steer if steer is None else steer
        steering = self.retriever.resolve(steer, side=self.side, drift_cap=self.drift_cap, space=self.space)
        options = dataclasses.replace(
            self.search_options,
            steer=steering,
            k=self.k if k is None else k,
            where=(self.filter if where is None else where) or None,
        )
        return [document_of(hit, steering) for hit in self.retriever.search(query, options=options)]

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        # Runs before the traced run begins, on the event loop in async calls: nothing here may embed or raise.
        params = {
            **super()._get_ls_params(**kwargs),
            "ls_vector_store_provider": "Chroma",
            "ls_embedding_provider": type(self.retriever.embedder).__name__,
            "ls_embedding_model": self.retriever.embedder.spec.name,
            "sae_steer": requested(self.steer if kwargs.get("steer") is None else kwargs["steer"]),
        }
        return cast(LangSmithRetrieverParams, params)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        fields = type(self).model_fields
        return [(name, value) for name, value in super().__repr_args__() if name and value != fields[name].default]

    @classmethod
    def _over(cls, core: SteeredRetriever, **fields: Any) -> Self:
        made = cls(retriever=core, **fields)
        core.resolve(made.steer, side=made.side, drift_cap=made.drift_cap)
        return made


__all__ = ["SAESteeredRetriever"]
