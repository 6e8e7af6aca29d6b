"""The plan for one query: what a steering adds to the query, which passages it rewards, and which it leaves out."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.features.calibration import Calibration
from sae_steer_retriever.sae.codes import Array, Codes, power_normalise, power_normalised
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.edit import Edit
from sae_steer_retriever.steering.operations import Add, AddRaw
from sae_steer_retriever.steering.policy import Steering

logger = logging.getLogger(__name__)

# A passage has a feature clearly enough to be suppressed from this share of a unit on.
SUPPRESSED_FROM = 0.5
# What one unit adds to a passage that strongly has a feature, in score spreads (the distance of a query's second from
# its hundredth neighbour): half a unit lifts the hundredth among the first.
_LIFT = 2.0
# The least that a shift leaves of the query along its own direction.
_LEAST_LEFT = 0.01


class DocumentBoost(NamedTuple):
    """A bonus for passages that have the features: `amount` times their feature match (`FeatureMatch`).

    Attributes:
        name: The edit's name.
        features: Latent ids.
        weights: Their shares.
        amount: The bonus of a passage that has the features in full, in score units; a negative one takes away.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]
    amount: float


class QueryShift(NamedTuple):
    """A shift of the query along latents' directions: `sum_f delta_f d_f`, in embedding units.

    Attributes:
        name: The edit's name.
        vector: (d,) the shift.
    """

    name: str
    vector: Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """The effect of a steering on one query.

    Attributes:
        shifts: Shifts of the query, after the drift cap.
        boosts: Bonuses for passages.
        excluded: Features whose passages are left out.
        capped: Share of the requested shift that the drift cap lets through; 1.0 if it does not bind.
    """

    shifts: tuple[QueryShift, ...]
    boosts: tuple[DocumentBoost, ...]
    excluded: tuple[DocumentBoost, ...]
    capped: float

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.boosts or self.excluded) and not any(shift.vector.any() for shift in self.shifts)

    def total_shift(self, d: int) -> Array:
        """Returns (d,) the sum of all shifts."""
        total = np.zeros(d, dtype=np.float32)
        for shift in self.shifts:
            total += shift.vector
        return total


def lift_of(calibration: Calibration) -> float:
    """Returns what strength +1 adds to a passage that strongly has the features, in score units."""
    return _LIFT * calibration.score_spread


def plan(steering: Steering, q: Array, h_q: Codes[NDArray[Any]], sae: TopKSAE, calibration: Calibration) -> Plan:
    """Returns the shifts, boosts and exclusions for one query.

    At strength +1 a passage that strongly has the features gains two score spreads (`Calibration.score_spread`). On the
    document side the gain is proportional to the feature match; on the query side, `q + v`, to the projection
    `sum_f w_f <d_f, x_hat> / u_f / sum_f w_f`. Side "both" does half of each.

    Args:
        steering: The edits.
        q: (d,) the vector that is shifted, for the drift cap.
        h_q: (1, K) the query's codes, for operations relative to the query's own activations.
        sae: The dictionary.
        calibration: Its units.
    """
    lift = lift_of(calibration)

    def shift(edit: Edit, share: float, weights: Array, directions: Array) -> QueryShift:
        shares = weights / weights.sum() / calibration.match_unit[list(edit.features)]
        return QueryShift(edit.name, np.asarray(share * edit.strength * lift * (shares @ directions), dtype=np.float32))

    return _plan(steering, q, h_q, lambda features: sae.decoder[features], calibration.unit, lift, shift)


class CodePlan(NamedTuple):
    """The effect of a steering on one query's code, in the coordinates of the latents concerned.

    Attributes:
        latents: (m,) the latents of the query and of the edits, ascending.
        vector: (m,) the query's activations of them, power-normalised if the plan is of such codes.
        plan: The plan; its shifts are (m,) changes of these activations, which may become negative.
    """

    latents: NDArray[np.int32]
    vector: Array
    plan: Plan


