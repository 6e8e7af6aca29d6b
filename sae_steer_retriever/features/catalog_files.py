"""The catalog's files, beside the SAE's weights: `features.json` and `calibration.safetensors`."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.calibration import CALIBRATION_FILE, Calibration, load_calibration, save_calibration
from sae_steer_retriever.features.feature import Family, Feature, LabelScore
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.files import resolve_folder

FEATURES_FILE = "features.json"
# Version 1 had one figure for a label's score, and no families.
_FORMAT_VERSION = 2
_READABLE = (1, 2)

_Parsed = TypeVar("_Parsed")


def read_json(path: Path, parsed: Callable[[Any], _Parsed], problem: str, remedy: str = "") -> _Parsed:
    """Returns a JSON file's content as `parsed` makes it; `problem` and `remedy` go into the error.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        return parsed(json.loads(path.read_text(encoding="utf-8")))
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ArtifactError(f"{path} {problem} of this library ({error!r}). {remedy}".rstrip()) from error


class CatalogParts(NamedTuple):
    """The arguments of `FeatureCatalog`, in their order."""

    features: list[Feature]
    calibration: Calibration
    fingerprint: str
    label_embeddings: Array | None
    families: tuple[Family, ...] = ()


def write_catalog(
    folder: str | Path,
    features: Sequence[Feature],
    calibration: Calibration,
    fingerprint: str,
    label_embeddings: Array | None,
    families: Sequence[Family] = (),
) -> None:
    """Write both files into the SAE's folder, atomically; see `FeatureCatalog` for the arguments."""
    tensors = save_calibration(calibration, label_embeddings)
    head = {"format_version": _FORMAT_VERSION, "fingerprint": fingerprint, "calibration": _digest(tensors)}
    # One line for each feature: people can read and compare them, and the file has half the size of an indented one.
    rows = {
        "features": ",\n".join(_json(vars(feature)) for feature in features),
        "families": ",\n".join(_json(family._asdict()) for family in families),
    }
    body = ",\n".join([_json(head)[1:-1], *(f'"{name}":[\n{lines}\n]' for name, lines in rows.items())])
    write_files(Path(folder), {FEATURES_FILE: f"{{\n{body}\n}}\n".encode(), CALIBRATION_FILE: tensors})


def read_catalog(folder: str | Path, fingerprint: str) -> CatalogParts:
    """Returns the content of both files in an SAE's folder (or hub id).

    Raises:
        ArtifactError: A file is missing, damaged, or belongs to another SAE.
    """
    path = resolve_folder(folder) / FEATURES_FILE
    if not path.is_file():
        raise ArtifactError(f"{path.parent} holds no {FEATURES_FILE}: train again, or copy the whole SAE folder.")
    features, families, found, digest = read_json(path, functools.partial(_parsed, path), "is not a feature catalog")
    if found != fingerprint:
        raise ArtifactError(f"{path} names the features of SAE {found}, the weights are of {fingerprint}.")
    calibration_path = path.parent / CALIBRATION_FILE
    calibration, label_embeddings = load_calibration(calibration_path, len(features))
    if _digest(calibration_path.read_bytes()) != digest:
        problem = f"{path.parent}: {CALIBRATION_FILE} is not the one that {FEATURES_FILE} was written with"
        raise ArtifactError(f"{problem}: copy the whole SAE folder, or train again.")
    return CatalogParts(features, calibration, fingerprint, label_embeddings, families)


def _parsed(path: Path, body: dict[str, Any]) -> tuple[list[Feature], tuple[Family, ...], str, str]:
    """Features, families, fingerprint, and digest of the calibration file."""
    if body["format_version"] not in _READABLE:
        problem = f"{path} has format version {body['format_version']}, expected {_FORMAT_VERSION}"
        raise ArtifactError(f"{problem}: upgrade sae-steer-retriever, or train again.")
    features = [_feature(row) for row in body["features"]]
    families = tuple(_family(row, len(features)) for row in body.get("families", ()))
    if [feature.id for feature in features] != list(range(len(features))):
        raise ValueError("its features are not numbered from 0 without gaps")
    return features, families, str(body["fingerprint"]), str(body["calibration"])


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _feature(row: dict[str, Any]) -> Feature:
    row = {**row, "keywords": tuple(row["keywords"]), "examples": tuple(row["examples"])}
    if "label_score" in row:  # format 1: the AUROC against near misses alone
        hard = row.pop("label_score")
        return Feature(**row, score=None if hard is None else LabelScore(random=float("nan"), hard=float(hard)))
    if row["score"] is not None:
        random, hard, random_interval, hard_interval, passages = row["score"]
        row["score"] = LabelScore(random, hard, tuple(random_interval), tuple(hard_interval), passages)
    return Feature(**row)


def _family(row: dict[str, Any], latents: int) -> Family:
    members = tuple(int(feature) for feature in row["features"])
    if not all(0 <= feature < latents for feature in members):
        raise ValueError(f"family {row['name']!r} has members that are no features")
    return Family(int(row["id"]), str(row["name"]), members)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
