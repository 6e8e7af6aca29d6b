"""Near-duplicates: exact copies of texts, groups by cosine, and the hits that they waste."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.audit.audited_queries import sample_rows
from sae_steer_retriever.audit.subject import Subject

COSINES = (0.98, 0.95)
_SHOWN, _IDS, _SHOWN_IDS = 10, 20, 5
# Most cosines that are computed: all pairs of 40,000 passages, or those of a sample with all passages.
_MOST_PAIRS = 1_600_000_000
# Cosines in memory at a time.
_TILE_COSINES = 50_000_000


@dataclasses.dataclass(frozen=True)
class DuplicateGroup:
    """Passages with the same or nearly the same text."""

    passages: int  # how many there are
    ids: tuple[str, ...]  # their first ids
    text: str  # the beginning of the first text

    @property
    def shown_ids(self) -> str:
        """The first ids, in words."""
        shown = ", ".join(self.ids[:_SHOWN_IDS])
        more = self.passages - min(len(self.ids), _SHOWN_IDS)
        return f"{shown} and {more:,} more" if more else shown


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Groups of one kind."""

    cosine: float | None  # the smallest cosine of near-duplicates; None for passages with the same text
    groups: int  # how many groups there are
    extra: int  # passages beyond the first of each group
    wasted: float  # share of the top-k places whose hit repeats one that ranks higher for the same query
    largest: tuple[DuplicateGroup, ...]  # the largest groups

    @property
    def criterion(self) -> str:
        """How its groups were found, in words."""
        return "the same text" if self.cosine is None else f"cosine ≥ {self.cosine:g}"


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Copies and near-duplicates among the passages."""

    passages: int  # how many passages there are
    compared: int  # how many were compared with all others: all, or a random sample
    levels: tuple[Duplicates, ...]  # the groups with the same text, then those of each cosine


def near_duplicates(subject: Subject) -> NearDuplicates:
    """Returns groups of passages by text and by cosine, and the hits that repeat a higher one.

    Texts are compared with white space collapsed. A group by cosine is a passage and all later passages in no group
    yet that are at least that near to it; passages with equal vectors are compared once. With more than 40,000
    passages a random sample is compared with all.
    """
    digests = _digests(subject)
    exact = [rows for rows in _alike(digests) if len(rows) > 1]
    repeated = [1 - len(set(row)) / len(row) for row in digests[subject.hits.rows].tolist()]
    compared, found = _by_cosine(subject)
    levels = [_level(subject, None, exact, float(np.mean(repeated)))]
    levels += [
        _level(subject, cosine, groups, _near_hits(subject, cosine))
        for cosine, groups in zip(COSINES, found, strict=True)
    ]
    return NearDuplicates(len(subject.store.ids), compared, tuple(levels))


def groups_by_cosine(
    vectors: NDArray[np.float32], among: NDArray[np.int64], cosines: Sequence[float]
) -> list[list[list[int]]]:
    """Returns for each cosine the groups of two or more rows, each group with its leader first.

    Args:
        vectors: (N, d) unit rows.
        among: Rows that may lead a group, ascending; a leader takes any of the N rows that are in no group.
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
    alike = _alike([hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in vectors])
    first = np.array([rows[0] for rows in alike])
    among = sample_rows(len(first), max(1, _MOST_PAIRS // max(len(first), 1)), subject.seed)
    found = []
    for groups in groups_by_cosine(vectors[first], among, COSINES):
        inside = {place for group in groups for place in group}
        whole = [[row for place in group for row in alike[place]] for group in groups]
        whole += [rows for place, rows in enumerate(alike) if len(rows) > 1 and place not in inside]
        found.append(whole)
    return len(among) if len(among) < len(first) else len(vectors), found


def _digests(subject: Subject) -> NDArray[np.object_]:
    """(N,) digests of the passages' texts with white space collapsed; passages without a text all differ."""
    row_of = subject.store.row_of
    digests = np.array([f"#{row}".encode() for row in range(len(row_of))], dtype=object)
    for ids, texts in subject.store.text_pages():
        for name, text in zip(ids, texts, strict=True):
            plain = " ".join(text.split())
            if plain and name in row_of:
                digests[row_of[name]] = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return digests


def _alike(keys: Iterable[object]) -> list[list[int]]:
    """Groups of rows with equal keys, in the order of their first rows."""
    rows_of: defaultdict[object, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key].append(row)
    return list(rows_of.values())


def _near_hits(subject: Subject, cosine: float) -> float:
    """Share of the hits that are near one that ranks higher."""
    lost = 0
    for rows in subject.hits.rows:
        vectors = subject.store.unit_vectors(rows)
        lost += int(np.tril(vectors @ vectors.T >= cosine, -1).any(axis=1).sum())
    return lost / subject.hits.rows.size


def _level(subject: Subject, cosine: float | None, groups: list[list[int]], wasted: float) -> Duplicates:
    largest = sorted(groups, key=lambda rows: (-len(rows), rows[0]))[:_SHOWN]
    excerpts = subject.excerpts([rows[0] for rows in largest])
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
