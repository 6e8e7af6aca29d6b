"""Steering: what a user asks for (parse), and which features that means (resolve). `plan.py` says what it does."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sae_steer_retriever.errors import ArtifactError, MismatchError, SteeringError
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.steering.edit import Condition, Edit
from sae_steer_retriever.steering.operations import (
    LARGEST_STRENGTH,
    SIDES,
    Add,
    AddRaw,
    Always,
    Clamp,
    Operation,
    Scale,
    Side,
    Suppress,
    When,
    check_side,
    name_of,
    operation_of,
)
from sae_steer_retriever.steering.plan import SUPPRESSED_FROM, DocumentBoost, Plan, QueryShift, cap_drift, plan

logger = logging.getLogger(__name__)

# Both together moved the ranking further than either at the same loss of relevance (docs/experiments.md).
DEFAULT_SIDE: Side = "both"
DEFAULT_DRIFT_CAP = 0.8
# By then the hits have lost half of their plain score, and more adds little: a warning says so.
USEFUL_STRENGTH = 1.5
# Policies without conditions are written as the first version, which every release reads.
_FORMAT_VERSION, _WITH_CONDITIONS = 1, 2

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
class Steering:
    """An immutable list of edits that belongs to one SAE: a policy, if it is kept.

    Attributes:
        edits: The edits; their order does not matter.
        fingerprint: Of the SAE whose features the edits name.
        drift_cap: Smallest cosine allowed between the query and the shifted query.
    """

    edits: tuple[Edit, ...]
    fingerprint: str
    drift_cap: float = DEFAULT_DRIFT_CAP

    def for_query(self, names: Codes[NDArray[Any]], unit: Array) -> Steering:
        """What is left of it for one query: without edits whose condition fails, and without those of no strength.

        Args:
            names: (1, k_labels) the query's label latents.
            unit: (n,) the features' units.
        """
        edits = tuple(
            edit
            for edit in self.edits
            if not edit.asks_nothing and (edit.condition is None or edit.condition.holds(names, unit))
        )
        return self if edits == self.edits else Steering(edits, self.fingerprint, self.drift_cap)

    def to_json(self) -> str:
        """A policy that can be stored and read back with `from_json`."""
        conditional = any(edit.condition is not None for edit in self.edits)
        body = {
            "format_version": _WITH_CONDITIONS if conditional else _FORMAT_VERSION,
            "edits": [edit.to_dict() for edit in self.edits],
            "fingerprint": self.fingerprint,
            "drift_cap": self.drift_cap,
        }
        return json.dumps(body, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Steering:
        """Read a policy.

        Raises:
            SteeringError: The text is no policy of this library, or holds a value that no steering may have.
        """
        try:
            body = json.loads(text)
            version = body["format_version"]
            if version not in (_FORMAT_VERSION, _WITH_CONDITIONS):
                raise SteeringError(
                    f"the policy has format version {version}, this library reads {_FORMAT_VERSION} and "
                    f"{_WITH_CONDITIONS}: it was saved by a newer release, upgrade sae-steer-retriever to read it."
                )
            edits = tuple(Edit.from_dict(row) for row in body["edits"])
            return Steering(edits, str(body["fingerprint"]), check_drift_cap(body["drift_cap"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, SteeringError):
                raise
            raise SteeringError(
                f"this is not a steering policy of this library ({error!r}): expected what `Steering.save` writes."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the policy to a JSON file; what was there is replaced at once or not at all.

        Raises:
            ArtifactError: The file cannot be written.
        """
        path = Path(path)
        write_files(path.parent, {path.name: f"{self.to_json()}\n".encode()})

    @classmethod
    def load(cls, path: str | Path) -> Steering:
        """Read a policy that `save` wrote.

        Raises:
            ArtifactError: There is no such file, or it cannot be read.
            SteeringError: It holds no policy of this library; the file is named.
        """
        try:
            return Steering.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ArtifactError(
                f"cannot read the policy {str(path)!r}: {error.strerror or error}. `Steering.save` writes one."
            ) from error
        except (SteeringError, UnicodeDecodeError) as error:
            raise SteeringError(f"{str(path)!r}: {error}") from error

    def rebind(self, config: SAEConfig, fingerprint: str) -> Steering:
        """This steering, for an SAE: as it is, or as one made for the SAE that it was adapted from.

        Adapting keeps the ids and the meaning of all features, so a policy of the general SAE is one of the adapted.

        Args:
            config: The SAE's.
            fingerprint: The SAE's.

        Raises:
            MismatchError: It was made for another SAE.
        """
        if fingerprint != self.fingerprint and config.adapted_from == self.fingerprint:
            return dataclasses.replace(self, fingerprint=fingerprint)
        self.require(fingerprint)
        return self

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


