"""What needs text: what directions answer to, which features tell meanings apart, what stands in for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from superposition_texts import SENSES

from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

# Of each meaning's eight sentences the first four choose a direction, the last four judge it.
CHOSEN_ON = 4
# A feature that fewer passages had when the SAE was made has no unit to speak of.
_SEEN = 20
_TOP = 5
PRESENT = 0.6
"""From this many of its units of match on a steering takes a feature as wholly present (`feature match.py`)."""
STANDS_IN = 0.4
"""Another active feature stands in for an absent one from this cosine of their directions on."""

Share = NDArray[np.float64]


class Reading(NamedTuple):
    """Texts as an SAE reads them.

    Attributes:
        texts: N of them.
        groups: (N,) which meaning of `SENSES` a text was written for; -1 for other texts.
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
        """(N,) which of the texts have a meaning."""
        return self.groups >= 0


def read(sae: TopKSAE, texts: Sequence[str], groups: Sequence[int], vectors: Array) -> Reading:
    """Encode texts."""
    matches = products(vectors - sae.bias, sae.decoder)
    return Reading(tuple(texts), np.asarray(groups), vectors, sae.encode(vectors), matches)


def products(vectors: Array, directions: Array) -> Array:
    """(N, m) of N vectors with m directions."""
    return np.asarray(vectors @ directions.T, dtype=np.float32)


def has_name(reading: Reading, n: int, names: int) -> NDArray[np.bool_]:
    """(N, n) which features are among a text's names: the first few of its code."""
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
    """How far the texts that a direction answers to most are about one thing.

    Attributes:
        name: Of the set of directions.
        directions: How many of it at least five texts are named by.
        share: Of the pairs of such a direction's five best texts, those of one meaning; mean.
        chosen: Those directions, the most named first.
    """

    name: str
    directions: int
    share: float
    chosen: tuple[int, ...]


def both_ways(vectors: Array) -> Array:
    """(N, 2 d) every dimension upwards, then every one downwards: a dimension may mean something at either end."""
    return np.concatenate([vectors, -vectors], axis=1)


def purity(name: str, scores: Array, groups: NDArray[np.int64], names: int = 8) -> Purity:
    """Purity of a set of directions: a text is named by those it matches best.

    Args:
        name: Of the set.
        scores: (N, m) texts against directions.
        groups: (N,) meanings.
        names: By how many directions a text is named.
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
    """How well single directions tell the two meanings of a word apart, on sentences that have not chosen them.

    Attributes:
        name: Of the set of directions.
        auroc: Mean over words and meanings.
        perfect: For how many of these every sentence is on the right side.
        of: How many there are.
    """

    name: str
    auroc: float
    perfect: int
    of: int


def tell_apart(name: str, scores: Array, groups: NDArray[np.int64]) -> Told:
    """Choose, for each meaning, the direction with the clearest difference on half of the sentences; judge on the rest.

    Args:
        name: Of the set of directions.
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
    """The same by all dimensions together: the difference of the mean embeddings of both halves that choose."""
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
    """The feature that names one meaning of a word best.

    Attributes:
        group: Place of the meaning in `SENSES`.
        feature: Its id.
        own: In how many of the four sentences that have not chosen it it is among the names.
        other: In how many of the other meaning's last four.
        elsewhere: In how many sentences of the other words.
        margin: Smallest match of the own eight sentences less the largest of the other's, in the feature's unit.
    """

    group: int
    feature: int
    own: int
    other: int
    elsewhere: int
    margin: float


def sense_features(reading: Reading, named: NDArray[np.bool_], catalog: FeatureCatalog) -> tuple[SenseFeature, ...]:
    """For each meaning the feature that most of its first four sentences and fewest of the other's are named by.

    Args:
        reading: The sentences.
        named: (N, n) which features are among the names.
        catalog: Units, and which features have a name: only these are chosen.
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
    """How often a feature is absent from the code of a text that points its way.

    Attributes:
        strong: Pairs of a text and a feature that is wholly present in it, by its match.
        absent: Share of these in which the feature is not active.
        replaced: Share of the absent ones in which an active feature is near the absent one.
        example: Absent feature, what stands in for it, and in how many texts; the most frequent pair.
    """

    strong: int
    absent: float
    replaced: float
    example: tuple[int, int, int] | None


def absorption(reading: Reading, sae: TopKSAE, catalog: FeatureCatalog) -> Absorption:
    """Look for features that a text should have, by their directions, and has not."""
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
    """Share of the squared length of embeddings, less the bias, that a code of K features leaves over; median."""
    rest = vectors - sae.decode(sae.encode(vectors, k=k))
    shares = (rest**2).sum(axis=1) / ((vectors - sae.bias) ** 2).sum(axis=1)
    return float(np.median(shares))
