"""An audit of a RAG store: all its sections from one reading of the store, as one result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from sae_steer_retriever.audit.audited_queries import AuditedQueries
from sae_steer_retriever.audit.corpus_topics import CorpusTopics, corpus_topics
from sae_steer_retriever.audit.exposure import ExposureGaps, exposure_gaps
from sae_steer_retriever.audit.hubs import Hubs, hubs
from sae_steer_retriever.audit.near_duplicates import NearDuplicates, near_duplicates
from sae_steer_retriever.audit.query_gaps import QueryGaps, query_gaps
from sae_steer_retriever.audit.steerability import Steerability, steerability
from sae_steer_retriever.audit.subject import Subject
from sae_steer_retriever.audit.top_hits import top_hits
from sae_steer_retriever.audit.unexplained import UnexplainedRetrieval, unexplained_retrieval
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.retriever import SteeredRetriever

if TYPE_CHECKING:
    from sae_steer_retriever.audit.read_only_store import ReadOnlyStore
    from sae_steer_retriever.features.catalog import FeatureCatalog

Section = TypeVar("Section")
_HITS = 10
_STEPS = 7


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What was looked at of what there is.

    Attributes:
        collection: Name of the documents collection.
        passages: How many it has.
        coded: How many were read as codes.
        has_sidecar: Whether these were stored; else they were made of the vectors for the audit.
        queries: How many were asked.
        queries_given: How many there were.
        origin: Where they are from: "file" or "sentences".
        k: Hits of each that were looked at.
        seed: Of all that was drawn at random.
        encoder: That made the vectors.
        fingerprint: Of the SAE.
    """

    collection: str
    passages: int
    coded: int
    has_sidecar: bool
    queries: int
    queries_given: int
    origin: str
    k: int
    seed: int
    encoder: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Audit:
    """What is known of a store after an audit.

    Attributes:
        sampled: What was looked at.
        topics: What the corpus is about.
        gaps: What queries ask for, and what the corpus lacks.
        hubs: What is retrieved for everything.
        duplicates: What is there twice.
        unexplained: Retrieval that names do not explain.
        exposure: What is hardly ever retrieved, and what too often.
        steerability: What steering would change.
    """

    sampled: Sampled
    topics: CorpusTopics
    gaps: QueryGaps
    hubs: Hubs
    duplicates: NearDuplicates
    unexplained: UnexplainedRetrieval
    exposure: ExposureGaps
    steerability: Steerability

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
    """Look at a store through its features and some queries.

    Args:
        store: The passages and their codes; nothing is written to it.
        catalog: Names of the SAE's features.
        embedder: The SAE's encoder.
        queries: The questions.
        seed: Of what is drawn at random.
        progress: Whether to show progress bars on stderr.

    Raises:
        StoreError: The store does not answer.
    """
    hits = top_hits(queries.vectors, store.stored, min(_HITS, len(store.ids) - 1), queries.sources)
    subject = Subject(store, catalog, queries, hits, seed)
    retriever = SteeredRetriever(store, embedder, catalog)
    with tqdm(total=_STEPS, desc="auditing", unit="part", disable=None if progress else True) as bar:

        def done(part: Callable[[Subject], Section]) -> Section:
            found = part(subject)
            bar.update()
            return found

        return Audit(
            sampled=_sampled(subject),
            topics=done(corpus_topics),
            gaps=done(query_gaps),
            hubs=done(hubs),
            duplicates=done(near_duplicates),
            unexplained=done(unexplained_retrieval),
            exposure=done(exposure_gaps),
            steerability=done(lambda asked: steerability(asked, retriever)),
        )


def _sampled(subject: Subject) -> Sampled:
    store, queries = subject.store, subject.queries
    return Sampled(
        collection=store.documents.name,
        passages=len(store.ids),
        coded=len(store.coded),
        has_sidecar=store.has_sidecar,
        queries=len(queries),
        queries_given=queries.given,
        origin=queries.origin,
        k=subject.k,
        seed=subject.seed,
        encoder=store.sae.config.encoder.name,
        fingerprint=store.sae.fingerprint,
    )


__all__ = ["Audit", "Sampled", "audit"]
