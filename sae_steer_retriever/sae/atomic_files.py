"""Writes a set of files so that a crash, a full disk or an interruption never leaves half of one."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from sae_steer_retriever.errors import ArtifactError


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` (name to content) into `folder`, which is made if absent, each file atomically.

    Every file gets a temporary name first. All are renamed once the last one is flushed to disk. A failure before that
    removes the temporary files and changes nothing else.

    Raises:
        ArtifactError: The disk is full, or the folder cannot be made or written to.
    """
    written: list[tuple[Path, Path]] = []
    replaced: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            # Not tempfile, whose files only the owner may read: others may read a saved SAE.
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
    finally:  # also after an interrupt; renamed files are no longer there
        for source, _ in written:
            with contextlib.suppress(OSError):
                source.unlink(missing_ok=True)
