"""Nearest documents of each list query in the original space: the order that a reconstruction has to keep."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.sae.codes import Array

# Scores in memory at once: 2,048 x 32,768 of 4 bytes are 256 MiB. Selecting takes twice that per score, so it goes by
# fewer queries. A corpus of up to 32,768 documents is one tile.
_QUERIES, _DOCUMENTS, _SELECTED = 2048, 32_768, 256
# Scores nearer than this may swap places in a product that was computed in tiles of another shape.
_ROUNDING = 1e-6


class Ranking(NamedTuple):
    """Nearest documents by query: their rows, best first, and dot products with the query, (Q, size) each."""

    rows: NDArray[np.int64]
    scores: Array


def nearest_documents(queries: Vectors, documents: Vectors, size: int) -> NDArray[np.int64]:
    """(Q, size) rows of the (N, d) documents nearest to each of (Q, d) queries by dot product, best first."""
    return rank_documents(queries, documents, size).rows


def filtered_lists(ranking: Ranking, kept: NDArray[np.bool_], size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Filter a ranking of all documents by `kept`, an (N,) mask of them, and keep `size` documents per list.

    Returns:
        (Q, size) rows among the kept documents, best first, and a (Q,) mask of the lists that may be wrong: the ranking
        holds too few kept documents, or two of them have the same score.
    """
    kept_count = int(kept.sum())
    size = min(size, kept_count)
    # One more than `size`: the next document must not tie with the last.
    wanted = min(size + 1, kept_count)
    left = kept[ranking.rows]
    # The kept ones first, in their order.
    order = np.argsort(~left, axis=1, kind="stable")[:, :wanted]
    scores = np.take_along_axis(ranking.scores, order, axis=1)
    rows = np.take_along_axis(ranking.rows, order[:, :size], axis=1)
    tied = (scores[:, :-1] - scores[:, 1:] < _ROUNDING).any(axis=1)
    return (np.cumsum(kept) - 1)[rows], tied | (left.sum(axis=1) < wanted)


def rank_documents(queries: Vectors, documents: Vectors, size: int) -> Ranking:
    """`nearest_documents` with their scores, computed in tiles of queries and documents."""
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
    """The up to `size` largest scores of each row, and their places."""
    size = min(size, scores.shape[1])
    places = np.empty((len(scores), size), dtype=np.int64)
    for start in range(0, len(scores), _SELECTED):
        part = -scores[start : start + _SELECTED]
        top = np.argpartition(part, size - 1, axis=1)[:, :size]
        order = np.argsort(np.take_along_axis(part, top, axis=1), axis=1, kind="stable")
        places[start : start + _SELECTED] = np.take_along_axis(top, order, axis=1)
    return np.take_along_axis(scores, places, axis=1), places
