"""A feature in the collection that is explored: how strongly its passages have it, and the first and middle ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.features.evidence import Example
from sae_steer_retriever.sae.topk_sae import FeatureDirections

if TYPE_CHECKING:
    from sae_steer_retriever.store.chroma_store import ChromaStore

_BINS = 20
_TOP, _MIDDLE = 8, 6


class FeaturePassages(NamedTuple):
    """Passages of the collection that have a feature among their names.

    Attributes:
        total: How many.
        top: The strongest, strongest first.
        middle: Some from the middle of its range, strongest first.
        edges: (bins + 1,) of the histogram of strengths.
        counts: (bins,) passages in each bin.
    """

    total: int
    top: tuple[Example, ...]
    middle: tuple[Example, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The histogram and the examples, without texts."""
        return {"count": self.total, "edges": list(self.edges), "counts": list(self.counts)}


def feature_passages(store: ChromaStore, feature: int, *, top: int = _TOP) -> FeaturePassages:
    """Read a feature's inverted list.

    Strength is the match that evidence and names are ordered by (`FeatureDirections`), of the stored embeddings.

    Args:
        store: The collection.
        feature: The feature's id.
        top: How many of the strongest.

    Raises:
        StoreError: The store does not answer.
    """
    index = store.index
    rows, strengths = index.having(feature)
    vectors = index.vectors(rows).vectors if len(rows) else np.empty((0, 0), dtype=np.float32)
    if vectors.shape[1] and np.isfinite(vectors).all():
        strengths = FeatureDirections.of(store.sae).match(vectors, [feature])[:, 0]
    order = np.argsort(-strengths, kind="stable")
    ids = [index.ids[row] for row in rows[order]]
    ranked = strengths[order]
    half = len(ids) // 2
    middle = range(max(half - _MIDDLE // 2, top), min(half - _MIDDLE // 2 + _MIDDLE, len(ids)))
    counts, edges = _histogram(strengths)
    return FeaturePassages(
        len(ids),
        tuple(Example(ids[place], float(ranked[place])) for place in range(min(top, len(ids)))),
        tuple(Example(ids[place], float(ranked[place])) for place in middle),
        tuple(edges.tolist()),
        tuple(counts.tolist()),
    )


def _histogram(strengths: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if not len(strengths):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    counts, edges = np.histogram(
        strengths, bins=_BINS, range=(min(0.0, float(strengths.min())), float(strengths.max()))
    )
    return counts, edges


__all__ = ["FeaturePassages", "feature_passages"]
