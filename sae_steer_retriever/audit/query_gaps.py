"""What queries ask for: which features they activate, which of these the corpus lacks, and whose best hit is weak."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sae_steer_retriever.audit.subject import Excerpt, NamedFeature, Subject, shortened

SHOWN = 10
WEAK_BELOW = -2.0
"""Robust z-score of a query's best score from which it counts as weak."""

# A corpus lacks what at most so many passages have, or one in so many of them.
_LACKING, _LACKING_SHARE = 2, 5000
# One query's activation of a rare feature is chance; these many, and this share of the queries, are a need.
_ASKED, _ASKED_SHARE = 2, 0.005
# A query asks for what it matches at this share of the match of a passage that strongly has it, not for every name.
_MEANT = 0.6
# A robust z-score: the median absolute deviation of a normal distribution is .6745 standard deviations.
_NORMAL = 0.6745


@dataclasses.dataclass(frozen=True)
class Asked:
    """A feature that queries activate.

    Attributes:
        feature: Which one.
        queries: How many queries ask for it: they have it among their names, and match it clearly.
        query_share: Their share.
        passages: How many passages have it.
        passage_share: Their share.
        example: One of the queries.
    """

    feature: NamedFeature
    queries: int
    query_share: float
    passages: int
    passage_share: float
    example: str


@dataclasses.dataclass(frozen=True)
class WeakQuery:
    """A query whose best hit is weak beside those of the others.

    Attributes:
        query: Its text.
        score: Plain score of its best hit.
        deviation: Robust z-score of that among all queries.
        best: The hit.
    """

    query: str
    score: float
    deviation: float
    best: Excerpt


@dataclasses.dataclass(frozen=True)
class QueryGaps:
    """What queries ask for, and what the corpus lacks of it.

    Attributes:
        asked: The clear features that most queries activate.
        lacking: Clear features that queries activate and nearly no passage has.
        lacking_count: How many there are.
        lacking_from: A feature counts as lacking up to so many passages.
        asked_from: And from so many queries on.
        lacking_queries: Share of the queries that activate one of them.
        median_best: Median plain score of the best hits.
        weak: The weakest of the weak queries.
        weak_queries: How many there are.
    """

    asked: tuple[Asked, ...]
    lacking: tuple[Asked, ...]
    lacking_count: int
    lacking_from: int
    asked_from: int
    lacking_queries: float
    median_best: float
    weak: tuple[WeakQuery, ...]
    weak_queries: int


def query_gaps(subject: Subject) -> QueryGaps:
    """Compare the queries' names with the passages', and the queries' best scores with each other."""
    meant = _meant(subject)
    queries = np.asarray(meant.sum(axis=0), dtype=np.int64).reshape(-1)
    asked_from = max(_ASKED, int(np.ceil(_ASKED_SHARE * len(subject.queries))))
    lacking_from = max(_LACKING, len(subject.store.coded) // _LACKING_SHARE)
    lacking = subject.clear & (queries >= asked_from) & (subject.count <= lacking_from)
    order = np.argsort(-np.where(subject.clear, queries, 0), kind="stable")[:SHOWN]
    rare = sorted(np.nonzero(lacking)[0].tolist(), key=lambda feature: (-queries[feature], feature))
    touched = np.asarray(meant @ lacking.astype(np.int64)) > 0
    best = np.asarray(subject.hits.scores[:, 0], dtype=np.float64)
    deviation = deviations(best)
    weak = np.nonzero(deviation < WEAK_BELOW)[0]
    return QueryGaps(
        asked=tuple(_asked(subject, feature, meant) for feature in order.tolist() if queries[feature]),
        lacking=tuple(_asked(subject, feature, meant) for feature in rare[:SHOWN]),
        lacking_count=len(rare),
        lacking_from=lacking_from,
        asked_from=asked_from,
        lacking_queries=float(touched.mean()),
        median_best=float(np.median(best)),
        weak=_weak(subject, weak[np.argsort(deviation[weak], kind="stable")][:SHOWN], best, deviation),
        weak_queries=len(weak),
    )


def deviations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q,) robust z-scores, `.6745 (s - median) / MAD`; 0 where all scores are the same."""
    away = scores - np.median(scores)
    spread = float(np.median(np.abs(away)))
    return np.asarray(_NORMAL * away / spread if spread > 0 else np.zeros_like(away), dtype=np.float64)


def _meant(subject: Subject) -> csr_array:
    """(Q, n) ones where a query matches one of its names, `<d_f, q - b> / u_f`, clearly."""
    sae, names = subject.store.sae, subject.query_names.tocoo()
    centred = subject.queries.vectors[names.row] - sae.bias
    matches = np.einsum("ij,ij->i", centred, sae.decoder[names.col])
    clearly = matches >= _MEANT * subject.catalog.calibration.match_unit[names.col]
    return csr_array((names.data[clearly], (names.row[clearly], names.col[clearly])), shape=names.shape)


def _asked(subject: Subject, feature: int, meant: csr_array) -> Asked:
    own = meant[:, [feature]].nonzero()[0]
    return Asked(
        subject.named(feature),
        len(own),
        float(len(own) / len(subject.queries)),
        int(subject.count[feature]),
        float(subject.frequency[feature]),
        shortened(subject.queries.texts[int(own[0])]),
    )


def _weak(
    subject: Subject, rows: NDArray[np.int64], best: NDArray[np.float64], deviation: NDArray[np.float64]
) -> tuple[WeakQuery, ...]:
    excerpts = subject.excerpts(subject.hits.rows[rows, 0].tolist())
    return tuple(
        WeakQuery(shortened(subject.queries.texts[row]), float(best[row]), float(deviation[row]), excerpt)
        for row, excerpt in zip(rows.tolist(), excerpts, strict=True)
    )


__all__ = ["WEAK_BELOW", "Asked", "QueryGaps", "WeakQuery", "deviations", "query_gaps"]
