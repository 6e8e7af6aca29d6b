"""Near-duplicates: exact copies of texts, groups by cosine, and how many places among the hits they waste."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.audit.subject import Excerpt, Subject

COSINES = (0.98, 0.95)
_SHOWN, _IDS = 10, 20
# Cosines that are worked out at most: all pairs of 40,000 passages, or of a sample with all.
_MOST_PAIRS = 1_600_000_000
# And at a time.
_TILE_COSINES = 50_000_000


@dataclasses.dataclass(frozen=True)
class DuplicateGroup:
    """Passages that say the same.

    Attributes:
        passages: How many.
        ids: The first of them.
        text: The beginning of one of them.
    """

    passages: int
    ids: tuple[str, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Groups at one level.

    Attributes:
        cosine: From which passages are alike; None for the same text.
        groups: How many groups there are.
        extra: Passages beyond the first of each group.
        wasted: Share of the top-k places of hits that are alike one ranked higher for the same query.
        largest: The largest groups.
    """

    cosine: float | None
    groups: int
    extra: int
    wasted: float
    largest: tuple[DuplicateGroup, ...]


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Copies of passages.

    Attributes:
        passages: All passages.
        compared: How many of them were compared with all others: all, or a sample drawn at random.
        levels: The same text, then each cosine.
    """

    passages: int
    compared: int
    levels: tuple[Duplicates, ...]


def near_duplicates(subject: Subject) -> NearDuplicates:
    """Group passages by text and by cosine, and look for both among the hits of each query.

    Texts are the same if they are so with white space collapsed. A group by cosine is a passage and all later ones that
    are at least so near to it and in no group yet; passages with the same vector count once until groups are listed.
    Beyond 40,000 passages a sample is compared with all.
    """
    count = len(subject.store.ids)
    digest = _digests(subject)
    exact = [rows for rows in _alike(digest) if len(rows) > 1]
    compared, found = _by_cosine(subject)
    same = [digest[subject.hits.rows[:, place]] for place in range(subject.k)]
    wasted = [_repeated(np.stack(same, axis=1)), *(_near_hits(subject, cosine) for cosine in COSINES)]
    levels = zip((None, *COSINES), (exact, *found), wasted, strict=True)
    return NearDuplicates(
        count, compared, tuple(_level(subject, cosine, groups, lost) for cosine, groups, lost in levels)
    )


def groups_by_cosine(
    vectors: NDArray[np.float32], among: NDArray[np.int64], cosines: Sequence[float]
) -> list[list[list[int]]]:
    """For each cosine the groups of at least two rows, each with the first that leads it.

    Args:
        vectors: (N, d) unit rows.
        among: Rows that may lead, ascending; a leader takes rows of all N that are in no group.
        cosines: Smallest cosines with the leader.
    """
    free = np.ones((len(cosines), len(vectors)), dtype=bool)
    every = len(among) == len(vectors)
    groups: list[list[list[int]]] = [[] for _ in cosines]
    tile = max(1, _TILE_COSINES // max(len(vectors), 1))
    for start in range(0, len(among), tile):
        leaders = among[start : start + tile]
        first = int(leaders[0]) if every else 0
        products = vectors[leaders] @ vectors[first:].T
        products[np.arange(len(leaders)), leaders - first] = -1.0
        closest = products.max(axis=1)
        for level, cosine in enumerate(cosines):
            for place in np.nonzero(closest >= cosine)[0].tolist():
                leader = int(leaders[place])
                if not free[level, leader]:
                    continue
                members = first + np.nonzero((products[place] >= cosine) & free[level, first:])[0]
                if len(members):
                    free[level, leader] = free[level, members] = False
                    groups[level].append([leader, *members.tolist()])
    return groups


def _by_cosine(subject: Subject) -> tuple[int, list[list[list[int]]]]:
    vectors = subject.store.unit_vectors(np.arange(len(subject.store.ids)))
    alike = list(_alike(np.array([hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in vectors])))
    first = np.array([rows[0] for rows in alike])
    order = np.argsort(first, kind="stable")
    alike, first = [alike[place] for place in order.tolist()], first[order]
    distinct = vectors[first]
    most = max(1, _MOST_PAIRS // max(len(first), 1))
    among = np.arange(len(first))
    if len(first) > most:
        among = np.sort(np.random.default_rng(subject.seed).choice(len(first), most, replace=False))
    found = []
    for groups in groups_by_cosine(distinct, among, COSINES):
        inside = {place for group in groups for place in group}
        whole = [[row for place in group for row in alike[place]] for group in groups]
        whole += [rows for place, rows in enumerate(alike) if len(rows) > 1 and place not in inside]
        found.append(whole)
    return len(among) if len(among) < len(first) else len(vectors), found


def _digests(subject: Subject) -> NDArray[np.object_]:
    """(N,) digests of the passages' texts with white space collapsed; those without a text are all different."""
    row_of = {name: row for row, name in enumerate(subject.store.ids)}
    digests = np.array([f"#{row}".encode() for row in range(len(row_of))], dtype=object)
    for ids, texts in subject.store.text_pages():
        for name, text in zip(ids, texts, strict=True):
            plain = " ".join(text.split())
            if plain and name in row_of:
                digests[row_of[name]] = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return digests


def _alike(keys: Sequence[object] | NDArray[np.object_]) -> list[list[int]]:
    rows_of: defaultdict[object, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key].append(row)
    return list(rows_of.values())


def _repeated(keys: NDArray[np.object_]) -> float:
    """Share of the places of (Q, k) keys that an earlier place of the same row has, too."""
    return float(np.mean([1 - len(set(row)) / len(row) for row in keys.tolist()]))


def _near_hits(subject: Subject, cosine: float) -> float:
    """Share of the hits that are near one ranked higher."""
    lost = 0
    for rows in subject.hits.rows:
        vectors = subject.store.unit_vectors(rows)
        lost += int(np.tril(vectors @ vectors.T >= cosine, -1).any(axis=1).sum())
    return lost / subject.hits.rows.size


def _level(subject: Subject, cosine: float | None, groups: list[list[int]], wasted: float) -> Duplicates:
    largest = sorted(groups, key=lambda rows: (-len(rows), rows[0]))[:_SHOWN]
    excerpts: list[Excerpt] = subject.excerpts([rows[0] for rows in largest])
    return Duplicates(
        cosine=cosine,
        groups=len(groups),
        extra=sum(len(rows) - 1 for rows in groups),
        wasted=wasted,
        largest=tuple(
            DuplicateGroup(len(rows), tuple(subject.store.ids[row] for row in rows[:_IDS]), excerpt.text)
            for rows, excerpt in zip(largest, excerpts, strict=True)
        ),
    )


__all__ = ["COSINES", "DuplicateGroup", "Duplicates", "NearDuplicates", "groups_by_cosine", "near_duplicates"]
