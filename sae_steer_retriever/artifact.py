"""Writing a set of files so that a crash, a full disk or a kill never leaves half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sae_steer_retriever.errors import ArtifactError


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all of `files` into `folder`, each atomically, and none before all are safely on disk.

    Every file goes to a temporary name first; only when the last one is flushed are they renamed.
    A failure before that point removes the temporary files and leaves what was there untouched.

    Args:
        folder: The folder; made with its parents if absent.
        files: File name to content.

    Raises:
        ArtifactError: The disk is full, the folder cannot be made or written to.
    """
    written: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            target = folder / name
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            written.append((Path(temporary), target))
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for source, target in written:
            os.replace(source, target)
    except OSError as error:
        for source, _ in written:
            with contextlib.suppress(OSError):
                source.unlink(missing_ok=True)
        raise ArtifactError(
            f"cannot save {', '.join(files)} in {folder}: {error.strerror or error}. "
            "Nothing was replaced; free some space or choose another folder."
        ) from error
