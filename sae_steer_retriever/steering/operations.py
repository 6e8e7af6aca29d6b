"""The operations that can be asked for a feature, each with its effect on the query's code.

A new operation is one class in this file and a place in `OPERATIONS`: edits, policies, the command line and the
explorer read that table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from sae_steer_retriever.errors import SteeringError, quoted
from sae_steer_retriever.sae.codes import Array

Side = Literal["query", "document", "both"]
SIDES: tuple[Side, ...] = ("query", "document", "both")
# Past a few units only the steering decides the ranking; a larger number is a typing error.
LARGEST_STRENGTH = 10.0


@dataclasses.dataclass(frozen=True)
class BasicOperation:
    """An operation that does not depend on the query; `When` makes it conditional."""

    op: ClassVar[str]
    """Its name in policies and on the command line."""
    acts_on: ClassVar[Side | None] = "query"
    """The side it acts on; None if the request chooses."""
    excludes: ClassVar[bool] = False
    """Whether passages that clearly have the feature are left out."""

    @property
    def number(self) -> float:
        """The operation's number; 0 if it takes none."""
        fields = dataclasses.fields(self)
        return getattr(self, fields[0].name) if fields else 0.0

    def when(self, feature: str | int, *, above: float) -> When:
        """Returns the same operation for queries that have more than `above` of a feature; see `When`."""
        return When(feature, above=above, then=self)

    def change(self, present: Array, units: Array, weights: Array, sharing: Array) -> Array:
        """Returns (m,) the change of the query's activations; none for `Add` and `AddRaw`, which `plan` works out.

        Args:
            present: (m,) the query's activations of the features.
            units: (m,) their units.
            weights: (m,) their shares in the name, the largest 1.0.
            sharing: (m,) how many of the steering's excluding edits name each feature.
        """
        return np.zeros_like(present)


@dataclasses.dataclass(frozen=True)
class Add(BasicOperation):
    """Adds `strength` units of a feature; a negative strength takes away. A bare number in `steer=` means this.

    Example:
        >>> from sae_steer_retriever import Add
        >>> Add(0.5, side="query").when("mortgage", above=0.3)
        When(feature='mortgage', above=0.3, then=Add(strength=0.5, side='query'))
    """

    op = "add"
    acts_on = None
    strength: float
    side: Side | None = None


@dataclasses.dataclass(frozen=True)
class AddRaw(BasicOperation):
    """Adds `amount` to the query's activation of a feature in embedding units, as in arXiv 2411.00786.

    The same number moves rankings by different amounts on different features and SAEs; `Add` has calibrated units. For
    a family, the weighted sum of its directions is added at this length. In the latent space, `amount` is added to the
    power-normalised activation.
    """

    op = "raw"
    amount: float


