"""A figure of the paper: its numbers as a table, and its drawings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.evaluate.plots import Plot
from sae_steer_retriever.evaluate.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclasses.dataclass(frozen=True)
class Line:
    """A named sequence of P points.

    Attributes:
        name: Its name in the legend.
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
    """One pair of axes with its lines, in the order of the legend; labels name the unit."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """The numbers of a figure as a table, and its drawings.

    Attributes:
        name: Name of the files with its numbers.
        table: All numbers.
        caption: One sentence that says how to read it.
        panels: File stem -> the panels of one drawing.
        draw: Draws the panels of one file.
    """

    name: str
    table: Table
    caption: str
    panels: Mapping[str, tuple[Panel, ...]]
    draw: Callable[[Sequence[Panel]], Canvas]

    def plots(self) -> list[Plot]:
        """Returns the drawings.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return [Plot(stem, self.table.title, self.caption, self.draw(panels)) for stem, panels in self.panels.items()]

    def to_text(self) -> str:
        """Returns the table and the caption, for a terminal."""
        return f"{self.table.to_text()}\n\n{self.caption}"

    def to_json(self) -> dict[str, Any]:
        """Returns the table's object, with `caption` and `panels`."""
        panels = {stem: [dataclasses.asdict(panel) for panel in panels] for stem, panels in self.panels.items()}
        return {**self.table.to_json(), "caption": self.caption, "panels": panels}

    def write(self, folder: Path) -> list[Path]:
        """Writes the table (Markdown, CSV, JSON) and each drawing (PNG, SVG).

        Args:
            folder: Created if needed.

        Returns:
            The files.

        Raises:
            MissingExtraError: matplotlib is not installed; the table is written before.
        """
        files = self.table.write(folder)
        return files + [file for plot in self.plots() for file in plot.save(folder)]
