"""The errors that a user can meet. Each message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable

# Characters of a user's input that an error repeats.
_LONGEST_QUOTE = 80
# Longer than any name. Comparing more would take seconds.
_LONGEST_NAME = 200


class SAESteerError(Exception):
    """Base class of every expected failure. The command line prints it as one line and exits with 1.

    Example:
        >>> from sae_steer_retriever import SAESteerError, TopKSAE
        >>> try:
        ...     TopKSAE.from_pretrained("./no-such-folder")
        ... except SAESteerError as error:
        ...     print(type(error).__name__)
        ArtifactError
    """


class ArtifactError(SAESteerError, ValueError):
    """A file or folder of a saved SAE is missing, truncated, foreign, or of another format version."""


class MismatchError(SAESteerError, ValueError):
    """Two parts do not belong together: their encoders, dimensions or SAEs differ."""


class CorpusError(SAESteerError, ValueError):
    """A corpus cannot be read, is empty, or is too small for the task."""


class SteeringError(SAESteerError, ValueError):
    """A steering is malformed: its strength is not a finite number, its side is unknown, or its SAE is another."""


class UnknownFeatureError(SAESteerError, LookupError):
    """No feature has the name. The message lists the nearest names."""


class AmbiguousFeatureError(SAESteerError, LookupError):
    """A name fits several unrelated features. The message lists them."""


class StoreError(SAESteerError, RuntimeError):
    """The vector store cannot be reached, or refuses a request."""


class StaleSidecarWarning(UserWarning):
    """Some passages have no row in the sidecar collection, or the row of an earlier embedding."""


class MissingExtraError(SAESteerError, ImportError):
    """An optional dependency is absent. The message names the extra that installs it."""

    def __init__(self, needed_for: str, extra: str) -> None:
        super().__init__(f"{needed_for} needs an optional dependency: pip install 'sae-steer-retriever[{extra}]'")
        self.extra = extra


def quoted(given: object) -> str:
    """Returns a user's input as an error shows it: its `repr`, cut if it is long."""
    # Cut before `repr`, too: that of a huge text would be huge.
    text = repr(given[: _LONGEST_QUOTE + 1] if isinstance(given, str) else given)
    if len(text) <= _LONGEST_QUOTE + 2:  # with its quotation marks
        return text
    size = f" ({len(given):,} characters)" if isinstance(given, str) else ""
    return f"{text[:_LONGEST_QUOTE]}...{size}"


def excerpt(text: str, characters: int = _LONGEST_QUOTE) -> str:
    """Returns a text on one line, cut to at most `characters` with "…" at its end."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message without its full stop; its type's name if it has no message."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def warn_renamed(former: str, current: str) -> None:
    """Warns the caller's caller that a public name has changed; the former one works for one minor version."""
    warnings.warn(f"{former} is now {current}; the old name will be removed.", DeprecationWarning, stacklevel=3)


def nearest_names(given: str, known: Iterable[str], limit: int = 5) -> list[str]:
    """Returns the known names that are spelt most like `given`, best first; none for a long text."""
    if len(given) > _LONGEST_NAME:
        return []
    return difflib.get_close_matches(given.lower(), sorted(set(known)), n=limit, cutoff=0.6)
