"""What every way of `sae-steer evaluate` takes and hands back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sae_steer_retriever.cli.runner import Outcome

if TYPE_CHECKING:
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder

DEFAULT_OUTPUT = Path("evaluation")
"""Where tables and figures are written if no folder is given."""


class Result(Protocol):
    """A table, a figure or an evaluation."""

    def to_text(self) -> str:
        """For a terminal."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""


def written(result: Result, files: Sequence[Path]) -> Outcome:
    """A result in both forms, with the files it was written to, if any."""
    text, data = result.to_text(), result.to_json()
    if files:
        text += f"\n\nwritten: {', '.join(map(str, files))}"
        data["files"] = [str(path) for path in files]
    return Outcome(text, data)


def cached_embedder(model: str, arguments: argparse.Namespace) -> CachedEmbedder:
    """An encoder by its name, which remembers what it embedded; shows its progress unless --quiet is given.

    Raises:
        ArtifactError: There is no such encoder, or the folder of the cache cannot be made.
    """
    from sae_steer_retriever.encoders.embedders import as_embedder
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder

    return CachedEmbedder(as_embedder(model), progress=not arguments.quiet)


__all__ = ["DEFAULT_OUTPUT", "Result", "cached_embedder", "written"]
