"""Evidence for a feature's label: passages with and without the feature, its neighbours, and its words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.catalog_files import read_json
from sae_steer_retriever.sae.atomic_files import write_files

EVIDENCE_FILE = "evidence.json"
_FORMAT_VERSION = 1
_REMEDY = "Label again with `sae-steer features label`, or move the file away."
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of a feature's activations that are kept."""


class Example(NamedTuple):
    """A passage's id, and the figure that the feature's passages are ordered by: 0 where it is not active."""

    id: str
    strength: float


class Neighbour(NamedTuple):
    """Another feature's id, and the cosine of the two decoder directions."""

    feature: int
    cosine: float


@dataclasses.dataclass(frozen=True)
class FeatureEvidence:
    """The passages and words that show what a feature is.

    Attributes:
        top: The passages in which it is strongest, strongest first.
        middle: Passages from each tenth of its range, strongest first.
        near_misses: Passages of its neighbours that do not have it: hard negatives.
        quantiles: (5,) its strength at `QUANTILES`, over the passages that have it.
        neighbours: The features nearest by decoder direction.
        trie: The words that carry it, as `Trie.to_json` writes them; None if it has no trie.
    """

    top: tuple[Example, ...]
    middle: tuple[Example, ...]
    near_misses: tuple[Example, ...]
    quantiles: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]
    trie: Mapping[str, Any] | None = None


def write_evidence(folder: str | Path, evidence: Mapping[int, FeatureEvidence], fingerprint: str) -> None:
    """Write `evidence.json` into the SAE's folder, atomically; `evidence` is by feature id."""
    # `asdict` would copy every passage; JSON writes named tuples as lists.
    rows = {str(feature): vars(found) for feature, found in sorted(evidence.items())}
    body = {"format_version": _FORMAT_VERSION, "fingerprint": fingerprint, "features": rows}
    write_files(Path(folder), {EVIDENCE_FILE: json.dumps(body, ensure_ascii=False).encode()})


def read_evidence(folder: str | Path, fingerprint: str) -> dict[int, FeatureEvidence]:
    """Returns the content of `evidence.json`, by feature id; nothing where the SAE was labelled without evidence.

    Raises:
        ArtifactError: The file is damaged, of another format, or of another SAE.
    """
    path = Path(folder) / EVIDENCE_FILE

    def parsed(body: Any) -> dict[int, FeatureEvidence]:
        version, found = body["format_version"], str(body["fingerprint"])
        rows = {int(feature): _from_json(row) for feature, row in body["features"].items()}
        if version != _FORMAT_VERSION:
            raise ArtifactError(f"{path} has format version {version}, expected {_FORMAT_VERSION}. {_REMEDY}")
        if found != fingerprint:
            problem = f"is about the features of SAE {found}, the weights are of {fingerprint}"
            raise ArtifactError(f"{path} {problem}. {_REMEDY}")
        return rows

    return read_json(path, parsed, "is no evidence", _REMEDY) if path.is_file() else {}


def with_tries(
    evidence: Mapping[int, FeatureEvidence], tries: Mapping[int, Mapping[str, Any]]
) -> dict[int, FeatureEvidence]:
    """Evidence with new tries, given as JSON by feature id; a feature without a new one keeps its own."""
    return {key: dataclasses.replace(found, trie=tries.get(key, found.trie)) for key, found in evidence.items()}


def _from_json(row: Mapping[str, Any]) -> FeatureEvidence:
    top, middle, near_misses = (
        tuple(Example(str(name), float(strength)) for name, strength in row[part])
        for part in ("top", "middle", "near_misses")
    )
    quantiles = tuple(float(value) for value in row["quantiles"])
    neighbours = tuple(Neighbour(int(feature), float(cosine)) for feature, cosine in row["neighbours"])
    return FeatureEvidence(top, middle, near_misses, quantiles, neighbours, row["trie"])
