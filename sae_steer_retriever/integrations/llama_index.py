"""The retriever and a re-ranker as LlamaIndex components: nodes in, nodes out, steering per call."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sae_steer_retriever.errors import MissingExtraError

try:
    importlib.import_module("llama_index.core")
except ModuleNotFoundError as error:
    # `llama_index` is a namespace of many distributions: it may be installed without its core.
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    raise MissingExtraError("the LlamaIndex adapter", "llama-index") from error

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores import MetadataFilters

from sae_steer_retriever.explain.hits import ReadOn
from sae_steer_retriever.integrations import llama_index_types as types
from sae_steer_retriever.integrations.llama_index_postprocessor import SAESteerPostprocessor
from sae_steer_retriever.integrations.llama_index_types import SteeredQuery
from sae_steer_retriever.integrations.sources import SAESource, adopt_store, open_store
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.options import LatentScore, SearchOptions, Space
from sae_steer_retriever.steering.operations import Side, SteerLike
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering

if TYPE_CHECKING:
    from llama_index.core import VectorStoreIndex


class SAESteeredRetriever(BaseRetriever):
    """Retrieves nodes from Chroma, steered by named features of a sparse autoencoder, with reasons.

    Steering comes from the call (`retrieve(q, steer={"employment": 0.5})`), else from a `SteeredQuery`, else from the
    constructor. None means "use the next of these", `{}` means "no steering". Without steering, ids, order and scores
    are those of the plain collection. `index.as_retriever(steer=...)` and `index.as_query_engine(steer=...)` ignore
    `steer`: give this retriever to `RetrieverQueryEngine.from_args` instead.

    `NodeWithScore.score` is a cosine plus the steering's terms; it is not comparable with `ChromaVectorStore`'s score,
    `exp(-distance)`. `node.metadata["sae"]` explains it, with the keys that the LangChain `SAESteeredRetriever`
    documents. It is hidden from the LLM and from encoders, and replaces a key of that name in the node's metadata.

    Args:
        retriever: The core retriever, which `SteeredRetriever.open` and the class methods make.
        similarity_top_k: How many nodes.
        steer: See `SearchOptions`, as for `where`, `space`, `latent_score`, `fetch_k`, `side`, `drift_cap` and
            `read_on`; names are resolved now.
        filters: LlamaIndex's metadata filters, instead of `where`: ==, !=, >, >=, <, <=, in, nin, contains, combined by
            and / or.
        explain: Whether the explanation contains the parts of the score.
        attach_explanation: Whether to add `metadata["sae"]`. Turn it off inside `QueryFusionRetriever`, which
            identifies nodes by a hash of text and metadata.
        callback_manager: LlamaIndex's callbacks.

    Raises:
        ValueError: Both `filters` and `where` are given, or Chroma has no such filter.
        SteeringError: A strength is unusable.
        UnknownFeatureError: A name means no feature.
        AmbiguousFeatureError: A name means unrelated features.

    Example:
        >>> from sae_steer_retriever.integrations.llama_index import SAESteeredRetriever
        >>> nodes = SAESteeredRetriever(retriever, similarity_top_k=2).retrieve("wait for work", steer={"thread": 0.5})
        >>> [node.metadata["sae"]["steer"][0]["name"] for node in nodes]
        ['thread', 'thread']
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
        latent_score: LatentScore = "match",
        fetch_k: int | None = None,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
        read_on: ReadOn = "reconstruction",
        explain: bool = True,
        attach_explanation: bool = True,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        if filters is not None and where is not None:
            raise ValueError("filters and where are both given: expected one of them.")
        retriever.resolve(steer, side=side, drift_cap=drift_cap)
        self.retriever = retriever
        self.similarity_top_k = similarity_top_k
        self.steer = dict(steer) if isinstance(steer, Mapping) else steer
        self._options = SearchOptions(
            space=space,
            latent_score=latent_score,
            where=types.where_of(filters) if where is None else dict(where),
            fetch_k=fetch_k,
            side=side,
            drift_cap=drift_cap,
            explain=explain and attach_explanation,
            read_on=read_on,
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
        """Returns `from_vector_store_index`, `from_nodes` or `open` of the arguments, whichever fits first.

        Raises:
            ValueError: No argument says what to retrieve from, or an index is given beside nodes or a folder.
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
        """Returns a retriever over nodes, indexed now. Repeating it embeds only new and changed nodes.

        Args:
            nodes: The nodes; as everywhere in LlamaIndex, they are embedded with their metadata before the text.
            embed_model: A LlamaIndex `BaseEmbedding`, or anything `as_embedder` takes; the SAE's own encoder if None
                (`Settings.embed_model` is ignored).
            sae: The SAE's folder, its hub id, the name of a bundled one, or a loaded SAE with its catalog. If None,
                the SAE that the collection was indexed with, else the bundled one for the encoder.
            persist_directory: Folder of the Chroma store. If None, the store is deleted with this retriever.
            collection_name: Name of the documents collection; `ChromaVectorStore` can read it.
            options: More arguments of the constructor.

        Raises:
            ArtifactError: The SAE is damaged, or none was given and none is bundled for the encoder.
            MismatchError: The encoder, the SAE and the collection do not belong together.
            ValueError: Two nodes have the same id; for the other errors see the constructor.
        """
        core = open_store(persist_directory, collection_name, sae, embed_model)
        made = cls(core, **options)
        types.add_nodes(core.store, nodes, core.embedder)
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
        """Returns a retriever over the collection of an index. Only its sidecar collection is written.

        Args:
            index: An index over a `ChromaVectorStore`.
            sae: See `from_nodes`.
            embed_model: The collection's encoder; the index's own embedding model if None.
            attach: Whether to update the sidecar first, from the stored vectors: no text is embedded. After inserting
                nodes into the index, call `.retriever.store.attach()` of the result.
            options: More arguments of the constructor.

        Raises:
            TypeError: The index is not over a `ChromaVectorStore`; for the other errors see `from_nodes`.
        """
        core = adopt_store(index.vector_store, sae, index._embed_model if embed_model is None else embed_model)
        made = cls(core, **options)
        if attach:
            core.store.attach()
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
        """Returns a retriever over a store that was indexed before, by this class or by `sae-steer index`.

        The arguments are those of `from_nodes`.

        Raises:
            StoreError: There is no such folder or collection; for the other errors see `from_nodes`.
        """
        return cls(open_store(persist_directory, collection_name, sae, embed_model, create=False), **options)

    def retrieve(
        self, str_or_query_bundle: QueryType, *, steer: SteerLike | Steering | None = None
    ) -> list[NodeWithScore]:
        """Returns the nodes that answer a query.

        Args:
            str_or_query_bundle: The question; never modified. Its `embedding` is used if it has one, else the mean
                embedding of its `custom_embedding_strs`, as everywhere in LlamaIndex.
            steer: The steering of this call; see `SearchOptions`.

        Raises:
            TypeError: The query is neither a text nor a `QueryBundle`.
            SteeringError: A strength is unusable.
            UnknownFeatureError: A name means no feature; nothing was embedded for the search.
            AmbiguousFeatureError: A name means unrelated features.
            StoreError: The store does not answer.
        """
        return super().retrieve(types.steered(str_or_query_bundle, steer))

    async def aretrieve(
        self, str_or_query_bundle: QueryType, *, steer: SteerLike | Steering | None = None
    ) -> list[NodeWithScore]:
        """Returns the result of `retrieve`, without blocking the event loop."""
        return await super().aretrieve(types.steered(str_or_query_bundle, steer))

    @property
    def search_options(self) -> SearchOptions:
        """The options of a call without arguments, as the core retriever takes them."""
        return dataclasses.replace(self._options, k=self.similarity_top_k, steer=self.steer)

    # LlamaIndex passes the argument by position in sync and by keyword in async calls: its name must stay.
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        core, own = self.retriever, self.search_options
        asked = types.steer_of(query_bundle, self.steer)
        steering = core.resolve(asked, side=own.side, drift_cap=own.drift_cap, space=own.space)
        options = dataclasses.replace(own, steer=steering, embedding=types.embedding_of(query_bundle, core.embedder))
        nodes = []
        hits = core.search(query_bundle.query_str, options=options)
        for hit in hits:
            node = types.node_of(hit)
            if self._attach_explanation:
                known = {"read_on": hit.read_on, "certified": hits.certified}
                node = types.explained(node, steering, hit.base_rank, hit.base_score, hit.attribution, **known)
            nodes.append(NodeWithScore(node=node, score=hit.score))
        return nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # Chroma's client and the encoder are synchronous.
        return await asyncio.to_thread(self._retrieve, query_bundle)


__all__ = ["SAESteerPostprocessor", "SAESteeredRetriever", "SteeredQuery"]
