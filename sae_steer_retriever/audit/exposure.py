"""Exposure: which perspectives of a collection are hardly ever among the hits, and which are there too often."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import norm

from sae_steer_retriever.audit.subject import Subject

SHOWN = 10
# Only what chance would put in so many places is tested: with fewer, absence says nothing.
_EXPECTED_PLACES = 10.0
# Nor is what fewer passages have.
_PASSAGES = 10
# Share of what is listed that may be listed by chance.
_ERROR = 0.05


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How often hits have a perspective, beside how often passages do.

    Attributes:
        name: Of the feature, or of the family.
        id: Its number.
        is_family: Whether it is a family.
        passage_share: Share of the passages that have it.
        place_share: Share of all top-k places whose passage has it.
        ratio: The second over the first: 1 is as often as passages drawn at random would have it.
        low: Lower end of its interval.
        high: Upper end.
        query_share: Share of the queries that have it: what is asked for.
    """

    name: str
    id: int
    is_family: bool
    passage_share: float
    place_share: float
    ratio: float
    low: float
    high: float
    query_share: float


@dataclasses.dataclass(frozen=True)
class ExposureGaps:
    """Perspectives that are under- and over-served.

    Attributes:
        tested: How many features and families were frequent enough to be tested.
        confidence: Of each interval, so that 95 of 100 intervals that are listed hold.
        under: Those whose interval lies below 1, the largest loss of places first.
        under_count: How many there are.
        over: Those whose interval lies above 1, the largest gain of places first.
        over_count: How many there are.
    """

    tested: int
    confidence: float
    under: tuple[Exposure, ...]
    under_count: int
    over: tuple[Exposure, ...]
    over_count: int


def exposure_gaps(subject: Subject) -> ExposureGaps:
    """Compare the share of top-k places with the share of passages, for frequent features and families.

    Hits of one query are alike, so places are worth less than independent draws: the variance of a query's count, over
    that of `k` independent places, is the design effect (Kish 1965). It is each perspective's own, but no less than the
    median one. Intervals are Wilson's, over places divided by it. Which are listed is Benjamini & Hochberg's choice at
    .05, by the test that these intervals invert; they are widened for it (Benjamini & Yekutieli 2005).
    """
    clear = np.nonzero(subject.clear & (subject.count >= _PASSAGES))[0]
    places = [subject.hit_names[:, clear], subject.family_names(subject.hit_names)]
    asked = [subject.query_names[:, clear], subject.family_names(subject.query_names)]
    share = np.concatenate([subject.frequency[clear], subject.family_frequency])
    demand = np.concatenate([np.asarray(part.mean(axis=0)).reshape(-1) for part in asked])
    counts = np.concatenate([_by_query(part, subject.k) for part in places], axis=1)
    total = counts.shape[0] * subject.k
    tested = np.nonzero((share * total >= _EXPECTED_PLACES) & (share * len(subject.store.coded) >= _PASSAGES))[0]
    effect = design_effect(counts[:, tested], subject.k)
    confidence = _confidence(counts[:, tested].sum(axis=0) / total, share[tested], total / effect)
    found = []
    for place, row in enumerate(tested.tolist()):
        hits = float(counts[:, row].sum())
        low, high = wilson(hits / total, total / effect[place], confidence)
        is_family = row >= len(clear)
        number = subject.catalog.families[row - len(clear)].id if is_family else int(clear[row])
        name = subject.catalog.families[row - len(clear)].name if is_family else subject.catalog.name(number)
        own = float(share[row])
        found.append(
            Exposure(
                name,
                number,
                is_family,
                own,
                hits / total,
                hits / total / own,
                low / own,
                high / own,
                float(demand[row]),
            )
        )
    under = sorted((one for one in found if one.high < 1), key=lambda one: one.place_share - one.passage_share)
    over = sorted((one for one in found if one.low > 1), key=lambda one: one.passage_share - one.place_share)
    return ExposureGaps(len(tested), confidence, tuple(under[:SHOWN]), len(under), tuple(over[:SHOWN]), len(over))


def design_effect(counts: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """(m,) how many places are worth one independent one; at least 1 and at least the median.

    Args:
        counts: (Q, m) hits of each query that have each perspective.
        k: Hits a query.
    """
    if not counts.size:
        return np.ones(counts.shape[1])
    share = counts.mean(axis=0) / k
    independent = k * share * (1 - share)
    seen = independent > 0
    effect = np.ones(counts.shape[1])
    effect[seen] = counts[:, seen].var(axis=0) / independent[seen]
    middle = float(np.median(effect[seen])) if seen.any() else 1.0
    return np.asarray(np.maximum(effect, max(middle, 1.0)), dtype=np.float64)


def wilson(share: float, trials: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927); it has a width where the proportion is 0 or 1.

    Args:
        share: What was seen.
        trials: Of how many independent draws; need not be whole.
        confidence: E.g. 0.95.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _confidence(seen: NDArray[np.float64], expected: NDArray[np.float64], trials: NDArray[np.float64]) -> float:
    """Of intervals: those that exclude what is expected are then the ones that Benjamini & Hochberg choose."""
    deviation = np.abs(seen - expected) / np.sqrt(expected * (1 - expected) / trials)
    surprise = np.sort(2 * norm.sf(deviation))
    steps = _ERROR * np.arange(1, len(surprise) + 1) / max(len(surprise), 1)
    chosen = np.nonzero(surprise <= steps)[0]
    return float(1 - _ERROR * (int(chosen[-1]) + 1 if len(chosen) else 1) / max(len(surprise), 1))


def _by_query(places: csr_array, k: int) -> NDArray[np.float64]:
    """(Q, m) counts of (Q k, m) places."""
    rows, columns = places.nonzero()
    counts = np.zeros((places.shape[0] // k, places.shape[1]))
    np.add.at(counts, (rows // k, columns), 1)
    return counts


__all__ = ["Exposure", "ExposureGaps", "design_effect", "exposure_gaps", "wilson"]
