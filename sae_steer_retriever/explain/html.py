"""The parts of a score as bars, for a notebook: no script, no style sheet, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sae_steer_retriever.explain.text import percent, signed

Kind = Literal["steering", "feature", "others", "bias", "unexplained"]

# Mid-tones with a contrast above 3 to white and to black pages: the text takes the page's own colour.
_COLOURS = {"steering": "#009E73", "feature": "#0079BD"}
_AGAINST, _NAMELESS = "#D55E00", "#8A8A8A"
_CELL = "padding:.1em .6em"
_NAME = f"text-align:left;overflow-wrap:anywhere;{_CELL}"
_NUMBER = f"text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;{_CELL}"
_PARAGRAPH = "margin:.3em 0"


class Part(NamedTuple):
    """A line of an explanation.

    Attributes:
        kind: What it is: a steering's term, a feature, all other features, the bias, or the unexplained rest.
        name: What it is called, on one line; anybody's text.
        feature: The latent's id, for features.
        value: What it adds to the score; may be negative.
        share: Its size over the sizes of all parts of the score, in [0, 1].
    """

    kind: Kind
    name: str
    feature: int | None
    value: float
    share: float


def bars(parts: Sequence[Part], score: float) -> str:
    """A table with a bar a part; text and background are the page's own, and every text is escaped.

    Args:
        parts: Of the score.
        score: Their sum.
    """
    left = max((-part.value for part in parts if part.value < 0), default=0.0)
    span = left + max((part.value for part in parts if part.value > 0), default=0.0)
    head = "".join(
        f'<th scope="col" style="text-align:{align};font-weight:600;{_CELL}">{name}</th>'
        for name, align in (("part of the score", "left"), ("", "left"), ("adds", "right"), ("share", "right"))
    )
    rows = "".join(_row(part, left, span) for part in parts)
    total = (
        f'<tr style="background:none;border-top:1px solid"><td style="{_NAME}">score</td><td></td>'
        f'<td style="{_NUMBER}">{score:.3f}</td><td></td></tr>'
    )
    return (
        f'<table style="border-collapse:collapse;{_PARAGRAPH}"><thead><tr style="background:none">{head}</tr></thead>'
        f"<tbody>{rows}{total}</tbody></table>"
    )


def page(sentence: str, name: str, text: str, table: str, note: str) -> str:
    """An explanation as one element.

    Args:
        sentence: The reasons.
        name: The passage's id.
        text: Its beginning.
        table: Markup, from `bars`; all else is escaped here.
        note: What the score is.
    """
    quoted = f"{_PARAGRAPH};padding-left:.8em;border-left:3px solid {_NAMELESS}"
    return (
        f'<div style="max-width:52em;line-height:1.4"><p style="{_PARAGRAPH}">{html.escape(sentence)}</p>'
        f'<p style="{quoted}"><b>{html.escape(name)}</b> {html.escape(text)}</p>{table}'
        f'<p style="{_PARAGRAPH};font-size:smaller;opacity:.8">{html.escape(note)}</p></div>'
    )


def _row(part: Part, left: float, span: float) -> str:
    """A part with its bar, to the left of a common axis where it takes away.

    Args:
        part: The part.
        left: The largest size of a negative part.
        span: That and the largest positive part.
    """
    per_cent = 100 / span if span else 0.0
    start, width = (left + min(part.value, 0.0)) * per_cent, abs(part.value) * per_cent
    colour = _AGAINST if part.value < 0 else _COLOURS.get(part.kind, _NAMELESS)
    bar = (
        '<div aria-hidden="true" style="position:relative;width:14em;height:.8em">'
        f'<div style="position:absolute;left:{start:.2f}%;width:{width:.2f}%;top:0;bottom:0;background:{colour}"></div>'
        f'<div style="position:absolute;left:{left * per_cent:.2f}%;top:-.3em;bottom:-.3em;border-left:1px solid;'
        'opacity:.5"></div></div>'
    )
    return (
        f'<tr style="background:none"><td style="{_NAME}">{html.escape(part.name)}</td>'
        f'<td style="{_CELL}">{bar}</td><td style="{_NUMBER}">{signed(part.value)}</td>'
        f'<td style="{_NUMBER}">{percent(part.share)}</td></tr>'
    )


__all__ = ["Kind", "Part", "bars", "page"]
