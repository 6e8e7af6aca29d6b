"""Agreement of an SAE's rankings with the original ranking, on a corpus without judgments."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import kendalltau

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.query_texts import QueryText, query_texts
from sae_steer_retriever.errors import ArtifactError, CorpusError, MismatchError
from sae_steer_retriever.evaluate.bootstrap import Estimate, estimate
from sae_steer_retriever.evaluate.fidelity import ROWS, decode_in_batches, encode_in_batches
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.directions import unit_rows
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.code_matrix import compared

# Depth of the overlap, and places of the original ranking whose order is compared.
TOP, COMPARED = 10, 100
# Scores of a tile of queries against all passages, a few of which are alive at a time.
_TILE_BYTES = 32 * 2**20
# More titles and sentences than any passage has.
_ALL = 1_000_000


@dataclasses.dataclass(frozen=True)
class RankingAgreement:
    """Agreement of one way to search with the original embeddings.

    Attributes:
        overlap: overlap@10: share of a query's ten nearest passages that are still among its ten nearest.
        rank_correlation: Kendall's tau-b between the original and the altered scores of a query's hundred nearest
            passages: 1 is the same order, 0 no common order. Constant altered scores count as 0.
    """

    overlap: Estimate
    rank_correlation: Estimate


@dataclasses.dataclass(frozen=True)
class Agreement:
    """An SAE on a corpus without judgments; means over queries.

    Attributes:
        documents: Number of passages.
        queries: Number of queries.
        rows: Way to search -> its agreement with the original ranking; names as in `Fidelity`.
    """

    documents: int
    queries: int
    rows: dict[str, RankingAgreement]

    def to_json(self) -> dict[str, Any]:
        """Returns one object of plain numbers and texts."""
        return dataclasses.asdict(self)


def measure_agreement(
    sae: TopKSAE, passages_vectors: Array, query_vectors: Array, *, latent: bool = False
) -> Agreement:
    """Returns the agreement of altered rankings with the original one, query by query.

    `reconstructed` searches reconstructions with reconstructions and `original_x_reconstructed` with the original
    query, both by cosine. `latent` is the dot product of the codes, `latent_cosine` their cosine, and `latent_damped`
    the cosine of power-normalised codes, by which `space="latent"` ranks. Every way to search finds the passage that a
    query was taken from: these are easy queries.

    Args:
        sae: The SAE.
        passages_vectors: (N, d) unit vectors.
        query_vectors: (Q, d) unit vectors.
        latent: Whether to measure the three latent rows too; they take several times as long.

    Raises:
        CorpusError: There are fewer than two passages, or no query.
        MismatchError: The vectors are not of the SAE's size.
    """
    if len(passages_vectors) < 2 or not len(query_vectors):
        given = f"{len(passages_vectors)} passage(s) and {len(query_vectors)} queries"
        raise CorpusError(f"{given}: comparing rankings takes two passages and one query; give a larger corpus")
    for what, vectors in (("passages", passages_vectors), ("queries", query_vectors)):
        if vectors.ndim != 2 or vectors.shape[1] != sae.config.d:
            raise MismatchError(f"{what} of shape {vectors.shape}: expected ({len(vectors)}, {sae.config.d}).")
    altered = _AlteredScores(sae, passages_vectors, query_vectors, latent=latent)
    names = ROWS[1:] if latent else ROWS[-2:]
    overlaps: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    correlations: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for tile in _tiles(len(query_vectors), len(passages_vectors)):
        original = query_vectors[tile] @ passages_vectors.T
        nearest = _largest(original, COMPARED)
        kept = np.take_along_axis(original, nearest, axis=1)
        for name, scores in zip(names, altered.of(tile), strict=True):
            overlaps[name].append(_overlap(nearest[:, :TOP], _largest(scores, TOP)))
            correlations[name].append(_rank_correlation(kept, np.take_along_axis(scores, nearest, axis=1)))
    rows = {
        name: RankingAgreement(estimate(np.concatenate(overlaps[name])), estimate(np.concatenate(correlations[name])))
        for name in names
    }
    return Agreement(documents=len(passages_vectors), queries=len(query_vectors), rows=rows)


def held_out_queries(passages: Sequence[Passage], training: Mapping[str, Any], limit: int = 500) -> list[QueryText]:
    """Returns titles and sentences that the training of an SAE on these passages has not drawn, as queries.

    The drawn texts follow from the recorded `seed` and `sentences`, if the passages are cut as they were then. The
    passages themselves were fitted, so these are unseen texts, not unseen content.

    Args:
        passages: The corpus; the texts are in its order.
        training: `sae.config.training`; without a recorded `sentences` no text counts as used.
        limit: Most texts; a seeded sample, the same for the same corpus and record, is taken when there are more.

    Raises:
        ArtifactError: The record holds a seed or a number of sentences that training cannot have written.
        CorpusError: Training used every title and sentence, or there is none.
    """
    seed, used_of_passage = recorded(training, "seed"), recorded(training, "sentences")
    used = query_texts(passages, seed=seed, per_passage=used_of_passage) if used_of_passage else []
    # As in `query_texts`, letter case and spacing do not make another text.
    known = {_normalised(query.text) for query in used}
    texts = query_texts(passages, per_passage=_ALL)
    if not texts:
        problem = f"none of the {len(passages)} passages has a title, or a sentence long enough to stand in for a query"
        raise CorpusError(f"{problem}: evaluate on a judged set (--dataset)")
    unused = [query for query in texts if _normalised(query.text) not in known]
    if not unused:
        raise CorpusError(
            f"no sentence of these {len(passages)} passages is left to measure with: training drew all {len(used)} "
            f"(at most {used_of_passage} of each passage), if it was fitted to them; train with fewer --sentences, or "
            "evaluate on a judged set (--dataset)"
        )
    if len(unused) <= limit:
        return unused
    chosen = random.Random(seed).sample(range(len(unused)), max(limit, 0))
    return [unused[position] for position in sorted(chosen)]


def recorded(training: Mapping[str, Any], name: str, default: int = 0) -> int:
    """Returns a whole number that `sae.config.training` records, or the default if it records none.

    Raises:
        ArtifactError: The recorded value is not a whole number of at least 0.
    """
    value = training.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        problem = f"the SAE's config records {name} = {value!r} of its training, expected a whole number of at least 0"
        raise ArtifactError(f"{problem}: it was altered; train again")
    return value


class _AlteredScores:
    """The scores of all passages in each way to search that uses codes."""

    def __init__(self, sae: TopKSAE, documents: Array, queries: Array, *, latent: bool) -> None:
        codes, query_codes = encode_in_batches(sae, documents), encode_in_batches(sae, queries)
        self._queries = queries
        self._documents_hat = unit_rows(decode_in_batches(sae, codes))
        self._queries_hat = unit_rows(decode_in_batches(sae, query_codes))
        # (queries, documents) of plain and of power-normalised codes.
        self._latent: list[tuple[csr_array, csr_array]] = []
        if latent:
            pairs = ((query_codes, codes), (compared(query_codes, "damped"), compared(codes, "damped")))
            self._latent = [(_sparse(asked, sae.config.n), _sparse(stored, sae.config.n)) for asked, stored in pairs]
        # An empty code scores 0, whatever it is divided by.
        self._norms = np.maximum(np.linalg.norm(codes.values, axis=1), np.finfo(np.float32).tiny)

    def of(self, tile: slice) -> Iterator[Array]:
        """(queries of the tile, N) scores, in the order of `ROWS` without the original."""
        if self._latent:
            plain, normalised = self._latent
            scores = _products(plain[0][tile], plain[1])
            yield scores
            yield scores / self._norms
            yield _products(normalised[0][tile], normalised[1])
        yield self._queries_hat[tile] @ self._documents_hat.T
        yield self._queries[tile] @ self._documents_hat.T


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _sparse(codes: Codes[NDArray[Any]], n: int) -> csr_array:
    """(batch, n) codes by rows; empty places are explicit zeros and add nothing."""
    rows, k = codes.indices.shape
    starts = np.arange(0, (rows + 1) * k, k, dtype=np.int64)
    return csr_array((codes.values.reshape(-1), codes.indices.reshape(-1), starts), shape=(rows, n))


def _products(queries: csr_array, documents: csr_array) -> Array:
    """(tile, N) dot products of few queries with all passages; only the queries are made dense, (n, tile)."""
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
    """(rows,) Kendall's tau-b of each row; 0 where one side is constant."""
    # Only the statistic is used; the quick approximation of the p-value needs more than two passages.
    method: Literal["asymptotic", "auto"] = "asymptotic" if original.shape[1] > 2 else "auto"
    pairs = zip(original, altered, strict=True)
    found = [kendalltau(a, b, variant="b", method=method).statistic for a, b in pairs]
    return np.nan_to_num(np.array(found, dtype=np.float64), nan=0.0)
