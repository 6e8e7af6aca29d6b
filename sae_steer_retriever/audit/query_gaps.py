"""Query gaps: the features that queries ask for, those that the corpus lacks, and queries with a weak best hit."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sae_steer_retriever.audit.subject import Excerpt, NamedFeature, Subject, shortened

SHOWN = 10
WEAK_BELOW = -2.0
"""A best hit is weak if the robust z-score of its score is below this."""

# The corpus lacks a feature if at most this many passages have it, or one in this many.
_LACKING, _LACKING_SHARE = 2, 5000
# A feature counts as asked for from this many queries and this share of them: a single one may be chance.
_ASKED, _ASKED_SHARE = 2, 0.005
# A query asks for a label latent that it matches at this share of the match of a passage that strongly has it.
_MEANT = 0.6
# The median absolute deviation of a normal distribution is .6745 standard deviations.
_NORMAL = 0.6745


@dataclasses.dataclass(frozen=True)
class Asked:
    """A feature that queries ask for."""

    feature: NamedFeature
    queries: int  # how many queries ask for it: it is one of their label latents, and they clearly match it
    query_share: float  # the share of these queries
    passages: int  # how many passages have it
    passage_share: float  # the share of these passages
    example: str  # one of the queries


@dataclasses.dataclass(frozen=True)
class WeakQuery:
    """A query with a best hit that is weak compared with those of the other queries."""

    query: str
    score: float  # unsteered score of its best hit
    deviation: float  # robust z-score of that score among all queries
    best: Excerpt


@dataclasses.dataclass(frozen=True)
class QueryGaps:
    """The features that queries ask for and those that the corpus lacks, and weak best hits."""

    asked: tuple[Asked, ...]  # the features with a clear label that most queries ask for
    lacking: tuple[Asked, ...]  # those that queries ask for and hardly any passage has
    lacking_count: int  # how many there are
    lacking_from: int  # most passages that may have a lacking feature
    asked_from: int  # fewest queries that ask for a lacking feature
    lacking_queries: float  # share of the queries that ask for one of them
    median_best: float  # median unsteered score of the best hits
    weak: tuple[WeakQuery, ...]  # the queries with the weakest best hits
    weak_queries: int  # how many queries have a weak best hit


def query_gaps(subject: Subject) -> QueryGaps:
    """Compare the queries' features with the passages', and the queries' best scores with each other."""
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
    shown = weak[np.argsort(deviation[weak], kind="stable")][:SHOWN]
    excerpts = subject.excerpts(subject.hits.rows[shown, 0].tolist())
    return QueryGaps(
        asked=tuple(_asked(subject, feature, meant) for feature in order.tolist() if queries[feature]),
        lacking=tuple(_asked(subject, feature, meant) for feature in rare[:SHOWN]),
        lacking_count=len(rare),
        lacking_from=lacking_from,
        asked_from=asked_from,
        lacking_queries=float(touched.mean()),
        median_best=float(np.median(best)),
        weak=tuple(
            WeakQuery(shortened(subject.queries.texts[row]), float(best[row]), float(deviation[row]), excerpt)
            for row, excerpt in zip(shown.tolist(), excerpts, strict=True)
        ),
        weak_queries=len(weak),
    )


def deviations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q,) robust z-scores, `.6745 (s - median) / MAD`; 0 if all scores are equal."""
    away = scores - np.median(scores)
    spread = float(np.median(np.abs(away)))
    return np.asarray(_NORMAL * away / spread if spread > 0 else np.zeros_like(away), dtype=np.float64)


def _meant(subject: Subject) -> csr_array:
    """(Q, n) ones where a query clearly matches one of its label latents, by `<d_f, q - b> / u_f`."""
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
