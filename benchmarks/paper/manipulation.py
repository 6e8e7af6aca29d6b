"""The measurement of Figure 4 of arXiv 2411.00786: adds to one latent of documents or queries, and ranks again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import CorpusError, MismatchError
from sae_steer_retriever.evaluate.fidelity import decode_in_batches, encode_in_batches
from sae_steer_retriever.evaluate.metrics import DEPTH, PerQuery, score_rankings
from sae_steer_retriever.evaluate.retrieval_set import RELEVANT, EmbeddedSet, RetrievalSet
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.directions import unit_rows
from sae_steer_retriever.sae.topk_sae import TopKSAE

SMALLEST_STRENGTH = 0.0004
"""Start of the paper's grid: the smallest latent value that it observed."""

STRENGTHS = tuple(SMALLEST_STRENGTH * 2**doubling for doubling in range(15))
"""The paper's doubling grid and three more doublings, so that both curves show their end."""

ManipulatedSide = Literal["document", "query"]
Product = Literal["dot", "cosine"]
SIDES: tuple[ManipulatedSide, ...] = ("document", "query")
PRODUCTS: tuple[Product, ...] = ("dot", "cosine")

# Scores in memory at a time.
_TILE_SCORES = 2**24


class UsualValues(NamedTuple):
    """Usual sizes of latents.

    Attributes:
        median: Median of all active latents.
        percentile: 95th percentile of all active latents.
        largest: Median over texts of the largest latent.
    """

    median: float
    percentile: float
    largest: float


class Manipulation(NamedTuple):
    """Metrics of a judged set, for growing additions to a latent.

    Attributes:
        strengths: P strengths in embedding units, ascending, without 0.
        unchanged: Product -> metric -> (Q,) values of the unchanged reconstructions.
        curves: (product, side) -> for each strength: metric -> (Q,) values.
        queries: Usual values of the queries' latents.
        documents: Usual values of the documents' latents.
    """

    strengths: tuple[float, ...]
    unchanged: dict[Product, PerQuery]
    curves: dict[tuple[Product, ManipulatedSide], tuple[PerQuery, ...]]
    queries: UsualValues
    documents: UsualValues


def manipulate(
    sae: TopKSAE, judged: RetrievalSet, vectors: EmbeddedSet, strengths: Sequence[float] = STRENGTHS
) -> Manipulation:
    """Returns the metrics of "decode-replace": adds to one latent of a code, decodes, and searches the reconstructions.

    Document side: the query's largest latent is raised in the query's relevant documents and in no others. This uses
    the judgments: it shows the effect of a latent, not a way to retrieve. Query side: the latent with the largest sum
    over the relevant documents is raised in the query. The latent need not be active before; no TopK follows.

    Args:
        sae: The dictionary.
        judged: Queries and judgments.
        vectors: Embeddings of the set by the SAE's encoder.
        strengths: Additions in embedding units.

    Raises:
        MismatchError: The embeddings belong to another encoder or set.
        CorpusError: No query has a relevant document in the corpus.
        ValueError: There is no strength, or one is not above 0.
    """
    if not strengths or not all(np.isfinite(strength) and strength > 0 for strength in strengths):
        raise ValueError(f"strengths {tuple(strengths)}: expected at least one, all above 0; 0 is always measured.")
    counts = (len(vectors.documents), len(vectors.queries))
    if counts != (len(judged.passages), len(judged.query_ids)):
        raise MismatchError(
            f"{counts[0]} and {counts[1]} embeddings of {len(judged.passages)} documents and {len(judged.query_ids)} "
            "queries: expected one each."
        )
    relevant = relevant_rows(judged)
    if not any(len(rows) for rows in relevant):
        raise CorpusError(f"no query of {judged.name} has a relevant document in the corpus: nothing to manipulate.")
    h_x, h_q = encode_in_batches(sae, vectors.documents), sae.encode(vectors.queries)
    x_hat, q_hat = decode_in_batches(sae, h_x), sae.decode(h_q)
    in_query, in_documents = largest_latents(h_q), summed_latents(h_x, relevant, sae.config.n)
    ids, steps = np.array(judged.document_ids), tuple(sorted(strengths))

    def judge(rankings: Sequence[NDArray[np.int64]]) -> PerQuery:
        return score_rankings([ids[rows].tolist() for rows in rankings], judged.query_ids, judged.judgments)

    unchanged: dict[Product, PerQuery] = {}
    curves: dict[tuple[Product, ManipulatedSide], tuple[PerQuery, ...]] = {}
    for product in PRODUCTS:
        search = ReconstructedSearch(x_hat, q_hat, product)
        on_documents = search.documents_changed(sae.decoder[in_query], relevant, (0.0, *steps))
        unchanged[product], *changed = map(judge, on_documents)
        curves[product, "document"] = tuple(changed)
        on_queries = search.queries_changed(sae.decoder[in_documents], steps)
        curves[product, "query"] = tuple(map(judge, on_queries))
    return Manipulation(steps, unchanged, curves, usual_values(h_q), usual_values(h_x))


