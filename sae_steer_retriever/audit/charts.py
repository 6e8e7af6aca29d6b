"""Charts of an audit as inline SVG: they take the page's colours, and say in words what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

# So narrow that its letters can be read on a telephone.
_WIDTH = 420
_LEFT, _RIGHT, _ROW, _LABEL = 168, 50, 26, 20


class Chart(NamedTuple):
    """A drawing.

    Attributes:
        svg: The element; all texts in it are escaped.
        caption: One sentence on how to read it.
    """

    svg: str
    caption: str


def histogram(counts: Sequence[int], title: str, axis: str, caption: str, labels: Sequence[str] = ()) -> Chart:
    """Bars side by side.

    Args:
        counts: One a bar.
        title: What is counted.
        axis: What lies along the bars.
        caption: How to read it.
        labels: Under the bars; the shares from 0 to 1 if there are none.
    """
    height, base = 190, 140
    step = (_WIDTH - 20) / len(counts)
    most = max(max(counts), 1)
    parts = []
    for place, count in enumerate(counts):
        tall = (base - 20) * count / most
        parts.append(_bar(10 + place * step + 1, base - tall, step - 2, tall, "bar"))
        if labels:
            parts.append(_text(10 + (place + 0.5) * step, base + 16, labels[place], "middle"))
            parts.append(_text(10 + (place + 0.5) * step, base - tall - 4, f"{count:,}", "middle"))
    if not labels:
        parts += [_text(10 + share * (_WIDTH - 20), base + 16, f"{share:.0%}", "middle") for share in (0.1, 0.5, 0.9)]
    parts.append(_line(10, base, _WIDTH - 10, base))
    parts.append(_text(_WIDTH / 2, height - 12, axis, "middle"))
    told = ", ".join(f"{count:,}" for count in counts)
    return Chart(_svg(height, title, f"{axis}. From left to right: {told}.", parts), caption)


def bars(
    names: Sequence[str], values: Sequence[float], title: str, caption: str, others: Sequence[float] | None = None
) -> Chart:
    """Bars below each other, each with its name and its share; perhaps with a mark for another share.

    Args:
        names: One a bar.
        values: Shares.
        title: What they are.
        caption: How to read it.
        others: Where the marks are.
    """
    marks = others if others is not None else []
    most = max([*values, *marks, 1e-9])
    room = _WIDTH - _LEFT - _RIGHT
    parts, told = [], []
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        top = 8 + place * _ROW
        parts.append(_text(_LEFT - 8, top + 14, _cut(name), "end"))
        parts.append(_bar(_LEFT, top + 3, room * value / most, 14, "bar"))
        end = value
        if others is not None:
            middle = _LEFT + room * others[place] / most
            parts.append(f'<rect class="mark" x="{middle - 2:.1f}" y="{top:.1f}" width="4" height="20"/>')
            end = max(value, others[place])
        parts.append(_text(_LEFT + room * end / most + 6, top + 14, f"{value:.1%}", "start"))
        told.append(f"{name}: {value:.1%}" + (f" beside {others[place]:.1%}" if others is not None else ""))
    return Chart(_svg(16 + len(names) * _ROW, title, "; ".join(told) + ".", parts), caption)


def ratios(rows: Sequence[tuple[str, float, float, float]], title: str, caption: str) -> Chart:
    """Ratios with their intervals around 1, on a logarithmic axis.

    Args:
        rows: Names, ratios, lower and upper ends.
        title: What they are.
        caption: How to read it.
    """
    ends = [value for _, *values in rows for value in values if value > 0]
    lowest = min([*ends, 0.5])
    low, high = math.log(max(lowest, 1 / 64)), math.log(max([*ends, 2.0]))
    room = _WIDTH - _LEFT - 30

    def across(value: float) -> float:
        return _LEFT + room * (min(max(math.log(max(value, 1e-9)), low), high) - low) / (high - low)

    height = 16 + len(rows) * _ROW + 24
    parts = [f'<line class="even" x1="{across(1):.1f}" y1="4" x2="{across(1):.1f}" y2="{height - 24:.1f}"/>']
    told = []
    for place, (name, ratio, least, most) in enumerate(rows):
        middle = 20 + place * _ROW
        kind = "under" if most < 1 else "over"
        parts.append(_text(_LEFT - 8, middle + 4, _cut(name), "end"))
        parts.append(
            f'<line class="{kind}" x1="{across(least):.1f}" y1="{middle}" x2="{across(most):.1f}" y2="{middle}"/>'
        )
        x = across(ratio)
        # Shapes differ, too: colours alone are not for everybody.
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{middle}" r="5"/>'
            if kind == "over"
            else f'<rect class="{kind}" x="{x - 4.5:.1f}" y="{middle - 4.5}" width="9" height="9"/>'
        )
        told.append(f"{name}: {ratio:.2f}, {least:.2f} to {most:.2f}")
    for tick in (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64):
        if low <= math.log(tick) <= high:
            parts.append(_text(across(tick), height - 6, f"×{tick:g}" if tick >= 1 else f"×1/{1 / tick:g}", "middle"))
    return Chart(_svg(height, title, "; ".join(told) + ".", parts), caption)


def _svg(height: float, title: str, description: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def _bar(x: float, y: float, width: float, height: float, kind: str) -> str:
    shown = max(width, 0.0), max(height, 0.0)
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{shown[0]:.1f}" height="{shown[1]:.1f}"/>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _cut(name: str) -> str:
    return name if len(name) <= _LABEL else name[: _LABEL - 1].rstrip() + "…"


__all__ = ["Chart", "bars", "histogram", "ratios"]
