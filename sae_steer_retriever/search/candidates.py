"""Candidates of a steered query: the neighbours of a few vectors, asked for in one call, with a bound on all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.search.probes import Probes
from sae_steer_retriever.search.ranking import Scored, Scorer, in_order
from sae_steer_retriever.store.documents import NeighbourLists

Ask = Callable[[NDArray[np.float64], int], NeighbourLists]
"""From (probes, d) vectors and a number to that many neighbours of each."""
# Further calls for a ranking that is not proved; each asks for this many times as many neighbours.
_FURTHER_CALLS = 2
_SPARE = 4 / 3
_WIDER = 4


class Candidates(NamedTuple):
    """The passages that the probes found, scored.

    Attributes:
        found: The passages, with their vectors.
        scored: Their scores, terms read on the vectors.
        order: Rows of the passages that are kept, best first.
        base_ranks: Id -> rank without steering, from 1, of those that the plain query found.
        bound: A score that no other passage exceeds, terms read on its vector.
    """

    found: NeighbourLists
    scored: Scored
    order: list[int]
    base_ranks: dict[str, int]
    bound: float

    def proves(self, depth: int) -> bool:
        """Returns whether the best `depth` candidates are the best of all passages."""
        if self.bound == -np.inf:
            return True
        return len(self.order) >= depth and bool(self.scored.scores[self.order[depth - 1]] >= self.bound)


class CandidateSearch:
    """Finds the candidates of one query under one plan.

    The store is asked for the neighbours of all probes in one call. While the best `k` are not proved to be the best of
    all passages, at most two further calls ask for more.
    """

    def __init__(self, ask: Ask, scorer: Scorer, probes: Probes) -> None:
        """Takes the parts.

        Args:
            ask: The nearest-neighbour search.
            scorer: Scores candidates on their vectors.
            probes: The vectors to ask for.
        """
        self._ask = ask
        self._scorer = scorer
        self._probes = probes
        vectors = probes.vectors
        # The plain query gives the ranks without steering. Mostly it is the first probe.
        self._asks_plainly = not np.allclose(vectors[0], scorer.query)
        self._vectors = np.vstack([vectors, scorer.query]) if self._asks_plainly else vectors

    def candidates(self, k: int, fetch_k: int, depth: int = 0) -> Candidates:
        """Returns the candidates.

        Args:
            k: How many of them are to be proved.
            fetch_k: Neighbours in all that the first call asks for.
            depth: How many of them are read again; the first call asks for a third more of each probe.
        """
        count = max(math.ceil(fetch_k / len(self._vectors)), k, math.ceil(_SPARE * depth), self._probes.fewest)
        # Large boosts move candidates far when they are read again.
        wanted = max(k, depth) if self._probes.strong else k
        found = self._scored(count)
        for _ in range(_FURTHER_CALLS):
            if found.proves(wanted) or not found.found.full or not self._probes.certifiable:
                break
            count *= _WIDER
            found = self._scored(count)
        return found

    def _scored(self, count: int) -> Candidates:
        found = self._ask(self._vectors, count)
        scored = self._scorer.score(found.vectors, found.offsets)
        plain = found.lists[-1] if self._asks_plainly else found.lists[0]
        ranks = {name: rank for rank, name in enumerate(plain, start=1)}
        bound = self._probes.bound(found.last[: len(self._probes.probes)])
        return Candidates(found, scored, in_order(found.ids, scored), ranks, bound)
