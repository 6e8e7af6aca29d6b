"""The errors a user can meet: each says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Characters of what a user gave that an error repeats.
_LONGEST_QUOTE = 80
# Longer than any name; to compare more would take seconds.
_LONGEST_NAME = 200


class SAESteerError(Exception):
    """Base of every expected failure; the command line prints it as one line and exits with 1."""


class ArtifactError(SAESteerError, ValueError):
    """A file or folder of a saved SAE is missing, truncated, foreign, or of another format version."""


class MismatchError(SAESteerError, ValueError):
    """Two parts do not belong together: another encoder, dimension, or another SAE's sidecar collection."""


class CorpusError(SAESteerError, ValueError):
    """A corpus cannot be read, is empty, or is too small for what is asked of it."""


class SteeringError(SAESteerError, ValueError):
    """A steering is malformed: a strength that is no finite number, an unknown side, another SAE's policy."""


class UnknownFeatureError(SAESteerError, LookupError):
    """No feature answers to a name. The message lists the nearest names."""


class AmbiguousFeatureError(SAESteerError, LookupError):
    """A name fits several unrelated features. The message lists them."""


class StoreError(SAESteerError, RuntimeError):
    """The vector store cannot be reached, or refuses what it is asked."""


class MissingExtraError(SAESteerError, ImportError):
    """An optional dependency is absent. The message names the extra that installs it."""

    def __init__(self, needed_for: str, extra: str) -> None:
        super().__init__(f"{needed_for} needs an optional dependency: pip install 'sae-steer-retriever[{extra}]'")
        self.extra = extra


def quoted(given: object) -> str:
    """What a user gave, as an error shows it: its `repr`, cut where it is long."""
    # Cut before, too: the `repr` of a huge text is a larger one.
    text = repr(given[: _LONGEST_QUOTE + 1] if isinstance(given, str) else given)
    if len(text) <= _LONGEST_QUOTE + 2:  # with its quotation marks
        return text
    size = f" ({len(given):,} characters)" if isinstance(given, str) else ""
    return f"{text[:_LONGEST_QUOTE]}...{size}"


def nearest_names(given: str, known: Iterable[str], limit: int = 5) -> list[str]:
    """The known names that are spelt most like `given`, best first; a long text is no name misspelt."""
    if len(given) > _LONGEST_NAME:
        return []
    return difflib.get_close_matches(given.lower(), sorted(set(known)), n=limit, cutoff=0.6)