def plan_code(
    steering: Steering, h_q: Codes[NDArray[Any]], calibration: Calibration, *, damped: bool = True
) -> CodePlan:
    """Returns the plan on the code, where every latent is a direction of its own.

    An edit by one unit adds as much as a passage has of a feature at one unit: units are power-normalised where the
    code is. Strengths are not, so that edits stay linear in them.

    Args:
        steering: The edits; their drift cap is a cosine of codes here.
        h_q: (1, K) the query's code, as the SAE gives it.
        calibration: The features' units, of codes that are not power-normalised.
        damped: Whether codes are compared power-normalised.
    """
    unit = calibration.unit
    if damped:
        h_q, unit = power_normalised(h_q), power_normalise(unit)
    active = h_q.values[0] > 0
    own = h_q.indices[0][active]
    latents = np.unique(np.array([*own.tolist(), *(f for edit in steering.edits for f in edit.features)], np.int32))
    vector = np.zeros(len(latents), dtype=np.float32)
    vector[np.searchsorted(latents, own)] = h_q.values[0][active]

    def directions(features: NDArray[np.int64]) -> Array:
        return np.asarray(features[:, None] == latents[None], dtype=np.float32)

    def shift(edit: Edit, share: float, weights: Array, directions: Array) -> QueryShift:
        units = unit[list(edit.features)]
        return QueryShift(edit.name, share * edit.strength * _family_direction(weights, units, directions))

    return CodePlan(latents, vector, _plan(steering, vector, h_q, directions, unit, lift_of(calibration), shift))


def _plan(
    steering: Steering,
    q: Array,
    h_q: Codes[NDArray[Any]],
    directions_of: Callable[[NDArray[np.int64]], Array],
    unit: Array,
    lift: float,
    added: Callable[[Edit, float, Array, Array], QueryShift],
) -> Plan:
    own = dict(zip(h_q.indices[0].tolist(), h_q.values[0].tolist(), strict=True))
    sharing = Counter(latent for edit in steering.edits if edit.operation.excludes for latent in edit.features)
    shifts: list[QueryShift] = []
    boosts: list[DocumentBoost] = []
    excluded: list[DocumentBoost] = []
    for edit in steering.edits:
        features = np.array(edit.features)
        weights = np.array(edit.weights, dtype=np.float32)
        units = unit[features]
        directions = directions_of(features)
        if edit.op == Add.op:
            share = 0.5 if edit.side == "both" else 1.0
            if edit.side in ("query", "both"):
                shifts.append(added(edit, share, weights, directions))
            if edit.side in ("document", "both"):
                boosts.append(DocumentBoost(edit.name, edit.features, edit.weights, share * edit.strength * lift))
        elif edit.op == AddRaw.op:
            direction = _family_direction(weights, np.ones_like(units), directions)
            shifts.append(QueryShift(edit.name, edit.strength * direction))
        else:
            operation = edit.operation
            present = np.array([own.get(feature, 0.0) for feature in edit.features], dtype=np.float32)
            shared = np.array([sharing[feature] for feature in edit.features], dtype=np.float32)
            change = operation.change(present, units, weights, shared)
            shifts.append(QueryShift(edit.name, np.asarray(change @ directions, dtype=np.float32)))
            if operation.excludes:
                excluded.append(DocumentBoost(edit.name, edit.features, edit.weights, 0.0))
    total = np.sum([shift.vector for shift in shifts], axis=0) if shifts else np.zeros_like(q)
    # A code without a latent has no direction to keep.
    kept = cap_drift(q, total, steering.drift_cap) if q.any() else 1.0
    if kept < 1.0:
        logger.warning(
            "the steering is capped: %.0f %% of the query shift is applied, so that the query keeps a cosine of %.2f",
            100 * kept,
            steering.drift_cap,
        )
    capped = tuple(shift._replace(vector=(kept * shift.vector).astype(np.float32)) for shift in shifts)
    return Plan(capped, tuple(boosts), tuple(excluded), kept)


def cap_drift(q: Array, v: Array, cap: float) -> float:
    """Returns the largest t <= 1 with cos(q, q + t v) >= cap, in closed form.

    A shift straight against the query keeps the cosine at 1 until nothing of the query is left: a hundredth stays.

    Args:
        q: (d,) any norm but zero.
        v: (d,) the shift.
        cap: Smallest cosine, in (0, 1].
    """
    norm = float(np.linalg.norm(q))
    shift = np.asarray(v, dtype=np.float64) / norm
    along = float(shift @ (np.asarray(q, dtype=np.float64) / norm))
    across = math.sqrt(max(float(shift @ shift) - along * along, 0.0))
    tangent = math.sqrt(1.0 - cap * cap) / cap
    # cos(q, q + t v) >= cap  <=>  t * across <= tangent * (1 + t * along).
    slope = across - along * tangent
    share = 1.0 if slope <= tangent else tangent / slope
    return min(share, (_LEAST_LEFT - 1.0) / along) if along < _LEAST_LEFT - 1.0 else share


def _family_direction(weights: Array, units: Array, directions: Array) -> Array:
    """Returns one unit of a family: its features' weighted sum of directions, at the length of their mean unit."""
    total = (weights * units) @ directions
    norm = float(np.linalg.norm(total))
    length = float((weights * units).sum() / weights.sum())
    return np.asarray(total * (length / norm) if norm > 0 else total, dtype=np.float32)
