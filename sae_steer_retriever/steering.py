"""Steering: what a user asks for (parse), and which features that means (resolve). `plan.py` says what it does."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from sae_steer_retriever.errors import MismatchError, SteeringError
from sae_steer_retriever.plan import SUPPRESSED_FROM, Gate, Plan, Tilt, cap_drift, gate_presence, plan

__all__ = [
    "DEFAULT_DRIFT_CAP",
    "DEFAULT_SIDE",
    "LARGEST_STRENGTH",
    "SIDES",
    "SUPPRESSED_FROM",
    "Add",
    "Clamp",
    "Edit",
    "Gate",
    "Operation",
    "Plan",
    "Request",
    "Resolution",
    "Scale",
    "Side",
    "SteerLike",
    "Steering",
    "Suppress",
    "Tilt",
    "cap_drift",
    "check_drift_cap",
    "check_side",
    "gate_presence",
    "parse",
    "plan",
    "resolve",
]

Side = Literal["query", "document", "both"]
SIDES: tuple[Side, ...] = ("query", "document", "both")
# Rewarding passages that have a feature moved the ranking further than a tilt at the same loss of relevance.
DEFAULT_SIDE: Side = "document"
DEFAULT_DRIFT_CAP = 0.8
# Past a few units a steering only says "nothing else matters"; a larger number is a slip of the keyboard.
LARGEST_STRENGTH = 10.0
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Add:
    """Add `strength` units of a feature; negative pushes away. A bare number in `steer=` means this."""

    strength: float
    side: Side | None = None


@dataclasses.dataclass(frozen=True)
class Clamp:
    """Set the query's activation of a feature to `value` units, whatever it was; of a family, each to its share."""

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
        if isinstance(name, np.integer):
            name = int(name)
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
    # Not `side` of the others: they have one side each.
    operations: dict[str, Operation] = {
        "add": Add(edit.strength, edit.side),
        "clamp": Clamp(edit.strength),
        "scale": Scale(edit.strength),
        "suppress": Suppress(),
    }
    sound = (
        isinstance(edit.name, str)
        and edit.op in operations
        and edit.side in SIDES
        and len(edit.features) == len(edit.weights) > 0
        and all(type(feature) is int and feature >= 0 for feature in edit.features)
        and all(type(weight) in (int, float) and 0 < weight <= 1 for weight in edit.weights)
    )
    if not sound:
        raise SteeringError(f"the policy's edit {edit.name!r} is malformed.")
    _check(edit.name, operations[edit.op])
    return edit
