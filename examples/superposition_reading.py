"""Measurements on text: what directions respond to, which features separate meanings, and which are absorbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from superposition_texts import SENSES

from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

# The first four of a meaning's eight sentences choose a direction, the last four test it.
CHOSEN_ON = 4
# A feature that occurred in fewer training passages has no reliable unit.
_SEEN = 20
_TOP = 5
PRESENT = 0.6
"""A feature counts as present from this match on, in its own unit."""
STANDS_IN = 0.4
"""An active feature stands in for an absent one if the cosine of their directions is at least this."""

Share = NDArray[np.float64]


class Reading(NamedTuple):
    """Texts with their embeddings and codes.

    Attributes:
        texts: N texts.
        groups: (N,) the meaning in `SENSES` that a text was written for; -1 for other texts.
        vectors: (N, d) embeddings.
        codes: (N, K) codes.
        matches: (N, n) `<d_f, x - b>`.
    """

    texts: tuple[str, ...]
    groups: NDArray[np.int64]
    vectors: Array
    codes: Codes[NDArray[Any]]
    matches: Array

    @property
    def written(self) -> NDArray[np.bool_]:
        """(N,) mask of the texts that have a meaning."""
        return self.groups >= 0


def read(sae: TopKSAE, texts: Sequence[str], groups: Sequence[int], vectors: Array) -> Reading:
    """Encode texts."""
    matches = products(vectors - sae.bias, sae.decoder)
    return Reading(tuple(texts), np.asarray(groups), vectors, sae.encode(vectors), matches)


def products(vectors: Array, directions: Array) -> Array:
    """(N, m) dot products of N vectors with m directions."""
    return np.asarray(vectors @ directions.T, dtype=np.float32)


def has_name(reading: Reading, n: int, names: int) -> NDArray[np.bool_]:
    """(N, n) mask of the features that label each text: the strongest few of its code."""
    return _mask(reading.codes.truncate(names), n)


def _mask(codes: Codes[NDArray[Any]], n: int) -> NDArray[np.bool_]:
    mask = np.zeros((len(codes.indices), n), dtype=np.bool_)
    rows, places = np.nonzero(codes.values > 0)
    mask[rows, codes.indices[rows, places]] = True
    return mask


def title(catalog: FeatureCatalog, feature: int) -> str:
    """A feature's id and name: "#12 bank, credit", "#12 (no label)"."""
    name = catalog.name(feature)
    if not catalog[feature].label:
        return f"#{feature} (no label)"
    return name if f"#{feature}" in name else f"#{feature} {name}"


# -- One direction: does what it answers to have anything in common? -------------------------------------------------


class Purity(NamedTuple):
    """How often the best texts of a direction have one meaning.

    Attributes:
        name: Name of the set of directions.
        directions: Number of directions that label at least five texts.
        share: Share of pairs of such a direction's five best texts that have one meaning; mean over directions.
        chosen: These directions; the ones that label most texts first.
    """

    name: str
    directions: int
    share: float
    chosen: tuple[int, ...]


def both_ways(vectors: Array) -> Array:
    """(N, 2 d) every dimension upwards, then every one downwards: a dimension may mean something at either end."""
    return np.concatenate([vectors, -vectors], axis=1)


def purity(name: str, scores: Array, groups: NDArray[np.int64], names: int = 8) -> Purity:
    """Returns the purity of a set of directions; a text is labelled by those it matches best.

    Args:
        name: Name of the set.
        scores: (N, m) texts against directions.
        groups: (N,) meanings.
        names: Number of directions that label a text.
    """
    best = np.argpartition(-scores, names - 1, axis=1)[:, :names]
    counts = np.bincount(best.ravel(), minlength=scores.shape[1])
    chosen = np.flatnonzero(counts >= _TOP)
    chosen = chosen[np.argsort(-counts[chosen], kind="stable")]
    top = groups[np.argsort(-scores[:, chosen], axis=0, kind="stable")[:_TOP]]
    same = [(top[i] == top[j]) for i in range(_TOP) for j in range(i)]
    return Purity(name, len(chosen), float(np.mean(same)) if len(chosen) else 0.0, tuple(chosen.tolist()))


def best_texts(reading: Reading, scores: Share | Array, count: int = 3) -> list[str]:
    """The texts that score highest."""
    return [reading.texts[row] for row in np.argsort(-scores, kind="stable")[:count]]


# -- Two meanings of a word ------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """How well single directions separate the two meanings of a word, on sentences that did not choose them.

    Attributes:
        name: Name of the set of directions.
        auroc: Mean over words and meanings.
        perfect: Number of meanings without a mistake.
        of: Number of meanings.
    """

    name: str
    auroc: float
    perfect: int
    of: int


def tell_apart(name: str, scores: Array, groups: NDArray[np.int64]) -> Told:
    """Returns how well the best direction separates each meaning: chosen on half of the sentences, tested on the rest.

    Args:
        name: Name of the set of directions.
        scores: (N, m).
        groups: (N,) meanings, those of a word next to each other.
    """
    found = []
    for group in range(len(SENSES)):
        own, other = scores[groups == group], scores[groups == (group ^ 1)]
        a, b = own[:CHOSEN_ON], other[:CHOSEN_ON]
        spread = np.sqrt(a.var(axis=0) + b.var(axis=0)) + 0.5 * np.median(scores.std(axis=0))
        chosen = int(np.argmax((a.mean(axis=0) - b.mean(axis=0)) / spread))
        found.append(auroc(own[CHOSEN_ON:, chosen], other[CHOSEN_ON:, chosen]))
    return Told(name, float(np.mean(found)), sum(score == 1.0 for score in found), len(found))


def tell_apart_by_examples(vectors: Array, groups: NDArray[np.int64]) -> Told:
    """The same with all dimensions together: the difference of the meanings' mean embeddings."""
    found = []
    for group in range(len(SENSES)):
        own, other = vectors[groups == group], vectors[groups == (group ^ 1)]
        direction = own[:CHOSEN_ON].mean(axis=0) - other[:CHOSEN_ON].mean(axis=0)
        found.append(auroc(own[CHOSEN_ON:] @ direction, other[CHOSEN_ON:] @ direction))
    return Told("difference of means, all dimensions", float(np.mean(found)), sum(s == 1.0 for s in found), len(found))


