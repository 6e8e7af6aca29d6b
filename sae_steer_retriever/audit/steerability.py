"""Which steerings would change most: the real search, before and after, for the most frequent features and families."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sae_steer_retriever.audit.subject import Subject
from sae_steer_retriever.errors import SAESteerError
from sae_steer_retriever.features.search import HUB_FROM
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.search.query_drift import query_drift
from sae_steer_retriever.steering.policy import Steering

STRENGTH = 0.5
_FEATURES, _FAMILIES, _QUERIES = 10, 5, 20
# Of fewer passages than this no top k can be filled.
_PASSAGES = 10


@dataclasses.dataclass(frozen=True)
class SteeringEffect:
    """What steering by +0.5 does to the top k, on average over queries.

    Attributes:
        name: Of the feature, or of the family.
        steer: What is written as `steer=`.
        passage_share: Share of the passages that have it.
        replaced: Share of the top k that is new.
        with_before: Share of the top k that has it, before.
        with_after: And after.
        drift: One minus the cosine between the query and the shifted query.
        score_lost: How much lower the mean plain score of the top k is.
    """

    name: str
    steer: dict[str, float]
    passage_share: float
    replaced: float
    with_before: float
    with_after: float
    drift: float
    score_lost: float

    @property
    def line(self) -> str:
        """To be copied into a call of `search`."""
        return f"steer={self.steer!r}"


@dataclasses.dataclass(frozen=True)
class Steerability:
    """What steerings would change.

    Attributes:
        queries: How many queries each was tried on.
        k: Hits of each.
        effects: The one that changes most first.
        silent: Names that were tried and could not be steered by, with the reason.
    """

    queries: int
    k: int
    effects: tuple[SteeringEffect, ...]
    silent: tuple[tuple[str, str], ...] = ()


def steerability(subject: Subject, retriever: SteeredRetriever) -> Steerability:
    """Search a sample of the queries with and without each steering.

    Args:
        subject: What is audited.
        retriever: Over its store.
    """
    queries = _sample(subject)
    tried = _tried(subject)
    plain = {query: _top(retriever, subject, query, None) for query in queries}
    effects, silent = [], []
    with _without_warnings():
        for name, written, features, share in tried:
            try:
                steering = retriever.resolve({written: STRENGTH})
            except SAESteerError as error:
                silent.append((name, str(error)))
                continue
            figures = [_change(retriever, subject, query, steering, features, plain[query]) for query in queries]
            effects.append(SteeringEffect(name, {written: STRENGTH}, share, *np.mean(figures, axis=0).tolist()))
    ordered = sorted(effects, key=lambda effect: (-effect.replaced, effect.name))
    return Steerability(len(queries), subject.k, tuple(ordered), tuple(silent))


def _sample(subject: Subject) -> list[int]:
    count = len(subject.queries)
    if count <= _QUERIES:
        return list(range(count))
    drawn: list[int] = np.sort(np.random.default_rng(subject.seed).choice(count, _QUERIES, replace=False)).tolist()
    return drawn


def _tried(subject: Subject) -> list[tuple[str, str, tuple[int, ...], float]]:
    """Names to show, names to steer by, their features, and the share of the passages that have them."""
    enough = subject.clear & (subject.count >= _PASSAGES) & (subject.frequency <= HUB_FROM)
    order = np.argsort(-np.where(enough, subject.frequency, 0), kind="stable")[:_FEATURES]
    found: list[tuple[str, str, tuple[int, ...], float]] = [
        (subject.catalog.name(row), _written(subject, row), (row,), float(subject.frequency[row]))
        for row in order.tolist()
        if enough[row]
    ]
    families = [
        (f"family: {family.name}", f"family:{family.id}", family.features, float(share))
        for family, share in zip(subject.catalog.families, subject.family_frequency, strict=True)
        if share * len(subject.store.coded) >= _PASSAGES
    ]
    return found + sorted(families, key=lambda family: -family[3])[:_FAMILIES]


def _written(subject: Subject, feature: int) -> str:
    """The label where it means this feature alone, else the id."""
    label = subject.catalog[feature].label
    try:
        alone = subject.catalog.resolve(label).features == (feature,)
    except SAESteerError:
        alone = False
    return label if alone else f"#{feature}"


def _top(
    retriever: SteeredRetriever, subject: Subject, query: int, steering: Steering | None
) -> tuple[list[str], float]:
    """Ids of the top k, and their mean plain score."""
    hits = retriever.search(
        subject.queries.texts[query],
        k=subject.k,
        steer={} if steering is None else steering,
        explain=False,
        embedding=subject.queries.vectors[query],
    )
    return [hit.id for hit in hits], float(np.mean([hit.base_score for hit in hits])) if hits else 0.0


def _change(
    retriever: SteeredRetriever,
    subject: Subject,
    query: int,
    steering: Steering,
    features: tuple[int, ...],
    before: tuple[list[str], float],
) -> tuple[float, float, float, float, float]:
    """Share replaced, share with the features before and after, drift, plain score lost."""
    ids, score = _top(retriever, subject, query, steering)
    code = Codes(*(part[query : query + 1] for part in subject.queries.codes))
    embedding = subject.queries.vectors[query]
    sae, calibration = subject.store.sae, subject.catalog.calibration
    drift = 1 - query_drift(steering, embedding, code, sae, calibration).cosine
    new = len(set(ids) - set(before[0])) / max(len(ids), 1)
    return new, _having(subject, before[0], features), _having(subject, ids, features), drift, before[1] - score


def _having(subject: Subject, ids: list[str], features: tuple[int, ...]) -> float:
    """The share of some passages that has any of some features among its names."""
    names = subject.store.codes(ids).truncate(subject.store.sae.config.k_labels)
    return float((np.isin(names.indices, features) & (names.values > 0)).any(axis=1).mean()) if ids else 0.0


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave out what a plan warns of, once for every query: drift is reported instead."""
    logger = logging.getLogger("sae_steer_retriever.steering.plan")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


__all__ = ["STRENGTH", "Steerability", "SteeringEffect", "steerability"]
