"""Plots by matplotlib: a palette for colour-blind readers, and markers and dashes for grey prints."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_steer_retriever.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's palette, darker colours first, without yellow, which is invisible on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.4  # inches
_DPI = 150
RANKS_TITLE, RANKS_AXES = "Words and features by rank", ("rank", "share of the passages")
RANKS_CAPTION = (
    "Share of the passages in which a word or a feature occurs, by rank. A curve that starts lower and stays flat for "
    "longer has fewer types that occur in every other passage and tell nothing about it."
)


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawing and the text that a page shows with it.

    Attributes:
        stem: Name of its files, without the ending.
        title: One line.
        caption: One sentence that says how to read it.
        canvas: The drawing.
    """

    stem: str
    title: str
    caption: str
    canvas: Canvas

    def save(self, folder: Path) -> list[Path]:
        """Returns the PNG and the SVG file that it writes; `folder` is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.stem}.png", folder / f"{self.stem}.svg"]
        with warnings.catch_warnings():
            # The name of a set may have letters that no font here has; the tables show it in full.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            self.canvas.savefig(files[0], dpi=_DPI)
            # Without a date, the same figures give the same file.
            self.canvas.savefig(files[1], metadata={"Date": None})
        return files


def draw_ranks(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Canvas:
    """Returns a drawing of document frequencies (name -> ranks, shares of the passages), both axes logarithmic.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    canvas = new_canvas(6.4, 4.4)
    axes = canvas.subplots()
    for place, (name, (ranks, shares)) in enumerate(curves.items()):
        axes.plot(ranks, shares, **line_style(place), label=name, linewidth=1.8, markersize=4.5, markevery=0.08)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda rank, _: f"{rank:,.0f}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    finish_axes(axes, RANKS_TITLE, *RANKS_AXES)
    axes.legend(frameon=False)
    return canvas


def draw_features(
    label_scores: Sequence[float], frequencies: Sequence[float], *, random_auroc: float | None = None
) -> Canvas:
    """Returns histograms of the features' label AUROC and document frequency.

    Args:
        label_scores: AUROC of each scored label.
        frequencies: For each feature, its share of the passages; the title counts those at 0.
        random_auroc: Median of a frozen random dictionary, drawn as a line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    canvas = new_canvas(2 * PANEL_WIDTH, PANEL_HEIGHT)
    left, right = canvas.subplots(1, 2)
    scores = np.asarray(label_scores, dtype=np.float64)
    left.hist(scores, bins=np.linspace(min(0.4, *scores, 0.4), 1.0, 25).tolist(), color=COLOURS[0], edgecolor="white")
    if len(scores):
        left.axvline(float(np.median(scores)), color="black", linewidth=1.4, label=f"median {np.median(scores):.2f}")
    if random_auroc is not None and not math.isnan(random_auroc):
        label = f"random dictionary {random_auroc:.2f}"
        left.axvline(random_auroc, color=COLOURS[1], linewidth=1.4, linestyle="--", label=label)
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False, loc="upper left")
    finish_axes(left, f"Label AUROC, {len(scores):,} labels", "AUROC on unseen passages", "features")
    shares = np.asarray(frequencies, dtype=np.float64)
    alive = shares[shares > 0]
    if len(alive):
        bins = np.geomspace(alive.min(), alive.max() * 1.0001, 25).tolist()
        right.hist(alive, bins=bins, color=COLOURS[2], edgecolor="white")
        right.set_xscale("log")
        right.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        right.minorticks_off()
    dead = len(shares) - len(alive)
    finish_axes(right, f"Document frequency ({dead:,} of {len(shares):,} dead)", "share of the passages", "features")
    return canvas


def new_canvas(width: float, height: float) -> Canvas:
    """Returns an empty drawing of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as NewCanvas
    except ImportError as error:
        raise MissingExtraError("drawing plots", "evaluate") from error
    return NewCanvas(figsize=(width, height), layout="constrained", facecolor="white")


def percent_format() -> Any:  # noqa: ANN401 - a formatter of an optional dependency
    """Returns a formatter that shows shares as whole per cents."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1.0, decimals=0)


def line_style(place: int) -> dict[str, Any]:
    """Returns colour, marker and dashes for the line at a place; seven lines all differ."""
    own = place % len(COLOURS)
    return {"color": COLOURS[own], "marker": _MARKERS[own], "linestyle": _STYLES[own]}


def finish_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Adds titles and a light grid, and removes the top and right frame."""
    # A dollar sign would start mathematics, and titles contain names of datasets.
    axes.set_title(title.replace("$", r"\$"), fontsize=11)
    axes.set_xlabel(x_label.replace("$", r"\$"))
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
