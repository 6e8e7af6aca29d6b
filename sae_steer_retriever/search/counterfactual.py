"""Counterfactuals: the smallest steering that lifts a passage to a rank, found and verified by searching."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from sae_steer_retriever.errors import SteeringError
from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.search.options import SearchOptions, check_count
from sae_steer_retriever.search.passage_rank import Searching, locate
from sae_steer_retriever.search.query import QuerySearch
from sae_steer_retriever.search.query_cosine import score_loss
from sae_steer_retriever.search.ranking import Ranking
from sae_steer_retriever.steering.edit import Edit
from sae_steer_retriever.steering.from_examples import labels_of_passages
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH, Side
from sae_steer_retriever.steering.policy import Steering, compose
from sae_steer_retriever.store.store_reader import StoreReader

# Strengths are tried in hundredths of a unit: upwards until one suffices, then by bisection below it.
_STEPS_PER_UNIT = 100
_LADDER = (5, 10, 20, 40, 80, 160, 320, 640, int(LARGEST_STRENGTH * _STEPS_PER_UNIT))
# The largest set of features: enough of them lift any passage, which explains nothing.
_LARGEST_SET = 3
# The ranks searched for the passage when sets are compared.
_DEPTH = 100


@dataclasses.dataclass(frozen=True)
class Counterfactual:
    """A steering that brings a passage to a rank: pass `steering` as `steer=`, or print this object.

    Attributes:
        query: The question.
        id: The passage.
        steering: The verified steering, with the default's edits; nothing is added if the passage has the rank already.
        strength: Units of each of `features`; 0 if the passage has the rank already.
        features: The added features, named as in `steer=`, with their labels.
        rank_before: The passage's rank without the steering, from 1; None beyond the 10,000th hit.
        rank_after: Its rank with the steering.
        score_loss: The share of the first `k` hits' mean plain score that is lost, in [-1, 1]; 0.05 is 5 %.
        k: The number of first hits that `score_loss` is about.
        searches: The number of searches it took.
    """

    query: str
    id: str
    steering: Steering
    strength: float
    features: tuple[str, ...]
    rank_before: int | None
    rank_after: int
    score_loss: float
    k: int
    searches: int

    @property
    def drift(self) -> float:
        """The former name of `score_loss`, until the next minor version."""
        warnings.warn("Counterfactual.drift is now Counterfactual.score_loss", DeprecationWarning, stacklevel=2)
        return self.score_loss

    def __str__(self) -> str:
        """The result as a sentence."""
        if not self.features:
            return f"{self.id!r} is at rank {self.rank_after} for {self.query!r} without a steering."
        before = "beyond the 10,000th hit" if self.rank_before is None else f"rank {self.rank_before}"
        change = "lose" if self.score_loss >= 0 else "gain"
        each = " each" if len(self.features) > 1 else ""
        return (
            f"{self.strength:+.2f}{each} of {' and '.join(self.features)} lifts {self.id!r} from {before} to rank "
            f"{self.rank_after} for {self.query!r}; the first {self.k} hits {change} {abs(self.score_loss):.1%} of "
            "their plain score."
        )


def find_counterfactual(
    queries: QuerySearch,
    store: StoreReader,
    catalog: FeatureCatalog,
    base: Steering,
    query: str,
    passage: Hit | str,
    rank: int,
    candidates: Sequence[Edit] | None,
    side: Side,
    options: SearchOptions,
) -> Counterfactual:
    """Returns what `SteeredRetriever.counterfactual` does.

    `base` is the steering that holds anyway. `candidates` are one unit of each feature, the likeliest first; None
    stands for the passage's own features.

    Raises:
        TypeError: `passage` is neither a hit nor an id.
    """
    if not isinstance(passage, Hit | str):
        raise TypeError(f"passage must be a Hit or a passage's id, got {type(passage).__name__}.")
    name = passage.id if isinstance(passage, Hit) else passage
    own = labels_of_passages(store, [name])
    encoded = queries.encode_query(query, options.embedding)
    looking = _CounterfactualSearch(
        lambda steering: queries.prepare(steering, encoded, options),
        base,
        query,
        name,
        passages=len(store),
        rank=check_count("rank", rank),
        k=options.k,
    )
    return looking.find(own_edits(own, catalog, side) if candidates is None else candidates, catalog)


@dataclasses.dataclass
class _CounterfactualSearch:
    """Looks for the smallest strength of one feature at a time, then of a small set of them.

    A passage's score rises with the strength of a feature that it has, but the scores of others rise too: a strength
    suffices only if a search with it shows so.
    """

    search: Callable[[Steering], Searching]
    base: Steering
    query: str
    name: str
    passages: int
    rank: int
    k: int
    searches: int = 0

    def find(self, candidates: Sequence[Edit], catalog: FeatureCatalog) -> Counterfactual:
        """Returns the smallest steering by some of the candidates, or raises `SteeringError`."""
        before = self._ranking(self.base, max(self.k, self.rank))
        located = locate(self.search(self.base), self.name, self.passages, None)
        rank_before = None if located is None else located[0]
        if rank_before is not None and rank_before <= self.rank:
            return self._found(self.base, 0, (), rank_before, before, before, catalog)
        chosen, steps = self._single(candidates)
        if not chosen:
            chosen, steps = self._several(candidates)
        if not chosen:
            raise self._refused(candidates, rank_before, catalog)
        steering = self._steering(chosen, steps)
        after = self._ranking(steering, max(self.k, self.rank))
        return self._found(steering, steps, chosen, rank_before, before, after, catalog)

    def _single(self, candidates: Sequence[Edit]) -> tuple[tuple[Edit, ...], int]:
        """Returns the edit that suffices at the least strength, and that strength in steps."""
        chosen: tuple[Edit, ...] = ()
        ceiling = _LADDER[-1]
        for edit in candidates:
            steps = self._smallest((edit,), ceiling)
            if steps is not None:
                chosen, ceiling = (edit,), steps - 1
        return chosen, ceiling + 1

    def _several(self, candidates: Sequence[Edit]) -> tuple[tuple[Edit, ...], int]:
        """Returns a few edits that suffice together; each one added lifts the passage the furthest."""
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
        """Returns the fewest steps up to `ceiling` that suffice, or None."""
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
        return self.name in self._ranking(self._steering(edits, steps), self.rank).ids

    def _depth(self, edits: tuple[Edit, ...], steps: int) -> int:
        """Returns the passage's rank, or one more than the depth."""
        depth = max(_DEPTH, self.rank)
        ids = self._ranking(self._steering(edits, steps) if edits else self.base, depth).ids
        return ids.index(self.name) + 1 if self.name in ids else depth + 1

    def _ranking(self, steering: Steering, k: int) -> Ranking:
        self.searches += 1
        return self.search(steering).ranking(k, max(_DEPTH, 4 * k))

    def _steering(self, edits: tuple[Edit, ...], steps: int) -> Steering:
        strength = steps / _STEPS_PER_UNIT
        added = tuple(dataclasses.replace(edit, strength=strength) for edit in edits)
        return compose(self.base, Steering(added, self.base.fingerprint, self.base.drift_cap))

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
        return Counterfactual(
            query=self.query,
            id=self.name,
            steering=steering,
            strength=steps / _STEPS_PER_UNIT,
            features=tuple(_named(edit, catalog) for edit in chosen),
            rank_before=rank_before,
            rank_after=after.ids.index(self.name) + 1,
            score_loss=score_loss(before.base_scores[: self.k], after.base_scores[: self.k]),
            k=self.k,
            searches=self.searches,
        )

    def _refused(self, candidates: Sequence[Edit], rank_before: int | None, catalog: FeatureCatalog) -> SteeringError:
        names = ", ".join(_named(edit, catalog) for edit in candidates)
        at = "is not found" if rank_before is None else f"is at rank {rank_before}"
        best = min((self._depth((edit,), _LADDER[-1]) for edit in candidates), default=_DEPTH + 1)
        most = f"rank {best}" if best <= max(_DEPTH, self.rank) else f"below rank {max(_DEPTH, self.rank)}"
        return SteeringError(
            f"passage {self.name!r} {at} for {self.query!r}, and nothing tried lifts it to rank {self.rank}: each "
            f"of {names or 'no feature'} alone, and up to {_LARGEST_SET} of them together, with up to "
            f"{LARGEST_STRENGTH:g} units each; the best alone leaves it at {most}. Ask for a lower rank, or give "
            "features= of what it is about; a filter may leave it out, too."
        )


def own_edits(own: Codes[NDArray[Any]], catalog: FeatureCatalog, side: Side) -> tuple[Edit, ...]:
    """Returns one unit of each feature that a passage has, the strongest first.

    Features without a label are left out if any feature has one.

    Args:
        own: (1, k_labels) the passage's label latents.
        catalog: Labels and units of the features.
        side: The side that the edits act on.
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
    """Returns an edit's name as in `steer=`; an id with its label."""
    if len(edit.features) > 1 or edit.name != f"#{edit.features[0]}":
        return repr(edit.name)
    label = catalog.name(edit.features[0])
    return label if edit.name in label.split() else f"{edit.name} {label}"
