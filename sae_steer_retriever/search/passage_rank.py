"""The rank of one passage in a search, and the explanation of its score."""

from __future__ import annotations

from typing import Protocol

from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.search.options import DEFAULT_FETCH_K
from sae_steer_retriever.search.ranking import Explain, Ranking, hits_of
from sae_steer_retriever.store.store_reader import StoreReader

# The first and the last depth at which a passage is looked for. Searches of up to ten hits rank the same candidates;
# deeper ones read more of them on their reconstructions, and may rank them otherwise.
_FIRST_DEPTH, _DEEPEST = 10, 10_000
# Two runs of the same search give scores no further apart.
_SAME_SCORE = 1e-5


class Searching(Protocol):
    """One query's search in one space."""

    def ranking(self, k: int, fetch_k: int) -> Ranking:
        """Returns the best `k`."""
        ...

    def explain(self, ranking: Ranking) -> Explain:
        """Returns a function that decomposes the scores of a ranking."""
        ...


def locate(
    searching: Searching, name: str, passages: int, fetch_k: int | None, hits: int = _FIRST_DEPTH
) -> tuple[int, Ranking] | None:
    """Returns a passage's rank in a search, from 1, with the ranking of it alone; None beyond the 10,000th hit.

    Args:
        searching: The query's search.
        name: The passage's id.
        passages: The number of stored passages.
        fetch_k: Candidates in all, if the user set them.
        hits: The number of hits that the user asks for: among these the rank is the one in the search.
    """
    k = max(hits, _FIRST_DEPTH)
    while True:
        ranking = searching.ranking(k, max(DEFAULT_FETCH_K, 4 * k) if fetch_k is None else max(fetch_k, k))
        if name in ranking.ids:
            row = ranking.ids.index(name)
            return row + 1, ranking.only(row)
        if len(ranking.ids) < k or k >= min(passages, _DEEPEST):
            return None
        k = min(10 * k, _DEEPEST)


def same_score(one: float, other: float) -> bool:
    """Returns whether two scores can come from the same search."""
    return abs(one - other) <= _SAME_SCORE


def explain_passage(
    searching: Searching,
    store: StoreReader,
    query: str,
    hit: Hit | str,
    *,
    space: str,
    latent_score: str,
    steered: bool,
    fetch_k: int | None = None,
    k: int = _FIRST_DEPTH,
) -> Explanation:
    """Returns the explanation of a passage's score, found by the search.

    Args:
        searching: The query's search.
        store: The store that is searched.
        query: The question.
        hit: A hit, whose own attribution is used as it is, or a passage's id.
        space: The space that is searched.
        latent_score: The score of the latent space.
        steered: Whether the search is steered.
        fetch_k: Candidates in all, if the user set them.
        k: The number of hits that the user asks for.

    Raises:
        ValueError: The passage is not among the hits; or the hit has no attribution, and the search gives it another
            score.
    """
    given = hit if isinstance(hit, Hit) else None
    name = hit.id if isinstance(hit, Hit) else hit
    located = locate(searching, name, len(store), fetch_k, k)
    same = located is not None and (given is None or same_score(float(located[1].scores[0]), given.score))
    if given is not None and given.attribution is not None and not same:
        return Explanation(query, given, steered=bool(given.attribution.steering) or given.score != given.base_score)
    if located is None:
        if not store.existing([name]):
            raise ValueError(f"no passage {name!r} in collection {store.documents.name!r}.")
        raise ValueError(
            f"passage {name!r} is not among the hits of this query: it ranks too low, shares no feature with it, "
            "or a filter or a suppressed feature leaves it out."
        )
    rank, alone = located
    if given is not None and not same:
        raise ValueError(
            f"hit {name!r} has the score {given.score:.4f}, with these options it is {float(alone.scores[0]):.4f}: "
            "give explain the query, steer, side and space of the search that found it."
        )
    if given is None or given.attribution is None:
        (given,) = hits_of(alone, store.find([name]), searching.explain(alone))
    return Explanation(query, given, rank=rank, space=space, steered=steered, latent_score=latent_score)
