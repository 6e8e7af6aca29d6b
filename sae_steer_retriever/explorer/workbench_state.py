"""The state of the steering bench: what a link holds, what a search is made of, and what a policy is read into."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sae_steer_retriever.errors import SteeringError, quoted
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.features.names import folded
from sae_steer_retriever.search.query import Space
from sae_steer_retriever.steering.edit import Condition, Edit
from sae_steer_retriever.steering.operations import Add, AddRaw, Always, Clamp, Operation, Scale, Side, Suppress, When
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering, SteerLike, parse

if TYPE_CHECKING:
    from sae_steer_retriever.retriever import SteeredRetriever

LONGEST_QUERY, LONGEST_NAME = 4000, 500
MOST_EDITS, MOST_HITS, MOST_CANDIDATES = 40, 50, 5000
DEFAULT_HITS = 10
# What a link begins with; a later form of it would begin otherwise.
_PREFIX = "b1."

Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Operator = Literal["add", "raw", "clamp", "scale", "suppress"]


class EditState(BaseModel):
    """One row of knobs.

    Attributes:
        name: The feature, as in `steer=`; an id as "#12".
        op: What is done with it.
        strength: How much; not looked at for "suppress".
        side: For "add": which side; None as the search says.
        on: Whether it is switched on.
        when: A feature that the query must have; None if it always applies.
        above: How much of it, in units.
        features: Latent ids, where a policy says so and the name does not; with `weights`.
        weights: Their shares, the largest 1.0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name
    op: Operator = "add"
    strength: float = 0.5
    side: Side | None = None
    on: bool = True
    when: Name | None = None
    above: float = 0.0
    features: tuple[int, ...] | None = Field(default=None, max_length=1000)
    weights: tuple[float, ...] | None = Field(default=None, max_length=1000)

    @model_validator(mode="after")
    def _pinned_whole(self) -> Self:
        if (self.features is None) != (self.weights is None):
            raise ValueError("features and weights go together")
        return self

    @property
    def operation(self) -> Operation:
        """What the row asks for."""
        operations: dict[Operator, Always] = {
            "add": Add(self.strength, self.side),
            "raw": AddRaw(self.strength),
            "clamp": Clamp(self.strength),
            "scale": Scale(self.strength),
            "suppress": Suppress(),
        }
        then = operations[self.op]
        return then if self.when is None else When(self.when, self.above, then)

    @classmethod
    def of_edit(cls, edit: Edit, *, pinned: bool) -> EditState:
        """A resolved edit as a row.

        Args:
            edit: Of a policy, a contrast or a counterfactual.
            pinned: Whether its name means other features than the edit has.
        """
        if edit.condition is not None and pinned:
            raise SteeringError(
                f"the edit {quoted(edit.name)} depends on a condition, and its name means other features by now: "
                "resolve the policy's names again."
            )
        return cls(
            name=edit.name,
            op=edit.op,
            strength=edit.strength,
            side=edit.side if edit.op == "add" else None,
            when=None if edit.condition is None else edit.condition.name,
            above=0.0 if edit.condition is None else edit.condition.above,
            features=edit.features if pinned else None,
            weights=edit.weights if pinned else None,
        )

    def resolved(self) -> Edit:
        """A row that says which features it means, as an edit.

        Raises:
            SteeringError: It is none that a steering may have.
        """
        side = self.side or "both" if self.op == "add" else "both" if self.op == "suppress" else "query"
        row = {"name": self.name, "op": self.op, "strength": self.strength, "side": side}
        return Edit.from_dict({**row, "features": list(self.features or ()), "weights": list(self.weights or ())})


