"""Evidence for each feature: the passages in which it is strongest, and near misses that do not have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix

from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.features.evidence import QUANTILES, Example, FeatureEvidence, Neighbour
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

# A feature gets a label if it is active in this many passages of the half that labels are made of.
LABELLED_FROM = 5
_NEIGHBOURS = 5
# Passages of each kind that are shown for a feature.
_SHOWN = 10
# Decimals of a strength in the evidence.
_DIGITS = 6
# Passages read at once, and elements of an array in memory at once.
_TILE, _GATHERED = 16_384, 2**24


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Which passages have which feature.

    Attributes:
        feature_match: (n, N) sparse activations of the label latents, feature by passage.
        neighbours: (n, 5) the features nearest by decoder direction (`nearest_features`).
    """

    feature_match: csr_matrix
    neighbours: NDArray[np.int64]

    def passages(self, feature: int) -> tuple[NDArray[np.int64], Array]:
        """Rows and activations of the passages that have a feature, strongest first."""
        own = self._places(feature)
        rows, values = self.feature_match.indices[own], self.feature_match.data[own]
        order = np.argsort(-values, kind="stable")
        return rows[order].astype(np.int64), values[order]

    def near_misses(self, feature: int) -> NDArray[np.int64]:
        """Rows of the passages that have a neighbouring feature but not this one, in ascending order."""
        own = self.feature_match.indices[self._places(feature)]
        others = [self.feature_match.indices[self._places(int(one))] for one in self.neighbours[feature]]
        return np.setdiff1d(np.concatenate([own, *others]), own).astype(np.int64)

    def _places(self, feature: int) -> slice:
        return slice(int(self.feature_match.indptr[feature]), int(self.feature_match.indptr[feature + 1]))


def gather_evidence(
    names: Codes[NDArray[Any]], neighbours: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> Evidence:
    """The evidence in (N, k_labels) label latents of passages, or of some `rows` of them."""
    if rows is not None:
        names = Codes(names.indices[rows], names.values[rows])
    row, place = np.nonzero(names.values > 0)
    latents, values = names.indices[row, place], names.values[row, place]
    feature_match = csr_matrix((values, (latents, row)), shape=(len(neighbours), len(names.indices)), dtype=np.float32)
    return Evidence(feature_match, neighbours)


def read_label_latents(sae: TopKSAE, vectors: Vectors) -> Codes[NDArray[Any]]:
    """(N, k_labels) label latents of (N, d) unit embeddings, read in batches: memory does not hold all K latents."""
    shape = (len(vectors), sae.config.k_labels)
    found: Codes[NDArray[Any]] = Codes(np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float32))
    for own in _tiles(len(vectors), _TILE):
        found.indices[own], found.values[own] = sae.encode(vectors[own]).truncate(sae.config.k_labels)
    return found


def strengths(sae: TopKSAE, vectors: Vectors, names: Codes[NDArray[Any]]) -> Codes[NDArray[Any]]:
    """Returns (N, k_labels) label latents of (N, d) embeddings with the strengths that passages are ordered by.

    The strength is the activation or, for an SAE with refinement, the match (`name_matches`): refined values add up
    to the embedding, and the passage with the largest one is not the one that is most about the feature.
    """
    return name_matches(sae, vectors, names) if sae.config.refine_steps else names


def name_matches(sae: TopKSAE, vectors: Vectors, names: Codes[NDArray[Any]]) -> Codes[NDArray[Any]]:
    """(N, k_labels) label latents of (N, d) embeddings with matches `<d_i, x - b>` in place of activations."""
    found = _products(sae, names.indices, vectors, sae.bias)
    # An active latent stays active, however small its match.
    return Codes(names.indices, np.where(names.values > 0, np.maximum(found, np.finfo(np.float32).tiny), np.float32(0)))


