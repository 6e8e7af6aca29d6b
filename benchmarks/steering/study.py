"""All methods on one labelled corpus, compared at equal score loss."""

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

from sae_steer_retriever.errors import SteeringError, nearest_names
from sae_steer_retriever.evaluate.bootstrap import Estimate

from .curve import (
    LOSSES,
    Draws,
    Outcomes,
    SteeringMethod,
    Values,
    area,
    chosen_strength,
    outcomes,
    read_off,
)
from .setting import SteeringSetting

logger = logging.getLogger(f"sae_steer_retriever.{__name__}")

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
    """Returns the half that strengths are chosen on, and the half that is reported: alternate queries and concepts.

    Args:
        queries: Number of queries, at least 2.
        concepts: Number of concepts, sorted from the most frequent, at least 2.
    """
    rows, columns = np.arange(queries), np.arange(concepts)
    return Half(rows[::2], columns[::2]), Half(rows[1::2], columns[1::2])


class MethodResult(NamedTuple):
    """The result of one method on the reported half of queries and concepts.

    Attributes:
        name: Name of the method.
        needs: The input that a user has to give.
        shares: Share of the concept in the top 10 at 2, 5 and 10 % score loss, along the mean curve.
        area: Mean share over score losses from 0 to 10 %.
        strength: Strength with the best share at no more than 5 % score loss on the other half; None if there is none.
        loss: Score loss of that strength here.
        share: Share of that strength here.
        everywhere: Shares at the same losses over all queries and concepts.
        curve: (S,) losses and (S,) shares.
    """

    name: str
    needs: str
    shares: tuple[Estimate, ...]
    area: float
    strength: float | None
    loss: float
    share: float
    everywhere: tuple[Estimate, ...]
    curve: tuple[Values, Values]


@dataclass(frozen=True)
class Compared:
    """All methods on the same queries, concepts and passages.

    Attributes:
        needs: Method -> the input that a user has to give.
        found: Method -> its outcomes for all pairs.
        reported: The half that is reported.
        chosen: The half that strengths are chosen on.
        draws: Number of bootstrap draws.
    """

    needs: dict[str, str]
    found: dict[str, Outcomes]
    reported: Half
    chosen: Half
    draws: int = 2000

    def result(self, name: str) -> MethodResult:
        """Returns the result of a method."""
        found = self._outcomes(name, everywhere=True)
        test, dev = found.of(*self.reported), found.of(*self.chosen)
        place = chosen_strength(dev) if len(found.strengths) > 1 else 0
        loss, share = test.curve
        return MethodResult(
            name,
            self.needs[name],
            self.shares(name),
            area(loss, share),
            None if place is None else float(found.strengths[place]),
            float("nan") if place is None else float(loss[place]),
            float("nan") if place is None else float(share[place]),
            self.shares(name, everywhere=True),
            (loss, share),
        )

    @cached_property
    def results(self) -> list[MethodResult]:
        """Returns all methods, the largest share at 5 % score loss first; methods without a share come last."""
        found = [self.result(name) for name in self.found]
        place = LOSSES.index(0.05)
        return sorted(found, key=lambda result: -np.nan_to_num(result.shares[place].value, nan=-1.0))

    def shares(self, name: str, *, everywhere: bool = False) -> tuple[Estimate, ...]:
        """Returns the shares at 2, 5 and 10 % score loss, with bootstrap intervals over queries and concepts.

        Args:
            name: Name of the method.
            everywhere: Whether over all queries and concepts instead of the reported half.
        """
        found = self._outcomes(name, everywhere)
        return _estimates(read_off(*found.curve, LOSSES), self._drawn(name, everywhere))

    def differences(self, name: str, other: str, *, everywhere: bool = False) -> tuple[Estimate, ...]:
        """Returns the share by `name` minus that by `other` at the same losses, drawn in pairs."""
        one, two = (self._outcomes(method, everywhere) for method in (name, other))
        values = read_off(*one.curve, LOSSES) - read_off(*two.curve, LOSSES)
        return _estimates(values, self._drawn(name, everywhere) - self._drawn(other, everywhere))

    def way(self, name: str, begin: str, end: str, *, everywhere: bool = False) -> tuple[Estimate, ...]:
        """Returns the position of `name` between `begin` (0) and `end` (1), at the same losses."""
        mine, low, high = (read_off(*self._outcomes(method, everywhere).curve, LOSSES) for method in (name, begin, end))
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
        """(B, 3) shares at the losses, for every draw; the draws are the same for all methods."""
        found = self._outcomes(name, everywhere)
        queries, concepts, _ = found.share.shape
        losses, shares = Draws.make(queries, concepts, draws=self.draws).curves(found)
        return np.stack([read_off(loss, share, LOSSES) for loss, share in zip(losses, shares, strict=True)])


def compare(
    methods: Sequence[SteeringMethod],
    setting: SteeringSetting,
    *,
    draws: int = 2000,
    progress: bool = False,
) -> Compared:
    """Returns the outcomes of all methods.

    Args:
        methods: The ways to steer.
        setting: Passages, queries and concepts.
        draws: Number of bootstrap draws for the intervals.
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
