"""Feedback: a steering from hits that were liked and hits that were not, tried on their query."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import SteeringError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.search.options import SearchOptions
from sae_steer_retriever.search.query import QuerySearch
from sae_steer_retriever.steering.from_examples import (
    Contrast,
    ContrastKeywords,
    checked_texts,
    contrast,
    labels_of_passages,
)
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.store_reader import StoreReader

# Multiples of the requested strength, in the order they are tried.
_TRIED = (1.0, 0.5, 0.25, 2.0)
# Passages further down count as one rank below this.
_DEPTH = 1000


@dataclasses.dataclass(frozen=True)
class Feedback(Contrast):
    """A steering made from liked and disliked hits: pass it as `steer=`, print it to see why.

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


def autosteer(
    queries: QuerySearch,
    store: StoreReader,
    catalog: FeatureCatalog,
    positive_ids: Sequence[str],
    negative_ids: Sequence[str],
    query: str | None,
    *,
    strength: float = 1.0,
    **options: Unpack[ContrastKeywords],
) -> Feedback:
    """Returns what `SteeredRetriever.autosteer` does.

    Raises:
        SteeringError: No feature tells the passages apart, or no strength helps `query`.
    """
    ids, others = _feedback_ids(positive_ids, negative_ids)
    liked = labels_of_passages(store, ids)
    disliked = labels_of_passages(store, others) if others else None

    def made(units: float) -> Feedback:
        found = contrast(catalog, liked, disliked, strength=units, **options)
        return Feedback(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})

    if query is None:
        return made(strength)
    encoded = queries.encode_query(query)
    liked, disliked = without_shared(liked, disliked, encoded.labels)

    def ranks(steering: Steering) -> tuple[int, ...]:
        ranking = queries.prepare(steering, encoded, SearchOptions()).ranking(_DEPTH, _DEPTH)
        found = {name: rank for rank, name in enumerate(ranking.ids, start=1)}
        return tuple(found.get(name, _DEPTH + 1) for name in ids)

    before = ranks(Steering((), made(strength).fingerprint))
    # Where the liked passages are the first hits already, keeping them there is all that can be done.
    wanted = sum(before) - (sum(before) > sum(range(1, len(ids) + 1)))
    outcomes = []
    for factor in _TRIED:
        if strength * factor > LARGEST_STRENGTH:
            continue
        found = made(strength * factor)
        after = ranks(found)
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
    """Returns label latents without the features that hits share with the query: they do not tell what was liked.

    A feature is shared if the query, a liked passage and, where there are any, a disliked passage have it.

    Args:
        liked: (passages, k_labels) label latents.
        disliked: (passages, k_labels) of the hits that were not liked; None if there are none.
        query: (1, k_labels) the query's label latents; None keeps all features.
    """
    if query is None:
        return liked, disliked
    shared = np.intersect1d(_active(query), _active(liked))
    if disliked is None:
        return _without(liked, shared), None
    shared = np.intersect1d(shared, _active(disliked))
    return _without(liked, shared), _without(disliked, shared)


def _feedback_ids(positive: Sequence[str], negative: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the ids, each once."""
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
