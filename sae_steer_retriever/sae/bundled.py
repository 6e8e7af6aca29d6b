"""The bundled SAEs of this package: their encoders, their folders, and how a store records an SAE."""

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
    """Returns the encoders with a bundled SAE, without their owners: ("all-MiniLM-L6-v2",)."""
    if not BUNDLED_FOLDER.is_dir():
        return ()
    return tuple(sorted(folder.name for folder in BUNDLED_FOLDER.iterdir() if (folder / _CONFIG_FILE).is_file()))


def bundled_sae(encoder: str) -> Path | None:
    """Returns the folder of the bundled SAE for an encoder's name with or without owner, None if there is none."""
    wanted = encoder_base_name(encoder)
    return next((BUNDLED_FOLDER / name for name in bundled_names() if name.lower() == wanted), None)


def available_encoders() -> str:
    """Returns the encoders with a bundled SAE, for a message."""
    names = ", ".join(bundled_names())
    return f"only for {names}" if names else "none with this copy of the package"


def require_bundled(encoder: str = DEFAULT_MODEL) -> Path:
    """Returns the folder of the bundled SAE for an encoder's name.

    Raises:
        ArtifactError: No SAE is bundled for it.
    """
    folder = bundled_sae(encoder)
    if folder is None:
        raise ArtifactError(
            f"no SAE was given, and none is bundled for the encoder {encoder!r} ({available_encoders()}): "
            f"train one on your documents with `sae-steer train --corpus ./docs --model {encoder} --output ./sae`, and "
            "give its folder."
        )
    return folder


def bundled_name(folder: str | Path) -> str | None:
    """Returns the name of the bundled SAE in a folder; None for any other folder or path."""
    path = Path(folder)
    if path.name in bundled_names() and path.is_dir() and path.resolve().parent == BUNDLED_FOLDER:
        return path.name
    return None


def recordable(sae: str | Path) -> str:
    """Returns an SAE as a store records it, to be found from anywhere: an absolute path, a hub id, or a bundled name.

    A bundled SAE is recorded by its name, because its folder changes if the environment moves.
    """
    return bundled_name(sae) or (str(Path(sae).resolve()) if Path(sae).is_dir() else str(sae))


def recorded(location: str) -> str:
    """Returns the SAE that `recordable` recorded, to be opened; a bundled name never means a folder of that name."""
    return str(bundled_sae(location) or location)


def names_folder(folder: Path) -> Path:
    """Returns the folder of the names that a person gives to an SAE's features: the SAE's own folder.

    The names for a bundled SAE are in the user's data folder (the environment variable SAE_STEER_NAMES moves it),
    because another version of the package replaces the installed folder.
    """
    name = bundled_name(folder)
    if name is None:
        return folder
    root = os.environ.get(NAMES_VARIABLE) or user_data_dir("sae_steer_retriever", appauthor=False)
    return Path(root) / name
