"""How much of the original ranking an SAE keeps, on a corpus without judgments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import kendalltau

from sae_steer_retriever.errors import CorpusError, MismatchError
from sae_steer_retriever.evaluate.bootstrap import Estimate, estimate
from sae_steer_retriever.evaluate.fidelity import (
    LATENT,
    LATENT_COSINE,
    LATENT_NORMALISED,
    MIXED,
    RECONSTRUCTED,
    decode_in_batches,
    encode_in_batches,
    unit,
)
from sae_steer_retriever.evaluate.held_out import PseudoQuery, held_out_queries
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.latent_index import compared

__all__ = ["Agreement", "PseudoQuery", "RankingAgreement", "held_out_queries", "measure_agreement"]

TOP = 10
"""Places whose overlap is measured."""

COMPARED = 100
"""Places of the original ranking whose order is compared."""

# Scores of a tile of queries against all passages, a few of which are alive at a time.
_TILE_BYTES = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class RankingAgreement:
    """One way to search against the original embeddings.

    Attributes:
        overlap: overlap@10: share of a query's ten nearest passages that are still among its ten nearest.
        rank_correlation: Kendall's tau-b between the original and the altered scores of a query's hundred nearest
            passages; 1 is the same order, 0 none in common. Where every altered score is the same it counts as 0.
    """

    overlap: Estimate
    rank_correlation: Estimate


@dataclasses.dataclass(frozen=True)
class Agreement:
    """An SAE on a corpus without judgments; means over queries.

    Attributes:
        documents: How many passages.
        queries: How many queries.
        rows: Way to search -> its agreement with the original ranking; names as in the judged mode.
    """

    documents: int
    queries: int
    rows: dict[str, RankingAgreement]

    def to_json(self) -> dict[str, Any]:
        """One object of plain numbers and texts."""
        return dataclasses.asdict(self)


def measure_agreement(
    sae: TopKSAE, passages_vectors: Array, query_vectors: Array, *, latent: bool = False
) -> Agreement:
    """Compare altered rankings with the original one, query by query.

    `reconstructed` searches reconstructions with reconstructions, `original_x_reconstructed` with the original
    query, both by cosine; `latent` is the dot product of the codes, `latent_cosine` their cosine and `latent_damped`
    the cosine of power-normalised codes, what `space="latent"` ranks by. A query that was taken from a passage finds
    that passage in every way to search: read the figures as those of easy queries.

    Args:
        sae: The SAE.
        passages_vectors: (N, d) unit vectors.
        query_vectors: (Q, d) unit vectors.
        latent: Whether to measure the three latent rows as well; they take several times as long.

    Raises:
        CorpusError: There are fewer than two passages, or no query.
        MismatchError: The vectors are not of the SAE's size.
    """
    if len(passages_vectors) < 2 or not len(query_vectors):
        raise CorpusError(
            f"{len(passages_vectors)} passage(s) and {len(query_vectors)} queries: comparing rankings takes at least "
            "two passages and one query; give a larger corpus"
        )
    for what, vectors in (("passages", passages_vectors), ("queries", query_vectors)):
        if vectors.ndim != 2 or vectors.shape[1] != sae.config.d:
            raise MismatchError(f"{what} of shape {vectors.shape}: expected ({len(vectors)}, {sae.config.d}).")
    altered = _AlteredScores(sae, passages_vectors, query_vectors, latent=latent)
    names = (LATENT, LATENT_COSINE, LATENT_NORMALISED, RECONSTRUCTED, MIXED) if latent else (RECONSTRUCTED, MIXED)
    overlaps: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    correlations: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for tile in _tiles(len(query_vectors), len(passages_vectors)):
        original = query_vectors[tile] @ passages_vectors.T
        nearest = _largest(original, COMPARED)
        kept = np.take_along_axis(original, nearest, axis=1)
        for name, scores in altered.of(tile):
            overlaps[name].append(_overlap(nearest[:, :TOP], _largest(scores, TOP)))
            correlations[name].append(_rank_correlation(kept, np.take_along_axis(scores, nearest, axis=1)))
    rows = {
        name: RankingAgreement(estimate(np.concatenate(overlaps[name])), estimate(np.concatenate(correlations[name])))
        for name in names
    }
    return Agreement(documents=len(passages_vectors), queries=len(query_vectors), rows=rows)


class _AlteredScores:
    """The scores of every passage in the ways to search that read codes."""

    def __init__(self, sae: TopKSAE, documents: Array, queries: Array, *, latent: bool) -> None:
        codes, query_codes = encode_in_batches(sae, documents), encode_in_batches(sae, queries)
        self._queries = queries
        self._documents_hat = unit(decode_in_batches(sae, codes))
        self._queries_hat = unit(decode_in_batches(sae, query_codes))
        self._codes = _sparse(codes, sae.config.n) if latent else None
        self._query_codes = _sparse(query_codes, sae.config.n) if latent else None
        self._normalised = _sparse(compared(codes, "damped"), sae.config.n) if latent else None
        self._query_normalised = _sparse(compared(query_codes, "damped"), sae.config.n) if latent else None
        # Where a code is empty every score is 0, whatever it is divided by.
        self._norms = np.maximum(np.linalg.norm(codes.values, axis=1), np.finfo(np.float32).tiny)

    def of(self, tile: slice) -> Iterator[tuple[str, Array]]:
        """Names with (queries of the tile, N) scores, one after the other."""
        if self._codes is not None and self._query_codes is not None:
            scores = _products(self._query_codes[tile], self._codes)
            yield LATENT, scores
            yield LATENT_COSINE, scores / self._norms
        if self._normalised is not None and self._query_normalised is not None:
            yield LATENT_NORMALISED, _products(self._query_normalised[tile], self._normalised)
        yield RECONSTRUCTED, self._queries_hat[tile] @ self._documents_hat.T
        yield MIXED, self._queries[tile] @ self._documents_hat.T


def _sparse(codes: Codes[NDArray[Any]], n: int) -> csr_array:
    """(batch, n) codes by rows; empty places are zeros of their latents and add nothing."""
    rows, k = codes.indices.shape
    starts = np.arange(0, (rows + 1) * k, k, dtype=np.int64)
    return csr_array((codes.values.reshape(-1), codes.indices.reshape(-1), starts), shape=(rows, n))


def _products(queries: csr_array, documents: csr_array) -> Array:
    """(tile, N) dot products of few queries with all passages: only the queries are made dense, (n, tile)."""
    return np.ascontiguousarray((documents @ queries.toarray().T).T)


def _tiles(queries: int, documents: int) -> Iterator[slice]:
    size = max(1, _TILE_BYTES // (4 * documents))
    return (slice(start, min(start + size, queries)) for start in range(0, queries, size))


def _largest(scores: Array, count: int) -> NDArray[np.int64]:
    """(rows, count) places of the largest scores, best first."""
    count = min(count, scores.shape[1])
    top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)


def _overlap(nearest: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.float64]:
    """(rows,) share of the first that is in the second."""
    return np.asarray((nearest[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1), dtype=np.float64)


def _rank_correlation(original: Array, altered: Array) -> NDArray[np.float64]:
    """(rows,) Kendall's tau-b of each row; 0 where one side is constant, and has no order to agree with."""
    # The p-value is not asked for: the quick approximation of it will do, which two passages are too few for.
    method: Literal["asymptotic", "auto"] = "asymptotic" if original.shape[1] > 2 else "auto"
    pairs = zip(original, altered, strict=True)
    found = [kendalltau(a, b, variant="b", method=method).statistic for a, b in pairs]
    return np.nan_to_num(np.array(found, dtype=np.float64), nan=0.0)
