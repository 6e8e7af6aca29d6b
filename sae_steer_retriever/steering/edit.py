"""Edits: operations on resolved features, and the conditions that they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NoReturn

from numpy.typing import NDArray

from sae_steer_retriever.errors import SteeringError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.steering.operations import (
    OPERATIONS,
    SIDES,
    Add,
    AddRaw,
    BasicOperation,
    Side,
    Suppress,
    When,
    make_operation,
    operation_of,
)


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition of an edit: the query has more than `above` units of a feature.

    Attributes:
        name: The feature's name as the user wrote it.
        features: Latent ids.
        weights: Their shares, the largest 1.0.
        above: The threshold in units, from 0 to below 1.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]
    above: float

    def holds(self, names: Codes[NDArray[Any]], unit: Array) -> bool:
        """Returns whether a query meets it: `min(1, sum_f weight_f min(1, h_f / u_f)) > above`.

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
    """An operation on the features that a name means.

    Attributes:
        name: The name as the user wrote it.
        features: Latent ids.
        weights: Their shares, the largest 1.0.
        op: The operation's name: "add", "raw", "clamp", "scale" or "suppress".
        strength: Units to add, embedding units to add ("raw"), units to clamp to, or the factor; 0 for "suppress".
        side: The side that the edit acts on.
        condition: The condition on the query; None if the edit always applies.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]
    op: str
    strength: float
    side: Side
    condition: Condition | None = None

    @property
    def operation(self) -> BasicOperation:
        """The operation, without its condition."""
        return make_operation(self.op, self.strength, self.side)

    @property
    def reads_query(self) -> bool:
        """Whether its effect depends on the query's code."""
        return self.condition is not None or self.op not in (Add.op, AddRaw.op)

    @property
    def asks_nothing(self) -> bool:
        """Whether the edit adds nothing."""
        return self.op in ("add", "raw") and self.strength == 0

    @property
    def asked(self) -> str:
        """The operation as the command line takes it: "+0.5", "raw:0.5", "scale:2", "suppress"."""
        if not dataclasses.fields(OPERATIONS[self.op]):
            return self.op
        return f"{self.strength:+g}" if self.op == Add.op else f"{self.op}:{self.strength:g}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the edit as data; "condition" is there only if the edit has one."""
        body = dataclasses.asdict(self)
        if self.condition is None:
            del body["condition"]
        return body

    @classmethod
    def from_dict(cls, row: Any) -> Edit:  # noqa: ANN401 - from a file
        """Returns the edit that `to_dict` wrote.

        Raises:
            SteeringError: A value is out of range.
            KeyError: A value is missing.
            TypeError: A value has another type, or is not part of an edit.
        """
        if not isinstance(row, dict):
            raise TypeError(f"an edit is an object, got {type(row).__name__}")
        condition = None if row.get("condition") is None else _condition_from(row)
        edit = cls(**{**row, **_features_of(row), "condition": condition})
        if not isinstance(edit.name, str) or edit.op not in OPERATIONS or edit.side not in SIDES:
            _refuse(row)
        operation_of(edit.name, edit.operation)
        return edit


def _condition_from(row: dict[str, Any]) -> Condition:
    body = row["condition"]
    condition = Condition(**{**body, **_features_of(body)})
    if not isinstance(condition.name, str):
        _refuse(row)
    operation_of(row["name"], When(condition.name, condition.above, Suppress()))
    return condition


def _features_of(row: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Returns latent ids and weights, checked."""
    features, weights = tuple(row["features"]), tuple(row["weights"])
    sound = (
        len(features) == len(weights) > 0
        and all(type(feature) is int and feature >= 0 for feature in features)
        and all(type(weight) in (int, float) and 0 < weight <= 1 for weight in weights)
    )
    if not sound:
        _refuse(row)
    return {"features": features, "weights": weights}


def _refuse(row: dict[str, Any]) -> NoReturn:
    raise SteeringError(f"the policy's edit {row['name']!r} is malformed: resolve its name again and save the policy.")
