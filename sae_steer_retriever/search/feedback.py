"""Feedback: which hits of a query were liked, and which were not, as a steering that was tried on that query."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import SteeringError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.search.passage_rank import Searching
from sae_steer_retriever.steering.from_examples import Contrast, checked_texts, contrast
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH, Side
from sae_steer_retriever.steering.policy import Steering

# What is tried if the strength asked for does not help, in times of it.
_TRIED = (1.0, 0.5, 0.25, 2.0)
# Passages further down count as just below this.
_DEPTH = 1000


@dataclasses.dataclass(frozen=True)
class Feedback(Contrast):
    """A steering that was read off liked and disliked hits: pass it as `steer=`, print it to see why.

    Attributes:
        query: The question it was tried on; None if it was not tried.
        ranks_before: The liked passages' ranks without it, from 1, in the order given; past 1,000 they count as 1,001.
        ranks_after: Their ranks with it.
    """

    query: str | None = None
    ranks_before: tuple[int, ...] = ()
    ranks_after: tuple[int, ...] = ()

    def __str__(self) -> str:
        """A table of features and reasons, and what it did to the liked passages."""
        if self.query is None:
            return super().__str__()
        before, after = np.mean(self.ranks_before), np.mean(self.ranks_after)
        return f"{super().__str__()}\nmean rank of what was liked for {self.query!r}: {before:.1f} -> {after:.1f}"


def feedback(
    catalog: FeatureCatalog,
    liked: Codes[NDArray[Any]],
    disliked: Codes[NDArray[Any]] | None,
    *,
    strength: float,
    limit: int,
    side: Side | None,
) -> Feedback:
    """The contrast of liked and disliked passages; it was tried on no query.

    Args:
        catalog: Names and units of the features.
        liked: (passages, k_labels) label latents.
        disliked: The same of those that were shown and not liked; None if there are none.
        strength: What the strengths sum to over what the liked passages have on average.
        limit: At most so many features on each side.
        side: Which side the steering acts on.

    Raises:
        ValueError: A number is out of range.
        SteeringError: No feature tells the passages apart.
    """
    found = contrast(catalog, liked, disliked, strength=strength, limit=limit, side=side)
    return Feedback(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})


def tried_feedback(
    make: Callable[[float], Feedback],
    search: Callable[[Steering], Searching],
    query: str,
    ids: Sequence[str],
    strength: float,
) -> Feedback:
    """Feedback at a strength that lifts what was liked, by running the query: as asked, else smaller, else larger.

    Args:
        make: Feedback of some strength.
        search: The query's search under a steering.
        query: The question.
        ids: The liked passages.
        strength: What was asked for.

    Raises:
        SteeringError: No strength that was tried lifts them on average.
    """
    neutral = make(strength)
    before = _ranks(search(Steering((), neutral.fingerprint)), ids)
    # Where they are the first hits already, keeping them there is all that can be done.
    wanted = sum(before) - (sum(before) > sum(range(1, len(ids) + 1)))
    outcomes = []
    for factor in _TRIED:
        if strength * factor > LARGEST_STRENGTH:
            continue
        found = make(strength * factor)
        after = _ranks(search(found), ids)
        if sum(after) <= wanted:
            return dataclasses.replace(found, query=query, ranks_before=before, ranks_after=after)
        outcomes.append(f"{np.mean(after):.1f} at strength {strength * factor:g}")
    raise SteeringError(
        f"this feedback does not help {query!r}: without it the liked passages have the mean rank "
        f"{np.mean(before):.1f}, with it {', '.join(outcomes)}. Give more of them, or of one topic, "
        "or what was shown and not liked as negatives."
    )


def without_shared(
    liked: Codes[NDArray[Any]], disliked: Codes[NDArray[Any]] | None, query: Codes[NDArray[Any]] | None
) -> tuple[Codes[NDArray[Any]], Codes[NDArray[Any]] | None]:
    """Readings without the features that hits have because the query has them: they do not say what was liked.

    Those are features of the query that a liked passage has, and a disliked one too, if there are any.

    Args:
        liked: (passages, k_labels) label latents.
        disliked: The same of those that were shown and not liked; None if there are none.
        query: (1, k_labels) the query's label latents; None leaves all as it is.
    """
    if query is None:
        return liked, disliked
    shared = np.intersect1d(_active(query), _active(liked))
    if disliked is None:
        return _without(liked, shared), None
    shared = np.intersect1d(shared, _active(disliked))
    return _without(liked, shared), _without(disliked, shared)


def feedback_ids(positive: Sequence[str], negative: Sequence[str]) -> tuple[list[str], list[str]]:
    """The ids, each once.

    Raises:
        TypeError: Not lists of ids.
        ValueError: Nothing was liked, or something was and was not.
    """
    liked = list(dict.fromkeys(checked_texts(positive, "positive_ids")))
    disliked = list(dict.fromkeys(checked_texts(negative, "negative_ids")))
    if not liked:
        raise ValueError("positive_ids is empty: expected the id of at least one hit that was liked.")
    both = [name for name in liked if name in set(disliked)]
    if both:
        raise ValueError(f"{both[0]!r} is among positive_ids and negative_ids: expected it in one of them.")
    return liked, disliked


def _active(codes: Codes[NDArray[Any]]) -> NDArray[Any]:
    return np.unique(codes.indices[codes.values > 0])


def _without(codes: Codes[NDArray[Any]], features: NDArray[Any]) -> Codes[NDArray[Any]]:
    return Codes(codes.indices, np.where(np.isin(codes.indices, features), np.float32(0), codes.values))


def _ranks(searching: Searching, ids: Sequence[str]) -> tuple[int, ...]:
    found = {name: rank for rank, name in enumerate(searching.ranking(_DEPTH, _DEPTH).ids, start=1)}
    return tuple(found.get(name, _DEPTH + 1) for name in ids)


__all__ = ["Feedback", "feedback", "feedback_ids", "tried_feedback", "without_shared"]
