"""Lines over strengths, on a logarithmic axis of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sae_steer_retriever.evaluate.panel import Panel
from sae_steer_retriever.evaluate.plots import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    error_lengths,
    finish_axes,
    line_style,
    new_canvas,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# Every third doubling has a number: eight times as much.
_NUMBERED = 3
_MARKS = ((0, (1, 2)), (0, (4, 2)))


def draw_strengths(panels: Sequence[Panel]) -> Canvas:
    """Lines with intervals over a doubling grid, two panels side by side, one legend for all.

    A line of two points is a level, drawn without markers; one of a single point is a mark on the axis of strengths.

    Args:
        panels: They share the names of their lines.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    canvas = new_canvas(columns * PANEL_WIDTH, lines * PANEL_HEIGHT + 0.5)
    grid = canvas.subplots(lines, columns, squeeze=False, sharey="row")
    for number, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        marks = 0
        for place, line in enumerate(panel.lines):
            if len(line.x) == 1:
                axes.axvline(line.x[0], color="0.35", linewidth=1.1, linestyle=_MARKS[marks % 2], label=line.name)
                marks += 1
            elif len(line.x) == 2:
                axes.plot(line.x, line.y, color="0.35", linewidth=1.3, label=line.name)
            else:
                axes.errorbar(
                    line.x, line.y, yerr=error_lengths(line.y, line.low, line.high), label=line.name,
                    **line_style(place), capsize=2, elinewidth=0.9, linewidth=1.6, markersize=4.5,
                )  # fmt: skip
        ticks = sorted({x for line in panel.lines if len(line.x) > 2 for x in line.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:.3g}" if not at % _NUMBERED else "" for at, tick in enumerate(ticks)])
        axes.minorticks_off()
        finish_axes(axes, panel.title, panel.x_label, "" if number % columns else panel.y_label)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return canvas


__all__ = ["draw_strengths"]
