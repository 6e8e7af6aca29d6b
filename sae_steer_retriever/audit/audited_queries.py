"""The questions of an audit: real ones of a file, or sentences of the passages that stand in for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

if TYPE_CHECKING:
    from sae_steer_retriever.audit.read_only_store import ReadOnlyStore

FEWEST_QUERIES = 5
"""Queries below which nothing can be said of how they differ."""

# Passages looked at for each sentence that is wanted: some have none.
_PER_SENTENCE = 3


@dataclasses.dataclass(frozen=True)
class AuditedQueries:
    """Questions as the encoder and the SAE read them.

    Attributes:
        origin: "file", or "sentences" of the passages.
        given: How many there were before a sample was drawn.
        texts: Q questions.
        vectors: (Q, d) unit embeddings.
        codes: (Q, K) their codes.
        sources: (Q,) the row of the passage that a sentence was taken from, which is left out of its hits; -1 if none.
    """

    origin: Literal["file", "sentences"]
    given: int
    texts: tuple[str, ...]
    vectors: Array
    codes: Codes[NDArray[Any]]
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of questions, Q."""
        return len(self.texts)


def queries_of_file(file: Path, sae: TopKSAE, embedder: Embedder, *, limit: int, seed: int = 0) -> AuditedQueries:
    """The questions of a file; a sample of them where there are more than `limit`.

    Args:
        file: One a line, or a .jsonl with `text` or `query`.
        sae: The SAE.
        embedder: Its encoder.
        limit: Most questions.
        seed: Of the sample.

    Raises:
        CorpusError: The file cannot be read as queries, or holds fewer than five.
    """
    from sae_steer_retriever.corpus.query_texts import read_queries

    found = read_queries(file)
    if len(found) < FEWEST_QUERIES:
        raise CorpusError(
            f"{file} holds {len(found)} queries: an audit needs at least {FEWEST_QUERIES}, of what people really ask. "
            "Leave --queries out to use sentences of the passages."
        )
    rows = _sample(len(found), limit, seed)
    return _read("file", len(found), [found[row] for row in rows], np.full(len(rows), -1), sae, embedder)


def sentences_of_passages(store: ReadOnlyStore, embedder: Embedder, *, limit: int, seed: int = 0) -> AuditedQueries:
    """Query-like sentences of passages drawn at random, one of each.

    Args:
        store: The passages.
        embedder: The SAE's encoder.
        limit: Most sentences.
        seed: Of the draws.

    Raises:
        CorpusError: The passages hold too few sentences.
    """
    from sae_steer_retriever.corpus.passage import Passage
    from sae_steer_retriever.corpus.query_texts import query_texts

    drawn = _sample(len(store.ids), _PER_SENTENCE * limit, seed)
    texts = store.texts([store.ids[row] for row in drawn])
    passages = [Passage(store.ids[row], texts.get(store.ids[row], "")) for row in drawn]
    found = query_texts(passages, limit, seed, per_passage=1)
    if len(found) < FEWEST_QUERIES:
        raise CorpusError(
            f"the passages of collection {store.documents.name!r} hold {len(found)} sentences that could stand in for "
            "queries: give a file of real ones with --queries, one a line."
        )
    sources = np.array([drawn[query.passage_index] for query in found])
    return _read("sentences", len(found), [query.text for query in found], sources, store.sae, embedder)


def _sample(count: int, limit: int, seed: int) -> list[int]:
    if count <= limit:
        return list(range(count))
    chosen: list[int] = np.sort(np.random.default_rng(seed).choice(count, limit, replace=False)).tolist()
    return chosen


def _read(
    origin: Literal["file", "sentences"],
    given: int,
    texts: Sequence[str],
    sources: NDArray[np.int64],
    sae: TopKSAE,
    embedder: Embedder,
) -> AuditedQueries:
    vectors = embedder.embed_queries(texts)
    return AuditedQueries(origin, given, tuple(texts), vectors, sae.encode(vectors), sources)


__all__ = ["FEWEST_QUERIES", "AuditedQueries", "queries_of_file", "sentences_of_passages"]