def auroc(positive: Array, negative: Array) -> float:
    """Chance that a text with a property scores above one without."""
    above = positive[:, None] > negative[None, :]
    level = positive[:, None] == negative[None, :]
    return float((above + 0.5 * level).mean())


class SenseFeature(NamedTuple):
    """The feature that labels one meaning of a word best.

    Attributes:
        group: Place of the meaning in `SENSES`.
        feature: Its id.
        own: Number of the meaning's last four sentences that it labels.
        other: Number of the other meaning's last four sentences that it labels.
        elsewhere: Number of sentences of the other words that it labels.
        margin: Smallest match of the own eight sentences less the largest of the other's, in the feature's unit.
    """

    group: int
    feature: int
    own: int
    other: int
    elsewhere: int
    margin: float


def sense_features(reading: Reading, named: NDArray[np.bool_], catalog: FeatureCatalog) -> tuple[SenseFeature, ...]:
    """Returns, for each meaning, the feature that labels most of its first four sentences and fewest of the other's.

    Args:
        reading: The sentences.
        named: (N, n) mask of the features that label each text.
        catalog: Units and labels; only features with a label are chosen.
    """
    groups, matches = reading.groups, reading.matches
    labelled = np.array([bool(feature.label) for feature in catalog.features])
    found = []
    for group in range(len(SENSES)):
        own, other = np.flatnonzero(groups == group), np.flatnonzero(groups == (group ^ 1))
        wanted = named[own[:CHOSEN_ON]].sum(axis=0) - named[other[:CHOSEN_ON]].sum(axis=0, dtype=np.int64)
        gap = matches[own[:CHOSEN_ON]].mean(axis=0) - matches[other[:CHOSEN_ON]].mean(axis=0)
        feature = int(np.argmax(np.where(labelled, wanted + 0.1 * gap, -np.inf)))
        elsewhere = np.flatnonzero((groups >= 0) & (groups != group) & (groups != (group ^ 1)))
        unit = max(float(catalog.calibration.match_unit[feature]), 1e-6)
        found.append(
            SenseFeature(
                group,
                feature,
                int(named[own[CHOSEN_ON:], feature].sum()),
                int(named[other[CHOSEN_ON:], feature].sum()),
                int(named[elsewhere, feature].sum()),
                float(matches[own, feature].min() - matches[other, feature].max()) / unit,
            )
        )
    return tuple(found)


# -- What is missing -------------------------------------------------------------------------------------------------


class Absorption(NamedTuple):
    """How often a feature is missing from the code of a text that matches it.

    Attributes:
        strong: Pairs of a text and a feature that is present by its match.
        absent: Share of these pairs in which the feature is not active.
        replaced: Share of the absent ones in which a similar feature is active.
        example: The most frequent pair: absent feature, the feature that stands in for it, number of texts.
    """

    strong: int
    absent: float
    replaced: float
    example: tuple[int, int, int] | None


def absorption(reading: Reading, sae: TopKSAE, catalog: FeatureCatalog) -> Absorption:
    """Count the features that a text should have by its match, and does not have in its code."""
    calibration = catalog.calibration
    unit = np.where(calibration.count >= _SEEN, calibration.match_unit, np.inf)
    strong = reading.matches >= PRESENT * unit
    missing = strong & ~_mask(reading.codes, sae.config.n)
    replaced, pairs = 0, dict[tuple[int, int], int]()
    for row, feature in zip(*(axis.tolist() for axis in np.nonzero(missing)), strict=True):
        active = reading.codes.indices[row][reading.codes.values[row] > 0]
        near = sae.decoder[active] @ sae.decoder[feature]
        if near.max() >= STANDS_IN:
            replaced += 1
            pair = (feature, int(active[near.argmax()]))
            pairs[pair] = pairs.get(pair, 0) + 1
    named = {pair: count for pair, count in pairs.items() if all(catalog[feature].label for feature in pair)}
    best = min(named, key=lambda pair: (-named[pair], pair)) if named else None
    return Absorption(
        int(strong.sum()),
        float(missing.sum() / max(strong.sum(), 1)),
        replaced / max(int(missing.sum()), 1),
        None if best is None else (*best, named[best]),
    )


def unexplained(sae: TopKSAE, vectors: Array, k: int) -> float:
    """Median share of the squared length of embeddings, less the bias, that a code of K features does not explain."""
    rest = vectors - sae.decode(sae.encode(vectors, k=k))
    shares = (rest**2).sum(axis=1) / ((vectors - sae.bias) ** 2).sum(axis=1)
    return float(np.median(shares))
