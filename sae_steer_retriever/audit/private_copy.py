"""A private copy of an embedded Chroma: opening a Chroma folder writes to it, even if nothing is changed."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sae_steer_retriever.errors import StoreError

DATABASE = "chroma.sqlite3"
"""The database in an embedded Chroma's folder, beside the vectors."""


@contextlib.contextmanager
def private_copy(folder: Path) -> Iterator[Path]:
    """Copy an embedded Chroma to a temporary folder; the original does not change by a byte.

    SQLite's backup copies the database, so that the copy is consistent while another process writes.

    Args:
        folder: The folder of an embedded Chroma.

    Yields:
        The folder of the copy, which is removed afterwards.

    Raises:
        StoreError: The folder cannot be read, or there is no room for a copy.
    """
    # On Windows a file that Chroma still maps cannot be removed; the system cleans it up later.
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
                f"cannot copy {folder} ({size / 2**20:,.0f} MB) to {temporary}: {error}. An audit reads a copy; "
                "set the environment variable TMPDIR to a folder with enough room."
            ) from error
        yield target
