"""Figure 4 of arXiv 2411.00786: what adding to one latent of documents, or of queries, does to their ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import CorpusError, MismatchError
from sae_steer_retriever.evaluate.embedded import EmbeddedSet
from sae_steer_retriever.evaluate.fidelity import decode_in_batches, encode_in_batches, unit
from sae_steer_retriever.evaluate.metrics import DEPTH, PerQuery, score_rankings
from sae_steer_retriever.evaluate.retrieval_set import RELEVANT, RetrievalSet
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

SMALLEST_STRENGTH = 0.0004
"""Where the paper's grid starts: the smallest value of a latent that it saw."""

STRENGTHS = tuple(SMALLEST_STRENGTH * 2**doubling for doubling in range(15))
"""The paper's doubling grid, and three doublings beyond it: by then either side has shown where it goes."""

ManipulatedSide = Literal["document", "query"]
Product = Literal["dot", "cosine"]
SIDES: tuple[ManipulatedSide, ...] = ("document", "query")
PRODUCTS: tuple[Product, ...] = ("dot", "cosine")

# Scores held at once: queries are taken in tiles.
_TILE_SCORES = 2**24


class UsualValues(NamedTuple):
    """How large latents are without any manipulation.

    Attributes:
        median: Of all active latents.
        percentile: Their 95th percentile.
        largest: Median of the largest of each text.
    """

    median: float
    percentile: float
    largest: float


class Manipulation(NamedTuple):
    """A judged set searched again and again, with more and more added to a latent.

    Attributes:
        strengths: P strengths in embedding units, ascending, without the 0.
        unchanged: Product -> metric -> (Q,) values of the reconstructions as they are.
        curves: (product, side) -> for each strength metric -> (Q,) values.
        queries: Usual values of the queries' latents.
        documents: Those of the documents'.
    """

    strengths: tuple[float, ...]
    unchanged: dict[Product, PerQuery]
    curves: dict[tuple[Product, ManipulatedSide], tuple[PerQuery, ...]]
    queries: UsualValues
    documents: UsualValues


def manipulate(
    sae: TopKSAE, judged: RetrievalSet, vectors: EmbeddedSet, strengths: Sequence[float] = STRENGTHS
) -> Manipulation:
    """Add to one latent, decode, and search the reconstructions: "decode-replace".

    Document side: of each query's relevant documents, and of no others, the latent that is largest in the query. This
    uses the judgments, so that it says what a latent can do and nothing of retrieval. Query side: of the query, the
    latent whose values in its relevant documents have the largest sum. What is added to is the code, also to a latent
    that was not active in it; no TopK follows.

    Args:
        sae: The dictionary.
        judged: Queries and judgments.
        vectors: The set's embeddings by the SAE's encoder.
        strengths: What is added, in embedding units, ascending.

    Raises:
        MismatchError: The embeddings are of another encoder, or not those of the set.
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
    """Exact search of reconstructed documents by reconstructed queries, of which either may be changed."""

    def __init__(self, x_hat: Array, q_hat: Array, product: Product) -> None:
        """Take the reconstructions, as they are decoded.

        Args:
            x_hat: (N, d) documents.
            q_hat: (Q, d) queries.
            product: What to rank by: the dot product as in the paper, or the cosine, for which everything that is
                searched is scaled to unit norm again.
        """
        self._plain = x_hat
        self._product = product
        self._documents = self._scaled(x_hat)
        # A query's own length changes no ranking.
        self._queries = q_hat

    def queries_changed(self, directions: Array, strengths: Sequence[float]) -> list[list[NDArray[np.int64]]]:
        """The ten best rows of each query, with its direction added at each strength.

        Args:
            directions: (Q, d) what is added to each query.
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
        """The ten best rows of each query, with its direction added to its relevant documents only.

        Args:
            directions: (Q, d) what is added for each query.
            relevant: Q arrays of rows.
            strengths: P factors.

        Returns:
            P times Q rankings.
        """
        found: list[list[NDArray[np.int64]]] = [[] for _ in strengths]
        for own in self._tiles():
            scores = self._queries[own] @ self._documents.T
            # One line for each pair of a query of this tile and a document relevant to it.
            query = np.repeat(np.arange(own.start, own.stop), [len(rows) for rows in relevant[own]])
            row = np.concatenate([*relevant[own], np.empty(0, dtype=np.int64)])
            for place, strength in enumerate(strengths):
                changed = self._scaled(self._plain[row] + np.float32(strength) * directions[query])
                scores[query - own.start, row] = np.einsum("pd,pd->p", changed, self._queries[query])
                found[place] += list(best_rows(scores))
        return found

    def _scaled(self, rows: Array) -> Array:
        return unit(rows) if self._product == "cosine" else rows

    def _tiles(self) -> Iterator[slice]:
        size = max(1, _TILE_SCORES // max(len(self._documents), 1))
        return (slice(first, min(first + size, len(self._queries))) for first in range(0, len(self._queries), size))


def judged_from(judged: RetrievalSet, vectors: EmbeddedSet, grade: int) -> tuple[RetrievalSet, EmbeddedSet]:
    """The set with only those documents relevant that have at least a grade, without queries that have none of them.

    Where nearly every hit is relevant to some degree, no manipulation could raise a metric.

    Args:
        judged: Queries and judgments.
        vectors: The set's embeddings.
        grade: The smallest grade that counts.

    Raises:
        CorpusError: No document has it.
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
    """Q arrays: the rows of the documents that are relevant to each query, without those that are not there."""
    row_of = {name: row for row, name in enumerate(judged.document_ids)}
    return [
        np.array(
            [row_of[name] for name, grade in judged.judgments[query].items() if grade >= RELEVANT and name in row_of],
            dtype=np.int64,
        )
        for query in judged.query_ids
    ]


def largest_latents(codes: Codes[NDArray[Any]]) -> NDArray[np.int64]:
    """(Q,) the latent with the largest value of each code: the most active one, whatever the code's order."""
    rows = np.arange(len(codes.indices))
    return np.asarray(codes.indices[rows, codes.values.argmax(axis=1)], dtype=np.int64)


def summed_latents(codes: Codes[NDArray[Any]], relevant: Sequence[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    """(Q,) the latent whose values over some rows have the largest sum; 0 where there are no rows.

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
    """How large the active latents of some codes are."""
    active = codes.values[codes.values > 0]
    if not len(active):
        return UsualValues(0.0, 0.0, 0.0)
    largest = np.median(codes.values.max(axis=1))
    return UsualValues(float(np.median(active)), float(np.percentile(active, 95)), float(largest))


def best_rows(scores: Array, depth: int = DEPTH) -> NDArray[np.int64]:
    """(Q, depth) columns of the largest scores, best first; ties in the order of the columns among those found."""
    depth = min(depth, scores.shape[1])
    if depth < scores.shape[1]:
        found = np.sort(np.argpartition(-scores, depth - 1, axis=1)[:, :depth], axis=1)
    else:
        found = np.broadcast_to(np.arange(depth), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, found, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(found, order, axis=1), dtype=np.int64)


__all__ = [
    "PRODUCTS",
    "SIDES",
    "SMALLEST_STRENGTH",
    "STRENGTHS",
    "Manipulation",
    "ReconstructedSearch",
    "UsualValues",
    "judged_from",
    "manipulate",
]
