"""The queries of an audit: real ones from a file, or sentences of the passages in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.audit.read_only_store import ReadOnlyStore
from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.query_texts import query_texts, read_queries
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

FEWEST_QUERIES = 5
"""With fewer queries their differences mean nothing."""

# Passages that are tried for each sentence: some have none.
_PER_SENTENCE = 3


@dataclasses.dataclass(frozen=True)
class AuditedQueries:
    """Queries with their embeddings and codes."""

    origin: Literal["file", "sentences"]  # "file", or "sentences" of the passages
    given: int  # how many queries there were before sampling
    texts: tuple[str, ...]  # Q queries
    vectors: Array  # (Q, d) unit embeddings
    codes: Codes[NDArray[Any]]  # (Q, K) their codes
    # (Q,) the row of the passage that a sentence is from, which is left out of its hits; -1 for none.
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of queries, Q."""
        return len(self.texts)


def queries_of_file(file: Path, sae: TopKSAE, embedder: Embedder, *, limit: int, seed: int = 0) -> AuditedQueries:
    """Returns the queries of a file, or a sample of `limit` of them.

    The file has one query a line or, as .jsonl, a `text` or `query` in each line.

    Raises:
        CorpusError: The file cannot be read as queries, or holds fewer than five.
    """
    found = read_queries(file)
    if len(found) < FEWEST_QUERIES:
        raise CorpusError(
            f"{file} holds {len(found)} queries, but an audit needs at least {FEWEST_QUERIES}. Add more, or leave "
            "--queries out to use sentences of the passages."
        )
    texts = [found[row] for row in sample_rows(len(found), limit, seed).tolist()]
    return _encoded("file", len(found), texts, np.full(len(texts), -1), sae, embedder)


def sentences_of_passages(store: ReadOnlyStore, embedder: Embedder, *, limit: int, seed: int = 0) -> AuditedQueries:
    """Returns at most `limit` query-like sentences of random passages, one of each.

    Raises:
        CorpusError: The passages hold too few sentences.
    """
    drawn = sample_rows(len(store.ids), _PER_SENTENCE * limit, seed)
    ids = [store.ids[row] for row in drawn]
    texts = store.texts(ids)
    found = query_texts([Passage(name, texts.get(name, "")) for name in ids], limit, seed, per_passage=1)
    if len(found) < FEWEST_QUERIES:
        raise CorpusError(
            f"the passages of collection {store.documents.name!r} hold only {len(found)} sentences that resemble "
            "queries: give a file of real queries with --queries, one a line."
        )
    sources = np.array([drawn[query.passage_index] for query in found])
    return _encoded("sentences", len(found), [query.text for query in found], sources, store.sae, embedder)


def sample_rows(count: int, limit: int, seed: int) -> NDArray[np.int64]:
    """(min(count, limit),) ascending rows of `count`: all, or a random sample."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _encoded(
    origin: Literal["file", "sentences"],
    given: int,
    texts: Sequence[str],
    sources: NDArray[np.int64],
    sae: TopKSAE,
    embedder: Embedder,
) -> AuditedQueries:
    vectors = embedder.embed_queries(texts)
    return AuditedQueries(origin, given, tuple(texts), vectors, sae.encode(vectors), sources)
