"""Why one passage ranks where it does: a hit that was found, or any passage of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.search.hits import Hit, hits_of
from sae_steer_retriever.search.passage_rank import Searching, locate, same_score

if TYPE_CHECKING:
    from sae_steer_retriever.store.chroma_store import ChromaStore


def explain_passage(
    searching: Searching,
    store: ChromaStore,
    query: str,
    hit: Hit | str,
    *,
    space: str,
    steered: bool,
    fetch_k: int | None = None,
) -> Explanation:
    """Look for a passage by a search, and explain its score.

    Args:
        searching: The query's search.
        store: What is searched.
        query: The question.
        hit: A hit, or a passage's id. An attribution that a hit has already is used as it is.
        space: Which space is searched.
        steered: Whether the search is steered.
        fetch_k: Candidates from each source, where the user says so.

    Raises:
        ValueError: The passage is not among the hits; or the hit has no attribution, and the search gives it another
            score.
    """
    given = hit if isinstance(hit, Hit) else None
    name = hit.id if isinstance(hit, Hit) else hit
    located = locate(searching, name, len(store), fetch_k)
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
    return Explanation(query, given, rank=rank, space=space, steered=steered)


__all__ = ["explain_passage"]
