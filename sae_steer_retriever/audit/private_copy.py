"""Copies the folder of an embedded Chroma, because Chroma writes to its folder whenever it opens it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sae_steer_retriever.errors import StoreError
from sae_steer_retriever.store.connection import DATABASE


@contextlib.contextmanager
def private_copy(folder: Path) -> Iterator[Path]:
    """Yields a temporary copy of the folder; the original does not change.

    SQLite's own backup copies the database, so that the copy is consistent while another process writes.

    Args:
        folder: Folder of an embedded Chroma.

    Raises:
        StoreError: The folder cannot be read, or there is no space for a copy.
    """
    # On Windows a file that Chroma still maps cannot be removed; the system removes it later.
    with tempfile.TemporaryDirectory(prefix="sae-steer-audit-", ignore_cleanup_errors=True) as temporary:
        target = Path(temporary) / "chroma"
        try:
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns(f"{DATABASE}*"))
            address = f"{(folder / DATABASE).resolve().as_uri()}?mode=ro"
            with (
                contextlib.closing(sqlite3.connect(address, uri=True)) as source,
                contextlib.closing(sqlite3.connect(target / DATABASE)) as copy,
            ):
                source.backup(copy)
        except (OSError, shutil.Error, sqlite3.Error) as error:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            raise StoreError(
                f"cannot copy {folder} ({size / 2**20:,.0f} MB) to {temporary}: {error}. An audit reads a copy of the "
                "store; set the environment variable TMPDIR to a folder with enough space."
            ) from error
        yield target
