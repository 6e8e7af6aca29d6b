"""Fills measured numbers into the tutorial's page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_BLOCKS = re.compile(r"<!-- measured: (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the head."""
    safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [safe[0], ["---"] * len(safe[0]), *safe[1:]])


def decimals(values: Sequence[float]) -> list[str]:
    """Numbers with two decimals, for a row of a table."""
    return [f"{value:.2f}" for value in values]


def places(page: str) -> set[str]:
    """The names of the page's places for measured text."""
    return {match["name"] for match in _BLOCKS.finditer(page)}


def filled(page: str, blocks: Mapping[str, str]) -> str:
    """The page with measured text in its places; a place without new text stays as it is."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- measured: {name} -->\n{blocks[name]}\n<!-- end -->" if name in blocks else match[0]

    return _BLOCKS.sub(block, page)
