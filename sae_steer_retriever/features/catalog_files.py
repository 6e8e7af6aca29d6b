"""The files of a catalog, beside the SAE's weights: `features.json` and `calibration.safetensors`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.calibration import CALIBRATION_FILE, Calibration, load_calibration, save_calibration
from sae_steer_retriever.features.family import Family
from sae_steer_retriever.features.feature import Feature, LabelScore
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.files import resolve_folder

FEATURES_FILE = "features.json"
# 1 had one figure for a label's score, and no families.
_FORMAT_VERSION = 2
_READABLE = (1, 2)


class CatalogParts(NamedTuple):
    """What a catalog is made of, in the order of `FeatureCatalog`'s arguments."""

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
    """Write both files, atomically.

    Args:
        folder: The SAE's folder.
        features: One per latent.
        calibration: Their statistics.
        fingerprint: Of the SAE.
        label_embeddings: (n, d) unit vectors of the labels, zero rows where there is none.
        families: Groups of features.
    """
    tensors = save_calibration(calibration, label_embeddings)
    head = {"format_version": _FORMAT_VERSION, "fingerprint": fingerprint, "calibration": _digest(tensors)}
    # A line each: to be read and compared by people too, at half the size that a line for every number takes.
    rows = {
        "features": ",\n".join(_json(_fields(feature)) for feature in features),
        "families": ",\n".join(_json(family._asdict()) for family in families),
    }
    body = ",\n".join([_json(head)[1:-1], *(f'"{name}":[\n{lines}\n]' for name, lines in rows.items())])
    write_files(Path(folder), {FEATURES_FILE: f"{{\n{body}\n}}\n".encode(), CALIBRATION_FILE: tensors})


def read_catalog(folder: str | Path, fingerprint: str) -> CatalogParts:
    """Read both files.

    Args:
        folder: The SAE's folder, or its hub id.
        fingerprint: Of the SAE that was loaded from it.

    Raises:
        ArtifactError: A file is missing, damaged, or belongs to another SAE.
    """
    path = resolve_folder(folder) / FEATURES_FILE
    if not path.is_file():
        raise ArtifactError(f"{path.parent} holds no {FEATURES_FILE}: train again, or copy the whole SAE folder.")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format_version"] not in _READABLE:
            raise ArtifactError(f"{path} has format version {body['format_version']}, expected {_FORMAT_VERSION}.")
        found, written_with = str(body["fingerprint"]), str(body["calibration"])
        features = [_feature(row) for row in body["features"]]
        families = tuple(_family(row, len(features)) for row in body.get("families", ()))
        if [feature.id for feature in features] != list(range(len(features))):
            raise ValueError("its features are not numbered from 0 without gaps")
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is not a feature catalog of this library ({error!r}).") from error
    if found != fingerprint:
        raise ArtifactError(f"{path} names the features of SAE {found}, the weights are of {fingerprint}.")
    calibration_path = path.parent / CALIBRATION_FILE
    calibration, label_embeddings = load_calibration(calibration_path, len(features))
    if _digest(calibration_path.read_bytes()) != written_with:
        raise ArtifactError(
            f"{path.parent}: {CALIBRATION_FILE} is not the one that {FEATURES_FILE} was written with: "
            "copy the whole SAE folder, or train again."
        )
    return CatalogParts(features, calibration, fingerprint, label_embeddings, families)


def _fields(feature: Feature) -> dict[str, Any]:
    return {field.name: getattr(feature, field.name) for field in dataclasses.fields(feature)}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _feature(row: dict[str, Any]) -> Feature:
    row = {**row, "keywords": tuple(row["keywords"]), "examples": tuple(row["examples"])}
    if "label_score" in row:  # format 1: the AUROC against hard negatives alone
        hard = row.pop("label_score")
        return Feature(**row, score=None if hard is None else LabelScore(random=float("nan"), hard=float(hard)))
    score = row.pop("score")
    if score is None:
        return Feature(**row, score=None)
    random, hard, random_interval, hard_interval, passages = score
    return Feature(**row, score=LabelScore(random, hard, tuple(random_interval), tuple(hard_interval), passages))


def _family(row: dict[str, Any], latents: int) -> Family:
    members = tuple(int(feature) for feature in row["features"])
    if not all(0 <= feature < latents for feature in members):
        raise ValueError(f"family {row['name']!r} has members that are no features")
    return Family(int(row["id"]), str(row["name"]), members)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


__all__ = ["FEATURES_FILE", "CatalogParts", "read_catalog", "write_catalog"]
