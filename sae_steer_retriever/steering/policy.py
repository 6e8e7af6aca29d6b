"""Steerings: what a user asks for (`parse`), the features that means (`resolve`), and policies that are kept."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sae_steer_retriever.errors import ArtifactError, MismatchError, SteeringError
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.features.names import folded
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.steering.edit import Condition, Edit
from sae_steer_retriever.steering.operations import (
    Add,
    BasicOperation,
    Operation,
    Side,
    SteerLike,
    When,
    name_of,
    operation_of,
    written_name,
)

logger = logging.getLogger(__name__)

# Both sides together moved the ranking further than either at the same loss of relevance (docs/experiments.md).
DEFAULT_SIDE: Side = "both"
DEFAULT_DRIFT_CAP = 0.8
# At this strength the hits have lost half of their plain score, and more adds little: a warning says so.
USEFUL_STRENGTH = 1.5
# Policies without conditions are written as the first version, which every release reads.
_FORMAT_VERSION, _WITH_CONDITIONS = 1, 2


class Request(NamedTuple):
    """One entry of `steer=` after parsing: a name that is not resolved yet, and an operation."""

    name: str | int
    operation: Operation


@dataclasses.dataclass(frozen=True)
class Steering:
    """An immutable list of edits for one SAE; a policy, if it is kept.

    Attributes:
        edits: The edits; their order does not matter.
        fingerprint: The SAE's.
        drift_cap: Smallest cosine allowed between the query and the shifted query.

    Example:
        >>> policy = retriever.resolve({"thread": 0.5})
        >>> policy.save("tenant.json")
        >>> Steering.load("tenant.json") == policy
        True
    """

    edits: tuple[Edit, ...]
    fingerprint: str
    drift_cap: float = DEFAULT_DRIFT_CAP

    def for_query(self, labels: Codes[NDArray[Any]], unit: Array) -> Steering:
        """Returns the edits that apply to one query: those whose condition holds and that ask for something.

        Args:
            labels: (1, k_labels) the query's label latents.
            unit: (n,) the features' units.
        """
        edits = tuple(
            edit
            for edit in self.edits
            if not edit.asks_nothing and (edit.condition is None or edit.condition.holds(labels, unit))
        )
        return self if edits == self.edits else Steering(edits, self.fingerprint, self.drift_cap)

    def to_json(self) -> str:
        """Returns the policy as JSON, for `from_json`."""
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
        """Returns the policy that `to_json` wrote.

        Raises:
            SteeringError: The text is not a policy of this library, or a value in it is out of range.
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
        except SteeringError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise SteeringError(
                f"this is not a steering policy of this library ({error!r}): expected what `Steering.save` writes."
            ) from error

    def save(self, path: str | Path) -> None:
        """Writes the policy to a JSON file, atomically.

        Raises:
            ArtifactError: The file cannot be written.
        """
        path = Path(path)
        write_files(path.parent, {path.name: f"{self.to_json()}\n".encode()})

    @classmethod
    def load(cls, path: str | Path) -> Steering:
        """Returns the policy that `save` wrote.

        Raises:
            ArtifactError: There is no such file, or it cannot be read.
            SteeringError: The file holds no policy of this library.
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
        """Returns this steering for an SAE: the same one, or one adapted from the SAE that it was made for.

        Adapting keeps the ids and the meaning of all features, so a policy of the parent holds for the adapted SAE.

        Args:
            config: The SAE's configuration.
            fingerprint: The SAE's fingerprint.

        Raises:
            MismatchError: The steering was made for another SAE.
        """
        if fingerprint != self.fingerprint and config.adapted_from == self.fingerprint:
            return dataclasses.replace(self, fingerprint=fingerprint)
        self.require(fingerprint)
        return self

    def of_sae(self, config: SAEConfig, fingerprint: str) -> Steering:
        """Returns `rebind(config, fingerprint)`; the former name, until the next minor version."""
        warnings.warn("Steering.of_sae is now Steering.rebind", DeprecationWarning, stacklevel=2)
        return self.rebind(config, fingerprint)

    def require(self, fingerprint: str) -> None:
        """Checks that the steering was made for an SAE.

        Raises:
            MismatchError: `fingerprint` is another SAE's.
        """
        if fingerprint != self.fingerprint:
            raise MismatchError(
                f"this steering was made for SAE {self.fingerprint}, the retriever has {fingerprint}: "
                "features of two SAEs do not correspond; resolve the names again."
            )


def parse(steer: SteerLike | None, *, removals: bool = False) -> list[Request]:
    """Returns the requests of a `steer=` mapping, checked before anything is embedded.

    Args:
        steer: Feature id, label, keyword or free text -> a strength or an operation.
        removals: Whether to keep zero strengths, which remove edits of the same feature from a default.

    Raises:
        SteeringError: Not a mapping, an unusable name, or a strength out of range.
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
    """Returns the steering that requests mean; warns of strengths beyond the useful range.

    Args:
        requests: From `parse`.
        resolver: From a name to features; raises on unknown and ambiguous names.
        fingerprint: The SAE's.
        side: The side of operations that do not name one; `DEFAULT_SIDE` if not given.
        drift_cap: Smallest cosine allowed between the query and the shifted query.
    """
    edits = []
    for name, operation in requests:
        condition = None
        asked: Any = operation
        if isinstance(operation, When):
            meant = resolver(operation.feature)
            condition = Condition(written_name(operation.feature), meant.features, meant.weights, operation.above)
            asked = operation.then if isinstance(operation.then, BasicOperation) else Add(operation.then)
        features, weights, _ = resolver(name)
        acts_on = asked.acts_on or asked.side or side or DEFAULT_SIDE
        edits.append(Edit(written_name(name), features, weights, asked.op, float(asked.number), acts_on, condition))
    excessive = [edit for edit in edits if edit.op == Add.op and abs(edit.strength) > USEFUL_STRENGTH]
    if excessive:
        logger.warning(
            "past the useful range of strengths, which ends at %g: %s; more of it mostly costs relevance",
            USEFUL_STRENGTH,
            ", ".join(f"{edit.name!r} {edit.asked}" for edit in excessive),
        )
    return Steering(tuple(edits), fingerprint, check_drift_cap(drift_cap))


