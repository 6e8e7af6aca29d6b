"""The embeddings of a retrieval set."""

from __future__ import annotations

from typing import NamedTuple

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.evaluate.retrieval_set import RetrievalSet
from sae_steer_retriever.sae.codes import Array


class EmbeddedSet(NamedTuple):
    """The unit vectors of a retrieval set, in its order.

    Attributes:
        documents: (N, d) float32.
        queries: (Q, d) float32.
    """

    documents: Array
    queries: Array


def embed_set(retrieval_set: RetrievalSet, embedder: Embedder) -> EmbeddedSet:
    """Embed the documents and queries of a retrieval set.

    Args:
        retrieval_set: N documents, Q queries.
        embedder: A `CachedEmbedder`, so that no later run has to embed a text again.

    Raises:
        MismatchError: The encoder gives vectors that are zero, not finite, or of another size than it says.
    """
    return EmbeddedSet(
        documents=embedder.embed_documents(retrieval_set.texts), queries=embedder.embed_queries(retrieval_set.queries)
    )
