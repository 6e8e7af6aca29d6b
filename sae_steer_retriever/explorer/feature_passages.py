"""A feature's passages in this collection: the histogram of their strengths, the strongest and some in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_steer_retriever.features.evidence import Example
from sae_steer_retriever.sae.topk_sae import FeatureDirections
from sae_steer_retriever.store.connection import translated
from sae_steer_retriever.store.documents import digest

if TYPE_CHECKING:
    from sae_steer_retriever.sae.codes import Array
    from sae_steer_retriever.store.store_reader import StoreReader

_BINS = 20
_TOP, _MIDDLE = 8, 6
# Passages that are read at once.
_PAGE = 2000


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


def feature_passages(store: StoreReader, feature: int, *, top: int = _TOP) -> FeaturePassages:
    """Returns the passages of a feature, with the `top` strongest ones; none without a sidecar.

    The sidecar's rows say which passages have the feature. Where a row is of an earlier embedding, the stored one is
    encoded. A passage is missing if it has no row, or if its embedding has changed and only the new one has the feature
    (`ChromaStore.attach` mends both). A passage's strength is the feature match of its stored embedding
    (`FeatureDirections`), which orders evidence, too.

    Raises:
        MismatchError: A stored vector is zero; the message names its passage.
        StoreError: The store does not answer.
    """
    with translated("reading the sidecar"):
        named = store.sidecar.having(feature)
    directions = FeatureDirections.of(store.sae)
    ids: list[str] = []
    parts = [np.empty(0, dtype=np.float32)]
    for start in range(0, len(named), _PAGE):
        page, vectors = store.vectors_of(named[start : start + _PAGE])
        has = _has_feature(store, feature, page, vectors)
        ids += [page[row] for row in has]
        parts.append(directions.match(vectors[has], [feature])[:, 0])
    strengths = np.concatenate(parts)
    order = np.argsort(-strengths, kind="stable")
    ids = [ids[row] for row in order]
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


def _has_feature(store: StoreReader, feature: int, ids: list[str], vectors: Array) -> list[int]:
    """Returns the places of passages that still have a feature which their sidecar rows name."""
    with translated("reading the sidecar"):
        rows = store.sidecar.rows(ids)
    sources = [rows[name].source if name in rows else "" for name in ids]
    has = np.array([source == digest(x) for source, x in zip(sources, vectors, strict=True)], dtype=bool)
    stale = np.nonzero(~has)[0]
    if len(stale):
        names = store.sae.encode(vectors[stale]).truncate(store.sae.config.k_labels)
        has[stale] = ((names.indices == feature) & (names.values > 0)).any(axis=1)
    return np.nonzero(has)[0].tolist()
