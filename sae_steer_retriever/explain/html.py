"""The HTML of an explanation for a notebook: bars in a table, without scripts, style sheets or external resources."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sae_steer_retriever.explain.text import percent, signed

Kind = Literal["steering", "feature", "others", "bias", "unexplained"]

# Mid-tones have a contrast above 3 on white and on black pages; the text keeps the page's own colour.
_COLOURS = {"steering": "#009E73", "feature": "#0079BD"}
_AGAINST, _NAMELESS = "#D55E00", "#8A8A8A"
_CELL = "padding:.1em .6em"
_NAME = f"text-align:left;overflow-wrap:anywhere;{_CELL}"
_NUMBER = f"text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;{_CELL}"
_PARAGRAPH = "margin:.3em 0"


class Part(NamedTuple):
    """One row of an explanation: a part of the score.

    Attributes:
        kind: A steering term, a feature, the sum of all other features, the bias, or the unexplained residual.
        name: The part's name, on one line; untrusted text.
        feature: The latent's id, for features.
        value: The part, in score units; may be negative.
        share: The part's absolute size divided by that of all parts, in [0, 1].
    """

    kind: Kind
    name: str
    feature: int | None
    value: float
    share: float


def bars(parts: Sequence[Part], score: float) -> str:
    """Returns an HTML table with one bar per part of a score; every text is escaped."""
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
    """Returns an explanation as one HTML element: the reasons, the passage's id and beginning, the bars, and a note.

    The table is HTML from `bars`; all other texts are escaped here.
    """
    quoted = f"{_PARAGRAPH};padding-left:.8em;border-left:3px solid {_NAMELESS}"
    return (
        f'<div style="max-width:52em;line-height:1.4"><p style="{_PARAGRAPH}">{html.escape(sentence)}</p>'
        f'<p style="{quoted}"><b>{html.escape(name)}</b> {html.escape(text)}</p>{table}'
        f'<p style="{_PARAGRAPH};font-size:smaller;opacity:.8">{html.escape(note)}</p></div>'
    )


def _row(part: Part, left: float, span: float) -> str:
    """Returns a table row; a negative part's bar grows leftwards from the axis, which is `left` of `span` units in."""
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