class ReconstructedSearch:
    """Exact search of reconstructed documents by reconstructed queries, with changes to either side."""

    def __init__(self, x_hat: Array, q_hat: Array, product: Product) -> None:
        """Keeps the reconstructions.

        Args:
            x_hat: (N, d) documents, as decoded.
            q_hat: (Q, d) queries, as decoded.
            product: Score of the ranking: the dot product, as in the paper, or the cosine.
        """
        self._plain = x_hat
        self._product = product
        self._documents = self._scaled(x_hat)
        # The length of a query changes no ranking.
        self._queries = q_hat

    def queries_changed(self, directions: Array, strengths: Sequence[float]) -> list[list[NDArray[np.int64]]]:
        """Returns the ten best rows of each query, with a direction added to it at each strength.

        Args:
            directions: (Q, d) one direction a query.
            strengths: P factors.

        Returns:
            P times Q rankings.
        """
        found: list[list[NDArray[np.int64]]] = [[] for _ in strengths]
        for own in self._tiles():
            base, added = self._queries[own] @ self._documents.T, directions[own] @ self._documents.T
            for place, strength in enumerate(strengths):
                found[place] += list(best_rows(base + np.float32(strength) * added))
        return found

    def documents_changed(
        self, directions: Array, relevant: Sequence[NDArray[np.int64]], strengths: Sequence[float]
    ) -> list[list[NDArray[np.int64]]]:
        """Returns the ten best rows of each query, with a direction added to its relevant documents only.

        Args:
            directions: (Q, d) one direction a query.
            relevant: Q arrays of rows.
            strengths: P factors.

        Returns:
            P times Q rankings.
        """
        found: list[list[NDArray[np.int64]]] = [[] for _ in strengths]
        for own in self._tiles():
            scores = self._queries[own] @ self._documents.T
            # One entry for each pair of a query of this tile and a document relevant to it.
            query = np.repeat(np.arange(own.start, own.stop), [len(rows) for rows in relevant[own]])
            row = np.concatenate([*relevant[own], np.empty(0, dtype=np.int64)])
            for place, strength in enumerate(strengths):
                changed = self._scaled(self._plain[row] + np.float32(strength) * directions[query])
                scores[query - own.start, row] = np.einsum("pd,pd->p", changed, self._queries[query])
                found[place] += list(best_rows(scores))
        return found

    def _scaled(self, rows: Array) -> Array:
        return unit_rows(rows) if self._product == "cosine" else rows

    def _tiles(self) -> Iterator[slice]:
        size = max(1, _TILE_SCORES // max(len(self._documents), 1))
        return (slice(first, min(first + size, len(self._queries))) for first in range(0, len(self._queries), size))


def judged_from(judged: RetrievalSet, vectors: EmbeddedSet, grade: int) -> tuple[RetrievalSet, EmbeddedSet]:
    """Returns the set with a higher bar for relevance, without the queries that have no relevant document then.

    Where nearly every hit is relevant to some degree, no manipulation could raise a metric.

    Args:
        judged: Queries and judgments.
        vectors: Embeddings of the set.
        grade: The smallest grade that counts as relevant.

    Raises:
        CorpusError: No document has that grade.
    """
    if grade <= RELEVANT:
        return judged, vectors
    judgments = {
        query: {name: own if own >= grade else 0 for name, own in judged.judgments[query].items()}
        for query in judged.query_ids
    }
    kept = [place for place, query in enumerate(judged.query_ids) if any(judgments[query].values())]
    if not kept:
        largest = max(own for grades in judged.judgments.values() for own in grades.values())
        raise CorpusError(f"no document of {judged.name} is judged {grade} or more: the largest grade is {largest}.")
    ids = [judged.query_ids[place] for place in kept]
    note = f"only documents judged {grade} or more count as relevant; {len(kept)} of {len(judged.query_ids)} queries"
    narrowed = dataclasses.replace(
        judged,
        query_ids=ids,
        queries=[judged.queries[place] for place in kept],
        judgments={query: judgments[query] for query in ids},
        notes=(*judged.notes, f"{note} have one"),
    )
    return narrowed, EmbeddedSet(vectors.documents, vectors.queries[kept])


def relevant_rows(judged: RetrievalSet) -> list[NDArray[np.int64]]:
    """Returns Q arrays: the rows of the documents of the corpus that are relevant to each query."""
    row_of = {name: row for row, name in enumerate(judged.document_ids)}
    return [
        np.array(
            [row_of[name] for name, grade in judged.judgments[query].items() if grade >= RELEVANT and name in row_of],
            dtype=np.int64,
        )
        for query in judged.query_ids
    ]


def largest_latents(codes: Codes[NDArray[Any]]) -> NDArray[np.int64]:
    """Returns (Q,) the most active latent of each code, in whatever order the code is."""
    rows = np.arange(len(codes.indices))
    return np.asarray(codes.indices[rows, codes.values.argmax(axis=1)], dtype=np.int64)


def summed_latents(codes: Codes[NDArray[Any]], relevant: Sequence[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    """Returns (Q,) the latent with the largest sum over some rows; 0 where there are no rows.

    Args:
        codes: (N, K) codes of the documents.
        relevant: Q arrays of rows.
        n: Number of latents.
    """
    found = np.zeros(len(relevant), dtype=np.int64)
    for place, rows in enumerate(relevant):
        sums = np.bincount(codes.indices[rows].ravel(), weights=codes.values[rows].ravel(), minlength=n)
        found[place] = int(sums.argmax())
    return found


def usual_values(codes: Codes[NDArray[Any]]) -> UsualValues:
    """Returns the usual sizes of the active latents of some codes."""
    active = codes.values[codes.values > 0]
    if not len(active):
        return UsualValues(0.0, 0.0, 0.0)
    largest = np.median(codes.values.max(axis=1))
    return UsualValues(float(np.median(active)), float(np.percentile(active, 95)), float(largest))


def best_rows(scores: Array, depth: int = DEPTH) -> NDArray[np.int64]:
    """Returns (Q, depth) columns of the largest scores, best first; ties keep the order of the columns."""
    depth = min(depth, scores.shape[1])
    if depth < scores.shape[1]:
        found = np.sort(np.argpartition(-scores, depth - 1, axis=1)[:, :depth], axis=1)
    else:
        found = np.broadcast_to(np.arange(depth), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, found, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(found, order, axis=1), dtype=np.int64)
