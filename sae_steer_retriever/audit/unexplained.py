"""Unexplained retrieval: queries whose best hits share no named feature with them."""

from __future__ import annotations

import dataclasses

import numpy as np

from sae_steer_retriever.audit.subject import Excerpt, Subject, shortened
from sae_steer_retriever.explain.attribution import Attribution, Explainer
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.store.code_index import StoredVectors

DEPTH = 5
"""Hits of each query that are looked at."""

_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class UnexplainedQuery:
    """A query whose best hits share no clear feature with it.

    Attributes:
        query: Its text.
        named_share: Mean share of its best hits' scores from features with a clear label.
        unexplained_share: Mean share that the SAE does not reconstruct of the query, by size.
        names: What the query itself is about, by its clear features.
        best: Its best hit.
    """

    query: str
    named_share: float
    unexplained_share: float
    names: tuple[str, ...]
    best: Excerpt


@dataclasses.dataclass(frozen=True)
class UnexplainedRetrieval:
    """How much of retrieval can be put in names.

    Attributes:
        queries: Number of queries.
        depth: Hits of each that were looked at.
        unexplained: How many queries share no clear feature with any of these.
        named_share: Mean share of a hit's score from features with a clear label.
        unexplained_share: Mean share of a hit's score that the SAE does not reconstruct of the query, by size.
        shared: Mean number of clear features that a query shares with one of these hits.
        worst: Queries that share none, the least named first.
    """

    queries: int
    depth: int
    unexplained: int
    named_share: float
    unexplained_share: float
    shared: float
    worst: tuple[UnexplainedQuery, ...]


def unexplained_retrieval(subject: Subject) -> UnexplainedRetrieval:
    """Decompose the scores of every query's best hits as a search explains them, and compare names."""
    depth = min(DEPTH, subject.k)
    clear = np.nonzero(subject.clear)[0]
    queries = subject.query_names[:, clear]
    both = queries[np.repeat(np.arange(len(subject.queries)), subject.k)] * subject.hit_names[:, clear]
    shared = np.asarray(both.sum(axis=1)).reshape(len(subject.queries), subject.k)[:, :depth]
    shares = np.array([_shares(subject, query, depth) for query in range(len(subject.queries))])
    alone = np.nonzero(~shared.any(axis=1))[0]
    worst = alone[np.argsort(shares[alone, 0], kind="stable")][:_SHOWN]
    excerpts = subject.excerpts(subject.hits.rows[worst, 0].tolist())
    return UnexplainedRetrieval(
        queries=len(subject.queries),
        depth=depth,
        unexplained=len(alone),
        named_share=float(shares[:, 0].mean()),
        unexplained_share=float(shares[:, 1].mean()),
        shared=float(shared.mean()),
        worst=tuple(
            UnexplainedQuery(
                shortened(subject.queries.texts[row]),
                float(shares[row, 0]),
                float(shares[row, 1]),
                _names(subject, row),
                excerpt,
            )
            for row, excerpt in zip(worst.tolist(), excerpts, strict=True)
        ),
    )


def _shares(subject: Subject, query: int, depth: int) -> tuple[float, float]:
    """The mean shares of named features, and of what is not reconstructed, in the scores of a query's best hits."""
    codes = Codes(*(part[query : query + 1] for part in subject.queries.codes))
    explainer = Explainer(subject.queries.vectors[query], codes, subject.store.sae, subject.catalog.name)
    rows = subject.hits.rows[query, :depth]
    stored = StoredVectors(*(np.asarray(part[rows]) for part in subject.store.stored))
    found = [explainer.explain(x, offset=float(offset)) for x, offset in zip(*stored, strict=True)]
    return float(np.mean([_named(part, subject) for part in found])), float(
        np.mean([part.unexplained for part in found])
    )


def _named(attribution: Attribution, subject: Subject) -> float:
    """The share of all parts by size that features with a clear label have."""
    sizes = [abs(part.value) for part in attribution.features]
    whole = sum(sizes) + abs(attribution.bias) + abs(attribution.residual)
    named = sum(abs(part.value) for part in attribution.features if subject.clear[part.feature])
    return named / whole if whole else 0.0


def _names(subject: Subject, query: int) -> tuple[str, ...]:
    features = subject.queries.codes.truncate(subject.store.sae.config.k_labels)
    active = features.indices[query][features.values[query] > 0]
    return tuple(subject.catalog.name(feature) for feature in active.tolist() if subject.clear[feature])[:3]


__all__ = ["DEPTH", "UnexplainedQuery", "UnexplainedRetrieval", "unexplained_retrieval"]
