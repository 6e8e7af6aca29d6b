"""Steering: what a user asks for (parse), which features that means (resolve), and what it does to scores (plan)."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.calibration import Calibration
from sae_steer_retriever.errors import MismatchError, SteeringError
from sae_steer_retriever.sae import Array, Codes, TopKSAE

logger = logging.getLogger(__name__)

Side = Literal["query", "document", "both"]
SIDES: tuple[Side, ...] = ("query", "document", "both")
DEFAULT_SIDE: Side = "both"
DEFAULT_DRIFT_CAP = 0.8
# Past a few units a steering only says "nothing else matters"; a larger number is a slip of the keyboard.
LARGEST_STRENGTH = 10.0
# A passage has a feature clearly enough to be suppressed from this share of a unit on.
SUPPRESSED_FROM = 0.5
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Add:
    """Add `strength` units of a feature; negative pushes away. A bare number in `steer=` means this."""

    strength: float
    side: Side | None = None


@dataclasses.dataclass(frozen=True)
class Clamp:
    """Set the query's activation of a feature to `value` units, whatever it was."""

    value: float


@dataclasses.dataclass(frozen=True)
class Scale:
    """Multiply the query's own activation of a feature by `factor`; nothing happens if the query lacks it."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Suppress:
    """Remove a feature from the query, and leave out passages that clearly have it."""


Operation = Add | Clamp | Scale | Suppress
SteerLike = Mapping[Any, Any]


class Request(NamedTuple):
    """One line of `steer=` after parsing, before its name is resolved."""

    name: str | int
    operation: Operation


class Resolution(NamedTuple):
    """Which features a name means.

    Attributes:
        features: Latent ids, the strongest first.
        weights: Their shares, the largest 1.0.
        how: "id", "label", "keyword" or "meaning".
    """

    features: tuple[int, ...]
    weights: tuple[float, ...]
    how: str


@dataclasses.dataclass(frozen=True)
class Edit:
    """One resolved edit.

    Attributes:
        name: As the user wrote it.
        features: Latent ids.
        weights: Their shares, the largest 1.0.
        op: "add", "clamp", "scale" or "suppress".
        strength: Units to add, units to clamp to, or the factor; 0 for suppress.
        side: Which side an "add" acts on.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]
    op: Literal["add", "clamp", "scale", "suppress"]
    strength: float
    side: Side


