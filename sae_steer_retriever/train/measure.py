"""Held-out measurements of a fit: variance and ranking that a reconstruction keeps, and whether features mean much."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.labelling.coherence import corpus_mean, feature_coherence
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.nearest_lists import nearest_documents

# Rows whose reconstructions are in memory at once.
_TILE = 32_768
# A smaller gain in overlap, FVU or coherence is no improvement: two seeds differ by more.
IMPROVEMENT = 0.002


class HeldOut(NamedTuple):
    """What a fit is measured on.

    Attributes:
        rows: (M, d) rows that were not fitted.
        queries: (Q, d) queries that were not fitted; their lists are searched among `documents`.
        documents: (N, d) the passages to search.
        nearest: (Q, 10) each query's nearest passages in the original space.
    """

    rows: Array
    queries: Array
    documents: Array
    nearest: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Held-out quality of an SAE, of its codes as its config has them: with a refinement or without.

    Attributes:
        fvu: Fraction of the variance unexplained, of rows that were not fitted.
        overlap: overlap@10: share of a query's ten nearest passages that are still among its ten nearest when query
            and passages are replaced by their reconstructions.
        coherence: Median over features of the mean pairwise centred cosine of their five strongest searched passages,
            in the label latents, of the features that have five: `interpret.coherence`. About 0 means that they have
            nothing in common. None if no feature has five.
        dead: Share of latents that no passage activates.
        l0: Mean number of active latents per passage.
    """

    fvu: float
    overlap: float
    coherence: float | None
    dead: float
    l0: float


class Standstill(NamedTuple):
    """The best figures of a fit so far, and for how long none of them has improved.

    A figure is replaced once it is bettered by more than `IMPROVEMENT`, so that many small gains count in the end.

    Attributes:
        overlap: As in `Measurement`; the highest.
        fvu: The lowest.
        coherence: The highest.
        measurements: How many in a row improved none of the three.
    """

    overlap: float = -math.inf
    fvu: float = math.inf
    coherence: float = -math.inf
    measurements: int = 0

    def after(self, found: Measurement) -> Standstill:
        """The state after one more measurement."""
        overlap = found.overlap if found.overlap > self.overlap + IMPROVEMENT else self.overlap
        fvu = found.fvu if found.fvu < self.fvu - IMPROVEMENT else self.fvu
        coherence = self.coherence
        if found.coherence is not None and found.coherence > coherence + IMPROVEMENT:
            coherence = found.coherence
        improved = (overlap, fvu, coherence) != self[:3]
        return Standstill(overlap, fvu, coherence, 0 if improved else self.measurements + 1)


def hold_out(rows: Array, queries: Array, documents: Array) -> HeldOut:
    """Prepare the measurements: the original neighbours of the held-out queries."""
    return HeldOut(rows, queries, documents, nearest_documents(queries, documents, 10))


def measure(sae: TopKSAE, held_out: HeldOut, variance: float) -> Measurement:
    """Measure an SAE.

    Args:
        sae: The SAE.
        held_out: From `hold_out`.
        variance: E|x - mean|^2 over the corpus.
    """
    fvu = float(_squared_error(sae, held_out.rows) / (len(held_out.rows) * variance))
    codes = sae.encode(held_out.documents)
    active = codes.values > 0
    used = np.unique(codes.indices[active])
    documents_hat = _unit(sae.decode(codes))
    queries_hat = _unit(sae.reconstruct(held_out.queries))
    found = nearest_documents(queries_hat, documents_hat, 10)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(found, held_out.nearest, strict=True)]
    return Measurement(
        fvu=fvu,
        overlap=float(np.mean(shared)) / held_out.nearest.shape[1],
        coherence=_coherence(codes.truncate(sae.config.k_labels), sae.config.n, held_out.documents),
        dead=1.0 - len(used) / sae.config.n,
        l0=float(active.sum(axis=1).mean()),
    )


def _coherence(names: Codes[NDArray[Any]], n: int, documents: Array) -> float | None:
    found = feature_coherence(names, n, documents, corpus_mean(documents))
    return float(np.median(found)) if len(found) else None


def _squared_error(sae: TopKSAE, rows: Array) -> np.float32:
    tiles = (rows[start : start + _TILE] for start in range(0, len(rows), _TILE))
    return np.float32(sum(((tile - sae.reconstruct(tile)) ** 2).sum() for tile in tiles))


def _unit(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
