"""Exposure: features and families that are rarer or more frequent among the hits than among the passages."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import norm

from sae_steer_retriever.audit.subject import Subject
from sae_steer_retriever.evaluate.bootstrap import Estimate

SHOWN = 10
# A feature is tested if at least this many hits would have it by chance: with fewer, absence means nothing.
_EXPECTED_PLACES = 10.0
# And if at least this many passages have it.
_PASSAGES = 10
# False discovery rate of the lists.
_ERROR = 0.05


@dataclasses.dataclass(frozen=True)
class Exposure:
    """A feature or family, with its share of the hits and of the passages."""

    name: str
    id: int
    is_family: bool  # whether it is a family
    passage_share: float  # share of the passages that have it
    place_share: float  # share of all top-k hits that have it
    ratio: float  # `place_share` over `passage_share`; 1 for hits drawn at random
    low: float  # lower end of the ratio's interval
    high: float  # upper end
    query_share: float  # share of the queries that have it

    @property
    def reference(self) -> str:
        """The id as users write it: "#12", "family:3"."""
        return f"family:{self.id}" if self.is_family else f"#{self.id}"

    @property
    def estimate(self) -> Estimate:
        """The ratio with its interval."""
        return Estimate(self.ratio, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class ExposureGaps:
    """Under- and over-served features and families."""

    tested: int  # how many features and families were frequent enough for a test
    confidence: float  # confidence of each interval, chosen so that 95 of 100 listed intervals hold
    under: tuple[Exposure, ...]  # those with an interval below 1, the largest loss of hits first
    under_count: int  # how many there are
    over: tuple[Exposure, ...]  # those with an interval above 1, the largest gain of hits first
    over_count: int  # how many there are


def exposure_gaps(subject: Subject) -> ExposureGaps:
    """Returns the frequent features and families whose share of the top-k hits differs from that of the passages.

    The hits of one query resemble each other, so they count less than independent draws. The design effect (Kish 1965)
    is the variance of a query's count over that of `k` independent draws: each feature has its own, at least the
    median one. The number of hits is divided by it for Wilson's intervals. Benjamini & Hochberg's procedure at .05
    selects the lists, by the test that the intervals invert; the intervals are widened to match (Benjamini &
    Yekutieli 2005).
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
    perspectives = [(subject.catalog.name(feature), feature, False) for feature in clear.tolist()]
    perspectives += [(family.name, family.id, True) for family in subject.catalog.families]
    found = []
    for row, own_effect in zip(tested.tolist(), effect.tolist(), strict=True):
        seen, own = float(counts[:, row].sum()) / total, float(share[row])
        low, high = wilson(seen, total / own_effect, confidence)
        ratios = seen / own, low / own, high / own
        found.append(Exposure(*perspectives[row], own, seen, *ratios, float(demand[row])))
    under = sorted((one for one in found if one.high < 1), key=lambda one: one.place_share - one.passage_share)
    over = sorted((one for one in found if one.low > 1), key=lambda one: one.passage_share - one.place_share)
    return ExposureGaps(len(tested), confidence, tuple(under[:SHOWN]), len(under), tuple(over[:SHOWN]), len(over))


def design_effect(counts: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Returns (m,) how many hits count as one independent draw; at least 1 and at least the median.

    Args:
        counts: (Q, m) hits of each query that have each feature or family.
        k: Hits of each query.
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
    """Returns Wilson's score interval of a proportion (1927); its width is positive even at 0 and 1.

    Args:
        share: The proportion.
        trials: The number of independent draws; need not be whole.
        confidence: Its confidence, e.g. 0.95.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _confidence(seen: NDArray[np.float64], expected: NDArray[np.float64], trials: NDArray[np.float64]) -> float:
    """The confidence at which the intervals without the expected share are those that Benjamini & Hochberg select."""
    deviation = np.abs(seen - expected) / np.sqrt(expected * (1 - expected) / trials)
    surprise = np.sort(2 * norm.sf(deviation))
    steps = _ERROR * np.arange(1, len(surprise) + 1) / max(len(surprise), 1)
    chosen = np.nonzero(surprise <= steps)[0]
    return float(1 - _ERROR * (int(chosen[-1]) + 1 if len(chosen) else 1) / max(len(surprise), 1))


def _by_query(places: csr_array, k: int) -> NDArray[np.float64]:
    """(Q, m) counts of (Q k, m) hits."""
    rows, columns = places.nonzero()
    counts = np.zeros((places.shape[0] // k, places.shape[1]))
    np.add.at(counts, (rows // k, columns), 1)
    return counts
