"""Plots by matplotlib: colours that colour-blind readers can tell apart, shapes that a grey print can."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MissingExtraError
from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.panel import Panel
from sae_steer_retriever.evaluate.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe & Ito's palette, the darker colours first; yellow is left out: it cannot be seen on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
_HATCHES = ("", "///")
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.4  # inches
_DPI = 150
# Lines are moved apart by this share of an octave, so that their intervals do not hide each other.
_DODGE = 0.06


@dataclasses.dataclass(frozen=True)
class Plot:
    """An image with what a page says of it.

    Attributes:
        stem: Of its files.
        title: One line.
        caption: One sentence on how to read it.
        canvas: The drawing.
    """

    stem: str
    title: str
    caption: str
    canvas: Canvas

    def save(self, folder: Path) -> list[Path]:
        """Write it as PNG and SVG; see `save`."""
        return save(self.canvas, folder, self.stem)


def save(figure: Canvas, folder: Path, stem: str) -> list[Path]:
    """Write a drawing as PNG and SVG.

    Args:
        figure: The drawing.
        folder: Made if it is not there.
        stem: Of the files' names.

    Returns:
        Both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    with warnings.catch_warnings():
        # A set may have a name that no font here has all letters of: the tables have it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(files[0], dpi=_DPI)
        # Without a date the same figures make the same file.
        figure.savefig(files[1], metadata={"Date": None})
    return files


def draw_panels(panels: Sequence[Panel]) -> Canvas:
    """Lines with intervals over a few values of K, at most two panels side by side, one legend for all.

    Args:
        panels: They share the names of their lines.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = 1 if len(panels) <= 2 and _same_domain(panels) else 2
    lines = math.ceil(len(panels) / columns)
    canvas = new_canvas(columns * PANEL_WIDTH, lines * PANEL_HEIGHT + 0.5)
    grid = canvas.subplots(lines, columns, squeeze=False, sharey="row")
    for number, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
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
        finish_axes(axes, panel.title, panel.x_label, "" if number % columns else panel.y_label)
        axes.yaxis.set_major_formatter(percent_format())
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    return canvas


def draw_ranks(panels: Sequence[Panel]) -> Canvas:
    """Frequencies over ranks, both axes logarithmic.

    Args:
        panels: One; the first is drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    (panel,) = panels
    canvas = new_canvas(6.4, 4.4)
    axes = canvas.subplots()
    for place, line in enumerate(panel.lines):
        axes.plot(line.x, line.y, **line_style(place), label=line.name, linewidth=1.8, markersize=4.5, markevery=0.08)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda rank, _: f"{rank:,.0f}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    finish_axes(axes, panel.title, panel.x_label, panel.y_label)
    axes.legend(frameon=False)
    return canvas


def draw_table_1(table: Table, metric: str = "MRR@10") -> Canvas:
    """What is kept of a metric, as bars beside the paper's: in domain, and out of domain.

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


def draw_features(
    label_scores: Sequence[float], frequencies: Sequence[float], *, random_auroc: float | None = None
) -> Canvas:
    """Histograms of the label AUROC and of the document frequency of features.

    Args:
        label_scores: AUROC of each scored label.
        frequencies: Of each feature, the share of the passages; those of 0 are counted in the title.
        random_auroc: The median of a frozen random dictionary, drawn as a line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    canvas = new_canvas(2 * PANEL_WIDTH, PANEL_HEIGHT)
    left, right = canvas.subplots(1, 2)
    scores = np.asarray(label_scores, dtype=np.float64)
    left.hist(scores, bins=np.linspace(min(0.4, *scores, 0.4), 1.0, 25).tolist(), color=_COLOURS[0], edgecolor="white")
    if len(scores):
        left.axvline(float(np.median(scores)), color="black", linewidth=1.4, label=f"median {np.median(scores):.2f}")
    if random_auroc is not None and not math.isnan(random_auroc):
        label = f"random dictionary {random_auroc:.2f}"
        left.axvline(random_auroc, color=_COLOURS[1], linewidth=1.4, linestyle="--", label=label)
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False, loc="upper left")
    finish_axes(left, f"Label AUROC, {len(scores):,} labels", "AUROC on unseen passages", "features")
    shares = np.asarray(frequencies, dtype=np.float64)
    alive = shares[shares > 0]
    if len(alive):
        bins = np.geomspace(alive.min(), alive.max() * 1.0001, 25).tolist()
        right.hist(alive, bins=bins, color=_COLOURS[2], edgecolor="white")
        right.set_xscale("log")
        right.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        right.minorticks_off()
    dead = len(shares) - len(alive)
    finish_axes(right, f"Document frequency ({dead:,} of {len(shares):,} dead)", "share of the passages", "features")
    return canvas


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
            middles, values, 0.38, yerr=errors, capsize=2.5, color=_COLOURS[place],
            hatch=_HATCHES[place], edgecolor="white", error_kw={"elinewidth": 1}, label=_BY[by],
        )  # fmt: skip
    names = [str(search).replace(", ", ",\n") for search, _ in bars]
    axes.set_xticks(
        range(len(bars)), [f"{name}\nK = {k}" for name, (_, k) in zip(names, bars, strict=True)], fontsize=9
    )
    axes.set_ylim(0, None)
    axes.axhline(1.0, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))


_BY = {"ours": "measured here (95 % interval)", "paper": "printed in the paper (other encoder and sets)"}


def new_canvas(width: float, height: float) -> Canvas:
    """An empty drawing of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as NewCanvas
    except ImportError as error:
        raise MissingExtraError("drawing plots", "evaluate") from error
    return NewCanvas(figsize=(width, height), layout="constrained", facecolor="white")


def percent_format() -> Any:  # noqa: ANN401 - a formatter of an optional dependency
    """A formatter of an axis that shows shares as whole per cents."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1.0, decimals=0)


def line_style(place: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line at a place, all different over seven lines."""
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _STYLES[place % len(_STYLES)],
    }


def error_lengths(y: Sequence[float], low: Sequence[float], high: Sequence[float]) -> NDArray[np.float64] | None:
    """(2, P) how far the intervals of P points reach below and above them; None if they have none."""
    if not low:
        return None
    values = np.asarray(y, dtype=np.float64)
    # A percentile interval may miss the mean by a rounding error.
    return np.maximum([values - np.asarray(low), np.asarray(high) - values], 0.0)


def finish_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Titles, a light grid, and no frame at the top and on the right."""
    # A dollar would start mathematics, and titles name datasets.
    axes.set_title(title.replace("$", r"\$"), fontsize=11)
    axes.set_xlabel(x_label.replace("$", r"\$"))
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)


def _float(cell: Cell) -> float:
    return float(cell) if isinstance(cell, int | float) else float("nan")


def _same_domain(panels: Sequence[Panel]) -> bool:
    return len({panel.title.rpartition(", ")[2] for panel in panels}) == 1
