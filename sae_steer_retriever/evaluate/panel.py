"""What one panel of a plot shows, as numbers."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Line:
    """A named sequence of points.

    Attributes:
        name: For the legend.
        x: P positions, ascending.
        y: P values.
        low: Lower ends of their intervals; empty if there are none.
        high: Upper ends.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Panel:
    """Lines under one title.

    Attributes:
        title: Above the panel.
        x_label: With the unit.
        y_label: With the unit.
        lines: In the order of the legend.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """One object of plain numbers and texts."""
        return dataclasses.asdict(self)
