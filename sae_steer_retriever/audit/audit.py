"""An audit of a RAG store: all sections, from one reading of the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from sae_steer_retriever.audit.audited_queries import AuditedQueries
from sae_steer_retriever.audit.corpus_topics import CorpusTopics, corpus_topics
from sae_steer_retriever.audit.exposure import ExposureGaps, exposure_gaps
from sae_steer_retriever.audit.hubs import Hubs, hubs
from sae_steer_retriever.audit.near_duplicates import NearDuplicates, near_duplicates
from sae_steer_retriever.audit.query_gaps import QueryGaps, query_gaps
from sae_steer_retriever.audit.read_only_store import ReadOnlyStore
from sae_steer_retriever.audit.steerability import Steerability, steerability
from sae_steer_retriever.audit.subject import Subject
from sae_steer_retriever.audit.top_hits import top_hits
from sae_steer_retriever.audit.unexplained import UnexplainedRetrieval, unexplained_retrieval
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever

_HITS = 10


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The store and the samples of an audit."""

    collection: str  # name of the documents collection
    passages: int  # how many passages it has
    coded: int  # how many of them have a known code
    has_sidecar: bool  # whether there is a sidecar collection of this SAE
    encoded: int  # how many of the coded passages the audit encoded: the sidecar has no current code of them
    queries: int  # how many queries were asked
    queries_given: int  # how many there were before sampling
    origin: str  # where the queries are from: "file" or "sentences"
    k: int  # hits of each query
    seed: int
    encoder: str  # the encoder of the vectors
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Audit:
    """The results of an audit."""

    sampled: Sampled  # the store and the samples
    topics: CorpusTopics  # what the corpus is about
    gaps: QueryGaps  # what queries ask for, and what the corpus lacks
    hubs: Hubs  # passages and features that unrelated queries retrieve
    duplicates: NearDuplicates  # copies and near-duplicates
    unexplained: UnexplainedRetrieval  # retrieval that named features do not explain
    exposure: ExposureGaps  # features that are rarer or more frequent among the hits than among the passages
    steerability: Steerability  # what steering would change

    def to_json(self) -> dict[str, Any]:
        """All figures, as one JSON object."""
        data = dataclasses.asdict(self)
        sampled = data["sampled"]
        sampled["has_companion"] = sampled.pop("has_sidecar")  # the key of the first release
        return data


def audit(
    store: ReadOnlyStore,
    catalog: FeatureCatalog,
    embedder: Embedder,
    queries: AuditedQueries,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    """Returns an audit of a store; nothing is written to it.

    Args:
        store: The passages and their codes.
        catalog: Names of the SAE's features.
        embedder: The SAE's encoder.
        queries: The queries to ask.
        seed: Seed of all samples.
        progress: Whether to show a progress bar on stderr.

    Raises:
        StoreError: The store does not answer.

    Example:
        >>> from sae_steer_retriever.audit.audited_queries import sentences_of_passages
        >>> from sae_steer_retriever.audit.read_only_store import ReadOnlyStore
        >>> from sae_steer_retriever.store.chroma_store import client_of
        >>> client, name = client_of(store.documents)
        >>> reader = ReadOnlyStore(client, name, sae)
        >>> found = audit(reader, catalog, embedder, sentences_of_passages(reader, embedder, limit=10))
        >>> found.sampled.queries
        10
    """
    hits = top_hits(queries.vectors, store.stored, min(_HITS, len(store.ids) - 1), queries.sources)
    subject = Subject(store, catalog, queries, hits, seed)
    retriever = SteeredRetriever(store, embedder, catalog)
    sampled = Sampled(
        collection=store.documents.name,
        passages=len(store.ids),
        coded=len(store.coded),
        has_sidecar=store.sidecar.exists,
        encoded=store.encoded,
        queries=len(queries),
        queries_given=queries.given,
        origin=queries.origin,
        k=subject.k,
        seed=subject.seed,
        encoder=store.sae.config.encoder.name,
        fingerprint=store.sae.fingerprint,
    )
    parts: dict[str, Callable[[Subject], Any]] = {
        "topics": corpus_topics,
        "gaps": query_gaps,
        "hubs": hubs,
        "duplicates": near_duplicates,
        "unexplained": unexplained_retrieval,
        "exposure": exposure_gaps,
        "steerability": lambda subject: steerability(subject, retriever),
    }
    bar = tqdm(parts.items(), desc="auditing", unit="part", disable=None if progress else True)
    return Audit(sampled, **{name: part(subject) for name, part in bar})
