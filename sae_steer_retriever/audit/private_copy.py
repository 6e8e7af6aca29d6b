"""A copy of an embedded Chroma's folder: Chroma writes to its folder when it is opened, even if nothing is changed."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sae_steer_retriever.errors import StoreError

DATABASE = "chroma.sqlite3"
"""What an embedded Chroma keeps in its folder, beside the vectors."""


@contextlib.contextmanager
def private_copy(folder: Path) -> Iterator[Path]:
    """A copy to look at, which is removed afterwards; not a byte of the original changes.

    The database is copied by SQLite's own backup, so that it is whole while another process writes to it.

    Args:
        folder: Of an embedded Chroma.

    Raises:
        StoreError: It cannot be read, or there is no room for a copy of it.
    """
    # On Windows a file that Chroma still maps cannot be removed; the system's own cleaning takes it.
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
                f"cannot copy {folder} ({size / 2**20:,.0f} MB) to {temporary}, which an audit looks at instead of the "
                f"store itself: {error}. The environment variable TMPDIR names another place."
            ) from error
        yield target


__all__ = ["DATABASE", "private_copy"]
