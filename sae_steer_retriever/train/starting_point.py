"""How a fit begins: from scratch, or from an SAE that is there already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sae_steer_retriever.errors import ArtifactError, nearest_names
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.bundled import bundled_names, bundled_sae
from sae_steer_retriever.sae.config import DEFAULT_MODEL, EncoderSpec
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import INITS, PRETRAINED

SMALL_CORPUS = 5000
"""Below this many passages a general SAE is adapted; measured to be better at 1,000, the bound itself is a guess."""

# Settings that an SAE which is adapted has already.
_OF_THE_PARENT = ("k_labels", "refine_steps", "refine_candidates")
# Who sets one of these has a fit from scratch in mind.
_OF_A_FIT = (*_OF_THE_PARENT, "latents", "loss", "names_weight", "start_weight")


class Parent(NamedTuple):
    """The SAE that one is adapted from.

    Attributes:
        sae: Its weights.
        catalog: Its features' names.
        name: What it was asked for by, or the name of the bundled one.
    """

    sae: TopKSAE
    catalog: FeatureCatalog
    name: str


class StartingPoint(NamedTuple):
    """What a fit begins with.

    Attributes:
        parent: Folder of the SAE that is adapted; None for a fit from scratch.
        why: For a person.
    """

    parent: Path | None
    why: str


def choose_starting_point(settings: Mapping[str, object], passages: int) -> StartingPoint:
    """From scratch or not, by what was asked for and by the size of the corpus.

    Args:
        settings: Those that were given: fields of `TrainConfig`, whose `init` may also be an SAE's folder or hub id.
        passages: Number of passages.

    Raises:
        ArtifactError: `init` names no way to begin and no SAE, or none ships for the encoder.
        ValueError: A setting is given that an SAE which is adapted has already.
    """
    init, model = settings.get("init"), str(settings.get("model", DEFAULT_MODEL))
    if init is not None and init in INITS:
        return StartingPoint(None, f"from scratch: init = {init}")
    if init is None:
        return _by_size(settings, model, passages)
    given = [name for name in _OF_THE_PARENT if name in settings]
    if given:
        raise ValueError(f"{given[0]} = {settings[given[0]]} with init = {init}: an adapted SAE has its parent's.")
    if settings.get("loss") == "paper":
        raise ValueError(f"loss = paper with init = {init}: the paper's fit has no rows of unit norm to start from.")
    if init != PRETRAINED:
        return StartingPoint(_existing(str(init)), f"from {init}, adapted: init = {init}")
    folder = bundled_sae(model)
    if folder is None:
        raise ArtifactError(
            f"init = {PRETRAINED}: no SAE ships for the encoder {model!r} ({_there()}): leave it out to fit one from "
            "scratch, or give the folder of an SAE of that encoder."
        )
    return StartingPoint(folder, f"from the bundled SAE for {folder.name}, adapted: init = {PRETRAINED}")


def _by_size(settings: Mapping[str, object], model: str, passages: int) -> StartingPoint:
    given = [name for name in _OF_A_FIT if name in settings]
    if given:
        return StartingPoint(None, f"from scratch: {given[0]} = {settings[given[0]]} is given")
    if passages >= SMALL_CORPUS:
        return StartingPoint(None, f"from scratch: {passages:,} passages, {SMALL_CORPUS:,} or more")
    folder = bundled_sae(model)
    if folder is None:
        return StartingPoint(None, f"from scratch: no SAE ships for {model} ({_there()})")
    why = f"{passages:,} passages, fewer than {SMALL_CORPUS:,} (--init kmeans fits from scratch)"
    return StartingPoint(folder, f"from the bundled SAE for {folder.name}, adapted: {why}")


def _there() -> str:
    names = ", ".join(bundled_names())
    return f"only for {names}" if names else "none with this copy of the package"


def _existing(init: str) -> Path:
    """The folder of an SAE, given by itself or by a hub id."""
    if "/" in init or "\\" in init or Path(init).is_dir() or bundled_sae(init):
        return resolve_folder(init)
    near = nearest_names(init, (*INITS, PRETRAINED), 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    known = ", ".join((*INITS, PRETRAINED))
    raise ArtifactError(f"init = {init}{hint}: expected one of {known}, or the folder of an SAE.")


def load_parent(location: str | Path, spec: EncoderSpec) -> Parent:
    """The SAE that one is adapted from, with its catalog.

    Args:
        location: Folder or hub id.
        spec: The encoder that the corpus is embedded by.

    Raises:
        ArtifactError: It is no SAE, or has no catalog.
        MismatchError: It was made for another encoder.
    """
    folder = resolve_folder(location)
    sae = TopKSAE.from_pretrained(folder)
    sae.config.encoder.require_same(spec, f"the SAE in {location}", "the corpus' encoder")
    bundled = bundled_sae(spec.name)
    name = bundled.name if bundled is not None and bundled == folder else str(location)
    return Parent(sae, FeatureCatalog.load(folder, sae.fingerprint), name)


__all__ = ["SMALL_CORPUS", "StartingPoint", "Parent", "choose_starting_point", "load_parent"]
