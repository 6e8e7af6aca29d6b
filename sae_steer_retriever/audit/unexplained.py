"""Unexplained retrieval: queries that share no named feature with their best hits."""

from __future__ import annotations

import dataclasses

import numpy as np

from sae_steer_retriever.audit.subject import Excerpt, Subject, shortened
from sae_steer_retriever.explain.attribution import Attribution, Explainer

DEPTH = 5
"""How many hits of each query are examined."""

_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class UnexplainedQuery:
    """A query that shares no feature with a clear label with its best hits."""

    query: str
    named_share: float  # mean share of its best hits' scores that features with a clear label contribute
    unexplained_share: float  # mean share that the SAE does not reconstruct, by absolute size
    names: tuple[str, ...]  # the query's own features with a clear label
    best: Excerpt

    @property
    def about(self) -> str:
        """The names, in words."""
        return "; ".join(self.names) or "none with a clear label"


@dataclasses.dataclass(frozen=True)
class UnexplainedRetrieval:
    """How much of the retrieval named features explain."""

    queries: int
    depth: int  # how many hits of each were examined
    unexplained: int  # how many queries share no feature with a clear label with any of these hits
    named_share: float  # mean share of a hit's score that features with a clear label contribute
    unexplained_share: float  # mean share of a hit's score that the SAE does not reconstruct, by absolute size
    shared: float  # mean number of features with a clear label that a query shares with a hit
    worst: tuple[UnexplainedQuery, ...]  # the queries that share none, the smallest `named_share` first


def unexplained_retrieval(subject: Subject) -> UnexplainedRetrieval:
    """Decompose the scores of every query's best hits, as a search explains them, and compare features."""
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
    """Mean shares of named features and of the residual in the scores of a query's best hits."""
    code = subject.query_code(query)
    explainer = Explainer(subject.queries.vectors[query], code, subject.store.sae, subject.catalog.name)
    vectors, offsets = subject.store.stored
    rows = subject.hits.rows[query, :depth].tolist()
    found = [explainer.explain(vectors[row], offset=float(offsets[row])) for row in rows]
    named, rest = np.mean([(_named(part, subject), part.unexplained) for part in found], axis=0).tolist()
    return named, rest


def _named(attribution: Attribution, subject: Subject) -> float:
    """The share of features with a clear label in the parts of a score, by absolute size."""
    sizes = [abs(part.value) for part in attribution.features]
    whole = sum(sizes) + abs(attribution.bias) + abs(attribution.residual)
    named = sum(abs(part.value) for part in attribution.features if subject.clear[part.feature])
    return named / whole if whole else 0.0


def _names(subject: Subject, query: int) -> tuple[str, ...]:
    features = subject.queries.codes.truncate(subject.store.sae.config.k_labels)
    active = features.indices[query][features.values[query] > 0]
    return tuple(subject.catalog.name(feature) for feature in active.tolist() if subject.clear[feature])[:3]
