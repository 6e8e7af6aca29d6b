"""Fidelity of an SAE: original, latent and reconstructed search over one judged set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.evaluate.frequencies import measure_frequencies
from sae_steer_retriever.evaluate.metrics import DEPTH, Quality, score_rankings, summarise
from sae_steer_retriever.evaluate.retrieval_set import RELEVANT, EmbeddedSet, RetrievalSet
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.directions import unit_rows
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.code_matrix import CodeMatrix, Similarity
from sae_steer_retriever.train.nearest_lists import nearest_documents

ORIGINAL, RECONSTRUCTED, MIXED = "original", "reconstructed", "original_x_reconstructed"
LATENT, LATENT_COSINE, LATENT_NORMALISED = "latent", "latent_cosine", "latent_damped"
ROWS = (ORIGINAL, LATENT, LATENT_COSINE, LATENT_NORMALISED, RECONSTRUCTED, MIXED)
"""The ways to search, in the order of the table.

`latent` is the dot product of codes, as in the paper, `latent_cosine` their cosine, and `latent_damped` the cosine of
power-normalised codes, by which `space="latent"` ranks.
"""

_BATCH = 4096
# Rounding gives identical unit vectors a float32 variance of up to about 1e-13.
_LEAST_VARIANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """An SAE on a judged retrieval set.

    Attributes:
        dataset: Name of the set.
        encoder: Name of the encoder.
        d: Embedding size.
        n: Number of latents.
        k: Active latents per embedding.
        documents: Number of passages.
        queries: Number of judged queries.
        mse: Mean squared error per dimension over the judged queries and their relevant documents, as in Table 1 of
            arXiv 2411.00786.
        fvu: Fraction of variance unexplained over the same rows, of the variance of the passages; NaN if all passages
            are the same.
        fvu_documents: The same over all passages.
        fvu_queries: The same over the judged queries.
        l0: Mean number of active latents per passage.
        dead: Share of the latents that are active in no passage.
        rare: Share of the latents that are active in fewer than five passages, the dead included.
        rows: One per way to search, `original` first.
        notes: Remarks on the set.
    """

    dataset: str
    encoder: str
    d: int
    n: int
    k: int
    documents: int
    queries: int
    mse: float
    fvu: float
    fvu_documents: float
    fvu_queries: float
    l0: float
    dead: float
    rare: float
    rows: tuple[Quality, ...]
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Quality:
        """Returns one way to search, by name."""
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, Any]:
        """Returns one object of plain numbers, texts and lists."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "rows": [row.to_json() for row in self.rows], "notes": list(self.notes)}


def measure_fidelity(sae: TopKSAE, judged: RetrievalSet, vectors: EmbeddedSet) -> Fidelity:
    """Returns the errors of the reconstruction, and the scores of six ways to search a judged set.

    The vectors are the embeddings of the set by the SAE's encoder.
    """
    documents, queries = vectors.documents, vectors.queries
    codes, query_codes = encode_in_batches(sae, documents), sae.encode(queries)
    documents_hat, queries_hat = decode_in_batches(sae, codes), sae.decode(query_codes)
    matrix = CodeMatrix(codes, sae.config.n)

    def latent_rankings(similarity: Similarity) -> list[NDArray[np.int64]]:
        # Fewer than ten passages where fewer share a latent with the query.
        return [hits.rows for hits in matrix.search(similarity, query_codes, DEPTH)]

    rankings: dict[str, Iterable[NDArray[np.int64]]] = {
        ORIGINAL: nearest_documents(queries, documents, DEPTH),
        LATENT: latent_rankings("dot"),
        LATENT_COSINE: latent_rankings("cosine"),
        LATENT_NORMALISED: latent_rankings("damped"),
        RECONSTRUCTED: nearest_documents(unit_rows(queries_hat), unit_rows(documents_hat), DEPTH),
        MIXED: nearest_documents(queries, unit_rows(documents_hat), DEPTH),
    }
    ids = judged.document_ids
    values = {
        name: score_rankings([[ids[row] for row in ranking] for ranking in found], judged.query_ids, judged.judgments)
        for name, found in rankings.items()
    }
    variance = _variance(documents)
    lost_documents = ((documents - documents_hat) ** 2).sum(axis=1)
    lost_queries = ((queries - queries_hat) ** 2).sum(axis=1)
    lost = np.concatenate([lost_queries, lost_documents[_relevant_rows(judged)]]).mean()
    frequencies = measure_frequencies(codes, sae.config.n)
    return Fidelity(
        dataset=judged.name,
        encoder=sae.config.encoder.name,
        d=sae.config.d,
        n=sae.config.n,
        k=sae.config.k,
        documents=len(documents),
        queries=len(queries),
        mse=float(lost / sae.config.d),
        fvu=float(lost / variance),
        fvu_documents=float(lost_documents.mean() / variance),
        fvu_queries=float(lost_queries.mean() / variance),
        l0=frequencies.l0,
        dead=frequencies.dead,
        rare=frequencies.rare,
        rows=tuple(summarise(name, values[name], values[ORIGINAL]) for name in ROWS),
        notes=judged.notes,
    )


def encode_in_batches(sae: TopKSAE, vectors: Array, k: int | None = None) -> Codes[NDArray[Any]]:
    """Returns (N, k) codes of vectors that may be memory-mapped."""
    parts = [sae.encode(batch, k) for batch in _batches(vectors)]
    return Codes(np.concatenate([part.indices for part in parts]), np.concatenate([part.values for part in parts]))


def decode_in_batches(sae: TopKSAE, codes: Codes[NDArray[Any]]) -> Array:
    """Returns (N, d) reconstructions."""
    pairs = zip(_batches(codes.indices), _batches(codes.values), strict=True)
    return np.concatenate([sae.decode(Codes(indices, values)) for indices, values in pairs])


def _variance(vectors: Array) -> float:
    """The variance, summed over the dimensions; NaN if it is 0, rounding aside."""
    found = float(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean())
    return found if found > _LEAST_VARIANCE else float("nan")


def _batches(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (rows[start : start + _BATCH] for start in range(0, max(len(rows), 1), _BATCH))


def _relevant_rows(judged: RetrievalSet) -> list[int]:
    """Rows of the documents that are relevant to any query, in the order of the corpus."""
    relevant = {name for grades in judged.judgments.values() for name, grade in grades.items() if grade >= RELEVANT}
    return [row for row, name in enumerate(judged.document_ids) if name in relevant]
