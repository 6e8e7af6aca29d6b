"""Each list query's nearest documents in the original space: what a reconstruction has to keep in order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae import Array

_TILE = 2048


def nearest_documents(queries: Array, documents: Array, size: int) -> NDArray[np.int64]:
    """(Q, size) rows of each query's nearest documents by dot product, best first, in tiles of queries.

    Args:
        queries: (Q, d).
        documents: (N, d).
        size: Documents per list; fewer if there are fewer.
    """
    size = min(size, len(documents))
    nearest = np.empty((len(queries), size), dtype=np.int64)
    for start in range(0, len(queries), _TILE):
        scores = queries[start : start + _TILE] @ documents.T
        top = np.argpartition(-scores, size - 1, axis=1)[:, :size]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        nearest[start : start + _TILE] = np.take_along_axis(top, order, axis=1)
    return nearest
