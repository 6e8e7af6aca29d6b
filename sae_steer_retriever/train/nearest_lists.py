"""Each list query's nearest documents in the original space: what a reconstruction has to keep in order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.sae.codes import Array

# Scores in memory at once: 2,048 x 32,768 of 4 bytes are 256 MiB, and selecting takes twice that per score, so it
# goes by fewer queries. A corpus of up to 32,768 documents is one tile.
_QUERIES, _DOCUMENTS, _SELECTED = 2048, 32_768, 256


# Scores that are nearer than this may stand in another order where a product was taken in tiles of another shape.
_ROUNDING = 1e-6


class Ranking(NamedTuple):
    """Documents by query.

    Attributes:
        rows: (Q, size) of the documents, best first.
        scores: (Q, size) their dot products with the query.
    """

    rows: NDArray[np.int64]
    scores: Array


class FilteredLists(NamedTuple):
    """Lists among some of the documents.

    Attributes:
        rows: (Q, size) rows among the documents that are left, best first.
        unsure: (Q,) mask of the lists that have to be searched for.
    """

    rows: NDArray[np.int64]
    unsure: NDArray[np.bool_]


def nearest_documents(queries: Vectors, documents: Vectors, size: int) -> NDArray[np.int64]:
    """(Q, size) rows of each query's nearest documents by dot product, best first, in tiles of both.

    Args:
        queries: (Q, d).
        documents: (N, d).
        size: Documents per list; fewer if there are fewer.
    """
    return rank_documents(queries, documents, size).rows


def filtered_lists(ranking: Ranking, kept: NDArray[np.bool_], size: int) -> FilteredLists:
    """What `nearest_documents` would find among some of the documents, from a deeper ranking of all of them.

    Unsure are lists of which the ranking has too few documents left, and those with documents that score the same.

    Args:
        ranking: Each query's nearest documents.
        kept: (N,) mask of the documents that are to be left.
        size: Documents per list; fewer if fewer are left.
    """
    size = min(size, int(kept.sum()))
    # The next one as well: it must not tie with the last.
    wanted = min(size + 1, int(kept.sum()), ranking.rows.shape[1])
    left = kept[ranking.rows]
    # Those that are left come first, in their order.
    order = np.argsort(~left, axis=1, kind="stable")[:, :wanted]
    scores = np.take_along_axis(ranking.scores, order, axis=1)
    tied = (scores[:, :-1] - scores[:, 1:] < _ROUNDING).any(axis=1)
    short = left.sum(axis=1) < min(size + 1, int(kept.sum()))
    number = np.cumsum(kept) - 1
    return FilteredLists(number[np.take_along_axis(ranking.rows, order[:, :size], axis=1)], tied | short)


def rank_documents(queries: Vectors, documents: Vectors, size: int) -> Ranking:
    """`nearest_documents`, with their scores."""
    size = min(size, len(documents))
    nearest = np.empty((len(queries), size), dtype=np.int64)
    best = np.empty((len(queries), size), dtype=np.float32)
    width = max(_DOCUMENTS, size)
    for first in range(0, len(documents), width):
        tile = documents[first : first + width]
        for start in range(0, len(queries), _QUERIES):
            own = slice(start, start + _QUERIES)
            scores, places = _strongest(queries[own] @ tile.T, size)
            if first:
                scores, places = np.hstack([best[own], scores]), np.hstack([nearest[own], places + first])
                # Stable: of two equals the earlier document comes first.
                order = np.argsort(-scores, axis=1, kind="stable")[:, :size]
                scores, places = np.take_along_axis(scores, order, axis=1), np.take_along_axis(places, order, axis=1)
            best[own], nearest[own] = scores, places
    return Ranking(nearest, best)


def _strongest(scores: Array, size: int) -> tuple[Array, NDArray[np.int64]]:
    """The up to `size` largest of each row, and their places."""
    size = min(size, scores.shape[1])
    places = np.empty((len(scores), size), dtype=np.int64)
    for start in range(0, len(scores), _SELECTED):
        part = -scores[start : start + _SELECTED]
        top = np.argpartition(part, size - 1, axis=1)[:, :size]
        order = np.argsort(np.take_along_axis(part, top, axis=1), axis=1, kind="stable")
        places[start : start + _SELECTED] = np.take_along_axis(top, order, axis=1)
    return np.take_along_axis(scores, places, axis=1), places
