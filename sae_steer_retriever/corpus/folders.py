"""Walks a folder of documents: sorted, without hidden files, each file once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def files_below(root: Path, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """Yields the files of a folder and its subfolders, sorted by name, each once.

    Hidden files and folders are left out. Symbolic links are followed, except to a place that is read anyway.

    Args:
        root: An existing folder.
        skipped: Gets a (path relative to `root`, reason) for each link that is not followed, each folder that cannot
            be opened and each entry that is not a regular file.
    """
    real_root = root.resolve()
    visited: set[Path] = set()

    def is_read_anyway(target: Path) -> bool:
        if real_root == target or target in real_root.parents:
            return True
        return target.is_relative_to(real_root) and not any(
            part.startswith(".") for part in target.relative_to(real_root).parts
        )

    def walk(folder: Path) -> Iterator[Path]:
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append((folder.relative_to(root).as_posix(), f"the folder cannot be opened: {error.strerror}"))
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = entry.relative_to(root).as_posix()
            try:
                target = entry.resolve(strict=True)
            except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
                skipped.append((name, "a symbolic link to nothing"))
                continue
            if entry.is_symlink():
                if is_read_anyway(target) or target in visited:
                    skipped.append((name, "a symbolic link to a place that is read already"))
                    continue
                visited.add(target)
            if target.is_dir():
                yield from walk(entry)
            elif target.is_file():
                yield entry
            else:
                skipped.append((name, "not a regular file"))

    yield from walk(root)
