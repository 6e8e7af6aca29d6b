"""The plot of the steering benchmark: share of the wanted concept against score loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.plots import Plot, finish_axes, line_style, new_canvas, percent_format

from ..paper.figure import Panel
from ..paper.plots import error_lengths
from .curve import LOSSES

PLOT_CAPTION = (
    "Higher is better at equal score loss. Bars are 95 % intervals by bootstrap over questions and perspectives, moved "
    "apart. Overlapping bars do not mean equal methods: the table of differences compares them in pairs."
)
_SHOWN_TO = 0.2
_TICKS = (0.0, *LOSSES, 0.15, _SHOWN_TO)
_DODGE = 0.0009


def draw_steering(panel: Panel, intervals: Mapping[str, Sequence[Estimate]], stem: str) -> Plot:
    """Returns the curves of share over score loss, with intervals at 2, 5 and 10 %.

    Args:
        panel: Its lines are the curves.
        intervals: Line -> shares at 2, 5 and 10 % score loss.
        stem: Name of the files, without the ending.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    canvas = new_canvas(7.2, 5.8)
    axes = canvas.subplots()
    for place, line in enumerate(panel.lines):
        style = line_style(place)
        axes.plot(line.x, line.y, color=style["color"], linestyle=style["linestyle"], linewidth=1.8)
        found = intervals[line.name]
        values = [each.value for each in found]
        offset = _DODGE * (place - (len(panel.lines) - 1) / 2)
        axes.errorbar(
            [loss + offset for loss in LOSSES], values,
            yerr=error_lengths(values, [each.low for each in found], [each.high for each in found]),
            color=style["color"], marker=style["marker"], linestyle="none", capsize=2.5, elinewidth=1, markersize=5.5,
        )  # fmt: skip
        # One entry in the legend with line and marker.
        axes.plot([], [], **style, linewidth=1.8, markersize=5.5, label=line.name)
    axes.set_xticks(_TICKS)
    axes.set_xlim(-0.002, _SHOWN_TO)
    axes.set_ylim(0, 1.05 * max(float(np.interp(_SHOWN_TO, line.x, line.y)) for line in panel.lines))
    axes.xaxis.set_major_formatter(percent_format())
    axes.yaxis.set_major_formatter(percent_format())
    finish_axes(axes, panel.title, panel.x_label, panel.y_label)
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return Plot(stem, panel.title, PLOT_CAPTION, canvas)
