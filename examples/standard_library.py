"""Collects a corpus that every machine with Python has: the documentation of the standard library."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Compiled modules have no source to parse; these are safe to import and well documented.
COMPILED = ("math", "time", "itertools", "sys", "gc", "zlib", "binascii", "array", "cmath", "select", "errno")
SHORTEST, LONGEST = 60, 700
SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip


def collect() -> dict[str, str]:
    """Docstrings of the standard library's public modules, classes and functions, and Python's language topics.

    Returns:
        Id ("module.Class.method") to text ("module.Class.method: docstring"), several thousand of them.
    """
    passages: dict[str, str] = {}
    for name, text in _everything():
        clean = " ".join(text.split())
        if len(clean) >= SHORTEST:
            passages.setdefault(name, f"{name}: {clean[:LONGEST]}")
    return passages


def write_corpus(path: Path) -> int:
    """Write the passages as JSON Lines for `sae-steer train --corpus`; return their number."""
    passages = collect()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for name, text in passages.items():
            stream.write(json.dumps({"_id": name, "text": text, "module": name.split(".")[0]}) + "\n")
    return len(passages)


def _everything() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts) and not any(part.startswith("_") for part in parts[:1]):
            module = ".".join(part for part in parts if part != "__init__")
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
            yield from _docstrings(module, tree)
    for module_name in COMPILED:
        yield from _members(importlib.import_module(module_name))
    yield from _members(builtins)
    topics = importlib.import_module("pydoc_data.topics").topics
    for topic, text in sorted(topics.items()):
        for number, part in enumerate(_parts(text.split("\n\n"))):
            yield f"topics.{topic}.{number}", part


def _parts(paragraphs: list[str]) -> Iterator[str]:
    """Paragraphs joined into passages of at least half the longest length."""
    part = ""
    for paragraph in paragraphs:
        part = f"{part}\n{paragraph}"
        if len(part) > LONGEST / 2:
            yield part
            part = ""
    yield part


def _docstrings(name: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield name, ast.get_docstring(node) or ""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _docstrings(f"{name}.{child.name}", child)


def _members(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, member in sorted(vars(module).items()):
        if not name.startswith("_") and callable(member):
            yield f"{module.__name__}.{name}", inspect.getdoc(member) or ""


if __name__ == "__main__":
    destination = Path(sys.argv[1] if len(sys.argv) > 1 else "standard_library.jsonl")
    print(f"{write_corpus(destination)} passages -> {destination}")
