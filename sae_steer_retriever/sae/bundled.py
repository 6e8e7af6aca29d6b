"""The bundled SAEs with this package: which there are, for which encoder, and how a store records them."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_dir

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.config import DEFAULT_MODEL, encoder_base_name

BUNDLED_FOLDER = Path(__file__).resolve().parent / "pretrained"
"""A folder for each SAE, named after its encoder without the owner."""
NAMES_VARIABLE = "SAE_STEER_NAMES"
_CONFIG_FILE = "config.json"


def bundled_names() -> tuple[str, ...]:
    """The encoders that an SAE ships for, without their owners: ("all-MiniLM-L6-v2",)."""
    if not BUNDLED_FOLDER.is_dir():
        return ()
    return tuple(sorted(folder.name for folder in BUNDLED_FOLDER.iterdir() if (folder / _CONFIG_FILE).is_file()))


def bundled_sae(encoder: str) -> Path | None:
    """The folder of the bundled SAE for an encoder, None if none does.

    Args:
        encoder: Its name, with or without "sentence-transformers/".
    """
    wanted = encoder_base_name(encoder)
    return next((BUNDLED_FOLDER / name for name in bundled_names() if name.lower() == wanted), None)


def require_bundled(encoder: str = DEFAULT_MODEL) -> Path:
    """The folder of the bundled SAE for an encoder.

    Args:
        encoder: Its name.

    Raises:
        ArtifactError: None does.
    """
    folder = bundled_sae(encoder)
    if folder is None:
        names = ", ".join(bundled_names())
        there = f"only for {names}" if names else "none with this copy of the package"
        raise ArtifactError(
            f"no SAE was given, and none ships for the encoder {encoder!r} ({there}): train one on your documents with "
            f"`sae-steer train --corpus ./docs --model {encoder} --output ./sae`, and give its folder."
        )
    return folder


def bundled_name(folder: str | Path) -> str | None:
    """The name of a bundled SAE, by its folder; None for any other folder, and for what is none."""
    path = Path(folder)
    if path.name in bundled_names() and path.is_dir() and path.resolve().parent == BUNDLED_FOLDER:
        return path.name
    return None


def recordable(sae: str | Path) -> str:
    """How an SAE is recorded in a store, to be found from anywhere: an absolute path, a hub id, or a shipped name.

    Not the folder of one that ships: that is another after a move of the environment.
    """
    return bundled_name(sae) or (str(Path(sae).resolve()) if Path(sae).is_dir() else str(sae))


def recorded(location: str) -> str:
    """What `recordable` recorded, to be opened; a folder here that has the name of one that ships is not meant."""
    return str(bundled_sae(location) or location)


def names_folder(folder: Path) -> Path:
    """Where the names that a person gives to an SAE's features are kept: with the SAE.

    Of one that ships they are in the user's data folder (the environment variable SAE_STEER_NAMES moves it), because
    what is installed is not the user's to write to, and another version replaces it.

    Args:
        folder: Of the SAE.
    """
    name = bundled_name(folder)
    if name is None:
        return folder
    root = os.environ.get(NAMES_VARIABLE) or user_data_dir("sae_steer_retriever", appauthor=False)
    return Path(root) / name


__all__ = [
    "NAMES_VARIABLE",
    "BUNDLED_FOLDER",
    "names_folder",
    "recordable",
    "recorded",
    "require_bundled",
    "bundled_name",
    "bundled_names",
    "bundled_sae",
]
