"""Steerability: searches with and without a steering, for the most frequent features and families."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sae_steer_retriever.audit.audited_queries import sample_rows
from sae_steer_retriever.audit.subject import Subject
from sae_steer_retriever.errors import SAESteerError
from sae_steer_retriever.features.search import HUB_FROM
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.query_cosine import query_cosine
from sae_steer_retriever.steering.policy import Steering

STRENGTH = 0.5
_FEATURES, _FAMILIES, _QUERIES = 10, 5, 20
# Fewest passages with a feature: with fewer, it cannot fill a top k.
_PASSAGES = 10


@dataclasses.dataclass(frozen=True)
class SteeringEffect:
    """The effect of steering by +0.5 on the top k, averaged over queries."""

    name: str  # the name of the feature or family
    steer: dict[str, float]  # the value for `steer=`
    passage_share: float  # share of the passages that have it
    replaced: float  # share of the top k that is new
    with_before: float  # share of the unsteered top k that has it
    with_after: float  # share of the steered top k that has it
    drift: float  # one minus the cosine between the query and the shifted query
    score_lost: float  # fall of the mean unsteered score of the top k

    @property
    def line(self) -> str:
        """An argument for `search`, as Python code."""
        return f"steer={self.steer!r}"


@dataclasses.dataclass(frozen=True)
class Steerability:
    """The effects of steerings."""

    queries: int  # how many queries each steering was tried on
    k: int
    effects: tuple[SteeringEffect, ...]  # the effects, the largest change first
    silent: tuple[tuple[str, str], ...] = ()  # names that cannot be used for steering, with the reason


def steerability(subject: Subject, retriever: SteeredRetriever) -> Steerability:
    """Returns the mean effects of steerings on a sample of the queries."""
    queries = sample_rows(len(subject.queries), _QUERIES, subject.seed).tolist()
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


def _tried(subject: Subject) -> list[tuple[str, str, tuple[int, ...], float]]:
    """Display names, names for `steer=`, their features, and the share of the passages that have them."""
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
    """The label if it means this feature alone, else the id."""
    label = subject.catalog[feature].label
    try:
        alone = subject.catalog.resolve(label).features == (feature,)
    except SAESteerError:
        alone = False
    return label if alone else f"#{feature}"


def _top(
    retriever: SteeredRetriever, subject: Subject, query: int, steering: Steering | None
) -> tuple[list[str], float]:
    """Ids of the top k, and their mean unsteered score."""
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
    """Share replaced, shares with the features before and after, drift, score lost."""
    ids, score = _top(retriever, subject, query, steering)
    embedding, code = subject.queries.vectors[query], subject.query_code(query)
    drift = 1 - query_cosine(steering, embedding, code, subject.store.sae, subject.catalog.calibration).cosine
    new = len(set(ids) - set(before[0])) / max(len(ids), 1)
    return new, _having(subject, before[0], features), _having(subject, ids, features), drift, before[1] - score


def _having(subject: Subject, ids: list[str], features: tuple[int, ...]) -> float:
    """The share of some passages that have any of some features."""
    rows = np.array([subject.store.row_of[name] for name in ids if name in subject.store.row_of], dtype=np.int64)
    names = subject.store.codes_at(rows).truncate(subject.store.sae.config.k_labels)
    return float((np.isin(names.indices, features) & (names.values > 0)).any(axis=1).mean()) if len(rows) else 0.0


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences a plan's warnings, one for every query: the table reports drift instead."""
    logger = logging.getLogger("sae_steer_retriever.steering.plan")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
