"""The re-ranker as a LlamaIndex node postprocessor: steers the nodes of any retriever."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined] # their re-export
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from sae_steer_retriever.integrations.llama_index_types import embedding_of, explained, steer_of
from sae_steer_retriever.integrations.sources import SAESource, load_parts
from sae_steer_retriever.search.reranker import Reranker
from sae_steer_retriever.steering.operations import Side, SteerLike
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering
from sae_steer_retriever.store.store_reader import StoreReader

dispatcher = get_dispatcher(__name__)


class SAESteerPostprocessor(BaseNodePostprocessor):
    """Re-ranks the nodes of any retriever by similarity to the query plus the steering's terms.

    It needs no store. Given one, it embeds no node that the store holds. It only reorders the nodes that it is given,
    so the retriever should fetch more than are needed. The steering comes from a `SteeredQuery`, else from `steer`.
    Without steering, nodes keep their order and scores. Steered nodes are copies with a new score and, as from
    `SAESteeredRetriever`, `metadata["sae"]`; its `unsteered_rank` is the node's place in the input.

    Example:
        >>> from sae_steer_retriever.integrations.llama_index import SAESteeredRetriever, SAESteerPostprocessor
        >>> nodes = SAESteeredRetriever(retriever, 20).retrieve("wait for work")
        >>> steer = SAESteerPostprocessor.from_defaults(sae=(sae, catalog), embed_model=embedder, steer={"thread": 0.5})
        >>> len(steer.postprocess_nodes(nodes, query_str="wait for work"))
        20
    """

    model_config = ConfigDict(extra="forbid")

    reranker: Reranker = Field(exclude=True, repr=False, description="SAE, encoder and catalog.")
    top_n: int | None = Field(default=None, ge=1, description="How many nodes to return; all of them if None.")
    steer: dict[Any, Any] | Steering | None = Field(default=None, description="See SearchOptions.")
    side: Side | None = Field(default=None, description="See SearchOptions.")
    drift_cap: float = Field(default=DEFAULT_DRIFT_CAP, description="See SearchOptions.")
    reuse_embeddings: bool = Field(
        default=True,
        description="Whether to use the embeddings of query and nodes if their size fits. Turn it off if the "
        "retriever's embedding model is another one of the same size.",
    )
    attach_explanation: bool = Field(default=True, description="Whether to add metadata['sae'] to the nodes.")

    @classmethod
    def class_name(cls) -> str:
        """Returns the class's name in LlamaIndex's serialisation."""
        return "SAESteerPostprocessor"

    @classmethod
    def from_defaults(
        cls,
        *,
        sae: SAESource | None = None,
        embed_model: Any = None,
        steer: SteerLike | Steering | None = None,
        top_n: int | None = None,
        store: StoreReader | None = None,
        **options: Any,
    ) -> Self:
        """Returns a postprocessor with a loaded SAE.

        `sae` and `embed_model` are those of `SAESteeredRetriever.from_nodes`, `store` is one of the same SAE that holds
        the nodes under their ids (`retriever.store`), the others are the fields of this class.

        Raises:
            ArtifactError: The SAE is damaged, or none was given and none is bundled for the encoder.
            MismatchError: The encoder is not the SAE's.
            ValidationError: A field is out of range, or a strength is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        parts = load_parts(sae, embed_model)
        reranker = Reranker(parts.sae, parts.embedder, parts.catalog, store=store)
        own = dict(steer) if isinstance(steer, Mapping) else steer
        return cls(reranker=reranker, steer=own, top_n=top_n, **options)

    def model_post_init(self, context: Any, /) -> None:
        """Checks the steering."""
        super().model_post_init(context)
        self.reranker.resolve(self.steer, side=self.side, drift_cap=self.drift_cap)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("SAESteerPostprocessor re-ranks by the query: expected query_bundle or query_str.")
        if not nodes:
            return []
        top_n = len(nodes) if self.top_n is None else self.top_n
        model = self.reranker.embedder.spec.name
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            reranked = self._rerank(nodes, query_bundle)[:top_n]
            event.on_end(payload={EventPayload.NODES: reranked})
        dispatcher.event(ReRankEndEvent(nodes=reranked))
        return reranked

    def _rerank(self, nodes: list[NodeWithScore], query: QueryBundle) -> list[NodeWithScore]:
        reranker = self.reranker
        steering = reranker.resolve(steer_of(query, self.steer), side=self.side, drift_cap=self.drift_cap)
        ranking = None
        if steering.edits:
            own = dataclasses.replace(query, embedding=self._usable(query.embedding))
            ranking = reranker.rerank(
                query.query_str,
                [hit.node.get_content(MetadataMode.EMBED) for hit in nodes],
                steering,
                explain=self.attach_explanation,
                embedding=embedding_of(own, reranker.embedder),
                vectors=[self._usable(hit.node.embedding) for hit in nodes],
                ids=[hit.node.node_id for hit in nodes],
                stored_as=[hit.node.get_content(MetadataMode.NONE) for hit in nodes],
            )
        if ranking is None:
            return [NodeWithScore(node=hit.node, score=hit.score) for hit in nodes]
        reranked = []
        for place in ranking:
            node = nodes[place.position].node
            if self.attach_explanation:
                node = explained(node, steering, place.position + 1, place.base_score, place.attribution)
            reranked.append(NodeWithScore(node=node, score=place.score))
        return reranked

    def _usable(self, embedding: list[float] | None) -> list[float] | None:
        fits = embedding is not None and len(embedding) == self.reranker.sae.config.d
        return embedding if fits and self.reuse_embeddings else None