def compose(default: Steering, call: Steering) -> Steering:
    """Returns a default steering with the edits of one call laid over it.

    An edit of the call replaces the default's edits of the same name or the same features, whatever their operation,
    side and condition; an edit of strength 0 only removes them. All other edits of both apply. The stricter drift cap
    holds.

    Args:
        default: A user's or a tenant's steering.
        call: The steering of one call; `parse(..., removals=True)` keeps its zero strengths.

    Raises:
        MismatchError: They were made for two SAEs.

    Example:
        >>> from sae_steer_retriever import compose
        >>> default = retriever.resolve({"thread": 0.5, "socket": 0.2})
        >>> [edit.asked for edit in compose(default, retriever.resolve({"thread": 1.0})).edits]
        ['+0.2', '+1']
    """
    call.require(default.fingerprint)
    names, features = {_folded(edit) for edit in call.edits}, {frozenset(edit.features) for edit in call.edits}
    kept = [edit for edit in default.edits if _folded(edit) not in names and frozenset(edit.features) not in features]
    edits = tuple(edit for edit in (*kept, *call.edits) if not edit.asks_nothing)
    return Steering(edits, default.fingerprint, max(default.drift_cap, call.drift_cap))


def check_drift_cap(cap: Any) -> float:  # noqa: ANN401 - user input
    """Returns the drift cap.

    Raises:
        SteeringError: It is not a number in (0, 1].
    """
    if isinstance(cap, bool) or not isinstance(cap, int | float) or not 0 < cap <= 1:
        raise SteeringError(f"drift_cap is {cap!r}: expected a cosine above 0 and at most 1, e.g. 0.8.")
    return float(cap)


def _folded(edit: Edit) -> str:
    return folded(edit.name).removeprefix("#")