def nearest_features(sae: TopKSAE, among: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Returns (n, 5) the features whose decoder directions are nearest by cosine; fewer columns for fewer features.

    Only the features in `among` (n,), if given, may be neighbours: a rare feature has no near misses to offer.
    """
    decoder = sae.decoder
    counted = np.arange(sae.config.n) if among is None else np.flatnonzero(among)
    limit = max(0, min(_NEIGHBOURS, len(counted) - 1))
    nearest = np.empty((sae.config.n, limit), dtype=np.int64)
    if not limit:
        return nearest
    place = np.full(sae.config.n, -1)
    place[counted] = np.arange(len(counted))
    others = decoder[counted]
    for tile in _tiles(sae.config.n, _GATHERED // len(counted)):
        cosines = decoder[tile] @ others.T
        own = place[tile]
        cosines[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        # Partition before sorting: a full sort of each row would dominate the time.
        found = np.sort(np.argpartition(-cosines, limit - 1, axis=1)[:, :limit], axis=1)
        order = np.argsort(-np.take_along_axis(cosines, found, axis=1), axis=1, kind="stable")
        nearest[tile] = counted[np.take_along_axis(found, order, axis=1)]
    return nearest


def frequent_features(names: Codes[NDArray[Any]], n: int) -> NDArray[np.bool_]:
    """(n,) which features enough passages have for a label; `names` are (N, k_labels) codes of n latents."""
    return np.asarray(np.bincount(names.indices[names.values > 0], minlength=n) >= LABELLED_FROM)


def describe_features(
    sae: TopKSAE, evidence: Evidence, ids: Sequence[str], vectors: Vectors
) -> dict[int, FeatureEvidence]:
    """Returns the evidence shown to a person or a language model, by feature id, without tries.

    The passages are those of `evidence`. A page shows evidence of the whole corpus; a label must be made of evidence
    from the half that it is not scored on (`split_halves`). The (N, d) embeddings are read once, from front to back.
    """
    misses = hardest_misses(sae, evidence, vectors)
    cosines = _products(sae, evidence.neighbours, sae.decoder, np.zeros_like(sae.bias))
    described = {}
    for feature in np.flatnonzero(np.diff(evidence.feature_match.indptr)).tolist():
        rows, values = evidence.passages(feature)
        found = [Example(ids[row], round(float(value), _DIGITS)) for row, value in zip(rows, values, strict=True)]
        described[feature] = FeatureEvidence(
            top=tuple(found[:_SHOWN]),
            middle=tuple(found[place] for place in _middles(len(found)) if place >= _SHOWN),
            near_misses=tuple(Example(ids[row], 0.0) for row in misses.get(feature, ())),
            quantiles=tuple(round(float(value), _DIGITS) for value in np.quantile(values, QUANTILES)),
            neighbours=tuple(
                Neighbour(other, round(cosine, _DIGITS))
                for other, cosine in zip(evidence.neighbours[feature].tolist(), cosines[feature].tolist(), strict=True)
            ),
        )
    return described


def hardest_misses(
    sae: TopKSAE, evidence: Evidence, vectors: Vectors, count: int = _SHOWN
) -> dict[int, NDArray[np.int64]]:
    """Returns the rows of the `count` near misses with the largest match `<d_i, x - b>`, by feature id, hardest first.

    Memory holds `evidence`, a batch of passages and `count` rows for each feature.
    """
    n = sae.config.n
    has = csr_matrix(evidence.feature_match.T, copy=True)
    has.data = np.ones(len(has.data), dtype=np.float32)
    owner = np.repeat(np.arange(n), evidence.neighbours.shape[1])
    near = csr_matrix((np.ones(len(owner), np.float32), (owner, evidence.neighbours.ravel())), shape=(n, n))
    # (features, rows, matches) of the best so far.
    features, rows, matches = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    for own in _tiles(has.shape[0], _GATHERED // n):
        row, feature = _misses(has[own], near)
        match = (np.asarray(vectors[own]) - sae.bias) @ sae.decoder.T
        features, rows = np.concatenate([features, feature]), np.concatenate([rows, own.start + row])
        matches = np.concatenate([matches, match[row, feature]])
        kept = _largest(features, matches, rows, count)
        features, rows, matches = features[kept], rows[kept], matches[kept]
    found, starts = np.unique(features, return_index=True)
    return dict(zip(found.tolist(), np.split(rows, starts[1:]), strict=False))


def _misses(has: csr_matrix, near: csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a passage and a feature that it does not have, although it has a neighbour of the feature."""
    reached = has @ near.T
    # The subtrahend exceeds any number of neighbours: only features that are reached and not had stay above zero.
    lacking = coo_matrix(reached - has * (near.shape[0] + 1))
    missed = lacking.data > 0
    return lacking.row[missed].astype(np.int64), lacking.col[missed].astype(np.int64)


def _largest(features: NDArray[np.int64], values: Array, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest values of each feature, by feature, the largest first."""
    order = np.lexsort((rows, -values, features))
    ordered = features[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    return order[rank < count]


def _products(sae: TopKSAE, features: NDArray[Any], vectors: Vectors, bias: Array) -> Array:
    """(N, k) dot products of (N, d) vectors, less the (d,) bias, with the directions of (N, k) features."""
    found = np.empty(features.shape, dtype=np.float32)
    for own in _tiles(len(features), _GATHERED // (max(features.shape[1], 1) * sae.config.d)):
        found[own] = np.einsum("bkd,bd->bk", sae.decoder[features[own]], np.asarray(vectors[own]) - bias)
    return found


def _tiles(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + max(size, 1)) for start in range(0, rows, max(size, 1)))


def _middles(count: int) -> list[int]:
    """The place in the middle of each tenth of `count` places, each once."""
    return sorted({(2 * part + 1) * count // (2 * _SHOWN) for part in range(_SHOWN)}) if count else []
