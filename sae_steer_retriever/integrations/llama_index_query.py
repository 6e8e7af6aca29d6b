"""Queries on their way through LlamaIndex: with a steering of their own, and with embeddings they may bring."""

from __future__ import annotations

import dataclasses

from llama_index.core.base.embeddings.base import mean_agg
from llama_index.core.schema import QueryBundle, QueryType

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.steering.operations import SteerLike
from sae_steer_retriever.steering.policy import Steering


@dataclasses.dataclass
class SteeredQuery(QueryBundle):
    """A query that carries its steering, through query engines and traces: `engine.query(SteeredQuery(...))`.

    Attributes:
        steer: Feature id, label, keyword or text -> strength or operation. None means "as the component is set", {}
            means "not steered". Strengths survive `to_json` and `from_json`; operations such as `Clamp` are written,
            but read back as dicts that a retriever refuses.
    """

    # A plain dict is what JSON gives back: QueryBundle's decoder would look for a dataclass in the union.
    steer: SteerLike | Steering | None = dataclasses.field(
        default=None, metadata={"dataclasses_json": {"decoder": lambda body: body}}
    )


def steered(query: QueryType, steer: SteerLike | Steering | None) -> QueryType:
    """The query with a steering of its own, as a new object; the query itself if `steer` is None.

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
    """The steering a query brings, else the default."""
    own = query.steer if isinstance(query, SteeredQuery) else None
    return default if own is None else own


def embedding_of(query: QueryBundle, embedder: Embedder) -> list[float] | None:
    """The vector a query brings: its embedding, or the mean of its `custom_embedding_strs` (HyDE sets these)."""
    if query.embedding is not None:
        return query.embedding
    if query.custom_embedding_strs:
        return list(mean_agg(embedder.embed_queries(query.custom_embedding_strs).tolist()))
    return None


__all__ = ["SteeredQuery", "embedding_of", "steer_of", "steered"]