def parse(steer: SteerLike | None, *, removals: bool = False) -> list[Request]:
    """Check a `steer=` mapping, before anything is embedded.

    Args:
        steer: Feature id, label, keyword or free text -> a strength or an operation.
        removals: Whether to keep zero strengths: over other edits they remove those of the same feature.

    Returns:
        The requests that ask for something.

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
    for given, value in steer.items():
        name = name_of(given)
        operation = operation_of(name, value)
        asked = operation.then if isinstance(operation, When) else operation
        zero = isinstance(asked, Add) and asked.strength == 0
        if not zero or (removals and asked is operation):
            requests.append(Request(name, operation))
    return requests


def resolve(
    requests: list[Request],
    resolver: Callable[[str | int], Resolution],
    *,
    fingerprint: str,
    side: Side | None = None,
    drift_cap: float = DEFAULT_DRIFT_CAP,
) -> Steering:
    """Turn requests into edits. A strength beyond the useful range is logged.

    Args:
        requests: From `parse`.
        resolver: From a name to features; raises on unknown and ambiguous names.
        fingerprint: Of the SAE.
        side: For operations that do not say; `DEFAULT_SIDE` if not given.
        drift_cap: Smallest cosine allowed between the query and the shifted query.
    """
    edits = []
    for name, operation in requests:
        condition = None
        if isinstance(operation, When):
            meant = resolver(operation.feature)
            condition = Condition(_written(operation.feature), meant.features, meant.weights, operation.above)
        edits.append(_edit(name, resolver(name), _unconditional(operation), side or DEFAULT_SIDE, condition))
    _warn_of_excess(edits)
    return Steering(tuple(edits), fingerprint, check_drift_cap(drift_cap))


def _unconditional(operation: Operation) -> Always:
    asked = operation.then if isinstance(operation, When) else operation
    return asked if isinstance(asked, Always) else Add(asked)


def _edit(name: str | int, meant: Resolution, asked: Always, side: Side, condition: Condition | None) -> Edit:
    features, weights, _ = meant
    match asked:
        case Add(strength, own_side):
            return Edit(_written(name), features, weights, "add", float(strength), own_side or side, condition)
        case AddRaw(amount):
            return Edit(_written(name), features, weights, "raw", float(amount), "query", condition)
        case Clamp(value):
            return Edit(_written(name), features, weights, "clamp", float(value), "query", condition)
        case Scale(factor):
            return Edit(_written(name), features, weights, "scale", float(factor), "query", condition)
        case Suppress():
            return Edit(_written(name), features, weights, "suppress", 0.0, "both", condition)


def _written(name: str | int) -> str:
    """A name as a person would write it; of an id, "#12"."""
    return f"#{name}" if isinstance(name, int) else name


def _warn_of_excess(edits: list[Edit]) -> None:
    excessive = [edit for edit in edits if edit.op == "add" and abs(edit.strength) > USEFUL_STRENGTH]
    if excessive:
        logger.warning(
            "past the useful range of strengths, which ends at %g: %s; more of it mostly costs relevance",
            USEFUL_STRENGTH,
            ", ".join(f"{edit.name!r} {edit.asked}" for edit in excessive),
        )


def check_drift_cap(cap: Any) -> float:  # noqa: ANN401 - user input
    """A drift cap, or an error if it is not in (0, 1]."""
    if isinstance(cap, bool) or not isinstance(cap, int | float) or not 0 < cap <= 1:
        raise SteeringError(f"drift_cap is {cap!r}: expected a cosine above 0 and at most 1, e.g. 0.8.")
    return float(cap)


__all__ = [
    "DEFAULT_DRIFT_CAP",
    "DEFAULT_SIDE",
    "LARGEST_STRENGTH",
    "SIDES",
    "SUPPRESSED_FROM",
    "USEFUL_STRENGTH",
    "Add",
    "AddRaw",
    "Clamp",
    "Condition",
    "Edit",
    "DocumentBoost",
    "Operation",
    "Plan",
    "Request",
    "Resolution",
    "Scale",
    "Side",
    "SteerLike",
    "Steering",
    "Suppress",
    "QueryShift",
    "When",
    "cap_drift",
    "check_drift_cap",
    "check_side",
    "parse",
    "plan",
    "resolve",
]
