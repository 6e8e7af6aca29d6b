"""A feature's passages in this collection: the histogram of their strengths, the strongest and some in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_steer_retriever.features.evidence import Example
from sae_steer_retriever.sae.topk_sae import FeatureDirections

if TYPE_CHECKING:
    from sae_steer_retriever.store.chroma_store import ChromaStore

_BINS = 20
_TOP, _MIDDLE = 8, 6


class FeaturePassages(NamedTuple):
    """Passages of the collection with a feature among their label latents."""

    total: int  # how many passages there are
    top: tuple[Example, ...]  # the strongest ones, strongest first
    middle: tuple[Example, ...]  # some from the middle of the ranking, strongest first
    edges: tuple[float, ...]  # (bins + 1,) edges of the histogram of strengths
    counts: tuple[int, ...]  # (bins,) passages in each bin

    def to_dict(self) -> dict[str, Any]:
        """The histogram."""
        return {"count": self.total, "edges": list(self.edges), "counts": list(self.counts)}


def feature_passages(store: ChromaStore, feature: int, *, top: int = _TOP) -> FeaturePassages:
    """Returns the passages of a feature, with the `top` strongest ones.

    A passage's strength is the feature match of its stored embedding (`FeatureDirections`), which orders evidence, too.

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
    counts, edges = np.zeros(0, dtype=np.int64), np.zeros(0)
    if len(strengths):
        low, high = min(0.0, float(strengths.min())), float(strengths.max())
        counts, edges = np.histogram(strengths, bins=_BINS, range=(low, high))
    return FeaturePassages(
        len(ids),
        tuple(Example(ids[place], float(ranked[place])) for place in range(min(top, len(ids)))),
        tuple(Example(ids[place], float(ranked[place])) for place in middle),
        tuple(edges.tolist()),
        tuple(counts.tolist()),
    )
