"""The state of the workbench, as a link, a request and a loaded policy hold it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sae_steer_retriever.errors import SteeringError, quoted
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.features.names import folded
from sae_steer_retriever.search.options import Space
from sae_steer_retriever.steering.edit import Condition, Edit
from sae_steer_retriever.steering.operations import (
    OPERATIONS,
    Operation,
    Side,
    SteerLike,
    When,
    make_operation,
    written_name,
)
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering, parse

if TYPE_CHECKING:
    from sae_steer_retriever.retriever import SteeredRetriever

LONGEST_QUERY, LONGEST_NAME = 4000, 500
MOST_EDITS, MOST_HITS, MOST_CANDIDATES = 40, 50, 5000
DEFAULT_HITS = 10
# A link begins with the version of its format.
_PREFIX = "b1."

Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]


class EditState(BaseModel):
    """One row of the workbench: an operation on a named feature."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name  # the feature, as in `steer=`; an id as "#12"
    op: str = "add"
    strength: float = 0.5  # its number; ignored for "suppress"
    side: Side | None = None  # the side of an "add"; None for the search's
    on: bool = True  # whether the row is switched on
    when: Name | None = None  # a feature that the query must have; None if the row always applies
    above: float = 0.0  # the query must have more than this many units of it
    # Latent ids, where a policy's name means other features by now; with `weights`.
    features: tuple[int, ...] | None = Field(default=None, max_length=1000)
    weights: tuple[float, ...] | None = Field(default=None, max_length=1000)  # their shares, the largest 1.0

    @field_validator("op")
    @classmethod
    def _known(cls, op: str) -> str:
        if op not in OPERATIONS:
            raise ValueError(f"op is {op!r}, expected one of {', '.join(OPERATIONS)}")
        return op

    @model_validator(mode="after")
    def _pinned_whole(self) -> Self:
        if (self.features is None) != (self.weights is None):
            raise ValueError("features and weights go together")
        return self

    @property
    def operation(self) -> Operation:
        """The operation of the row."""
        then = make_operation(self.op, self.strength, self.side)
        return then if self.when is None else When(self.when, self.above, then)


class WorkbenchState(BaseModel):
    """The workbench's question, rows and search options, named as in `SteeredRetriever.search`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    query: str = Field(default="", max_length=LONGEST_QUERY)  # the question; empty at first
    edits: tuple[EditState, ...] = Field(default=(), max_length=MOST_EDITS)
    k: int = Field(default=DEFAULT_HITS, ge=1, le=MOST_HITS)  # how many hits
    space: Space = "original"  # the space that is searched
    side: Side | None = None  # the side of strengths that do not name one; None for the space's default
    # Candidates before re-ranking; None for the default.
    fetch_k: int | None = Field(default=None, ge=1, le=MOST_CANDIDATES)
    drift_cap: float = DEFAULT_DRIFT_CAP  # smallest cosine between the query and the shifted query

    @field_validator("query")
    @classmethod
    def _writable(cls, query: str) -> str:
        # A lone surrogate is valid JSON, but no encoder and no link can hold it.
        return query.encode("utf-8", errors="replace").decode()

    @property
    def steer(self) -> dict[str, Operation]:
        """The rows that name their features, as a mapping for `steer=`.

        Raises:
            SteeringError: A name occurs twice.
        """
        named = {}
        for edit in self.edits:
            if edit.on and edit.features is None:
                if folded(edit.name) in named:
                    raise SteeringError(f"{quoted(edit.name)} is there twice: give each feature one strength.")
                named[folded(edit.name)] = edit
        return {edit.name: edit.operation for edit in named.values()}

    @property
    def pinned(self) -> tuple[Edit, ...]:
        """The rows that list their features, as edits.

        Raises:
            SteeringError: A value is out of range.
        """
        rows = [row for row in self.edits if row.on and row.features is not None]
        keys = {"name", "op", "strength", "features", "weights"}
        sides = [OPERATIONS[row.op].acts_on or row.side or "both" for row in rows]
        data = zip(rows, sides, strict=True)
        return tuple(Edit.from_dict({**row.model_dump(include=keys), "side": side}) for row, side in data)

    def steering(self, retriever: SteeredRetriever) -> Steering:
        """Returns the steering of the rows that are switched on, for a retriever without a default steering.

        Raises:
            SteeringError: A strength is unusable, or a name occurs twice.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        named = retriever.resolve(self.steer, side=self.side, drift_cap=self.drift_cap, space=self.space)
        pinned = tuple(edit for edit in self.pinned if not edit.asks_nothing)
        return named if not pinned else Steering((*named.edits, *pinned), named.fingerprint, named.drift_cap)

    # -- the link -----------------------------------------------------------------------------------------------------

    def fragment(self) -> str:
        """The state as the fragment of a link: JSON without defaults, in URL-safe base 64."""
        body = self.model_dump_json(exclude_defaults=True).encode()
        return _PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")

    @classmethod
    def from_fragment(cls, fragment: str) -> WorkbenchState:
        """Returns the state that `fragment` wrote.

        Raises:
            SteeringError: The fragment holds no state.
        """
        text = fragment.removeprefix("#")
        try:
            body = text.removeprefix(_PREFIX) if text.startswith(_PREFIX) else ""
            return cls.model_validate_json(base64.b64decode(body + "=" * (-len(body) % 4), "-_", validate=True))
        except ValueError as error:  # pydantic's and base64's are ValueErrors
            raise SteeringError(
                f"the link holds no state of the explorer ({type(error).__name__}): copy the whole link again."
            ) from error


def edits_of(steer: SteerLike | None) -> list[EditState]:
    """Returns the rows of a `steer=` mapping.

    Raises:
        SteeringError: A strength is unusable.
    """
    rows = []
    for name, operation in parse(steer):
        row: dict[str, object] = {"name": written_name(name)}
        then: Any = operation
        if isinstance(operation, When):
            row |= {"when": written_name(operation.feature), "above": operation.above}
            then = operation.then
        row |= {"op": then.op, "strength": then.number, "side": getattr(then, "side", None)}
        rows.append(EditState.model_validate(row))
    return rows


def rows_of(steering: Steering, resolve: Callable[[str], Resolution]) -> list[EditState]:
    """Returns the rows of a policy; rows with names that mean other features by now list their features.

    `resolve` returns the `Resolution` of a name, and raises `LookupError` for an unknown one.

    Raises:
        SteeringError: Such a row has a condition.
    """
    return [_row_of(edit, resolve) for edit in steering.edits]


def _row_of(edit: Edit, resolve: Callable[[str], Resolution]) -> EditState:
    row = {"name": edit.name, "op": edit.op, "strength": edit.strength}
    row |= {"side": edit.side} if edit.op == "add" else {}
    row |= {"when": edit.condition.name, "above": edit.condition.above} if edit.condition is not None else {}
    parts: list[Edit | Condition] = [edit] if edit.condition is None else [edit, edit.condition]
    try:
        found = [resolve(part.name) for part in parts]
    except LookupError:
        found = []
    if [(one.features, one.weights) for one in found] != [(part.features, part.weights) for part in parts]:
        if edit.condition is not None:
            raise SteeringError(
                f"the edit {quoted(edit.name)} has a condition, and its name means other features by now: resolve the "
                "policy's names again."
            )
        row |= {"features": edit.features, "weights": edit.weights}
    return EditState.model_validate(row)