@dataclasses.dataclass(frozen=True)
class Steering:
    """An immutable list of edits that belongs to one SAE.

    Attributes:
        edits: The edits; their order does not matter.
        fingerprint: Of the SAE whose features the edits name.
        drift_cap: Smallest cosine allowed between the query and the tilted query.
    """

    edits: tuple[Edit, ...]
    fingerprint: str
    drift_cap: float = DEFAULT_DRIFT_CAP

    def to_json(self) -> str:
        """A policy that can be stored and read back with `from_json`."""
        return json.dumps({"format_version": _FORMAT_VERSION, **dataclasses.asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Steering:
        """Read a policy.

        Raises:
            SteeringError: The text is no policy of this library, or holds a value that no steering may have.
        """
        try:
            body = json.loads(text)
            if body["format_version"] != _FORMAT_VERSION:
                raise SteeringError(
                    f"the policy has format version {body['format_version']}, this library reads {_FORMAT_VERSION}."
                )
            edits = tuple(_edit_from(row) for row in body["edits"])
            return cls(edits, str(body["fingerprint"]), check_drift_cap(body["drift_cap"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, SteeringError):
                raise
            raise SteeringError(f"this is not a steering policy of this library ({error!r}).") from error

    def require(self, fingerprint: str) -> None:
        """Refuse to be used with another SAE.

        Raises:
            MismatchError: `fingerprint` is not this policy's.
        """
        if fingerprint != self.fingerprint:
            raise MismatchError(
                f"this steering was made for SAE {self.fingerprint}, the retriever has {fingerprint}: "
                "features of two SAEs do not correspond; resolve the names again."
            )


def parse(steer: SteerLike | None) -> list[Request]:
    """Check a `steer=` mapping, before anything is embedded.

    Args:
        steer: Feature id, label, keyword or free text -> a strength or an operation.

    Returns:
        The requests that ask for something; zero strengths are dropped.

    Raises:
        SteeringError: Not a mapping, an unusable name, or a strength that is no number of reasonable size.
    """
    if steer is None:
        return []
    if not isinstance(steer, Mapping):
        raise SteeringError(
            f'steer must map feature names to strengths, e.g. {{"employment": 0.5}}, got {type(steer).__name__}.'
        )
    requests = []
    for name, value in steer.items():
        if isinstance(name, bool) or not isinstance(name, str | int) or (isinstance(name, str) and not name.strip()):
            raise SteeringError(f"a feature is named by text or by its id, got {name!r}.")
        operation = value if isinstance(value, Operation) else Add(value)
        _check(name, operation)
        if not (isinstance(operation, Add) and operation.strength == 0):
            requests.append(Request(name.strip() if isinstance(name, str) else name, operation))
    return requests


def resolve(
    requests: list[Request],
    resolver: Callable[[str | int], Resolution],
    *,
    fingerprint: str,
    side: Side | None = None,
    drift_cap: float = DEFAULT_DRIFT_CAP,
) -> Steering:
    """Turn requests into edits.

    Args:
        requests: From `parse`.
        resolver: From a name to features; raises on unknown and ambiguous names.
        fingerprint: Of the SAE.
        side: For operations that do not say; `DEFAULT_SIDE` if not given.
        drift_cap: Smallest cosine allowed between the query and the tilted query.
    """
    edits = []
    for name, operation in requests:
        features, weights, _ = resolver(name)
        match operation:
            case Add(strength, own_side):
                edit = Edit(str(name), features, weights, "add", float(strength), own_side or side or DEFAULT_SIDE)
            case Clamp(value):
                edit = Edit(str(name), features, weights, "clamp", float(value), "query")
            case Scale(factor):
                edit = Edit(str(name), features, weights, "scale", float(factor), "query")
            case Suppress():
                edit = Edit(str(name), features, weights, "suppress", 0.0, "both")
        edits.append(edit)
    return Steering(tuple(edits), fingerprint, check_drift_cap(drift_cap))


class Gate(NamedTuple):
    """A bonus for passages that have a feature: `amount * min(1, sum_f weight_f min(1, h_f / u_f))`.

    Attributes:
        name: The edit's name.
        features: Latent ids.
        weights: Their shares.
        amount: What a passage gains that has the feature in full, in score units; negative takes away.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]
    amount: float


class Tilt(NamedTuple):
    """A shift of the query along latents' directions: `sum_f delta_f d_f`, in embedding units."""

    name: str
    vector: Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a steering does to one query.

    Attributes:
        tilts: Shifts of the query, after the drift cap.
        gates: Bonuses for passages.
        excluded: Features whose passages are left out.
        capped: Share of the requested tilt that the drift cap let through, 1.0 if it did not bind.
    """

    tilts: tuple[Tilt, ...]
    gates: tuple[Gate, ...]
    excluded: tuple[Gate, ...]
    capped: float

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.gates or self.excluded) and not any(tilt.vector.any() for tilt in self.tilts)

    def shift(self, d: int) -> Array:
        """(d,) the sum of all tilts."""
        total = np.zeros(d, dtype=np.float32)
        for tilt in self.tilts:
            total += tilt.vector
        return total


def plan(steering: Steering, q: Array, h_q: Codes[NDArray[Any]], sae: TopKSAE, calibration: Calibration) -> Plan:
    """Work out tilts, gates and exclusions for one query.

    Args:
        steering: The edits.
        q: (d,) the vector that is tilted, for the drift cap.
        h_q: (1, K) the query's codes, for operations relative to what the query has.
        sae: The dictionary.
        calibration: Its units.
    """
    own = dict(zip(h_q.indices[0].tolist(), h_q.values[0].tolist(), strict=True))
    tilts: list[Tilt] = []
    gates: list[Gate] = []
    excluded: list[Gate] = []
    for edit in steering.edits:
        features = np.array(edit.features)
        weights = np.array(edit.weights, dtype=np.float32)
        units = calibration.unit[features]
        present = np.array([own.get(feature, 0.0) for feature in edit.features], dtype=np.float32)
        directions = sae.decoder[features]
        if edit.op == "add":
            if edit.side in ("query", "both"):
                tilts.append(Tilt(edit.name, edit.strength * _family_direction(weights, units, directions)))
            if edit.side in ("document", "both"):
                amount = edit.strength * calibration.score_spread
                gates.append(Gate(edit.name, edit.features, edit.weights, amount))
        elif edit.op == "clamp":
            tilts.append(Tilt(edit.name, (weights * (edit.strength * units - present)) @ directions))
        elif edit.op == "scale":
            tilts.append(Tilt(edit.name, ((edit.strength - 1.0) * present) @ directions))
        else:
            tilts.append(Tilt(edit.name, -present @ directions))
            excluded.append(Gate(edit.name, edit.features, edit.weights, 0.0))
    total = np.sum([tilt.vector for tilt in tilts], axis=0) if tilts else np.zeros_like(q)
    share = cap_drift(q, total, steering.drift_cap)
    if share < 1.0:
        logger.warning(
            "the steering is capped: %.0f %% of the tilt is applied, so that the query keeps a cosine of %.2f",
            100 * share,
            steering.drift_cap,
        )
    return Plan(
        tuple(Tilt(name, (share * vector).astype(np.float32)) for name, vector in tilts),
        tuple(gates),
        tuple(excluded),
        share,
    )


def cap_drift(q: Array, v: Array, cap: float) -> float:
    """The largest t <= 1 with cos(q, q + t v) >= cap, in closed form.

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
    return 1.0 if slope <= tangent else tangent / slope


def gate_presence(gate: Gate, codes: Codes[NDArray[Any]], unit: Array) -> Array:
    """How much passages have a gate's feature: `min(1, sum_f weight_f min(1, h_f / u_f))`.

    Args:
        gate: The gate.
        codes: (batch, k_names) naming readings of passages.
        unit: (n,) units.

    Returns:
        (batch,) in [0, 1].
    """
    presence = np.zeros(len(codes.indices), dtype=np.float32)
    for feature, weight in zip(gate.features, gate.weights, strict=True):
        activation = np.where(codes.indices == feature, codes.values, 0).max(axis=1, initial=0)
        presence += weight * np.minimum(1.0, activation / unit[feature])
    return np.minimum(presence, 1.0)


def _family_direction(weights: Array, units: Array, directions: Array) -> Array:
    """One unit of a family: as long as its features' mean unit, along their weighted sum."""
    total = (weights * units) @ directions
    norm = float(np.linalg.norm(total))
    length = float((weights * units).sum() / weights.sum())
    return np.asarray(total * (length / norm) if norm > 0 else total, dtype=np.float32)


def _check(name: str | int, operation: Operation) -> None:
    match operation:
        case Add(value, side):
            if side is not None and side not in SIDES:
                raise SteeringError(f"side of {name!r} is {side!r}, expected one of {', '.join(SIDES)}.")
        case Clamp(value) | Scale(value):
            pass
        case Suppress():
            return
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise SteeringError(
            f"strength of {name!r} is {value!r}: expected a number such as +0.5, or Clamp, Scale, Suppress."
        )
    if not math.isfinite(value):
        raise SteeringError(f"strength of {name!r} is {value}: expected a finite number such as +0.5.")
    if abs(value) > LARGEST_STRENGTH:
        raise SteeringError(
            f"strength of {name!r} is {value}: expected at most {LARGEST_STRENGTH:g} in size. 1.0 is as present as in "
            "a passage that strongly has the feature; 0.5 is a good start."
        )


def check_drift_cap(cap: Any) -> float:  # noqa: ANN401 - user input
    """A drift cap, or an error if it is not in (0, 1]."""
    if isinstance(cap, bool) or not isinstance(cap, int | float) or not 0 < cap <= 1:
        raise SteeringError(f"drift_cap is {cap!r}: expected a cosine above 0 and at most 1, e.g. 0.8.")
    return float(cap)


def check_side(side: Any) -> Side | None:  # noqa: ANN401 - user input
    """A side or None, or an error."""
    if side is not None and side not in SIDES:
        raise SteeringError(f"side is {side!r}, expected one of {', '.join(SIDES)}.")
    return side  # type: ignore[no-any-return]


def _edit_from(row: dict[str, Any]) -> Edit:
    edit = Edit(**{**row, "features": tuple(row["features"]), "weights": tuple(row["weights"])})
    operations: dict[str, Operation] = {
        "add": Add(edit.strength, edit.side),
        "clamp": Clamp(edit.strength),
        "scale": Scale(edit.strength),
        "suppress": Suppress(),
    }
    if edit.op not in operations or len(edit.features) != len(edit.weights) or not edit.features:
        raise SteeringError(f"the policy's edit {edit.name!r} is malformed.")
    _check(edit.name, operations[edit.op])
    return edit
