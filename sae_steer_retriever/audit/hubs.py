"""Hubs: passages and features that are retrieved for everything, by k-occurrence over the queries."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from sae_steer_retriever.audit.subject import Excerpt, NamedFeature, Subject
from sae_steer_retriever.features.search import HUB_FROM

_SHOWN = 10
# A hub is retrieved more often than the most retrieved of all passages would be by chance, but for this probability.
_CHANCE = 0.05
_LARGEST_COUNT = 5
# Standard errors beyond chance from which a feature is listed: thousands are looked at.
_ERRORS = 4.0
# And share of the queries: a rare feature that comes with one topic is no hub.
_QUERY_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class HubPassage:
    """A passage that many queries find.

    Attributes:
        passage: Which one.
        occurrence: In the top k of how many queries it is.
        likeness: Mean cosine between any two of these queries: near that of all queries, it is found for everything.
    """

    passage: Excerpt
    occurrence: int
    likeness: float


@dataclasses.dataclass(frozen=True)
class HubFeature:
    """A feature that many top k hold.

    Attributes:
        feature: Which one.
        share: Share of the queries with a hit that has it.
        expected: The same, were hits drawn at random from the passages.
        passage_share: Share of the passages that have it.
    """

    feature: NamedFeature
    share: float
    expected: float
    passage_share: float


@dataclasses.dataclass(frozen=True)
class Hubs:
    """How evenly passages are retrieved.

    Attributes:
        k: Hits a query.
        queries: Number of queries.
        skewness: Of k-occurrence over all passages.
        expected_skewness: Were every query's hits drawn at random.
        never: Share of the passages that no query finds.
        expected_never: By chance.
        largest: The largest k-occurrence.
        hub_from: A passage is a hub from this k-occurrence on.
        hubs: How many are.
        hub_places: Share of all top-k places that they take.
        likeness: Mean cosine between any two queries.
        passages: The passages found most often, of the hubs.
        features: The features in most top k, beyond what chance gives.
        frequent: Features that more than a tenth of the passages have: they tell little.
        counts: Passages found 0, 1, 2, 3, 4 times and 5 times or more.
        expected_counts: By chance.
    """

    k: int
    queries: int
    skewness: float
    expected_skewness: float
    never: float
    expected_never: float
    largest: int
    hub_from: int
    hubs: int
    hub_places: float
    likeness: float
    passages: tuple[HubPassage, ...]
    features: tuple[HubFeature, ...]
    frequent: tuple[NamedFeature, ...]
    counts: tuple[int, ...]
    expected_counts: tuple[float, ...]


def hubs(subject: Subject) -> Hubs:
    """Count in how many top k each passage and each feature is.

    Hubness is the skewness of k-occurrence (Radovanovic, Nanopoulos & Ivanovic, JMLR 11, 2010). Without it every
    passage has the same chance k / N at each of Q queries, and k-occurrence is binomial.
    """
    passages, queries, k = len(subject.store.ids), len(subject.queries), subject.k
    occurrence = np.bincount(subject.hits.rows.reshape(-1), minlength=passages)
    chance = k / passages
    # The largest of N binomials is above this once in twenty times.
    hub_from = int(binom.isf(_CHANCE / passages, queries, chance)) + 1
    is_hub = occurrence >= hub_from
    ranked = np.argsort(-occurrence, kind="stable")[:_SHOWN]
    expected = binom.pmf(np.arange(_LARGEST_COUNT), queries, chance) * passages
    counts = np.bincount(np.minimum(occurrence, _LARGEST_COUNT), minlength=_LARGEST_COUNT + 1)
    return Hubs(
        k=k,
        queries=queries,
        skewness=skewness(occurrence),
        expected_skewness=float((1 - 2 * chance) / np.sqrt(queries * chance * (1 - chance))),
        never=float((occurrence == 0).mean()),
        expected_never=float((1 - chance) ** queries),
        largest=int(occurrence.max()),
        hub_from=hub_from,
        hubs=int(is_hub.sum()),
        hub_places=float(occurrence[is_hub].sum() / (queries * k)),
        likeness=_likeness(subject, np.arange(queries)),
        passages=_passages(subject, [row for row in ranked.tolist() if is_hub[row]], occurrence),
        features=_features(subject),
        frequent=tuple(
            subject.named(feature)
            for feature in np.argsort(-subject.frequency, kind="stable")[:_SHOWN].tolist()
            if subject.frequency[feature] > HUB_FROM
        ),
        counts=tuple(counts.tolist()),
        expected_counts=(*expected.tolist(), float(passages - expected.sum())),
    )


def skewness(values: NDArray[np.integer]) -> float:
    """The third standardised moment; 0 where all values are the same."""
    away = values - values.mean()
    spread = float(np.sqrt((away**2).mean()))
    return float((away**3).mean() / spread**3) if spread > 0 else 0.0


def _likeness(subject: Subject, rows: NDArray[np.int64]) -> float:
    """Mean cosine between any two of some queries."""
    if len(rows) < 2:
        return 1.0
    total = subject.queries.vectors[rows].sum(axis=0)
    return float((total @ total - len(rows)) / (len(rows) * (len(rows) - 1)))


def _passages(subject: Subject, rows: list[int], occurrence: NDArray[np.int64]) -> tuple[HubPassage, ...]:
    return tuple(
        HubPassage(
            excerpt,
            int(occurrence[row]),
            _likeness(subject, np.nonzero((subject.hits.rows == row).any(axis=1))[0]),
        )
        for row, excerpt in zip(rows, subject.excerpts(rows), strict=True)
    )


def _features(subject: Subject) -> tuple[HubFeature, ...]:
    queries = len(subject.queries)
    query_of = np.repeat(np.arange(queries), subject.k)
    places = subject.hit_names.tocoo()
    pairs = np.unique(query_of[places.row].astype(np.int64) * subject.n + places.col)
    share = np.bincount(pairs % subject.n, minlength=subject.n) / queries
    expected = 1 - (1 - np.minimum(subject.frequency, 1)) ** subject.k
    error = np.sqrt(expected * (1 - expected) / queries)
    often = subject.clear & (share >= _QUERY_SHARE) & (share > expected + _ERRORS * error)
    beyond = np.where(often, share - expected, 0)
    return tuple(
        HubFeature(subject.named(row), float(share[row]), float(expected[row]), float(subject.frequency[row]))
        for row in np.argsort(-beyond, kind="stable")[:_SHOWN].tolist()
        if beyond[row] > 0
    )


__all__ = ["HubFeature", "HubPassage", "Hubs", "hubs", "skewness"]
