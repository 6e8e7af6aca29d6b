"""Draws the tutorial's pictures from the measurements, in the style of the package's own plots."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from superposition_geometry import CLOSE, Cosines, Recovery
from superposition_reading import Reading, SenseFeature, title
from superposition_steering import PLACES, STRENGTHS, Benefit, Steered, group_of
from superposition_texts import SENSES

from sae_steer_retriever.evaluate.plots import finish_axes, line_style, new_canvas, percent_format
from sae_steer_retriever.explain.attribution import Attribution
from sae_steer_retriever.features.catalog import FeatureCatalog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.65"
_LONGEST_NAME = 44
_DPI, _COLOURS = 110, 128
# Ranks shown.
_SHOWN = 16


def save(canvas: Figure, path: Path) -> None:
    """Write a PNG with few colours: a third of the size without a visible difference."""
    drawn = io.BytesIO()
    canvas.savefig(drawn, dpi=_DPI)
    Image.open(drawn).convert("RGB").quantize(_COLOURS).save(path, optimize=True)


def short(text: str, longest: int = _LONGEST_NAME) -> str:
    """A name that fits beside a bar."""
    return textwrap.shorten(text, longest, placeholder=" ...").replace("$", r"\$")


def draw_directions(sae: Cosines, random: Cosines, fitting: Mapping[int, int]) -> Figure:
    """Draw five directions in a plane, cosines of a dictionary and of random ones, and how many directions fit."""
    canvas = new_canvas(12.6, 3.9)
    plane, pairs, room = canvas.subplots(1, 3, width_ratios=(1, 1.15, 1.15))
    _draw_plane(plane)
    bins = np.linspace(-0.4, 0.8, 61).tolist()
    for cosines, name, place in ((random, "random directions", 1), (sae, "this SAE's features", 0)):
        weights = np.full(len(cosines.pairs), 1 / len(cosines.pairs))
        style = line_style(place)
        pairs.hist(
            np.clip(cosines.pairs, -0.4, 0.8), bins=bins, weights=weights, histtype="step", linewidth=1.8,
            color=style["color"], linestyle=style["linestyle"], label=name,
        )  # fmt: skip
    pairs.axvspan(-CLOSE, CLOSE, color="0.94", zorder=0)
    median = float(np.median(sae.nearest))
    pairs.axvline(median, color="black", linewidth=1.2, linestyle=":", label=f"nearest feature, median {median:.2f}")
    pairs.set_yscale("log")
    pairs.set_ylim(1e-6, 3)
    pairs.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    finish_axes(pairs, "How near two directions are", f"cosine (grey: within ±{CLOSE:g})", "share of the pairs")
    pairs.legend(fontsize=8, loc="upper right", framealpha=1, edgecolor="white")
    room.plot(list(fitting), list(fitting.values()), **line_style(0), linewidth=1.8, label=f"|cosine| below {CLOSE:g}")
    room.plot(list(fitting), list(fitting), **line_style(1), linewidth=1.8, label="at right angles: as many as d")
    room.set_xscale("log", base=2)
    room.set_yscale("log")
    room.set_xticks(list(fitting), [str(d) for d in fitting], fontsize=9)
    room.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    room.minorticks_off()
    finish_axes(room, "How many fit: kept of 20,000 drawn", "dimensions d", "directions")
    room.legend(frameon=False, fontsize=8, loc="upper left")
    return canvas


def _draw_plane(axes: Axes) -> None:
    angles = np.pi / 2 + 2 * np.pi * np.arange(5) / 5
    ends = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    both = ends[4] + ends[1]
    for number, (x, y) in enumerate(ends, start=1):
        active = number in (2, 5)
        colour = _BLUE if active else _GREY
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2 if active else 1.4})
        axes.text(1.14 * x, 1.14 * y, str(number), ha="center", va="center", color=colour, fontsize=12)
    axes.annotate("", tuple(both), (0, 0), arrowprops={"arrowstyle": "-|>", "color": _ORANGE, "lw": 2.4, "ls": "--"})
    axes.text(0.09, 0.36, "2 + 5", color=_ORANGE, fontsize=11)
    axes.set_xlim(-1.3, 1.3)
    axes.set_ylim(-1.15, 1.3)
    axes.set_aspect("equal")
    finish_axes(axes, "Five concepts in two dimensions", "2 and 5 together look like 1", "")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)


def draw_recovery(curves: Sequence[Recovery], rest: Mapping[str, Mapping[int, float]], k: int) -> Figure:
    """Draw how many planted features are found, and how much of real texts a code leaves unexplained."""
    canvas = new_canvas(11.4, 4.4)
    left, right = canvas.subplots(1, 2, width_ratios=(1.25, 1))
    for place, curve in enumerate(curves):
        left.plot(curve.counts, curve.shares, **line_style(place), linewidth=1.8, markersize=5, label=curve.name)
    finish_axes(left, "Planted: which features were added up?", "features in the sum", "features found")
    left.legend(frameon=False, fontsize=8, loc="lower left")
    for place, (name, shares) in enumerate(rest.items()):
        right.plot(list(shares), list(shares.values()), **line_style(place), linewidth=1.8, markersize=5, label=name)
    right.axvline(k, color="0.4", linewidth=1, linestyle=":")
    right.text(k * 1.05, 0.95, f"K = {k}", fontsize=9, color="0.3", va="top")
    finish_axes(right, "Real text: what is left unexplained", "features in the code", "squared length left over")
    right.legend(frameon=False, fontsize=8, loc="lower left")
    for axes, counts in ((left, curves[0].counts), (right, tuple(next(iter(rest.values()))))):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(percent_format())
    return canvas


def draw_decomposition(parts: Attribution, text: str, names: int) -> Figure:
    """Draw the parts of an embedding's product with itself, which sum to one."""
    top = parts.features[:names]
    others = sum(part.value for part in parts.features[names:])
    rows = [(short(part.label), part.value, _BLUE) for part in top]
    rows += [
        (f"{len(parts.features) - names} other features", others, "#56B4E9"),
        ("bias: common to all texts", parts.bias, "0.5"),
        ("unexplained rest", parts.residual, _ORANGE),
    ]
    canvas = new_canvas(8.6, 0.34 * len(rows) + 1.1)
    axes = canvas.subplots()
    for place, (_, value, colour) in enumerate(rows):
        axes.barh(place, value, color=colour, hatch="///" if colour == _ORANGE else "", edgecolor="white")
        axes.text(max(value, 0) + 0.008, place, f"{value:.3f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *(value for _, value, _ in rows)) * 1.1, max(value for _, value, _ in rows) * 1.15)
    finish_axes(axes, "", f"share of the text's embedding; the bars sum to {parts.total:.3f}", "")
    canvas.suptitle(textwrap.fill(short(text, 160), 95), fontsize=10)
    return canvas


def draw_senses(
    reading: Reading, shown: Sequence[SenseFeature], named: NDArray[np.bool_], catalog: FeatureCatalog
) -> Figure:
    """Draw the matches of texts with the features of meanings; a dot is full if the feature labels the text."""
    canvas = new_canvas(11.4, 3.2 * ((len(shown) + 1) // 2) + 0.3)
    grid = canvas.subplots((len(shown) + 1) // 2, 2, squeeze=False)
    for axes, found in zip(grid.flat, shown, strict=False):
        sense, other = SENSES[found.group], SENSES[found.group ^ 1]
        unit = max(float(catalog.calibration.match_unit[found.feature]), 1e-6)
        match, has = reading.matches[:, found.feature] / unit, named[:, found.feature]
        groups = reading.groups
        rows = (groups == found.group, groups == (found.group ^ 1), ~np.isin(groups, (found.group, found.group ^ 1)))
        for place, row in enumerate(rows):
            colour = (_BLUE, _ORANGE, "0.35")[place]
            spread = np.random.default_rng(0).uniform(-0.28, 0.28, int(row.sum()))
            faces = [colour if one else "white" for one in has[row].tolist()]
            axes.scatter(
                match[row], place + spread, s=26 if place < 2 else 12, facecolors=faces, edgecolors=colour,
                linewidths=0.9, marker=("o", "s", "o")[place],
            )  # fmt: skip
        axes.set_yticks(range(3), [sense.name, other.name, "other words"])
        axes.invert_yaxis()
        axes.axvline(1.0, color="0.4", linewidth=1, linestyle=":")
        x_label = "match with the feature, in its unit (1: strongly has it)"
        finish_axes(axes, short(title(catalog, found.feature), 60), x_label, "")
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    return canvas


def draw_frequencies(frequency: NDArray[np.float64], scores: Sequence[float], clear_from: float) -> Figure:
    """Draw how often each feature labels a passage, by rank, and how well labels detect their features."""
    canvas = new_canvas(11.4, 3.8)
    left, right = canvas.subplots(1, 2)
    alive = np.sort(frequency[frequency > 0])[::-1]
    left.plot(np.arange(1, len(alive) + 1), alive, color=_BLUE, linewidth=2)
    left.axhline(float(np.mean(frequency)), color="0.4", linewidth=1, linestyle=":", label="if all were as frequent")
    left.set_xscale("log")
    left.set_yscale("log")
    left.xaxis.set_major_formatter(lambda rank, _: f"{rank:,.0f}")
    left.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    dead = len(frequency) - len(alive)
    finish_axes(left, f"Frequency by rank ({dead:,} of {len(frequency):,} dead)", "rank", "share of the passages")
    left.legend(frameon=False, fontsize=9)
    values = np.asarray(scores, dtype=np.float64)
    low = min(0.4, float(values.min())) if len(values) else 0.4
    right.hist(values, bins=np.linspace(low, 1.0, 31).tolist(), color=_BLUE, edgecolor="white")
    right.axvline(clear_from, color=_ORANGE, linewidth=1.6, linestyle="--", label=f"unclear below {clear_from}")
    if len(values):
        middle = float(np.median(values))
        right.axvline(middle, color="black", linewidth=1.4, label=f"median {middle:.2f}")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    finish_axes(right, f"{len(values):,} labels, against near misses", "AUROC on unseen passages", "features")
    return canvas


def draw_steering(shown: Steered, benefit: Benefit) -> Figure:
    """Draw the ranks of one question's sentences as the strength grows, and the mean effect and cost over questions."""
    canvas = new_canvas(11.4, 4.9)
    left, right = canvas.subplots(1, 2)
    ranks = [{name: rank for rank, name in enumerate(ids, start=1)} for ids in shown.rankings]
    first = [name for ids in (shown.rankings[0], shown.rankings[-1]) for name in ids[:_SHOWN]]
    wanted, other = SENSES[shown.group], SENSES[shown.group ^ 1]
    kinds = {shown.group: (_BLUE, "o", "-", wanted.name), shown.group ^ 1: (_ORANGE, "s", "--", other.name)}
    for name in dict.fromkeys(first):
        colour, marker, dashes, label = kinds.get(group_of(name), (_GREY, "^", ":", "other words"))
        heights = [place[name] for place in ranks]
        style = {"color": colour, "marker": marker, "linestyle": dashes}
        left.plot(STRENGTHS, heights, **style, markersize=4.5, linewidth=1.5, label=label)
    left.set_ylim(_SHOWN + 0.5, 0.4)
    left.axhline(PLACES + 0.5, color="0.4", linewidth=1, linestyle=":")
    left.set_yticks([1, 4, 8, 12, 16])
    finish_axes(left, f"{wanted.word!r} steered towards {wanted.meaning!r}", "strength", "rank")
    unique = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    left.legend(
        unique.values(),
        unique.keys(),
        fontsize=8,
        ncols=3,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
    )
    lines = (
        ("wanted meaning in the first 8, steered", benefit.mean("shares"), 0),
        ("unsteered score kept by the first 8", benefit.mean("kept"), 2),
    )
    for name, values, place in lines:
        right.plot(STRENGTHS, values, **line_style(place), linewidth=1.8, label=name)
    for name, field, place in (
        ("wanted meaning, word appended", "appended", 0),
        ("score kept, word appended", "appended_kept", 2),
    ):
        colour = line_style(place)["color"]
        right.axhline(benefit.mean(field)[0], color=colour, linewidth=1.3, linestyle=(0, (1, 2)), label=name)
    right.set_ylim(0, 1.03)
    right.yaxis.set_major_formatter(percent_format())
    finish_axes(right, f"Mean of {len(benefit.steered)} questions", "strength", "")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    return canvas
