"""The tutorial's page: Markdown with places for what is measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_BLOCKS = re.compile(r"<!-- measured: (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head."""
    safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [safe[0], ["---"] * len(safe[0]), *safe[1:]])


def decimals(values: Sequence[float]) -> list[str]:
    """Numbers for a row of a table."""
    return [f"{value:.2f}" for value in values]


def places(page: str) -> set[str]:
    """The names of the places that a page has for what is measured."""
    return {match["name"] for match in _BLOCKS.finditer(page)}


def filled(page: str, blocks: Mapping[str, str]) -> str:
    """A page with the measured parts in their places; a place that nothing was measured for stays as it is."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- measured: {name} -->\n{blocks[name]}\n<!-- end -->" if name in blocks else match[0]

    return _BLOCKS.sub(block, page)


__all__ = ["decimals", "filled", "places", "table"]
