"""The retriever as a LangChain `BaseRetriever`: documents in, documents out, steering per call."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from sae_steer_retriever.errors import MissingExtraError

try:
    importlib.import_module("langchain_core")
except ModuleNotFoundError as error:
    if error.name != "langchain_core":  # LangChain is installed, but a dependency of it is not
        raise
    raise MissingExtraError("the LangChain adapter", "langchain") from error

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict, Field, InstanceOf

from sae_steer_retriever.explain.hits import Hit, ReadOn
from sae_steer_retriever.integrations.explanation import EXPLANATION_KEY, NODE_KEY, explanation
from sae_steer_retriever.integrations.sources import SAESource, adopt_store, open_store
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.options import LatentScore, SearchOptions, Space
from sae_steer_retriever.steering.operations import Side, SteerLike
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

_SCORE_KEY = "relevance_score"
# LlamaIndex stores a node beside its text under these keys; they mean nothing in LangChain.
_NODE_KEYS = frozenset({NODE_KEY, "_node_type", "document_id", "doc_id", "ref_doc_id"})


class SAESteeredRetriever(BaseRetriever):
    """Retrieves documents from Chroma, steered by named features of a sparse autoencoder, with reasons.

    `invoke`, `ainvoke`, `batch` and `abatch` take `steer=`, `k=` and `filter=` for one call; `with_steer` and
    `configurable_fields` set them for a chain. A call's values win over the retriever's fields. In a call, None means
    "use the field" and `steer={}` means "no steering". Without steering, ids, order and scores are those of the plain
    collection.

    Each document is a new object with the id of the passage. With `attach_scores` its metadata gets two keys, which
    replace stored ones of the same name: `relevance_score`, the score that ranks it (larger is better), and `sae`, a
    JSON-serialisable dict:

    * `steer`: the steering that was applied, one dict per edit: name, features, weights, op, strength, side;
    * `unsteered_rank` (None if it is not among the plain search's candidates) and `unsteered_score`;
    * `read_on`, the vector on which the steering read the passage, as in `Hit`, and `certified`, as in `Hits`;
    * `features` (the five largest: id, label, contribution), `other_features`, `steering` (name, side,
      contribution), `bias` and `residual`: contributions that sum to `relevance_score`;
    * `unexplained`: the residual's absolute size divided by that of all parts, in [0, 1].

    The fields without a description are the options of the same name in `SearchOptions`.

    Example:
        >>> from sae_steer_retriever.integrations.langchain import SAESteeredRetriever
        >>> documents = SAESteeredRetriever(retriever=retriever, k=2).invoke("wait for work", steer={"thread": 0.5})
        >>> [document.metadata["sae"]["steer"][0]["name"] for document in documents]
        ['thread', 'thread']
    """

    model_config = ConfigDict(extra="forbid")

    retriever: SteeredRetriever = Field(exclude=True, repr=False)
    """The core retriever: SAE, encoder, catalog and store. `SteeredRetriever.open` makes one, also over a server."""
    k: int = Field(default=4, ge=1)
    steer: dict[Any, Any] | InstanceOf[Steering] | None = None
    filter: dict[str, Any] | None = None
    """Chroma's metadata filter: `where` in `SearchOptions`."""
    space: Space = "original"
    latent_score: LatentScore = "match"
    fetch_k: int | None = Field(default=None, ge=1)
    side: Side | None = None
    drift_cap: float = Field(default=DEFAULT_DRIFT_CAP, gt=0, le=1)
    read_on: ReadOn = "reconstruction"
    attach_scores: bool = True
    """Whether to add `relevance_score` and `sae`. Off for `MultiQueryRetriever`, which drops only equal documents."""

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
        """Returns a retriever over documents, indexed now. Repeating it embeds only new and changed documents.

        Args:
            documents: What to index; see `add_documents`.
            embedding: LangChain `Embeddings`, or anything `as_embedder` takes; the SAE's own encoder if None.
            sae: The SAE's folder, its hub id, the name of a bundled one, or a loaded SAE with its catalog. If None,
                the SAE that the collection was indexed with, else the bundled one for the encoder.
            ids: See `add_documents`.
            persist_directory: Folder of the Chroma store. If None, the store is private to this retriever and is
                deleted with it (Chroma's in-memory client shares its data with the whole process).
            collection_name: Name of the documents collection.
            k: See `SearchOptions`.
            steer: See `SearchOptions`; names are resolved before anything is embedded.
            options: More fields of this class, and `name`, `tags` and `metadata` as in every LangChain retriever.

        Raises:
            ArtifactError: The SAE is damaged, or none was given and none is bundled for the encoder.
            MismatchError: The encoder, the SAE and the collection do not belong together.
            UnknownFeatureError: A name in `steer` means no feature; for its other errors see
                `SteeredRetriever.resolve`.
            ValueError: A document cannot be stored, or an option is out of range.
        """
        made = cls._over(open_store(persist_directory, collection_name, sae, embedding), k=k, steer=steer, **options)
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
        """Returns a retriever over texts, indexed now; `metadatas` has one mapping or None per text.

        The other arguments are those of `from_documents`.

        Raises:
            TypeError: `texts` is a single text.
            ValueError: There are not as many metadatas as texts; for the other errors see `from_documents`.

        Example:
            >>> from sae_steer_retriever.integrations.langchain import SAESteeredRetriever
            >>> made = SAESteeredRetriever.from_texts(texts[:20], sae=(sae, catalog), embedding=embedder)
            >>> len(made.invoke("wait for a thread", k=3))
            3
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
        """Returns a retriever over a collection that exists. Only its sidecar collection is written.

        Args:
            store_or_collection: A `langchain_chroma.Chroma` or a chromadb `Collection`, of any distance.
            embedding: The collection's encoder; if None, the `Chroma`'s embedding function, else the SAE's encoder.
            sae: See `from_documents`.
            attach: Whether to update the sidecar first, from the stored vectors: no text is embedded.
            options: Fields of this class: `k`, `steer`, ...

        Raises:
            TypeError: `store_or_collection` holds no Chroma collection; for the other errors see `from_documents`.
        """
        own = getattr(store_or_collection, "embeddings", None)
        core = adopt_store(store_or_collection, sae, own if embedding is None else embedding)
        made = cls._over(core, **options)
        if attach:
            core.store.attach()
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
        """Returns a retriever over a store that was indexed before, by this class or by `sae-steer index`.

        The arguments are those of `from_documents`.

        Raises:
            StoreError: There is no such folder or collection; for the other errors see `from_documents`.
        """
        return cls._over(open_store(persist_directory, collection_name, sae, embedding, create=False), **options)

    def with_steer(self, steer: SteerLike | Steering | None, **options: Any) -> Self:
        """Returns a retriever over the same store with another default steering.

        Unlike the result of `bind(steer=...)` it is a `BaseRetriever`, so every wrapper accepts it.

        Args:
            steer: Replaces the present steering.
            options: Other fields to change.

        Raises:
            UnknownFeatureError: A name means no feature; for the other errors see `SteeredRetriever.resolve`.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "retriever"}
        return self._over(self.retriever, **{**fields, **options, "steer": steer})

    def add_documents(self, documents: Iterable[Document], *, ids: Sequence[str] | None = None) -> list[str]:
        """Adds or replaces documents; unchanged ones are not embedded again.

        Args:
            documents: The documents. None and empty lists in their metadata are left out: Chroma cannot store them.
            ids: One per document; if None, the documents' own ids, else hashes of their texts.

        Returns:
            The ids.

        Raises:
            ValueError: An id occurs twice, a text is empty, or a metadata value is of a kind Chroma cannot store.
        """
        rows = list(documents)
        names = _ids_of(rows) if ids is None else list(ids)
        texts, metadatas = [row.page_content for row in rows], [_metadata_of(row) for row in rows]
        self.retriever.store.add(names, texts, metadatas, embedder=self.retriever.embedder)
        return names

    @property
    def search_options(self) -> SearchOptions:
        """The options of a call without arguments, as the core retriever takes them."""
        return SearchOptions(
            k=self.k,
            steer=self.steer,
            space=self.space,
            latent_score=self.latent_score,
            where=self.filter or None,
            fetch_k=self.fetch_k,
            side=self.side,
            drift_cap=self.drift_cap,
            explain=self.attach_scores,
            read_on=self.read_on,
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
        if not isinstance(query, str):
            raise TypeError(
                f'query must be str, got {type(query).__name__}: put (lambda x: x["input"]) | retriever in the chain'
            )
        steer = self.steer if steer is None else steer
        steering = self.retriever.resolve(steer, side=self.side, drift_cap=self.drift_cap, space=self.space)
        where = (self.filter if filter is None else filter) or None
        options = dataclasses.replace(self.search_options, steer=steering, k=self.k if k is None else k, where=where)
        hits = self.retriever.search(query, options=options)
        return [_document_of(hit, steering, certified=hits.certified) for hit in hits]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        steer: SteerLike | Steering | None = None,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        # Chroma and the encoder are synchronous.
        return await asyncio.to_thread(
            self._get_relevant_documents, query, run_manager=run_manager.get_sync(), steer=steer, k=k, filter=filter
        )

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        # LangChain calls this before the traced run, in async calls on the event loop: it must not embed or raise.
        params = {
            **super()._get_ls_params(**kwargs),
            "ls_vector_store_provider": "Chroma",
            "ls_embedding_provider": type(self.retriever.embedder).__name__,
            "ls_embedding_model": self.retriever.embedder.spec.name,
            "sae_steer": _requested(self.steer if kwargs.get("steer") is None else kwargs["steer"]),
        }
        return cast(LangSmithRetrieverParams, params)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        fields = type(self).model_fields
        return [(name, value) for name, value in super().__repr_args__() if name and value != fields[name].default]

    @classmethod
    def _over(cls, core: SteeredRetriever, **fields: Any) -> Self:
        """Returns a retriever over a core retriever, with its steering checked."""
        made = cls(retriever=core, **fields)
        core.resolve(made.steer, side=made.side, drift_cap=made.drift_cap)
        return made


def _document_of(hit: Hit, steering: Steering, *, certified: bool) -> Document:
    """Returns a hit as a new document; if the hit has an attribution, the metadata say why it was found."""
    metadata = hit.metadata
    if NODE_KEY in metadata:
        metadata = {key: value for key, value in metadata.items() if key not in _NODE_KEYS}
    if hit.attribution is not None:
        known = {"read_on": hit.read_on, "certified": certified}
        reasons = explanation(steering, hit.base_rank, hit.base_score, hit.attribution, **known)
        metadata = {**metadata, _SCORE_KEY: hit.score, EXPLANATION_KEY: reasons}
    return Document(id=hit.id, page_content=hit.text, metadata=metadata)


def _ids_of(documents: Sequence[Document]) -> list[str]:
    """Returns the documents' own ids, or hashes of their texts, so that adding a document again changes nothing."""
    seen: Counter[str] = Counter()
    ids = []
    for document in documents:
        if document.id is not None:
            ids.append(document.id)
            continue
        text = document.page_content
        # Documents with the same text and other metadata get different ids.
        salt = seen[text].to_bytes(8, "little")
        seen[text] += 1
        ids.append(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, salt=salt).hexdigest())
    return ids


def _metadata_of(document: Document) -> dict[str, Any]:
    """Returns a document's metadata without empty lists: document loaders often leave some, and Chroma refuses them."""
    return {key: value for key, value in document.metadata.items() if not (isinstance(value, list) and not value)}


def _requested(steer: Any) -> Any:
    """Returns a steering, checked or not, in types that every tracer can write."""
    if isinstance(steer, Steering):
        return {edit.name: edit.strength if edit.op == "add" else edit.op for edit in steer.edits}
    if isinstance(steer, Mapping):
        return {str(name): float(value) if isinstance(value, Real) else repr(value) for name, value in steer.items()}
    return {} if steer is None else repr(steer)


__all__ = ["SAESteeredRetriever"]