@dataclasses.dataclass(frozen=True)
class Clamp(BasicOperation):
    """Sets the query's activation of a feature to `value` units; in a family, each feature to its share of that."""

    op = "clamp"
    value: float

    def change(self, present: Array, units: Array, weights: Array, sharing: Array) -> Array:  # noqa: D102
        return np.asarray(weights * self.value * units - present, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Scale(BasicOperation):
    """Multiplies the query's own activation of a feature by `factor`; a query without the feature stays as it is."""

    op = "scale"
    factor: float

    def change(self, present: Array, units: Array, weights: Array, sharing: Array) -> Array:  # noqa: D102
        return np.asarray((self.factor - 1.0) * present, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Suppress(BasicOperation):
    """Removes a feature from the query, and leaves out passages that clearly have it."""

    op = "suppress"
    acts_on = "both"
    excludes = True

    def change(self, present: Array, units: Array, weights: Array, sharing: Array) -> Array:  # noqa: D102
        return -(present / sharing)  # what two suppressed families share is removed once


OPERATIONS: dict[str, type[BasicOperation]] = {kind.op: kind for kind in (Add, AddRaw, Clamp, Scale, Suppress)}


@dataclasses.dataclass(frozen=True)
class When:
    """An operation for queries that are about another feature.

    `steer={"salary": When("employment", above=0.3, then=0.5)}`; `Add(0.5).when("employment", above=0.3)` is the same.

    Attributes:
        feature: The feature that the query must have, named as in `steer=`.
        above: The query must have more than this many units of it; 0 means "at all", and no query has more than 1.0.
            Only the query's `k_labels` strongest features count, those that explanations name.
        then: A strength or an operation.
    """

    feature: str | int
    above: float
    then: BasicOperation | float


Operation = BasicOperation | When
SteerLike = Mapping[str, float | Operation] | Mapping[int, float | Operation] | Mapping[str | int, float | Operation]
"""What `steer=` takes: a feature's name or id -> a strength or an operation. (A mapping's key type is invariant.)"""


def make_operation(op: str, amount: float, side: Side | None = None) -> BasicOperation:
    """Returns the operation with a name of `OPERATIONS`.

    Args:
        op: Its name.
        amount: Its number; unused by an operation that takes none.
        side: The side, for an operation whose request chooses it.

    Raises:
        KeyError: There is no such operation.
    """
    kind = OPERATIONS[op]
    if not dataclasses.fields(kind):
        return kind()
    return kind(amount, side) if kind.acts_on is None else kind(amount)  # type: ignore[call-arg] # own fields


def operation_of(name: str | int, value: Any) -> Operation:  # noqa: ANN401 - user input
    """Returns the operation that a value of `steer=` means.

    Args:
        name: The feature it is asked for, named in errors.
        value: A strength or an operation.

    Raises:
        SteeringError: The value is neither, or its number is out of range.
    """
    if not isinstance(value, When):
        return _checked(name, value)
    then = _checked(name, value.then)
    above = value.above
    if isinstance(above, bool) or not _is_number(above) or not 0 <= above < 1:
        raise SteeringError(
            f"the condition of {quoted(name)} asks for more than {quoted(above)} of {quoted(value.feature)}: expected "
            "a number of units from 0 (at all) to below 1, e.g. above=0.3."
        )
    return When(name_of(value.feature), float(above), then)


def name_of(name: Any) -> str | int:  # noqa: ANN401 - user input
    """Returns a feature's name, stripped, or its id.

    Raises:
        SteeringError: It names nothing.
    """
    if isinstance(name, np.integer):
        name = int(name)
    if isinstance(name, bool) or not isinstance(name, str | int) or (isinstance(name, str) and not name.strip()):
        raise SteeringError(f"a feature is named by text or by its id, got {quoted(name)}.")
    return name.strip() if isinstance(name, str) else name


def written_name(name: str | int) -> str:
    """Returns a feature's name as a person writes it; "#12" for an id."""
    return f"#{name}" if isinstance(name, int) else name


def check_side(side: Any) -> Side | None:  # noqa: ANN401 - user input
    """Returns the side, or None.

    Raises:
        SteeringError: There is no such side.
    """
    if side is not None and side not in SIDES:
        raise SteeringError(f"side is {side!r}, expected one of {', '.join(SIDES)}.")
    return side  # type: ignore[no-any-return]


def _checked(name: str | int, value: Any) -> BasicOperation:  # noqa: ANN401 - user input
    operation = value if isinstance(value, BasicOperation) else Add(value)
    if isinstance(operation, Add) and operation.side is not None and operation.side not in SIDES:
        raise SteeringError(f"side of {quoted(name)} is {operation.side!r}, expected one of {', '.join(SIDES)}.")
    amount = operation.number
    if isinstance(amount, bool) or not _is_number(amount):
        raise SteeringError(
            f"strength of {quoted(name)} is {quoted(amount)}: expected a number such as +0.5, or AddRaw, Clamp, Scale, "
            "Suppress, When."
        )
    if not math.isfinite(amount):
        raise SteeringError(f"strength of {quoted(name)} is {amount}: expected a finite number such as +0.5.")
    if abs(amount) > LARGEST_STRENGTH:
        raise SteeringError(
            f"strength of {quoted(name)} is {amount}: expected at most {LARGEST_STRENGTH:g} in size; 0.5 is a good "
            "start, and past 1.5 little of the question is left."
        )
    return operation


def _is_number(value: Any) -> bool:  # noqa: ANN401 - user input
    return isinstance(value, int | float | np.floating | np.integer)
