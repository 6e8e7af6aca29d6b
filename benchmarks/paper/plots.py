"""Drawings of the paper's tables and figures: bars beside the printed ones, lines over K, lines over strengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.plots import (
    COLOURS,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    finish_axes,
    line_style,
    new_canvas,
    percent_format,
)
from sae_steer_retriever.evaluate.table import Cell, Table

from .figure import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_BY = {"ours": "measured here (95 % interval)", "paper": "printed in the paper (other encoder and sets)"}
_HATCHES = ("", "///")
# Lines are moved apart by this share of an octave, so that their intervals do not hide each other.
_DODGE = 0.06
# Every third doubling, a factor of eight, gets a number on the axis.
_NUMBERED = 3
_MARKS = ((0, (1, 2)), (0, (4, 2)))


def draw_panels(panels: Sequence[Panel]) -> Canvas:
    """Returns lines with intervals over a few values of K, at most two panels side by side, one legend for all.

    Args:
        panels: They share the names of their lines.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    one_domain = len({panel.title.rpartition(", ")[2] for panel in panels}) == 1
    canvas, grid = _panel_grid(panels, 1 if len(panels) <= 2 and one_domain else 2)
    for axes, panel, y_label in grid:
        for place, line in enumerate(panel.lines):
            offset = 2 ** (_DODGE * (place - (len(panel.lines) - 1) / 2))
            axes.errorbar(
                [x * offset for x in line.x], line.y, yerr=error_lengths(line.y, line.low, line.high), label=line.name,
                **line_style(place), capsize=2.5, elinewidth=1, linewidth=1.6, markersize=5.5,
            )  # fmt: skip
        axes.axhline(1.0, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
        ticks = sorted({x for line in panel.lines for x in line.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        finish_axes(axes, panel.title, panel.x_label, y_label)
        axes.yaxis.set_major_formatter(percent_format())
    _add_legend(canvas, 5)
    return canvas


def draw_strengths(panels: Sequence[Panel]) -> Canvas:
    """Returns lines with intervals over a doubling grid, two panels side by side, one legend for all.

    A line of two points is a level, drawn without markers; a line of one point is a mark on the axis of strengths.

    Args:
        panels: They share the names of their lines.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    canvas, grid = _panel_grid(panels, min(2, len(panels)))
    for axes, panel, y_label in grid:
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
        axes.set_xticks(ticks, [f"{tick:.3g}" if at % _NUMBERED == 0 else "" for at, tick in enumerate(ticks)])
        axes.minorticks_off()
        finish_axes(axes, panel.title, panel.x_label, y_label)
    _add_legend(canvas, 3)
    return canvas


def draw_table_1(table: Table, metric: str = "MRR@10") -> Canvas:
    """Returns the share kept of a metric as bars beside the paper's, in domain and out of domain.

    Args:
        table: From `table_1` or `table_8`.
        metric: As a column names it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    chosen = list(_by_set(table).items())
    # With several sets out of domain the last place is all of their queries.
    chosen = [chosen[0], *chosen[-1:]] if len(chosen) > 1 else chosen
    bars = max(len(_bars(records)) for _, records in chosen)
    canvas = new_canvas(max(5.5, 0.85 * bars + 1.2), len(chosen) * PANEL_HEIGHT + 0.4)
    grid = canvas.subplots(len(chosen), 1, squeeze=False)
    for axes, (name, records) in zip(grid.flat, chosen, strict=True):
        _draw_bars(axes, records, f"{metric} kept")
        short = name if len(name) <= 60 else f"{name[:57]}..."
        finish_axes(axes, f"{short} ({records[0]['domain']})", "", f"{metric} kept")
        axes.yaxis.set_major_formatter(percent_format())
        axes.grid(visible=False, axis="x")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False)
    return canvas


def error_lengths(y: Sequence[float], low: Sequence[float], high: Sequence[float]) -> NDArray[np.float64] | None:
    """Returns (2, P) lengths of the intervals below and above P points; None if the points have no interval."""
    if not low:
        return None
    values = np.asarray(y, dtype=np.float64)
    # A percentile interval may miss the mean by a rounding error.
    return np.maximum([values - np.asarray(low), np.asarray(high) - values], 0.0)


def _panel_grid(panels: Sequence[Panel], columns: int) -> tuple[Canvas, list[tuple[Axes, Panel, str]]]:
    """Returns a drawing and, for each panel, its axes and the label of its y axis: only the first column has one."""
    lines = math.ceil(len(panels) / columns)
    canvas = new_canvas(columns * PANEL_WIDTH, lines * PANEL_HEIGHT + 0.5)
    grid = canvas.subplots(lines, columns, squeeze=False, sharey="row")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    labels = ("" if number % columns else panel.y_label for number, panel in enumerate(panels))
    return canvas, list(zip(grid.flat, panels, labels, strict=False))


def _add_legend(canvas: Canvas, columns: int) -> None:
    """One legend for all panels, which share the names of their lines."""
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False)


def _by_set(table: Table) -> dict[str, list[dict[str, Cell]]]:
    """Our sets, each with its own rows and those of the paper below them."""
    groups: dict[str, list[dict[str, Cell]]] = {}
    name = ""
    for record in table.records():
        name = str(record["set"]) if record["by"] == "ours" else name
        groups.setdefault(name, []).append(record)
    return groups


def _bars(records: Sequence[dict[str, Cell]]) -> list[tuple[Cell, Cell]]:
    """Search and K of every bar but the original's, in order."""
    return list(dict.fromkeys((record["search"], record["K"]) for record in records if record["K"] is not None))


def _draw_bars(axes: Axes, records: Sequence[dict[str, Cell]], column: str) -> None:
    bars = _bars(records)
    for place, by in enumerate(("ours", "paper")):
        found = {(record["search"], record["K"]): record[column] for record in records if record["by"] == by}
        shown = [(x, found[bar]) for x, bar in enumerate(bars) if found.get(bar) is not None]
        if not shown:
            continue
        values = [cell.value if isinstance(cell, Estimate) else _float(cell) for _, cell in shown]
        errors = None
        if all(isinstance(cell, Estimate) for _, cell in shown):
            cells = [cell for _, cell in shown if isinstance(cell, Estimate)]
            errors = error_lengths(values, [cell.low for cell in cells], [cell.high for cell in cells])
        # A bar that has none of the paper's beside it stands in the middle.
        alone = [sum((record["search"], record["K"]) == bars[x] for record in records) == 1 for x, _ in shown]
        middles = [x + (0.0 if single else (place - 0.5) * 0.4) for (x, _), single in zip(shown, alone, strict=True)]
        axes.bar(
            middles, values, 0.38, yerr=errors, capsize=2.5, color=COLOURS[place],
            hatch=_HATCHES[place], edgecolor="white", error_kw={"elinewidth": 1}, label=_BY[by],
        )  # fmt: skip
    names = [str(search).replace(", ", ",\n") for search, _ in bars]
    axes.set_xticks(
        range(len(bars)), [f"{name}\nK = {k}" for name, (_, k) in zip(names, bars, strict=True)], fontsize=9
    )
    axes.set_ylim(0, None)
    axes.axhline(1.0, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))


def _float(cell: Cell) -> float:
    return float(cell) if isinstance(cell, int | float) else float("nan")
