"""Operations: what can be asked for a feature, always or only of some queries."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from sae_steer_retriever.errors import SteeringError, quoted

Side = Literal["query", "document", "both"]
SIDES: tuple[Side, ...] = ("query", "document", "both")
# Past a few units a steering only says "nothing else matters"; a larger number is a slip of the keyboard.
LARGEST_STRENGTH = 10.0


class _Conditional:
    """What may depend on the query."""

    def when(self, feature: str | int, *, above: float) -> When:
        """The same, but only for queries that have more than `above` of a feature; see `When`."""
        return When(feature, above=above, then=self)  # type: ignore[arg-type] # only operations inherit


@dataclasses.dataclass(frozen=True)
class Add(_Conditional):
    """Add `strength` units of a feature; negative pushes away. A bare number in `steer=` means this."""

    strength: float
    side: Side | None = None


@dataclasses.dataclass(frozen=True)
class AddRaw(_Conditional):
    """Add `amount` to the query's activation of a feature in embedding units, as arXiv 2411.00786 does.

    The same number moves rankings by different amounts on different features and SAEs: `Add` has calibrated units. Of a
    family, the weighted sum of directions is added at this length; in the latent space, to the power-normalised
    activation.
    """

    amount: float


@dataclasses.dataclass(frozen=True)
class Clamp(_Conditional):
    """Set the query's activation of a feature to `value` units, whatever it was; of a family, each to its share."""

    value: float


@dataclasses.dataclass(frozen=True)
class Scale(_Conditional):
    """Multiply the query's own activation of a feature by `factor`; nothing happens if the query lacks it."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Suppress(_Conditional):
    """Remove a feature from the query, and leave out passages that clearly have it."""


Always = Add | AddRaw | Clamp | Scale | Suppress


@dataclasses.dataclass(frozen=True)
class When:
    """Do something only for queries that are about another feature.

    `steer={"salary": When("employment", above=0.3, then=0.5)}`; `Add(0.5).when("employment", above=0.3)` is the same.

    Attributes:
        feature: The feature the query must have: named as in `steer=`.
        above: How much of it, in units, more than this: 0 is "at all", and a query cannot have more than 1.0. What
            counts are the query's `k_labels` strongest features, those that explanations name: units and labels were
            measured on such readings of passages, and the weaker rest of a code is there to reconstruct.
        then: A strength or an operation.
    """

    feature: str | int
    above: float
    then: Always | float


Operation = Add | AddRaw | Clamp | Scale | Suppress | When


def operation_of(name: str | int, value: Any) -> Always | When:  # noqa: ANN401 - user input
    """What a value of `steer=` asks for.

    Args:
        name: The feature it is asked for, to be named in an error.
        value: A strength or an operation.

    Raises:
        SteeringError: It is neither, or a number in it is of no reasonable size.
    """
    if not isinstance(value, When):
        return _sound(name, value)
    then = _sound(name, value.then)
    above = value.above
    if isinstance(above, bool) or not _is_number(above) or not 0 <= above < 1:
        raise SteeringError(
            f"the condition of {quoted(name)} asks for more than {quoted(above)} of {quoted(value.feature)}: expected "
            "a number of units from 0 (at all) to below 1, e.g. above=0.3."
        )
    return When(name_of(value.feature), float(above), then)


def name_of(name: Any) -> str | int:  # noqa: ANN401 - user input
    """A feature's name, stripped, or its id.

    Raises:
        SteeringError: It names nothing.
    """
    if isinstance(name, np.integer):
        name = int(name)
    if isinstance(name, bool) or not isinstance(name, str | int) or (isinstance(name, str) and not name.strip()):
        raise SteeringError(f"a feature is named by text or by its id, got {quoted(name)}.")
    return name.strip() if isinstance(name, str) else name


def _sound(name: str | int, value: Any) -> Always:  # noqa: ANN401 - user input
    operation: Always = value if isinstance(value, Always) else Add(value)
    match operation:
        case Add(amount, side):
            if side is not None and side not in SIDES:
                raise SteeringError(f"side of {quoted(name)} is {side!r}, expected one of {', '.join(SIDES)}.")
        case AddRaw(amount) | Clamp(amount) | Scale(amount):
            pass
        case Suppress():
            return operation
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


def check_side(side: Any) -> Side | None:  # noqa: ANN401 - user input
    """A side or None, or an error."""
    if side is not None and side not in SIDES:
        raise SteeringError(f"side is {side!r}, expected one of {', '.join(SIDES)}.")
    return side  # type: ignore[no-any-return]


__all__ = [
    "LARGEST_STRENGTH",
    "SIDES",
    "Add",
    "AddRaw",
    "Always",
    "Clamp",
    "Operation",
    "Scale",
    "Side",
    "Suppress",
    "When",
    "check_side",
    "name_of",
    "operation_of",
]
