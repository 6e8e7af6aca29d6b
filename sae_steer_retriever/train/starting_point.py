"""Chooses how a fit begins: from scratch, or by adapting an existing SAE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sae_steer_retriever.errors import ArtifactError, nearest_names
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.bundled import available_encoders, bundled_name, bundled_sae
from sae_steer_retriever.sae.config import DEFAULT_MODEL, EncoderSpec
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import INITS, PRETRAINED

SMALL_CORPUS = 5000
"""Below this many passages an SAE is adapted by default. Adapting was better at 1,000; the bound itself is a guess."""

# Settings that an adapted SAE takes from its parent.
_OF_THE_PARENT = ("k_labels", "refine_steps", "refine_candidates")
# Settings that only make sense for a fit from scratch.
_OF_A_FIT = (*_OF_THE_PARENT, "latents", "loss", "labels_weight", "start_weight")


class Parent(NamedTuple):
    """The SAE that is adapted, its catalog, and its name: the folder or hub id given, or that of the bundled SAE."""

    sae: TopKSAE
    catalog: FeatureCatalog
    name: str


class StartingPoint(NamedTuple):
    """How a fit begins: the folder of the SAE that is adapted, None for a fit from scratch, and the reason."""

    parent: Path | None
    why: str


def choose_starting_point(settings: Mapping[str, object], passages: int) -> StartingPoint:
    """Returns how a fit begins, from the settings that were given and the number of passages.

    The settings are fields of `TrainConfig`; `init` may also be an SAE's folder or hub id.

    Raises:
        ArtifactError: `init` is no known value and no SAE, or no SAE is bundled for the encoder.
        ValueError: A setting contradicts an adaptation, which takes it from its parent.
    """
    init, model = settings.get("init"), str(settings.get("model", DEFAULT_MODEL))
    if init is not None and init in INITS:
        return StartingPoint(None, f"from scratch: init = {init}")
    if init is None:
        return _by_size(settings, model, passages)
    given = [name for name in _OF_THE_PARENT if name in settings]
    if given:
        raise ValueError(
            f"{given[0]} = {settings[given[0]]} with init = {init}: an adapted SAE keeps its parent's {given[0]}; "
            "leave one of the two out."
        )
    if settings.get("loss") == "paper":
        raise ValueError(
            f"loss = paper with init = {init}: the paper's loss cannot adapt an SAE; leave one of them out."
        )
    if init != PRETRAINED:
        return StartingPoint(_existing(str(init)), f"from {init}, adapted: init = {init}")
    folder = bundled_sae(model)
    if folder is None:
        raise ArtifactError(
            f"init = {PRETRAINED}: no SAE is bundled for the encoder {model!r} ({available_encoders()}): leave it out "
            "to fit one from scratch, or give the folder of an SAE of that encoder."
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
        return StartingPoint(None, f"from scratch: no SAE is bundled for {model} ({available_encoders()})")
    why = f"{passages:,} passages, fewer than {SMALL_CORPUS:,} (--init kmeans fits from scratch)"
    return StartingPoint(folder, f"from the bundled SAE for {folder.name}, adapted: {why}")


def _existing(init: str) -> Path:
    """The folder of an SAE, given as a folder or hub id."""
    if "/" in init or "\\" in init or Path(init).is_dir() or bundled_sae(init):
        return resolve_folder(init)
    near = nearest_names(init, (*INITS, PRETRAINED), 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    known = ", ".join((*INITS, PRETRAINED))
    raise ArtifactError(f"init = {init}{hint}: expected one of {known}, or the folder of an SAE.")


def load_parent(location: str | Path, spec: EncoderSpec) -> Parent:
    """Returns the SAE in a folder or hub repository, with its catalog; `spec` is the encoder of the corpus.

    Raises:
        ArtifactError: It is no SAE, or has no catalog.
        MismatchError: It was made for another encoder.
    """
    folder = resolve_folder(location)
    sae = TopKSAE.from_pretrained(folder)
    sae.config.encoder.require_same(spec, f"the SAE in {location}", "the corpus' encoder")
    return Parent(sae, FeatureCatalog.load(folder, sae.fingerprint), bundled_name(folder) or str(location))
