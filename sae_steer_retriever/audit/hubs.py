"""Hubs: passages and features that unrelated queries retrieve, by k-occurrence."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from sae_steer_retriever.audit.subject import Excerpt, NamedFeature, Subject
from sae_steer_retriever.features.search import HUB_FROM

_SHOWN = 10
# Probability that, by chance, the most retrieved of all passages is counted as a hub.
_CHANCE = 0.05
_LARGEST_COUNT = 5
# A feature is listed from this many standard errors above chance (thousands are tested) ...
_ERRORS = 4.0
# ... and from this share of the queries: a rare feature of one topic is not a hub.
_QUERY_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class HubPassage:
    """A passage among the hits of many queries."""

    passage: Excerpt
    occurrence: int  # its k-occurrence: how many queries have it among their top k
    likeness: float  # mean cosine between two of these queries; if it is near that of all queries, they are unrelated


@dataclasses.dataclass(frozen=True)
class HubFeature:
    """A feature among the hits of many queries."""

    feature: NamedFeature
    share: float  # share of the queries with a hit that has it
    expected: float  # the same share for hits drawn at random
    passage_share: float  # share of the passages that have it


@dataclasses.dataclass(frozen=True)
class Hubs:
    """How evenly the passages are retrieved."""

    k: int
    queries: int
    skewness: float  # skewness of k-occurrence over all passages
    expected_skewness: float  # the same for hits drawn at random
    never: float  # share of the passages that no query retrieves
    expected_never: float  # the same by chance
    largest: int  # the largest k-occurrence
    hub_from: int  # the smallest k-occurrence of a hub
    hubs: int  # how many passages are hubs
    hub_places: float  # share of all top-k places that hubs take
    likeness: float  # mean cosine between two queries
    passages: tuple[HubPassage, ...]  # the hubs with the largest k-occurrence
    features: tuple[HubFeature, ...]  # the features furthest above chance
    frequent: tuple[NamedFeature, ...]  # features that more than a tenth of the passages have
    counts: tuple[int, ...]  # passages with a k-occurrence of 0, 1, 2, 3, 4, and 5 or more
    expected_counts: tuple[float, ...]  # the same by chance


def hubs(subject: Subject) -> Hubs:
    """Returns how many queries have each passage, and each feature, among their top k.

    Hubness is the skewness of k-occurrence (Radovanovic, Nanopoulos & Ivanovic, JMLR 11, 2010). Without hubs every
    passage has the chance k / N at each of Q queries, so k-occurrence is binomial.
    """
    passages, queries, k = len(subject.store.ids), len(subject.queries), subject.k
    occurrence = np.bincount(subject.hits.rows.reshape(-1), minlength=passages)
    chance = k / passages
    # With probability .05 the largest of N binomials is at least this.
    hub_from = int(binom.isf(_CHANCE / passages, queries, chance)) + 1
    is_hub = occurrence >= hub_from
    ranked = [row for row in np.argsort(-occurrence, kind="stable")[:_SHOWN].tolist() if is_hub[row]]
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
        likeness=_likeness(subject, np.ones(queries, dtype=bool)),
        passages=tuple(
            HubPassage(excerpt, int(occurrence[row]), _likeness(subject, (subject.hits.rows == row).any(axis=1)))
            for row, excerpt in zip(ranked, subject.excerpts(ranked), strict=True)
        ),
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
    """The third standardised moment; 0 if all values are equal."""
    away = values - values.mean()
    spread = float(np.sqrt((away**2).mean()))
    return float((away**3).mean() / spread**3) if spread > 0 else 0.0


def _likeness(subject: Subject, chosen: NDArray[np.bool_]) -> float:
    """Mean cosine between two of the chosen queries."""
    vectors = subject.queries.vectors[chosen]
    count, total = len(vectors), vectors.sum(axis=0)
    return float((total @ total - count) / (count * (count - 1))) if count > 1 else 1.0


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
