"""The exact best hits of many queries at once, in tiles of passages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array

# Scores in memory at a time.
_TILE_SCORES = 8_000_000


class PassageVectors(NamedTuple):
    """Passages in score space: `vectors @ q + offsets` are their scores for a unit query `q`."""

    vectors: Array  # (N, d)
    offsets: Array  # (N,)


class TopHits(NamedTuple):
    """The best hits of Q queries, best first."""

    rows: NDArray[np.int64]  # (Q, k) rows of the passages
    scores: Array  # (Q, k) their unsteered scores


def top_hits(queries: Array, stored: PassageVectors, k: int, without: NDArray[np.int64] | None = None) -> TopHits:
    """Returns the `k` passages with the largest unsteered scores; ties are in the order of their rows.

    Args:
        queries: (Q, d) unit vectors.
        stored: N passages, in score space.
        k: How many; fewer than N.
        without: (Q,) a row that is left out of a query's hits, -1 for none.
    """
    vectors, offsets = stored
    count = len(queries)
    best = TopHits(np.zeros((count, 0), dtype=np.int64), np.zeros((count, 0), dtype=np.float32))
    tile = max(k, _TILE_SCORES // max(count, 1))
    for start in range(0, len(vectors), tile):
        own = np.asarray(vectors[start : start + tile])
        scores = queries @ own.T + offsets[start : start + tile]
        if without is not None:
            here = np.nonzero((without >= start) & (without < start + len(own)))[0]
            scores[here, without[here] - start] = -np.inf
        wanted = min(k, len(own))
        places = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
        rows = np.concatenate([best.rows, places + start], axis=1)
        found = np.concatenate([best.scores, np.take_along_axis(scores, places, axis=1)], axis=1)
        order = np.lexsort((rows, -found))[:, :k]
        best = TopHits(np.take_along_axis(rows, order, axis=1), np.take_along_axis(found, order, axis=1))
    return best
