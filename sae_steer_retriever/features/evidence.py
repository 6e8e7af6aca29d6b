"""What a feature's name rests on: passages with and without it, its neighbours, and the words that carry it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.atomic_files import write_files

EVIDENCE_FILE = "evidence.json"
_FORMAT_VERSION = 1
_REMEDY = "Label again with `sae-steer features label`, or move the file away."
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of a feature's activations that are kept."""


class Example(NamedTuple):
    """A passage, and how strongly it has a feature.

    Attributes:
        id: The passage's id.
        strength: What the feature's passages are ordered by; 0 where the feature is not active.
    """

    id: str
    strength: float


class Neighbour(NamedTuple):
    """Another feature.

    Attributes:
        feature: Its id.
        cosine: Of the two decoder directions.
    """

    feature: int
    cosine: float


@dataclasses.dataclass(frozen=True)
class FeatureEvidence:
    """What is known of one feature beside its name.

    Attributes:
        top: The passages in which it is strongest, strongest first.
        middle: Passages from each tenth of its range, strongest first.
        near_misses: Passages of its neighbours that do not have it: hard negatives.
        quantiles: (5,) its strength at `QUANTILES`, over the passages that have it.
        neighbours: The features nearest by decoder direction.
        trie: The words that carry it, as `interpret.trie.Trie.to_json` writes them; None if it has no trie.
    """

    top: tuple[Example, ...]
    middle: tuple[Example, ...]
    near_misses: tuple[Example, ...]
    quantiles: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]
    trie: Mapping[str, Any] | None = None


def write_evidence(folder: str | Path, evidence: Mapping[int, FeatureEvidence], fingerprint: str) -> None:
    """Write `evidence.json` into the SAE's folder, atomically.

    Args:
        folder: The SAE's folder.
        evidence: By feature id; features without any are left out.
        fingerprint: Of the SAE.
    """
    # Not `asdict`, which copies every passage: named tuples are lists in JSON as they are.
    names = [field.name for field in dataclasses.fields(FeatureEvidence)]
    rows = {str(feature): {name: getattr(found, name) for name in names} for feature, found in sorted(evidence.items())}
    body = {"format_version": _FORMAT_VERSION, "fingerprint": fingerprint, "features": rows}
    write_files(Path(folder), {EVIDENCE_FILE: json.dumps(body, ensure_ascii=False).encode()})


def read_evidence(folder: str | Path, fingerprint: str) -> dict[int, FeatureEvidence]:
    """Read `evidence.json`; an SAE that was labelled without it has none.

    Args:
        folder: The SAE's folder.
        fingerprint: Of the SAE that was loaded from it.

    Raises:
        ArtifactError: The file is damaged, of another format, or of another SAE.
    """
    path = Path(folder) / EVIDENCE_FILE
    if not path.is_file():
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version, found = body["format_version"], str(body["fingerprint"])
        rows = {int(feature): _from_json(row) for feature, row in body["features"].items()}
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is no evidence of this library ({error!r}). {_REMEDY}") from error
    if version != _FORMAT_VERSION:
        raise ArtifactError(f"{path} has format version {version}, expected {_FORMAT_VERSION}. {_REMEDY}")
    if found != fingerprint:
        raise ArtifactError(f"{path} is about the features of SAE {found}, the weights are of {fingerprint}. {_REMEDY}")
    return rows


def with_tries(
    evidence: Mapping[int, FeatureEvidence], tries: Mapping[int, Mapping[str, Any]]
) -> dict[int, FeatureEvidence]:
    """Evidence with the tries that features have.

    Args:
        evidence: By feature id.
        tries: By feature id, as JSON; features without keep what they have.
    """
    return {
        feature: dataclasses.replace(found, trie=tries.get(feature, found.trie)) for feature, found in evidence.items()
    }


def _from_json(row: Mapping[str, Any]) -> FeatureEvidence:
    def examples(found: Sequence[Any]) -> tuple[Example, ...]:
        return tuple(Example(str(name), float(strength)) for name, strength in found)

    return FeatureEvidence(
        top=examples(row["top"]),
        middle=examples(row["middle"]),
        near_misses=examples(row["near_misses"]),
        quantiles=tuple(float(value) for value in row["quantiles"]),
        neighbours=tuple(Neighbour(int(feature), float(cosine)) for feature, cosine in row["neighbours"]),
        trie=row["trie"],
    )


__all__ = [
    "EVIDENCE_FILE",
    "QUANTILES",
    "Example",
    "FeatureEvidence",
    "Neighbour",
    "read_evidence",
    "with_tries",
    "write_evidence",
]
