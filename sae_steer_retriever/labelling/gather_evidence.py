"""Evidence for each feature: the passages in which it is strongest, and near misses that lack it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix

from sae_steer_retriever.encoders.vector_rows import Vectors
from sae_steer_retriever.features.evidence import QUANTILES, Example, FeatureEvidence, Neighbour
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

# A feature is named once it is active in this many passages of the half that labels are made of.
LABELLED_FROM = 5
_NEIGHBOURS = 5
# Passages of each kind that are shown for a feature.
_SHOWN = 10
# A strength is kept to so many digits.
_DIGITS = 6
# Passages read at once, and elements of the directions gathered for some of them.
_TILE, _GATHERED = 16_384, 2**24


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Who has which feature, over some passages.

    Attributes:
        feature match: (n, N) sparse activations, feature by passage, of the label latents.
        neighbours: (n, 5) the features nearest by decoder direction, of those that count (`nearest_features`).
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
        """Rows of the passages that have a neighbouring feature but not this one, ascending: hard negatives."""
        others = [self.feature_match.indices[self._places(int(neighbour))] for neighbour in self.neighbours[feature]]
        if not others:
            return np.empty(0, dtype=np.int64)
        found = np.setdiff1d(np.concatenate(others), self.feature_match.indices[self._places(feature)])
        return found.astype(np.int64)

    def _places(self, feature: int) -> slice:
        return slice(int(self.feature_match.indptr[feature]), int(self.feature_match.indptr[feature + 1]))


def gather_evidence(names: Codes[NDArray[Any]], neighbours: NDArray[np.int64]) -> Evidence:
    """Turn the label latents of passages into evidence by feature.

    Args:
        names: (N, k_labels) codes of the passages.
        neighbours: (n, 5) of `nearest_features`.
    """
    row, place = np.nonzero(names.values > 0)
    latents, values = names.indices[row, place], names.values[row, place]
    feature_match = csr_matrix((values, (latents, row)), shape=(len(neighbours), len(names.indices)), dtype=np.float32)
    return Evidence(feature_match, neighbours)


def read_label_latents(sae: TopKSAE, vectors: Vectors) -> Codes[NDArray[Any]]:
    """The label latents of passages, (N, k_labels), in batches: neither all vectors nor all K latents are in memory.

    Args:
        sae: The dictionary.
        vectors: (N, d) unit embeddings.
    """
    shape = (len(vectors), sae.config.k_labels)
    found: Codes[NDArray[Any]] = Codes(np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float32))
    for start in range(0, len(vectors), _TILE):
        own = slice(start, start + _TILE)
        found.indices[own], found.values[own] = sae.encode(vectors[own]).truncate(sae.config.k_labels)
    return found


def strengths(sae: TopKSAE, vectors: Vectors, names: Codes[NDArray[Any]]) -> Codes[NDArray[Any]]:
    """Names with how strongly a passage has each: of which passages a label is made, and which it must detect.

    That is the activation or, after a refinement, the match that also orders the names: a refinement sets values so
    that they add up, and a passage that needs much of a latent is not the one that is most about it.

    Args:
        sae: The dictionary.
        vectors: (N, d) unit embeddings.
        names: (N, k_labels) their label latents.
    """
    return name_matches(sae, vectors, names) if sae.config.refine_steps else names


def name_matches(sae: TopKSAE, vectors: Vectors, names: Codes[NDArray[Any]]) -> Codes[NDArray[Any]]:
    """Names with how well each matches its passage, `<d_i, x - b>`, in place of activations.

    Args:
        sae: The dictionary.
        vectors: (N, d) unit embeddings.
        names: (N, k_labels) their label latents.
    """
    matches = np.zeros(names.values.shape, dtype=np.float32)
    tile = max(1, _GATHERED // (names.values.shape[1] * sae.config.d))
    for start in range(0, len(names.values), tile):
        own = slice(start, start + tile)
        directions = sae.decoder[names.indices[own]]
        found = np.einsum("bkd,bd->bk", directions, np.asarray(vectors[own]) - sae.bias)
        # An active latent stays a name, however small its match.
        matches[own] = np.where(names.values[own] > 0, np.maximum(found, np.finfo(np.float32).tiny), 0)
    return Codes(names.indices, matches)


def nearest_features(sae: TopKSAE, among: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """(n, 5) the features whose decoder directions are nearest by cosine, in tiles of rows.

    Args:
        sae: The dictionary.
        among: (n,) which features count as neighbours, e.g. `frequent_features`: what hardly any passage has gives no
            near misses to test a label with, and nothing to look at. All if not given.

    Returns:
        Fewer columns than 5 where fewer features count.
    """
    decoder = sae.decoder
    counted = np.arange(sae.config.n) if among is None else np.flatnonzero(among)
    # A feature is not its own neighbour: one more than is wanted, for the features that count themselves.
    limit = max(0, min(_NEIGHBOURS, len(counted) - 1))
    nearest = np.empty((sae.config.n, limit), dtype=np.int64)
    if not limit:
        return nearest
    place = np.full(sae.config.n, -1)
    place[counted] = np.arange(len(counted))
    others = decoder[counted]
    tile = max(1, _GATHERED // len(counted))
    for start in range(0, sae.config.n, tile):
        cosines = decoder[start : start + tile] @ others.T
        own = place[start : start + tile]
        cosines[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        # A whole sort of each row would take longer than all the rest.
        found = np.sort(np.argpartition(-cosines, limit - 1, axis=1)[:, :limit], axis=1)
        order = np.argsort(-np.take_along_axis(cosines, found, axis=1), axis=1, kind="stable")
        nearest[start : start + tile] = counted[np.take_along_axis(found, order, axis=1)]
    return nearest


def frequent_features(names: Codes[NDArray[Any]], n: int) -> NDArray[np.bool_]:
    """(n,) which features enough passages have for a label.

    Args:
        names: (N, k_labels) codes of the passages.
        n: Number of latents.
    """
    count = np.bincount(names.indices[names.values > 0], minlength=n)
    return np.asarray(count >= LABELLED_FROM)


def describe_features(
    sae: TopKSAE, evidence: Evidence, ids: Sequence[str], vectors: Vectors
) -> dict[int, FeatureEvidence]:
    """What a person, or a language model, is shown of each feature that some passage has; without tries.

    It is of the passages in `evidence` and no others. What is *shown* beside a label should be of the whole corpus;
    what a label is *made* of must be of the half that it is not scored on (`labels.split_halves`).

    Args:
        sae: The dictionary.
        evidence: Of some passages.
        ids: Their ids.
        vectors: (N, d) their unit embeddings, read once, from front to back.
    """
    misses = hardest_misses(sae, evidence, vectors)
    cosines = _neighbour_cosines(sae, evidence.neighbours)
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
                Neighbour(int(other), round(float(cosine), _DIGITS))
                for other, cosine in zip(evidence.neighbours[feature], cosines[feature], strict=True)
            ),
        )
    return described


def hardest_misses(
    sae: TopKSAE, evidence: Evidence, vectors: Vectors, count: int = _SHOWN
) -> dict[int, NDArray[np.int64]]:
    """The near misses that match a feature's direction best, by `<d_i, x - b>`: by feature id, the hardest first.

    Streamed over the passages: besides `evidence` a batch of them and `count` rows a feature are in memory.

    Args:
        sae: The dictionary.
        evidence: Of some passages.
        vectors: (N, d) their unit embeddings.
        count: How many for a feature at most.
    """
    n = sae.config.n
    has = csr_matrix(evidence.feature_match.T, copy=True)
    has.data = np.ones(len(has.data), dtype=np.float32)
    owner = np.repeat(np.arange(n), evidence.neighbours.shape[1])
    near = csr_matrix((np.ones(len(owner), np.float32), (owner, evidence.neighbours.ravel())), shape=(n, n))
    # (features, rows, matches) of the best so far.
    features, rows, matches = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    tile = max(1, _GATHERED // n)
    for start in range(0, has.shape[0], tile):
        own = slice(start, start + tile)
        row, feature = _misses(has[own], near)
        match = (np.asarray(vectors[own]) - sae.bias) @ sae.decoder.T
        features, rows = np.concatenate([features, feature]), np.concatenate([rows, start + row])
        matches = np.concatenate([matches, match[row, feature]])
        kept = _leading(features, matches, rows, count)
        features, rows, matches = features[kept], rows[kept], matches[kept]
    found, starts = np.unique(features, return_index=True)
    return dict(zip(found.tolist(), np.split(rows, starts[1:]), strict=False))


def _misses(has: csr_matrix, near: csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Passages and the features that they lack but have a neighbour of."""
    reached = has @ near.T
    # More than any number of neighbours: what is left above zero is reached, and not had.
    lacking = coo_matrix(reached - has * (near.shape[0] + 1))
    missed = lacking.data > 0
    return lacking.row[missed].astype(np.int64), lacking.col[missed].astype(np.int64)


def _leading(features: NDArray[np.int64], values: Array, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest values of each feature, by feature, the largest first."""
    order = np.lexsort((rows, -values, features))
    ordered = features[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    return order[rank < count]


def _neighbour_cosines(sae: TopKSAE, neighbours: NDArray[np.int64]) -> Array:
    cosines = np.empty(neighbours.shape, dtype=np.float32)
    tile = max(1, _GATHERED // (max(neighbours.shape[1], 1) * sae.config.d))
    for start in range(0, len(neighbours), tile):
        own = slice(start, start + tile)
        cosines[own] = np.einsum("bkd,bd->bk", sae.decoder[neighbours[own]], sae.decoder[own])
    return cosines


def _middles(count: int) -> list[int]:
    """The place in the middle of each tenth of so many, none twice."""
    return sorted({(2 * part + 1) * count // (2 * _SHOWN) for part in range(_SHOWN)}) if count else []
