"""Families: features that passages have together, and that can be steered as one."""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """A group of features.

    Attributes:
        id: Its number in the catalog.
        name: What it is called: the words that its members share, e.g. "hockey, playoffs, goalie".
        features: The members' ids, the most frequent first.
    """

    id: int
    name: str
    features: tuple[int, ...]
