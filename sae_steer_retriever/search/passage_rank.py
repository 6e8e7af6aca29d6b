"""Where one passage stands in a search: so that what ranks low can be asked about, too."""

from __future__ import annotations

from typing import Protocol

from sae_steer_retriever.search.hits import Explain
from sae_steer_retriever.search.ranking import Ranking

# A passage that has so many others ahead of it is looked for no further.
_FIRST_DEPTH, _DEEPEST = 100, 10_000
# Scores of the same search, made twice, are no further apart.
_SAME_SCORE = 1e-5


class Searching(Protocol):
    """One query's search in one space: `EmbeddingSearch` or `LatentSearch`."""

    def ranking(self, k: int, fetch_k: int) -> Ranking:
        """The best `k`."""
        ...

    def explain(self, ranking: Ranking) -> Explain:
        """What decomposes the scores of a ranking."""
        ...


def locate(searching: Searching, name: str, passages: int, fetch_k: int | None) -> tuple[int, Ranking] | None:
    """A passage's rank in a search, from 1, and the ranking of it alone.

    Args:
        searching: The query's search.
        name: The passage's id.
        passages: How many are stored.
        fetch_k: Candidates from each source, where the user says so.

    Returns:
        None if it is not among the first 10,000 hits.
    """
    k = _FIRST_DEPTH
    while True:
        ranking = searching.ranking(k, max(4 * k if fetch_k is None else fetch_k, k))
        if name in ranking.ids:
            row = ranking.ids.index(name)
            own = slice(row, row + 1)
            alone = Ranking(
                ranking.ids[own],
                ranking.scores[own],
                ranking.base_scores[own],
                ranking.base_ranks[own],
                ranking.terms[own],
            )
            return row + 1, alone
        if len(ranking.ids) < k or k >= min(passages, _DEEPEST):
            return None
        k *= 10


def same_score(one: float, other: float) -> bool:
    """Whether two scores can be of the same search."""
    return abs(one - other) <= _SAME_SCORE


__all__ = ["Searching", "locate", "same_score"]
