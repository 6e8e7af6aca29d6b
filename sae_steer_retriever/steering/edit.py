"""Edits: operations whose names have been resolved to features, and the conditions they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from numpy.typing import NDArray

from sae_steer_retriever.errors import SteeringError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.steering.operations import (
    SIDES,
    Add,
    AddRaw,
    Clamp,
    Operation,
    Scale,
    Side,
    Suppress,
    When,
    operation_of,
)


@dataclasses.dataclass(frozen=True)
class Condition:
    """That a query has more than so much of a feature.

    Attributes:
        name: As the user wrote it.
        features: Latent ids.
        weights: Their shares, the largest 1.0.
        above: How many units, from 0 to below 1.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]
    above: float

    def holds(self, names: Codes[NDArray[Any]], unit: Array) -> bool:
        """Whether a query has it: `min(1, sum_f weight_f min(1, h_f / u_f)) > above`.

        Args:
            names: (1, k_labels) the query's label latents.
            unit: (n,) the features' units.
        """
        own = dict(zip(names.indices[0].tolist(), names.values[0].tolist(), strict=True))
        shares: Iterator[float] = (
            weight * min(1.0, own.get(feature, 0.0) / float(unit[feature]))
            for feature, weight in zip(self.features, self.weights, strict=True)
        )
        return min(1.0, sum(shares)) > self.above

    def __str__(self) -> str:
        """As one would say it."""
        return f"when {self.name} > {self.above:g}"


@dataclasses.dataclass(frozen=True)
class Edit:
    """One resolved edit.

    Attributes:
        name: As the user wrote it.
        features: Latent ids.
        weights: Their shares, the largest 1.0.
        op: "add", "raw", "clamp", "scale" or "suppress".
        strength: Units to add, embedding units to add ("raw"), units to clamp to, or the factor; 0 for suppress.
        side: Which side an "add" acts on.
        condition: What a query must have for the edit to be made; None if it always is.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]
    op: Literal["add", "raw", "clamp", "scale", "suppress"]
    strength: float
    side: Side
    condition: Condition | None = None

    @property
    def asks_nothing(self) -> bool:
        """Whether it adds nothing."""
        return self.op in ("add", "raw") and self.strength == 0

    @property
    def asked(self) -> str:
        """What is asked for, as the command line takes it: "+0.5", "raw:0.5", "scale:2", "suppress"."""
        if self.op == "suppress":
            return self.op
        return f"{self.strength:+g}" if self.op == "add" else f"{self.op}:{self.strength:g}"

    def to_dict(self) -> dict[str, Any]:
        """The edit as data; "condition" is there only if the edit has one."""
        body = dataclasses.asdict(self)
        if self.condition is None:
            del body["condition"]
        return body

    @classmethod
    def from_dict(cls, row: Any) -> Edit:  # noqa: ANN401 - from a file
        """Read an edit.

        Raises:
            SteeringError: A value is one that no edit may have.
            KeyError: One is missing.
            TypeError: One is of another type, or not of an edit.
        """
        if not isinstance(row, dict):
            raise TypeError(f"an edit is an object, got {type(row).__name__}")
        condition = None if row.get("condition") is None else _condition_from(row)
        edit = cls(**{**row, **_features_of(row), "condition": condition})
        # Not `side` of the others: they have one side each.
        operations: dict[str, Operation] = {
            "add": Add(edit.strength, edit.side),
            "raw": AddRaw(edit.strength),
            "clamp": Clamp(edit.strength),
            "scale": Scale(edit.strength),
            "suppress": Suppress(),
        }
        if not isinstance(edit.name, str) or edit.op not in operations or edit.side not in SIDES:
            raise _malformed(row)
        operation_of(edit.name, operations[edit.op])
        return edit


def _condition_from(row: dict[str, Any]) -> Condition:
    body = row["condition"]
    condition = Condition(**{**body, **_features_of(body)})
    if not isinstance(condition.name, str):
        raise _malformed(row)
    operation_of(row["name"], When(condition.name, condition.above, Suppress()))
    return condition


def _features_of(row: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Latent ids and weights, checked."""
    features, weights = tuple(row["features"]), tuple(row["weights"])
    sound = (
        len(features) == len(weights) > 0
        and all(type(feature) is int and feature >= 0 for feature in features)
        and all(type(weight) in (int, float) and 0 < weight <= 1 for weight in weights)
    )
    if not sound:
        raise _malformed(row)
    return {"features": features, "weights": weights}


def _malformed(row: dict[str, Any]) -> SteeringError:
    return SteeringError(f"the policy's edit {row['name']!r} is malformed: resolve its name again and save the policy.")


__all__ = ["Condition", "Edit"]
