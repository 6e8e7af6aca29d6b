"""Every way to steer on one labelled corpus, in one run: what each gains at equal loss."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.steering.curve import (
    DRIFTS,
    Draws,
    Outcomes,
    SteeringMethod,
    Values,
    area,
    chosen_strength,
    outcomes,
    read_off,
)
from benchmarks.steering.setting import SteeringSetting
from sae_steer_retriever.errors import SteeringError, nearest_names
from sae_steer_retriever.evaluate.bootstrap import Estimate

logger = logging.getLogger(__name__)

_PERCENTILES = (2.5, 97.5)


class Half(NamedTuple):
    """Some of the queries and some of the concepts.

    Attributes:
        queries: Rows of the queries.
        concepts: Rows of the concepts.
    """

    queries: NDArray[np.int64]
    concepts: NDArray[np.int64]


def halves(queries: int, concepts: int) -> tuple[Half, Half]:
    """What strengths are chosen on, and what is reported: every other query and every other concept.

    Args:
        queries: How many; at least 2.
        concepts: How many, from the most frequent; at least 2.
    """
    rows, columns = np.arange(queries), np.arange(concepts)
    return Half(rows[::2], columns[::2]), Half(rows[1::2], columns[1::2])


class MethodResult(NamedTuple):
    """What one way to steer reaches, on queries and concepts that no strength was chosen on.

    Attributes:
        name: Of the method.
        needs: What a user has to give.
        shares: The share of the concept in the top 10 at 2, 5 and 10 % drift, along the mean curve.
        area: Mean share over drifts from 0 to 10 %.
        strength: With the best share at no more than 5 % drift on the other half; None if there is none.
        drift: What that strength loses here.
        share: What it gives here.
        everywhere: The shares at the same drifts over all queries and concepts.
        curve: (S,) drifts and (S,) shares.
    """

    name: str
    needs: str
    shares: tuple[Estimate, ...]
    area: float
    strength: float | None
    drift: float
    share: float
    everywhere: tuple[Estimate, ...]
    curve: tuple[Values, Values]


@dataclass(frozen=True)
class Compared:
    """All ways to steer, on the same queries, concepts and passages.

    Attributes:
        needs: Method -> what a user has to give.
        found: Method -> what became of all pairs.
        reported: The half that figures are of.
        chosen: The half that strengths are chosen on.
        draws: How often queries and concepts are drawn for the intervals.
    """

    needs: dict[str, str]
    found: dict[str, Outcomes]
    reported: Half
    chosen: Half
    draws: int = 2000

    def result(self, name: str) -> MethodResult:
        """What one way reaches."""
        found = self._outcomes(name, everywhere=True)
        test, dev = found.of(*self.reported), found.of(*self.chosen)
        place = chosen_strength(dev) if len(found.strengths) > 1 else 0
        drift, share = test.curve
        return MethodResult(
            name,
            self.needs[name],
            self.shares(name),
            area(drift, share),
            None if place is None else float(found.strengths[place]),
            float("nan") if place is None else float(drift[place]),
            float("nan") if place is None else float(share[place]),
            self.shares(name, everywhere=True),
            (drift, share),
        )

    @cached_property
    def results(self) -> list[MethodResult]:
        """All methods, the largest share at 5 % drift first; methods without one come last."""
        found = [self.result(name) for name in self.found]
        place = DRIFTS.index(0.05)
        return sorted(found, key=lambda result: -np.nan_to_num(result.shares[place].value, nan=-1.0))

    def shares(self, name: str, *, everywhere: bool = False) -> tuple[Estimate, ...]:
        """Shares at 2, 5 and 10 % drift, with bootstrap intervals over queries and concepts.

        Args:
            name: Of the method.
            everywhere: Over all queries and concepts instead of those reported.
        """
        found = self._outcomes(name, everywhere)
        return _estimates(read_off(*found.curve, DRIFTS), self._drawn(name, everywhere))

    def differences(self, name: str, other: str, *, everywhere: bool = False) -> tuple[Estimate, ...]:
        """How much larger the share by `name` is than that by `other`, at the same drifts, drawn in pairs."""
        one, two = (self._outcomes(method, everywhere) for method in (name, other))
        values = read_off(*one.curve, DRIFTS) - read_off(*two.curve, DRIFTS)
        return _estimates(values, self._drawn(name, everywhere) - self._drawn(other, everywhere))

    def way(self, name: str, begin: str, end: str, *, everywhere: bool = False) -> tuple[Estimate, ...]:
        """How far `name` goes from `begin` (0) to `end` (1), at the same drifts."""
        mine, low, high = (read_off(*self._outcomes(method, everywhere).curve, DRIFTS) for method in (name, begin, end))
        drawn, below, above = (self._drawn(method, everywhere) for method in (name, begin, end))
        with np.errstate(divide="ignore", invalid="ignore"):
            return _estimates((mine - low) / (high - low), (drawn - below) / (above - below))

    def _outcomes(self, name: str, everywhere: bool = False) -> Outcomes:
        if name not in self.found:
            near = nearest_names(name, self.found, 3)
            raise SteeringError(f"no method {name!r} was compared; {'nearest: ' + ', '.join(near) if near else ''}")
        found = self.found[name]
        return found if everywhere else found.of(*self.reported)

    def _drawn(self, name: str, everywhere: bool) -> Values:
        """(B, 3) shares at the drifts, of every draw; the draws are the same for all methods."""
        found = self._outcomes(name, everywhere)
        queries, concepts, _ = found.share.shape
        drifts, shares = Draws.make(queries, concepts, draws=self.draws).curves(found)
        return np.stack([read_off(drift, share, DRIFTS) for drift, share in zip(drifts, shares, strict=True)])


def compare(
    methods: Sequence[SteeringMethod],
    setting: SteeringSetting,
    *,
    draws: int = 2000,
    progress: bool = False,
) -> Compared:
    """Rank everything by every method.

    Args:
        methods: The ways to steer.
        setting: What is steered.
        draws: For the intervals.
        progress: Whether to show a bar on a terminal.
    """
    queries, concepts = len(setting.questions), len(setting.words)
    needs: dict[str, str] = {}
    found: dict[str, Outcomes] = {}
    for method in tqdm(methods, desc="steering", unit="method", disable=None if progress else True):
        begun = time.perf_counter()
        found[method.name] = outcomes(method, setting, range(queries), range(concepts))
        needs[method.name] = method.needs
        logger.info("%s: %.1f s", method.name, time.perf_counter() - begun)
    chosen, reported = halves(queries, concepts)
    return Compared(needs, found, reported, chosen, draws)


def _estimates(values: Values, drawn: Values) -> tuple[Estimate, ...]:
    estimates = []
    for value, column in zip(values.tolist(), drawn.T, strict=True):
        known = column[np.isfinite(column)]
        low, high = np.percentile(known, _PERCENTILES).tolist() if len(known) else (float("nan"), float("nan"))
        estimates.append(Estimate(value, low, high))
    return tuple(estimates)
