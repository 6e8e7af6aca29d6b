"""Families: groups of features that the same passages have, more often than by chance."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix

from sae_steer_retriever.features.feature import Family
from sae_steer_retriever.features.names import stem
from sae_steer_retriever.features.search import HUB_FROM
from sae_steer_retriever.labelling.gather_evidence import Evidence
from sae_steer_retriever.sae.codes import Array

# Groups join while the mean normalised PMI of their pairs is at least this; 0 is chance, 1 is always together.
_TOGETHER_FROM = 0.35
# Features with a lower cosine of their directions share passages by theme, not by concept.
_NEAR_FROM = 0.2
# Fewest passages of a feature, and fewest shared passages of a pair.
_PASSAGES_FROM, _SHARED_FROM = 10, 3
_LARGEST = 12
_NAME_WORDS = 3
# Pairs whose directions are compared at once.
_TILE = 16_384

_Rows = NDArray[np.int64]


def find_families(evidence: Evidence, directions: Array, keywords: Mapping[int, Sequence[str]]) -> tuple[Family, ...]:
    """Returns groups of 2 to 12 features that the same passages have, the most frequent group first.

    Agglomerative clustering with average linkage. The similarity of two features is their normalised pointwise mutual
    information over passages (Bouma, "Normalized (pointwise) mutual information in collocation extraction", 2009); it
    is 0 for pairs at or below chance and for directions that are far apart. Features without keywords, features of
    fewer than 10 passages and hubs are in no family. The result is deterministic.

    Args:
        evidence: Of all passages.
        directions: (n, d) the features' unit decoder rows.
        keywords: By feature id; the members' keywords name their family.
    """
    frequency = np.diff(evidence.feature_match.indptr)
    passages = evidence.feature_match.shape[1]
    eligible = np.zeros(len(frequency), dtype=bool)
    eligible[list(keywords)] = True
    eligible &= (frequency >= _PASSAGES_FROM) & (frequency <= HUB_FROM * passages)
    chosen = np.flatnonzero(eligible)
    similarity = _company(evidence.feature_match[chosen], directions[chosen])
    groups = [
        tuple(sorted(chosen[members].tolist(), key=lambda feature: (-frequency[feature], feature)))
        for members in average_linkage(similarity, _TOGETHER_FROM, _LARGEST)
    ]
    groups.sort(key=lambda group: (-sum(frequency[feature] for feature in group), group))
    names = _names([[keywords[feature] for feature in group] for group in groups])
    return tuple(Family(number, name, group) for number, (name, group) in enumerate(zip(names, groups, strict=True)))


def _company(feature_match: csr_matrix, directions: Array) -> csr_matrix:
    """(features, features) normalised PMI of the pairs above chance, each pair once above the diagonal."""
    has = feature_match.copy()
    has.data = np.ones(len(has.data), dtype=np.float32)
    count, passages = np.diff(has.indptr), has.shape[1]
    shared = coo_matrix(has @ has.T)
    pair = (shared.row < shared.col) & (shared.data >= _SHARED_FROM)
    one, other, together = shared.row[pair], shared.col[pair], shared.data[pair].astype(np.float64)
    expected = count[one].astype(np.float64) * count[other] / passages
    # For two features that all passages have, -log(p) is 0.
    found = np.log(together / expected) / np.maximum(-np.log(together / passages), np.finfo(np.float64).tiny)
    kept = (found > 0) & (_cosines(directions, one, other) >= _NEAR_FROM)
    return csr_matrix((np.minimum(found[kept], 1.0), (one[kept], other[kept])), shape=shared.shape)


def _cosines(directions: Array, one: NDArray[np.int32], other: NDArray[np.int32]) -> Array:
    found = np.empty(len(one), dtype=np.float32)
    for own in (slice(start, start + _TILE) for start in range(0, len(one), _TILE)):
        found[own] = np.einsum("pd,pd->p", directions[one[own]], directions[other[own]])
    return found


def average_linkage(similarity: csr_matrix, least: float, largest: int) -> list[NDArray[np.int64]]:
    """Returns groups of at least two by agglomerative clustering with average linkage, without an (n, n) matrix.

    All reciprocal nearest neighbours join at once; with average linkage this gives the same groups as joining the
    nearest two first (Murtagh, "A survey of recent advances in hierarchical clustering algorithms", 1983). Two groups
    that are too large together do not join.

    Args:
        similarity: (n, n) sparse, each pair once above the diagonal; pairs that are not stored have similarity 0.
        least: Groups join while the mean similarity of their pairs is at least this; above 0.
        largest: Most members.
    """
    count = similarity.shape[0]
    group, size = np.arange(count), np.ones(count, dtype=np.int64)
    pairs = coo_matrix(similarity)
    one, other, total = pairs.row.astype(np.int64), pairs.col.astype(np.int64), pairs.data.astype(np.float64)
    while True:
        mean = total / (size[one] * size[other])
        possible = (mean >= least) & (size[one] + size[other] <= largest)
        nearest = _nearest(one[possible], other[possible], mean[possible], len(size))
        joined = np.flatnonzero((nearest >= 0) & (nearest[nearest] == np.arange(len(size))))
        if not len(joined):
            break
        # Both groups of a pair take the lower number; then the numbers are made dense again.
        number = np.arange(len(size))
        number[joined] = np.minimum(joined, nearest[joined])
        _, number = np.unique(number, return_inverse=True)
        group, size = number[group], np.bincount(number, weights=size).astype(np.int64)
        one, other, total = _summed(number[one], number[other], total, len(size))
    members = [np.flatnonzero(group == found) for found in np.flatnonzero(size > 1)]
    return sorted(members, key=lambda rows: int(rows[0]))


def _nearest(one: _Rows, other: _Rows, value: NDArray[np.float64], count: int) -> _Rows:
    """(count,) the nearest neighbour of each, the lowest number of several; -1 where there is none."""
    own, whom, values = np.concatenate([one, other]), np.concatenate([other, one]), np.concatenate([value, value])
    order = np.lexsort((whom, -values, own))
    found, first = np.unique(own[order], return_index=True)
    nearest = np.full(count, -1, dtype=np.int64)
    nearest[found] = whom[order][first]
    return nearest


def _summed(
    one: _Rows, other: _Rows, total: NDArray[np.float64], count: int
) -> tuple[_Rows, _Rows, NDArray[np.float64]]:
    """The summed similarities between groups, each pair once, without pairs within a group."""
    apart = one != other
    low, high = np.minimum(one[apart], other[apart]), np.maximum(one[apart], other[apart])
    key, place = np.unique(low * count + high, return_inverse=True)
    return key // count, key % count, np.bincount(place, weights=total[apart], minlength=len(key)).astype(np.float64)


def _names(members: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    """One name for each family, all different: up to three words that most members share."""
    names: list[str] = []
    for keywords in members:
        words = _shared_words(keywords)
        # More words, and then a number, until the name is new.
        longer = (", ".join(words[:count]) for count in range(_NAME_WORDS, max(_NAME_WORDS, len(words)) + 1))
        numbered = (f"{', '.join(words)} ({number})" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain(longer, numbered) if name not in names))
    return names


def _shared_words(members: Sequence[Sequence[str]]) -> list[str]:
    """The members' words, those of most members first, then the first of their labels; no word that begins another."""
    weight: defaultdict[str, float] = defaultdict(float)
    sharing: defaultdict[str, int] = defaultdict(int)
    written: dict[str, str] = {}
    for keywords in members:
        ranks = {stem(word): rank for rank, word in reversed(list(enumerate(keywords)))}
        for key, rank in sorted(ranks.items(), key=lambda one: one[1]):
            written.setdefault(key, keywords[rank])
            weight[key] += 1 / (1 + rank)
            sharing[key] += 1
    chosen: list[str] = []
    for key in sorted(weight, key=lambda key: (-sharing[key], -weight[key], key)):
        if not any(key.startswith(stem(other)) or stem(other).startswith(key) for other in chosen):
            chosen.append(written[key])
    return chosen
