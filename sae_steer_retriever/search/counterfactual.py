"""Counterfactuals: the smallest steering that lifts a passage to a rank, found by searching and verified by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from sae_steer_retriever.errors import SteeringError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.search.passage_rank import Searching, locate
from sae_steer_retriever.search.ranking import Ranking
from sae_steer_retriever.steering.compose import compose
from sae_steer_retriever.steering.edit import Edit
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH, Side
from sae_steer_retriever.steering.policy import Steering

# Strengths are tried in hundredths of a unit: upwards until one suffices, then between that and the one before.
_STEPS_PER_UNIT = 100
_LADDER = (5, 10, 20, 40, 80, 160, 320, 640, int(LARGEST_STRENGTH * _STEPS_PER_UNIT))
# No set of more features is tried: with enough of them any passage can be lifted, and nobody learns why.
_LARGEST_SET = 3
# How far down a passage is looked for when sets are compared.
_DEPTH = 100


@dataclasses.dataclass(frozen=True)
class Counterfactual:
    """What would have brought a passage to a rank. `steering` is what was run: pass it as `steer=`, or print this.

    Attributes:
        query: The question.
        id: The passage.
        steering: The steering, the default's edits included; without an edit of its own if the passage is there anyway.
        strength: Units of each of `features`; 0 if the passage is there anyway.
        features: What is added: names of features as in `steer=`, with their labels.
        rank_before: Its rank without it, from 1; None if it is beyond the 10,000th hit.
        rank_after: Its rank with it.
        drift: The share of the first hits' mean plain score that is lost, in [-1, 1]; 0.05 is 5 %.
        k: How many first hits that is of.
        searches: How many searches it took.
    """

    query: str
    id: str
    steering: Steering
    strength: float
    features: tuple[str, ...]
    rank_before: int | None
    rank_after: int
    drift: float
    k: int
    searches: int

    def __str__(self) -> str:
        """A sentence."""
        if not self.features:
            return f"{self.id!r} is at rank {self.rank_after} for {self.query!r} without a steering."
        before = "beyond the 10,000th hit" if self.rank_before is None else f"rank {self.rank_before}"
        change = "lose" if self.drift >= 0 else "gain"
        each = " each" if len(self.features) > 1 else ""
        return (
            f"{self.strength:+.2f}{each} of {' and '.join(self.features)} lifts {self.id!r} from {before} to rank "
            f"{self.rank_after} for {self.query!r}; the first {self.k} hits {change} {abs(self.drift):.1%} of their "
            "plain score."
        )


class CounterfactualSearch:
    """Looks for the smallest strength, one feature at a time, then for a small set of them.

    A passage's score rises with the strength of a feature that it has, but that of others rises too, some by more:
    a strength is only said to suffice if a search was run with it.
    """

    def __init__(
        self,
        search: Callable[[Steering], Searching],
        base: Steering,
        query: str,
        name: str,
        *,
        passages: int,
        rank: int,
        k: int,
    ) -> None:
        """Take the query and the passage.

        Args:
            search: The query's search under a steering.
            base: What the query is steered by anyway.
            query: The question.
            name: The passage's id.
            passages: How many are stored.
            rank: What the passage should reach.
            k: How many first hits the drift is of.
        """
        self._search = search
        self._base = base
        self._query = query
        self._name = name
        self._passages = passages
        self._rank = rank
        self._k = k
        self._searches = 0

    def find(self, candidates: Sequence[Edit], catalog: FeatureCatalog) -> Counterfactual:
        """The smallest steering by some features.

        Args:
            candidates: What may be added, with any strength; the likeliest first.
            catalog: The features' labels.

        Raises:
            SteeringError: None of them, nor a few together, lifts the passage to the rank; it says what was tried.
        """
        before = self._ranking(self._base, max(self._k, self._rank))
        located = locate(self._search(self._base), self._name, self._passages, None)
        rank_before = None if located is None else located[0]
        if rank_before is not None and rank_before <= self._rank:
            return self._found(self._base, 0, (), rank_before, before, before, catalog)
        chosen, steps = self._single(candidates)
        if not chosen:
            chosen, steps = self._several(candidates)
        if not chosen:
            raise self._refused(candidates, rank_before, catalog)
        steering = self._steering(chosen, steps)
        after = self._ranking(steering, max(self._k, self._rank))
        return self._found(steering, steps, chosen, rank_before, before, after, catalog)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _single(self, candidates: Sequence[Edit]) -> tuple[tuple[Edit, ...], int]:
        """The one that suffices with the least strength, and that in steps."""
        chosen: tuple[Edit, ...] = ()
        ceiling = _LADDER[-1]
        for edit in candidates:
            steps = self._smallest((edit,), ceiling)
            if steps is not None:
                chosen, ceiling = (edit,), steps - 1
        return chosen, ceiling + 1

    def _several(self, candidates: Sequence[Edit]) -> tuple[tuple[Edit, ...], int]:
        """A few that suffice together, each added because it lifts the passage the furthest."""
        chosen: tuple[Edit, ...] = ()
        reached = self._depth(chosen, _LADDER[-1])
        while len(chosen) < min(_LARGEST_SET, len(candidates)):
            further = [(self._depth((*chosen, edit), _LADDER[-1]), edit) for edit in candidates if edit not in chosen]
            best, edit = min(further, key=lambda pair: pair[0])
            if best >= reached:
                break
            chosen, reached = (*chosen, edit), best
            steps = self._smallest(chosen, _LADDER[-1]) if len(chosen) > 1 else None
            if steps is not None:
                return chosen, steps
        return (), 0

    def _smallest(self, edits: tuple[Edit, ...], ceiling: int) -> int | None:
        """The fewest steps up to `ceiling` that suffice, if any do."""
        failed = 0
        for rung in (*(rung for rung in _LADDER if rung < ceiling), ceiling):
            if rung > 0 and self._suffices(edits, rung):
                break
            failed = rung
        else:
            return None
        enough = rung
        while enough - failed > 1:
            middle = (enough + failed) // 2
            if self._suffices(edits, middle):
                enough = middle
            else:
                failed = middle
        return enough

    def _suffices(self, edits: tuple[Edit, ...], steps: int) -> bool:
        return self._name in self._ranking(self._steering(edits, steps), self._rank).ids

    def _depth(self, edits: tuple[Edit, ...], steps: int) -> int:
        """The passage's rank, or one more than is looked at."""
        depth = max(_DEPTH, self._rank)
        ids = self._ranking(self._steering(edits, steps) if edits else self._base, depth).ids
        return ids.index(self._name) + 1 if self._name in ids else depth + 1

    def _ranking(self, steering: Steering, k: int) -> Ranking:
        self._searches += 1
        return self._search(steering).ranking(k, max(_DEPTH, 4 * k))

    def _steering(self, edits: tuple[Edit, ...], steps: int) -> Steering:
        strength = steps / _STEPS_PER_UNIT
        added = tuple(dataclasses.replace(edit, strength=strength) for edit in edits)
        return compose(self._base, Steering(added, self._base.fingerprint, self._base.drift_cap))

    def _found(
        self,
        steering: Steering,
        steps: int,
        chosen: tuple[Edit, ...],
        rank_before: int | None,
        before: Ranking,
        after: Ranking,
        catalog: FeatureCatalog,
    ) -> Counterfactual:
        plain, left = (float(ranking.base_scores[: self._k].mean()) for ranking in (before, after))
        return Counterfactual(
            query=self._query,
            id=self._name,
            steering=steering,
            strength=steps / _STEPS_PER_UNIT,
            features=tuple(_named(edit, catalog) for edit in chosen),
            rank_before=rank_before,
            rank_after=after.ids.index(self._name) + 1,
            drift=(plain - left) / abs(plain) if plain else 0.0,
            k=self._k,
            searches=self._searches,
        )

    def _refused(self, candidates: Sequence[Edit], rank_before: int | None, catalog: FeatureCatalog) -> SteeringError:
        names = ", ".join(_named(edit, catalog) for edit in candidates)
        at = "is not found" if rank_before is None else f"is at rank {rank_before}"
        best = min((self._depth((edit,), _LADDER[-1]) for edit in candidates), default=_DEPTH + 1)
        most = f"rank {best}" if best <= max(_DEPTH, self._rank) else f"below rank {max(_DEPTH, self._rank)}"
        return SteeringError(
            f"passage {self._name!r} {at} for {self._query!r}, and nothing tried lifts it to rank {self._rank}: each "
            f"of {names or 'no feature'} alone, and up to {_LARGEST_SET} of them together, with up to "
            f"{LARGEST_STRENGTH:g} units each; the best alone leaves it at {most}. Ask for a lower rank, or give "
            "features= of what it is about; a filter may leave it out, too."
        )


