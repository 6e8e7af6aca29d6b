"""Held-out measurements of a fit: variance and ranking that reconstructions keep, and coherence of the features."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.labelling.coherence import corpus_mean, feature_coherence
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.directions import unit_rows
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.nearest_lists import nearest_documents

# Rows whose reconstructions are in memory at once.
_TILE = 32_768
# Smaller gains in overlap, FVU or coherence do not count as an improvement: two seeds differ by more.
IMPROVEMENT = 0.002


class HeldOut(NamedTuple):
    """Data that a fit is measured on."""

    rows: Array  # (M, d) rows that were not fitted
    queries: Array  # (Q, d) queries that were not fitted
    documents: Array  # (N, d) the passages to search
    nearest: NDArray[np.int64]  # (Q, 10) each query's nearest passages in the original space


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Held-out quality of an SAE, encoding as its config says: with a refinement or without.

    Attributes:
        fvu: Fraction of variance unexplained on rows that were not fitted.
        overlap: overlap@10: share of a query's ten nearest passages that are still among its ten nearest when query
            and passages are replaced by their reconstructions.
        coherence: Median over features of the mean pairwise centred cosine of their five strongest passages
            (`labelling.coherence`), in the label latents. About 0 means that the passages have nothing in common.
            Features with fewer than five passages do not count; None if no feature has five.
        dead: Share of latents that no passage activates.
        l0: Mean number of active latents per passage.
    """

    fvu: float
    overlap: float
    coherence: float | None
    dead: float
    l0: float


class Standstill(NamedTuple):
    """The best figures of a fit so far, and how many measurements in a row improved none of them.

    A figure is replaced once it improves by more than `IMPROVEMENT`, so that many small gains count in the end.
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
    """Held-out data with the original neighbours of its queries."""
    return HeldOut(rows, queries, documents, nearest_documents(queries, documents, 10))


def measure(sae: TopKSAE, held_out: HeldOut, variance: float) -> Measurement:
    """Quality of an SAE on held-out data; `variance` is E|x - mean|^2 over the corpus."""
    tiles = (held_out.rows[start : start + _TILE] for start in range(0, len(held_out.rows), _TILE))
    lost = np.float32(sum(((tile - sae.reconstruct(tile)) ** 2).sum() for tile in tiles))
    codes = sae.encode(held_out.documents)
    active = codes.values > 0
    documents_hat, queries_hat = sae.decode(codes), sae.reconstruct(held_out.queries)
    found = nearest_documents(unit_rows(queries_hat), unit_rows(documents_hat), 10)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(found, held_out.nearest, strict=True)]
    labels, documents = codes.truncate(sae.config.k_labels), held_out.documents
    coherence = feature_coherence(labels, sae.config.n, documents, corpus_mean(documents))
    return Measurement(
        fvu=float(lost / (len(held_out.rows) * variance)),
        overlap=float(np.mean(shared)) / held_out.nearest.shape[1],
        coherence=float(np.median(coherence)) if len(coherence) else None,
        dead=1.0 - len(np.unique(codes.indices[active])) / sae.config.n,
        l0=float(active.sum(axis=1).mean()),
    )
