"""What a command hands back, and how it says that it was asked for something impossible."""

from __future__ import annotations

from typing import Any, NamedTuple

from sae_steer_retriever.errors import SAESteerError


class Outcome(NamedTuple):
    """The result of a command, in the two forms that can be asked for.

    Attributes:
        text: For people: one or more lines, without the last line's end.
        data: For programs: the same and more, as one JSON object.
    """

    text: str
    data: dict[str, Any]


class UsageError(SAESteerError):
    """The command line asks for something that cannot be: exit code 2."""
