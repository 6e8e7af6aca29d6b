"""LlamaIndex's queries, nodes and metadata filters, translated for the core retriever and back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.embeddings.base import mean_agg
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle, QueryType, TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilters
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.explain.attribution import Attribution
from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.integrations.explanation import EXPLANATION_KEY, NODE_KEY, explanation
from sae_steer_retriever.steering.operations import SteerLike
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.chroma_store import ChromaStore

logger = logging.getLogger(__name__)

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$contains",
}
_CONDITIONS = {FilterCondition.AND: "$and", FilterCondition.OR: "$or"}


@dataclasses.dataclass
class SteeredQuery(QueryBundle):
    """A query that carries its own steering through query engines and traces.

    Attributes:
        steer: See `SearchOptions`. None means "use the component's steering", {} means "no steering". Strengths survive
            `to_json` and `from_json`. Operations such as `Clamp` do not: they come back as dicts, which a retriever
            refuses.

    Example:
        >>> from sae_steer_retriever.integrations.llama_index import SAESteeredRetriever, SteeredQuery
        >>> nodes = SAESteeredRetriever(retriever).retrieve(SteeredQuery("wait for work", steer={"thread": 0.5}))
        >>> nodes[0].metadata["sae"]["steer"][0]["name"]
        'thread'
    """

    # QueryBundle's decoder would look for a dataclass in the union; JSON gives a plain dict.
    steer: SteerLike | Steering | None = dataclasses.field(
        default=None, metadata={"dataclasses_json": {"decoder": lambda body: body}}
    )


def steered(query: QueryType, steer: SteerLike | Steering | None) -> QueryType:
    """Returns a new query with a steering of its own; the query itself if `steer` is None.

    Raises:
        TypeError: The query is neither a text nor a `QueryBundle`.
    """
    if not isinstance(query, str | QueryBundle):
        raise TypeError(f"the query must be a str or a QueryBundle, got {type(query).__name__}.")
    if steer is None:
        return query
    bundle = QueryBundle(query) if isinstance(query, str) else query
    return SteeredQuery(
        bundle.query_str, bundle.image_path, bundle.custom_embedding_strs, bundle.embedding, steer=steer
    )


def steer_of(query: QueryBundle, default: SteerLike | Steering | None) -> SteerLike | Steering | None:
    """Returns the steering that a query carries, else the default."""
    own = query.steer if isinstance(query, SteeredQuery) else None
    return default if own is None else own


def embedding_of(query: QueryBundle, embedder: Embedder) -> list[float] | None:
    """Returns the query's embedding, else the mean embedding of its `custom_embedding_strs` (HyDE sets these)."""
    if query.embedding is not None:
        return query.embedding
    if query.custom_embedding_strs:
        return list(mean_agg(embedder.embed_queries(query.custom_embedding_strs).tolist()))
    return None


def add_nodes(store: ChromaStore, nodes: Sequence[BaseNode], embedder: Embedder) -> None:
    """Stores nodes as `ChromaVectorStore` does, so that LlamaIndex's own index can read the collection.

    A node is embedded with its metadata before its text, as everywhere in LlamaIndex. Nodes without text are left out;
    unchanged nodes are not embedded again. Their own `embedding` is not used: nothing says which encoder made it.

    Raises:
        ValueError: Two nodes have the same id.
    """
    kept = [node for node in nodes if node.get_content(MetadataMode.NONE).strip()]
    if len(kept) < len(nodes):
        logger.warning("%d of %d nodes have no text and are left out", len(nodes) - len(kept), len(nodes))
    store.add(
        [node.node_id for node in kept],
        [node.get_content(MetadataMode.NONE) for node in kept],
        [_storable(node_to_metadata_dict(node, remove_text=True)) for node in kept],
        embedder=embedder,
        embedded_as=[node.get_content(MetadataMode.EMBED) for node in kept],
    )


def node_of(hit: Hit) -> BaseNode:
    """Returns the node that was stored, as a new object; a plain `TextNode` if another tool wrote the passage."""
    if NODE_KEY in hit.metadata:
        return metadata_dict_to_node(hit.metadata, text=hit.text)
    return TextNode(id_=hit.id, text=hit.text, metadata=hit.metadata)


def explained(
    node: BaseNode,
    steering: Steering,
    unsteered_rank: int | None,
    unsteered_score: float,
    why: Attribution | None,
    **search: Any,
) -> BaseNode:
    """Returns a copy of a node with its `explanation` in the metadata, hidden from language models and encoders."""
    hidden = {
        name: list(dict.fromkeys([*getattr(node, name), EXPLANATION_KEY]))
        for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
    }
    details = explanation(steering, unsteered_rank, unsteered_score, why, **search)
    return node.model_copy(update={"metadata": {**node.metadata, EXPLANATION_KEY: details}, **hidden})


def _storable(metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the metadata that Chroma can store and filter by; the node's JSON holds the rest, too."""
    scalar = str | int | float | bool

    def storable(value: Any) -> bool:
        if isinstance(value, list):
            return len({type(item) for item in value}) == 1 and isinstance(value[0], scalar)
        return isinstance(value, scalar)

    return {key: value for key, value in metadata.items() if storable(value)}


def where_of(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """Returns LlamaIndex's metadata filters as Chroma's `where`.

    Raises:
        ValueError: Chroma has no such operator, condition or value.
    """
    if filters is None:
        return None
    parts: list[dict[str, Any]] = []
    for part in filters.filters:
        if isinstance(part, MetadataFilters):
            parts += filter(None, [where_of(part)])
            continue
        if part.operator not in _OPERATORS or part.value is None:
            known = ", ".join(operator.value for operator in _OPERATORS)
            raise ValueError(
                f"Chroma cannot filter {part.key!r} by {part.operator.value!r} with the value {part.value!r}: "
                f"expected one of {known} and a value."
            )
        parts.append({part.key: {_OPERATORS[part.operator]: part.value}})
    condition = filters.condition or FilterCondition.AND
    if condition not in _CONDITIONS:
        raise ValueError(f"Chroma cannot combine filters by {condition.value!r}: expected 'and' or 'or'.")
    if len(parts) < 2:
        return parts[0] if parts else None
    return {_CONDITIONS[condition]: parts}
