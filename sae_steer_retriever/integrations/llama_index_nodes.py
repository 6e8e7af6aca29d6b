"""LlamaIndex nodes on their way into the store, hits on their way out as nodes, and filters for Chroma."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilters
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.integrations.explanation import EXPLANATION_KEY
from sae_steer_retriever.store.chroma_store import ChromaStore

logger = logging.getLogger(__name__)

# Where ChromaVectorStore, and `add_nodes`, keep the whole node as JSON.
_NODE_MARK = "_node_content"
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


def add_nodes(store: ChromaStore, nodes: Sequence[BaseNode], embedder: Embedder) -> None:
    """Write nodes as `ChromaVectorStore` does, so that LlamaIndex' own index can read the collection.

    Nodes are embedded with their metadata before the text, as everywhere in LlamaIndex; nodes without a text are left
    out. What is stored already and unchanged costs no embedding.

    Args:
        store: Where to.
        nodes: Unique by `node_id`. Their own `embedding` is not used: nothing says which encoder made it.
        embedder: The SAE's encoder.

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
    """A hit as a new node: the one that was stored, or a plain `TextNode` if another tool wrote the passage."""
    if _NODE_MARK in hit.metadata:
        return metadata_dict_to_node(hit.metadata, text=hit.text)
    return TextNode(id_=hit.id, text=hit.text, metadata=hit.metadata)


def explained(node: BaseNode, details: dict[str, Any]) -> BaseNode:
    """A copy of a node with an explanation that neither a language model nor an encoder gets to read."""
    hidden = {
        name: list(dict.fromkeys([*getattr(node, name), EXPLANATION_KEY]))
        for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
    }
    return node.model_copy(update={"metadata": {**node.metadata, EXPLANATION_KEY: details}, **hidden})


def where_of(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """LlamaIndex' metadata filters as Chroma's `where`.

    Raises:
        ValueError: Chroma has no such operator, condition or value.
    """
    if filters is None:
        return None
    parts = []
    for part in filters.filters:
        if isinstance(part, MetadataFilters):
            inner = where_of(part)
            if inner is not None:
                parts.append(inner)
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


def _storable(metadata: dict[str, Any]) -> dict[str, Any]:
    """What Chroma can store and filter by. The rest is not lost: the node's JSON holds it too."""
    return {key: value for key, value in metadata.items() if _is_scalar(value) or _is_list_of_one_type(value)}


def _is_scalar(value: Any) -> bool:  # noqa: ANN401 - user metadata
    return isinstance(value, str | int | float | bool)


def _is_list_of_one_type(value: Any) -> bool:  # noqa: ANN401 - user metadata
    return isinstance(value, list) and len({type(item) for item in value}) == 1 and _is_scalar(value[0])


__all__ = ["add_nodes", "explained", "node_of", "where_of"]
