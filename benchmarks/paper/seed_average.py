"""Averages over fits that differ only in the seed, and scores pooled over several sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.evaluate.fidelity import ORIGINAL, measure_fidelity
from sae_steer_retriever.evaluate.metrics import PerQuery, Quality, summarise
from sae_steer_retriever.evaluate.retrieval_set import RELEVANT, EmbeddedSet, RetrievalSet
from sae_steer_retriever.evaluate.table import Range
from sae_steer_retriever.sae.topk_sae import TopKSAE

JudgedSet = tuple[RetrievalSet, EmbeddedSet]
"""A retrieval set and its embeddings."""

IN_DOMAIN = "in domain"
OUT_OF_DOMAIN = "out of domain"


@dataclasses.dataclass(frozen=True)
class Scores:
    """One SAE on one set, query by query.

    Attributes:
        domain: "in domain" if the SAE was fitted to the set's documents, else "out of domain".
        dataset: Name of the set.
        mse: Mean squared error per dimension over the judged queries and their relevant documents.
        vectors: Number of these queries and documents.
        per_query: Way to search -> metric -> (Q,) values.
    """

    domain: str
    dataset: str
    mse: float
    vectors: int
    per_query: Mapping[str, PerQuery]


@dataclasses.dataclass(frozen=True)
class SeedAverage:
    """Several fits on one set.

    Attributes:
        domain: "in domain" or "out of domain".
        dataset: Name of the set.
        queries: Number of queries.
        mse: Mean over the fits.
        rows: Way to search -> its quality. Each query's values are averaged over the fits first, so the intervals are
            over queries.
        means: Way to search -> metric -> (fits,) mean of each fit, in the order of the seeds.
    """

    domain: str
    dataset: str
    queries: int
    mse: float
    rows: dict[str, Quality]
    means: dict[str, dict[str, NDArray[np.float64]]]

    def extremes(self, search: str, metric: str) -> Range | None:
        """Returns the lowest and highest retention of a single fit; None if there is only one."""
        kept = self.means[search][metric]
        base = self.rows[ORIGINAL].values[metric]
        if len(kept) < 2 or not base:
            return None
        return Range(float(kept.min() / base), float(kept.max() / base))

    def gained(self, other: SeedAverage, search: str, metric: str) -> Range | None:
        """Returns the lowest and highest difference between fits of the same seed; None if there is only one."""
        found = self.means[search][metric] - other.means[search][metric]
        return Range(float(found.min()), float(found.max())) if len(found) > 1 else None


def score_sets(sae: TopKSAE, sets: Sequence[JudgedSet]) -> list[Scores]:
    """Returns the scores of an SAE on each set, and on all queries out of domain if there are several such sets.

    Args:
        sae: The SAE.
        sets: First the set that it was fitted to, then others.
    """
    found = [_scores(sae, sets[0], IN_DOMAIN)]
    others = [_scores(sae, judged, OUT_OF_DOMAIN) for judged in sets[1:]]
    return found + others + ([pool(others)] if len(others) > 1 else [])


def pool(sets: Sequence[Scores]) -> Scores:
    """Returns the scores of one SAE on the queries of several sets; all queries weigh the same.

    Args:
        sets: At least one.
    """
    vectors = sum(found.vectors for found in sets)
    per_query = {
        search: {metric: np.concatenate([found.per_query[search][metric] for found in sets]) for metric in values}
        for search, values in sets[0].per_query.items()
    }
    return Scores(
        domain=sets[0].domain,
        dataset=" + ".join(found.dataset for found in sets),
        mse=sum(found.mse * found.vectors for found in sets) / vectors,
        vectors=vectors,
        per_query=per_query,
    )


def average_seeds(fits: Sequence[Scores]) -> SeedAverage:
    """Returns the average of fits that differ in their seeds.

    Args:
        fits: At least one, all on the same set.
    """
    original = fits[0].per_query[ORIGINAL]
    rows: dict[str, Quality] = {}
    means: dict[str, dict[str, NDArray[np.float64]]] = {}
    for search in fits[0].per_query:
        values = {metric: np.stack([fit.per_query[search][metric] for fit in fits]) for metric in original}
        averaged: PerQuery = {metric: found.mean(axis=0) for metric, found in values.items()}
        rows[search] = summarise(search, averaged, original)
        means[search] = {metric: found.mean(axis=1) for metric, found in values.items()}
    return SeedAverage(
        domain=fits[0].domain,
        dataset=fits[0].dataset,
        queries=len(next(iter(original.values()))),
        mse=float(np.mean([fit.mse for fit in fits])),
        rows=rows,
        means=means,
    )


def _scores(sae: TopKSAE, judged: JudgedSet, domain: str) -> Scores:
    retrieval_set, vectors = judged
    fidelity = measure_fidelity(sae, retrieval_set, vectors)
    relevant = {
        name for grades in retrieval_set.judgments.values() for name, grade in grades.items() if grade >= RELEVANT
    }
    return Scores(
        domain=domain,
        dataset=retrieval_set.name,
        mse=fidelity.mse,
        vectors=len(retrieval_set.queries) + len(relevant.intersection(retrieval_set.document_ids)),
        per_query={row.name: row.per_query for row in fidelity.rows},
    )
