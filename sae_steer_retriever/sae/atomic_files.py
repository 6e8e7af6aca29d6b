"""Writing a set of files so that a crash, a full disk or a kill never leaves half of one."""

from __future__ import annotations

import contextlib
import os
import uuid
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
    replaced: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            # Not tempfile: its files are the owner's alone, and an artefact is meant to be shared.
            temporary = folder / f".{name}.{uuid.uuid4().hex}"
            written.append((temporary, folder / name))
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for source, target in written:
            os.replace(source, target)
            replaced.append(target.name)
    except OSError as error:
        what = f"Only {', '.join(replaced)} was replaced" if replaced else "Nothing was replaced"
        raise ArtifactError(
            f"cannot save {', '.join(files)} in {folder}: {error.strerror or error}. "
            f"{what}; free some space or choose another folder."
        ) from error
    finally:  # also after an interrupt; once renamed there is nothing left to remove
        for source, _ in written:
            with contextlib.suppress(OSError):
                source.unlink(missing_ok=True)
