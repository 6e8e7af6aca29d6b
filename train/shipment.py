"""Writes an SAE for the wheel: half the size, without anything of the texts that it was fitted to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch

from sae_steer_retriever.features.calibration import CALIBRATION_FILE
from sae_steer_retriever.features.catalog_files import FEATURES_FILE, read_catalog, write_catalog
from sae_steer_retriever.features.feature import Feature, LabelScore
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.files import CONFIG_FILE, TENSORS, WEIGHTS_FILE, restored, write_sae
from sae_steer_retriever.sae.topk_sae import TopKSAE

CARD_FILE = "README.md"
_ROUNDED = ("W_enc", "W_dec")
# Two digits of scores, shares and units matter; float32 has seven.
_DIGITS = 6


class Shipment(NamedTuple):
    """The files of a bundled SAE.

    Attributes:
        sae: The SAE as it will be read; its `fingerprint` differs from that of the source.
        sizes: Bytes by file.
    """

    sae: TopKSAE
    sizes: dict[str, int]

    @property
    def size(self) -> int:
        """Returns the bytes of all files."""
        return sum(self.sizes.values())


def write_shipment(source: str | Path, target: str | Path) -> Shipment:
    """Writes an SAE with its catalog, calibration and card for the wheel; the same input gives the same bytes.

    Both matrices are rounded to float16; `sae.files.restored` makes the directions unit vectors again. Labels,
    keywords, scores, frequencies, units and families are kept. The ids of example passages and the evidence are left
    out, since nobody else has these passages. Names given by a person are left out too.

    Args:
        source: Folder of the SAE; not changed.
        target: Another folder.

    Returns:
        The written files.

    Raises:
        ArtifactError: A file of the source is missing or damaged, or the target cannot be written.
        ValueError: The two are one folder.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise ValueError(f"{target} is the SAE itself: give another folder to write to.")
    fitted = TopKSAE.from_pretrained(source)
    parts = read_catalog(source, fitted.fingerprint)
    tensors = {name: getattr(fitted, name) for name in TENSORS}
    tensors |= {name: tensors[name].to(torch.float16) for name in _ROUNDED}
    sae = TopKSAE(**restored(tensors), config=fitted.config)
    write_sae(target, tensors, sae.config, sae.fingerprint)
    features = [_trimmed(feature) for feature in parts.features]
    write_catalog(target, *parts._replace(features=features, fingerprint=sae.fingerprint))
    files = [WEIGHTS_FILE, CONFIG_FILE, FEATURES_FILE, CALIBRATION_FILE]
    if (source / CARD_FILE).is_file():
        write_files(target, {CARD_FILE: (source / CARD_FILE).read_bytes()})
        files.append(CARD_FILE)
    return Shipment(sae, {name: (target / name).stat().st_size for name in files})


def _trimmed(feature: Feature) -> Feature:
    score = None
    if feature.score is not None:
        random, hard, random_interval, hard_interval, passages = feature.score
        score = LabelScore(
            round(random, _DIGITS), round(hard, _DIGITS), _rounded(random_interval), _rounded(hard_interval), passages
        )
    return dataclasses.replace(
        feature,
        score=score,
        frequency=round(feature.frequency, _DIGITS),
        unit=round(feature.unit, _DIGITS),
        examples=(),
    )


def _rounded(interval: tuple[float, float]) -> tuple[float, float]:
    return round(interval[0], _DIGITS), round(interval[1], _DIGITS)
