"""Charts of the report as inline SVG, which takes the page's colours (dark mode) and describes itself in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from sae_steer_retriever.errors import excerpt

# Narrow enough to be read on a phone.
_WIDTH = 420
_LEFT, _RIGHT, _ROW, _LABEL = 168, 50, 26, 20


class Chart(NamedTuple):
    """A drawing."""

    svg: str  # the SVG element; all its texts are escaped
    caption: str  # one sentence on how to read it


def histogram(counts: Sequence[int], title: str, axis: str, caption: str, labels: Sequence[str] = ()) -> Chart:
    """Returns a histogram with a label for each bar; without labels the axis shows shares from 0 to 1."""
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
    parts.append(f'<line class="axis" x1="10.0" y1="{base:.1f}" x2="{_WIDTH - 10:.1f}" y2="{base:.1f}"/>')
    parts.append(_text(_WIDTH / 2, height - 12, axis, "middle"))
    told = ", ".join(f"{count:,}" for count in counts)
    return Chart(_svg(height, title, f"{axis}. From left to right: {told}.", parts), caption)


def bars(
    names: Sequence[str], values: Sequence[float], title: str, caption: str, others: Sequence[float] | None = None
) -> Chart:
    """Returns horizontal bars for named shares, with a mark on each for the second share (`others`) if there is one."""
    most = max([*values, *(others or ()), 1e-9])
    room = _WIDTH - _LEFT - _RIGHT
    parts, told = [], []
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        top = 8 + place * _ROW
        parts.append(_text(_LEFT - 8, top + 14, excerpt(name, _LABEL), "end"))
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
    """Returns ratios (name, ratio, lower and upper end) with their intervals, on a logarithmic axis."""
    ends = [value for _, *values in rows for value in values if value > 0]
    low, high = math.log(max(min([*ends, 0.5]), 1 / 64)), math.log(max([*ends, 2.0]))
    room = _WIDTH - _LEFT - 30

    def across(value: float) -> float:
        return _LEFT + room * (min(max(math.log(max(value, 1e-9)), low), high) - low) / (high - low)

    height = 16 + len(rows) * _ROW + 24
    parts = [f'<line class="even" x1="{across(1):.1f}" y1="4" x2="{across(1):.1f}" y2="{height - 24:.1f}"/>']
    told = []
    for place, (name, ratio, least, most) in enumerate(rows):
        middle = 20 + place * _ROW
        kind = "under" if most < 1 else "over"
        parts.append(_text(_LEFT - 8, middle + 4, excerpt(name, _LABEL), "end"))
        parts.append(
            f'<line class="{kind}" x1="{across(least):.1f}" y1="{middle}" x2="{across(most):.1f}" y2="{middle}"/>'
        )
        x = across(ratio)
        # The shapes differ, too, for readers who cannot tell the colours apart.
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
    width, height = max(width, 0.0), max(height, 0.0)
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
