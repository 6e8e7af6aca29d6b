"""The retriever and a re-ranker as LlamaIndex components: nodes in, nodes out, steering per call."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sae_steer_retriever.errors import MissingExtraError, StoreError

try:
    importlib.import_module("llama_index.core")
except ModuleNotFoundError as error:
    # `llama_index` is a namespace of many distributions: it may be there without its core.
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    raise MissingExtraError("the LlamaIndex adapter", "llama-index") from error

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores import MetadataFilters

from sae_steer_retriever.integrations.explanation import explanation
from sae_steer_retriever.integrations.llama_index_nodes import add_nodes, explained, node_of, where_of
from sae_steer_retriever.integrations.llama_index_postprocessor import SAESteerPostprocessor
from sae_steer_retriever.integrations.llama_index_query import SteeredQuery, embedding_of, steer_of, steered
from sae_steer_retriever.integrations.sources import SAESource, adopt_store, open_store, reopen_store
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.options import SearchOptions, Space
from sae_steer_retriever.steering.operations import Side, SteerLike
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering

if TYPE_CHECKING:
    from llama_index.core import VectorStoreIndex


class SAESteeredRetriever(BaseRetriever):
    """Retrieves nodes from Chroma, steered by named features of a sparse autoencoder, with reasons.

    Steering comes from the call (`retrieve(q, steer={"employment": 0.5})`), else from a `SteeredQuery`, else from the
    constructor. None means "as set further down", `{}` means "not steered this time". Without steering, ids, order
    and scores are those of the plain collection. `index.as_retriever(steer=...)` and `index.as_query_engine(steer=...)`
    ignore what they do not know: give this retriever to `RetrieverQueryEngine.from_args` instead.

    `NodeWithScore.score` is a cosine plus what the steering adds (`ChromaVectorStore` gives `exp(-distance)`: do not
    compare them). `node.metadata["sae"]` says why, for people: neither the LLM nor an encoder gets to read it. See
    `integrations.explanation` for its keys. It replaces a key of that name in the node's own metadata.

    Attributes:
        retriever: The core retriever: SAE, encoder, catalog and store.
        similarity_top_k: How many nodes.
        steer: The default steering.
    """

    def __init__(
        self,
        retriever: SteeredRetriever,
        similarity_top_k: int = 4,
        *,
        steer: SteerLike | Steering | None = None,
        filters: MetadataFilters | None = None,
        where: Mapping[str, Any] | None = None,
        space: Space = "original",
        fetch_k: int | None = None,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
        explain: bool = True,
        attach_explanation: bool = True,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """Take a core retriever; the classmethods make one.

        Args:
            retriever: `SteeredRetriever.open` makes one, also over a Chroma server.
            similarity_top_k: How many nodes.
            steer: Feature id, label, keyword or text -> strength or operation; names are resolved now.
            filters: Metadata filters: ==, !=, >, >=, <, <=, in, nin, contains, combined by and / or.
            where: Chroma's own metadata filter, instead of `filters`.
            space: See `SteeredRetriever.search`, as for the next three.
            fetch_k: Candidates from each source before re-ranking.
            side: For strengths that do not say.
            drift_cap: Smallest cosine between the query and the shifted query.
            explain: Whether to attribute the scores.
            attach_explanation: Whether to put the steering, the unsteered rank and the attribution into the nodes'
                metadata. Turn it off inside `QueryFusionRetriever`, which tells nodes apart by a hash that covers
                metadata.
            callback_manager: LlamaIndex' callbacks.

        Raises:
            ValueError: Both `filters` and `where` are given, or Chroma cannot filter so.
            SteeringError: A strength is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        if filters is not None and where is not None:
            raise ValueError("filters and where are both given: expected one of them.")
        retriever.resolve(steer, side=side, drift_cap=drift_cap)
        self.retriever = retriever
        self.similarity_top_k = similarity_top_k
        self.steer = dict(steer) if isinstance(steer, Mapping) else steer
        self._options = SearchOptions(
            space=space,
            where=where_of(filters) if where is None else dict(where),
            fetch_k=fetch_k,
            side=side,
            drift_cap=drift_cap,
            explain=explain and attach_explanation,
        )
        self._attach_explanation = attach_explanation
        super().__init__(callback_manager=callback_manager)

    @classmethod
    def from_defaults(
        cls,
        nodes: Sequence[BaseNode] | None = None,
        *,
        index: VectorStoreIndex | None = None,
        persist_directory: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """`from_nodes`, `from_vector_store_index` or `open`, by what is given.

        Args:
            nodes: What to index.
            index: An index to retrieve from, instead.
            persist_directory: Where to keep the nodes; without nodes and index, the store to open.
            options: Further arguments of those methods.

        Raises:
            ValueError: Nothing to retrieve from is given, or an index beside nodes or a folder.
        """
        if index is not None:
            if nodes is not None or persist_directory is not None:
                raise ValueError("an index brings its own nodes and store: expected no nodes or persist_directory.")
            return cls.from_vector_store_index(index, **options)
        if nodes is not None:
            return cls.from_nodes(nodes, persist_directory=persist_directory, **options)
        if persist_directory is not None:
            return cls.open(persist_directory, **options)
        raise ValueError("there is nothing to retrieve from: expected nodes, an index, or a persist_directory.")

    @classmethod
    def from_nodes(
        cls,
        nodes: Sequence[BaseNode],
        *,
        embed_model: Any = None,
        sae: SAESource | None = None,
        persist_directory: str | Path | None = None,
        collection_name: str = "docs",
        **options: Any,
    ) -> Self:
        """Index nodes and retrieve from them. Repeating it embeds only what is new or changed.

        Args:
            nodes: What to index; they are embedded as LlamaIndex does, with their metadata before the text.
            embed_model: A LlamaIndex `BaseEmbedding`, or anything `as_embedder` takes; the SAE's own encoder if None
                (`Settings.embed_model` is not looked at).
            sae: Folder or hub id of the SAE, the name of one that ships, or the loaded SAE and its catalog. If None,
                the one that the collection was indexed with, else the bundled one for the encoder.
            persist_directory: Folder of the Chroma store. If None, the store is gone with this retriever.
            collection_name: Name of the documents collection; `ChromaVectorStore` can read it.
            options: Further arguments of the constructor.

        Raises:
            ArtifactError: A damaged SAE, or none was given and none ships for the encoder.
            MismatchError: The encoder, the SAE and the collection do not belong together.
            ValueError: Two nodes have the same id; see the constructor for its errors.
        """
        parts, store = open_store(sae, embed_model, persist_directory, collection_name)
        made = cls(SteeredRetriever(store, parts.embedder, parts.catalog), **options)
        add_nodes(store, nodes, parts.embedder)
        return made

    @classmethod
    def from_vector_store_index(
        cls,
        index: VectorStoreIndex,
        *,
        sae: SAESource | None = None,
        embed_model: Any = None,
        attach: bool = True,
        **options: Any,
    ) -> Self:
        """Retrieve from an index over a `ChromaVectorStore`. Its collection is not modified: a sidecar is made.

        Args:
            index: The index.
            sae: See `from_nodes`.
            embed_model: What the collection was embedded with; the index' own embedding model if None.
            attach: Whether to bring the sidecar in step first, from the stored vectors: no text is embedded. Call
                `retriever.store.attach()` of the result's core again when nodes were inserted.
            options: Further arguments of the constructor.

        Raises:
            TypeError: The index is not over a `ChromaVectorStore`; otherwise see `from_nodes`.
        """
        own = index._embed_model if embed_model is None else embed_model
        parts, store = adopt_store(index.vector_store, sae, own)
        made = cls(SteeredRetriever(store, parts.embedder, parts.catalog), **options)
        if attach:
            store.attach()
        return made

    @classmethod
    def open(
        cls,
        persist_directory: str | Path,
        *,
        sae: SAESource | None = None,
        embed_model: Any = None,
        collection_name: str = "docs",
        **options: Any,
    ) -> Self:
        """Retrieve from a store that was indexed before, here or by `sae-steer index`.

        Args:
            persist_directory: Folder of the Chroma store.
            sae: See `from_nodes`; if None, the one that the store was indexed with.
            embed_model: See `from_nodes`.
            collection_name: Name of the documents collection.
            options: Further arguments of the constructor.

        Raises:
            StoreError: There is no such folder or collection; otherwise see `from_nodes`.
        """
        if not Path(persist_directory).is_dir():
            raise StoreError(f"no folder {str(persist_directory)!r}: make the store with from_nodes(...) first.")
        parts, store = reopen_store(persist_directory, collection_name, sae, embed_model)
        return cls(SteeredRetriever(store, parts.embedder, parts.catalog), **options)

    def retrieve(
        self, str_or_query_bundle: QueryType, *, steer: SteerLike | Steering | None = None
    ) -> list[NodeWithScore]:
        """The nodes that answer a query.

        Args:
            str_or_query_bundle: The question; never modified. An `embedding` it brings is used, and so are its
                `custom_embedding_strs` (their mean, as everywhere in LlamaIndex).
            steer: For this call: feature -> strength or operation.

        Raises:
            TypeError: The query is neither a text nor a `QueryBundle`.
            SteeringError: A strength is unusable.
            UnknownFeatureError: A name means no feature; nothing was embedded for the search.
            AmbiguousFeatureError: A name means unrelated features.
            StoreError: The store does not answer.
        """
        return super().retrieve(steered(str_or_query_bundle, steer))

    async def aretrieve(
        self, str_or_query_bundle: QueryType, *, steer: SteerLike | Steering | None = None
    ) -> list[NodeWithScore]:
        """`retrieve`, off the event loop."""
        return await super().aretrieve(steered(str_or_query_bundle, steer))

    @property
    def search_options(self) -> SearchOptions:
        """The options of a call that says nothing else, as the core retriever takes them."""
        return dataclasses.replace(self._options, k=self.similarity_top_k, steer=self.steer)

    # LlamaIndex passes the argument by position in sync and by keyword in async calls: its name must stay.
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        core = self.retriever
        own = self.search_options
        asked = steer_of(query_bundle, self.steer)
        steering = core.resolve(asked, side=own.side, drift_cap=own.drift_cap, space=own.space)
        embedding = embedding_of(query_bundle, core.embedder)
        options = dataclasses.replace(own, steer=steering, embedding=embedding)
        hits = core.search(query_bundle.query_str, options=options)
        nodes = []
        for hit in hits:
            node = node_of(hit)
            if self._attach_explanation:
                node = explained(node, explanation(steering, hit.base_rank, hit.base_score, hit.attribution))
            nodes.append(NodeWithScore(node=node, score=hit.score))
        return nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # Chroma's client and the encoder are synchronous.
        return await asyncio.to_thread(self._retrieve, query_bundle)


__all__ = ["SAESteerPostprocessor", "SAESteeredRetriever", "SteeredQuery"]
