"""A figure: its numbers as a table, and what is drawn of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sae_steer_retriever.evaluate.panel import Panel
from sae_steer_retriever.evaluate.plots import Plot, draw_panels, draw_ranks
from sae_steer_retriever.evaluate.table import Table


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure: its numbers as a table, and what is drawn of them.

    Attributes:
        name: Of the files it is written to.
        table: All numbers.
        caption: One sentence on how to read it.
        panels: Name of an image -> its panels.
        ranks: Whether it is drawn on logarithmic axes.
    """

    name: str
    table: Table
    caption: str
    panels: dict[str, tuple[Panel, ...]]
    ranks: bool = False

    def plots(self) -> list[Plot]:
        """The images.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        draw = draw_ranks if self.ranks else draw_panels
        return [Plot(stem, self.table.title, self.caption, draw(panels)) for stem, panels in self.panels.items()]

    def to_text(self) -> str:
        """The table, for a terminal."""
        return f"{self.table.to_text()}\n\n{self.caption}"

    def to_json(self) -> dict[str, Any]:
        """The table's object, with the caption and what is drawn."""
        panels = {stem: [panel.to_json() for panel in panels] for stem, panels in self.panels.items()}
        return {**self.table.to_json(), "caption": self.caption, "panels": panels}

    def write(self, folder: Path) -> list[Path]:
        """Write the table (Markdown, CSV, JSON) and each image (PNG, SVG).

        Args:
            folder: Made if it is not there.

        Returns:
            The files.

        Raises:
            MissingExtraError: matplotlib is not installed; the table is written then.
        """
        files = self.table.write(folder)
        return files + [file for plot in self.plots() for file in plot.save(folder)]