def own_edits(own: Codes[NDArray[Any]], catalog: FeatureCatalog, side: Side) -> tuple[Edit, ...]:
    """One unit of each feature that a passage has, the one that it has most of first.

    Features without a label tell nobody anything: they are left out if any has one.

    Args:
        own: (1, k_labels) the passage's label latents.
        catalog: Labels and units of the features.
        side: Which side the edits act on.
    """
    shares = {
        latent: value / float(catalog.calibration.unit[latent])
        for latent, value in zip(own.indices[0].tolist(), own.values[0].tolist(), strict=True)
        if value > 0
    }
    most_first = sorted(shares, key=lambda latent: -shares[latent])
    labelled = [latent for latent in most_first if catalog[latent].label]
    return tuple(Edit(f"#{latent}", (latent,), (1.0,), "add", 1.0, side) for latent in labelled or most_first)


def _named(edit: Edit, catalog: FeatureCatalog) -> str:
    """As in `steer=`: a name as it was given, an id with its label."""
    if len(edit.features) > 1 or edit.name != f"#{edit.features[0]}":
        return repr(edit.name)
    label = catalog.name(edit.features[0])
    return label if edit.name in label.split() else f"{edit.name} {label}"


__all__ = ["Counterfactual", "CounterfactualSearch", "own_edits"]
