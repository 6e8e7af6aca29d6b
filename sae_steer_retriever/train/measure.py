"""Held-out measurements of a fit: how much variance and how much of the ranking a reconstruction keeps."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae import Array, TopKSAE
from sae_steer_retriever.train.lists import nearest_documents


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
    """Held-out quality of an SAE.

    Attributes:
        fvu: Fraction of the variance unexplained, of rows that were not fitted.
        overlap: overlap@10: share of a query's ten nearest passages that are still among its ten nearest when query
            and passages are replaced by their reconstructions.
        dead: Share of latents that no passage activates.
        l0: Mean number of active latents per passage.
    """

    fvu: float
    overlap: float
    dead: float
    l0: float


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
    rows_hat = sae.reconstruct(held_out.rows)
    fvu = float(((held_out.rows - rows_hat) ** 2).sum() / (len(held_out.rows) * variance))
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
        dead=1.0 - len(used) / sae.config.n,
        l0=float(active.sum(axis=1).mean()),
    )


def _unit(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