class WorkbenchState(BaseModel):
    """All that a bench shows, in the words of `SteeredRetriever.search`.

    Attributes:
        query: The question; empty before anything was typed.
        edits: The rows of knobs.
        k: How many hits.
        space: What is searched.
        side: For strengths that do not say; None as the space has it.
        fetch_k: Candidates before re-ranking; None for the default.
        drift_cap: Smallest cosine between the query and the shifted query.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    query: str = Field(default="", max_length=LONGEST_QUERY)
    edits: tuple[EditState, ...] = Field(default=(), max_length=MOST_EDITS)
    k: int = Field(default=DEFAULT_HITS, ge=1, le=MOST_HITS)
    space: Space = "original"
    side: Side | None = None
    fetch_k: int | None = Field(default=None, ge=1, le=MOST_CANDIDATES)
    drift_cap: float = DEFAULT_DRIFT_CAP

    @field_validator("query")
    @classmethod
    def _writable(cls, query: str) -> str:
        # Half a surrogate pair is valid JSON and no text: neither an encoder nor a link can hold it.
        return query.encode("utf-8", errors="replace").decode()

    @property
    def switched_on(self) -> tuple[EditState, ...]:
        """The rows that count."""
        return tuple(edit for edit in self.edits if edit.on)

    @property
    def steer(self) -> dict[str, Operation]:
        """The rows that are asked for by name, as `steer=` takes them.

        Raises:
            SteeringError: A name is there twice.
        """
        steer: dict[str, Operation] = {}
        seen: set[str] = set()
        for edit in self.switched_on:
            if edit.features is not None:
                continue
            if folded(edit.name) in seen:
                raise SteeringError(f"{quoted(edit.name)} is there twice: give it one strength.")
            seen.add(folded(edit.name))
            steer[edit.name] = edit.operation
        return steer

    @property
    def pinned(self) -> tuple[Edit, ...]:
        """The rows that say themselves which features they mean."""
        return tuple(edit.resolved() for edit in self.switched_on if edit.features is not None)

    def steering(self, retriever: SteeredRetriever) -> Steering:
        """The steering of the rows that are switched on.

        Args:
            retriever: Without a default steering: the rows are all there is.

        Raises:
            SteeringError: A strength is unusable, or a name is there twice.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        named = retriever.resolve(self.steer, side=self.side, drift_cap=self.drift_cap, space=self.space)
        pinned = tuple(edit for edit in self.pinned if not edit.asks_nothing)
        return named if not pinned else Steering((*named.edits, *pinned), named.fingerprint, named.drift_cap)

    # -- the link -----------------------------------------------------------------------------------------------------

    def fragment(self) -> str:
        """The state as the part of a link behind "#": JSON without defaults, in URL-safe base 64."""
        body = self.model_dump_json(exclude_defaults=True).encode()
        return _PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")

    @classmethod
    def from_fragment(cls, fragment: str) -> WorkbenchState:
        """Read what `fragment` wrote.

        Raises:
            SteeringError: It is no state of this library.
        """
        text = fragment.removeprefix("#")
        try:
            if not text.startswith(_PREFIX):
                raise ValueError(f"it does not begin with {_PREFIX!r}")
            body = text.removeprefix(_PREFIX)
            return cls.model_validate_json(base64.b64decode(body + "=" * (-len(body) % 4), "-_", validate=True))
        except (binascii.Error, ValidationError, ValueError) as error:
            raise SteeringError(f"this link holds no state of the explorer ({type(error).__name__}).") from error


def edits_of(steer: SteerLike | None) -> list[EditState]:
    """The rows of a `steer=` mapping.

    Raises:
        SteeringError: A strength is unusable.
    """
    rows = []
    for name, operation in parse(steer):
        then: object = operation.then if isinstance(operation, When) else operation
        condition = (
            {"when": _written(operation.feature), "above": operation.above} if isinstance(operation, When) else {}
        )
        row: Mapping[str, object]
        match then:
            case Add(strength, side):
                row = {"op": "add", "strength": strength, "side": side}
            case AddRaw(amount):
                row = {"op": "raw", "strength": amount}
            case Clamp(value):
                row = {"op": "clamp", "strength": value}
            case Scale(factor):
                row = {"op": "scale", "strength": factor}
            case _:
                row = {"op": "suppress", "strength": 0.0}
        rows.append(EditState.model_validate({"name": _written(name), **row, **condition}))
    return rows


def rows_of(steering: Steering, resolve: Callable[[str], Resolution]) -> list[EditState]:
    """The rows of a policy: by name where the name means the same features still.

    Args:
        steering: The policy.
        resolve: From a name to its `Resolution`; raises `LookupError` on unknown names.
    """
    return [EditState.of_edit(edit, pinned=not _means(edit, resolve)) for edit in steering.edits]


def _means(edit: Edit, resolve: Callable[[str], Resolution]) -> bool:
    parts: list[Edit | Condition] = [edit] if edit.condition is None else [edit, edit.condition]
    try:
        meant = [resolve(part.name) for part in parts]
    except LookupError:
        return False
    return all(
        (found.features, found.weights) == (part.features, part.weights)
        for found, part in zip(meant, parts, strict=True)
    )


def _written(name: str | int) -> str:
    return f"#{name}" if isinstance(name, int) else name


__all__ = ["WorkbenchState", "EditState", "edits_of", "rows_of"]
