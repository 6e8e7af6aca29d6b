"""Drawing a trie."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sae_steer_retriever.errors import MissingExtraError
from sae_steer_retriever.features.trie import Trie, TrieNode, walk

# Inches. No other character is wider than _CHARACTER.
_ROW, _GAP, _MARGIN = 0.36, 0.45, 0.2
_CHARACTER, _WIDE_CHARACTER, _WIDE = 0.09, 0.125, frozenset("mwMW@%\N{HORIZONTAL ELLIPSIS}")
_SHOWN = 24


def draw_trie(trie: Trie, path: str | Path, *, title: str = "", limit: int = 30) -> Path:
    """Returns the path of a trie's picture: the peaks in the right column, the words before them to their left.

    A darker node is stronger; a node with a thick edge needs no word before it.

    Args:
        trie: The words that carry a feature.
        path: Path of the image, ending in .png, .svg or .pdf. Its folder is made.
        title: A line above.
        limit: Most nodes in the picture, by activation times windows; 30 or fewer are easy to read.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}: expected at least one node.")
    # A node is never heavier than its parent and is sorted after it, so no node is kept without its parent.
    weighed = sorted(trie.nodes(), key=lambda one: -one[1].activation * one[1].count)
    boxes = _boxes(trie.roots, {words for words, _ in weighed[:limit]})
    return _draw(boxes, Path(path), title, left_out=max(len(weighed) - limit, 0))


class _Box(NamedTuple):
    """A node in a picture: rows from the top, columns from the right."""

    text: str
    row: float
    column: int
    node: TrieNode
    parent: _Box | None


def _boxes(roots: Sequence[TrieNode], kept: set[tuple[str, ...]]) -> list[_Box]:
    """The nodes with their places: each leaf has a row, other nodes are in the middle of their leaves."""
    rows: dict[tuple[str, ...], float] = {}
    leaves = 0

    def place(nodes: Sequence[TrieNode], after: tuple[str, ...]) -> list[float]:
        nonlocal leaves
        found = []
        for node in nodes:
            words = (node.word, *after)
            if words not in kept:
                continue
            below = place(node.children, words)
            if not below:
                below, leaves = [float(leaves)], leaves + 1
            rows[words] = (below[0] + below[-1]) / 2
            found.append(rows[words])
        return found

    place(roots, ())
    boxes: dict[tuple[str, ...], _Box] = {}
    for words, node in walk(roots):
        if words in rows:
            shown = node.word if len(node.word) <= _SHOWN else node.word[: _SHOWN - 1] + "\N{HORIZONTAL ELLIPSIS}"
            text = f"{shown} {node.activation:.2f} \N{MULTIPLICATION SIGN}{node.count}"
            boxes[words] = _Box(text, rows[words], len(words) - 1, node, boxes.get(words[1:]))
    return list(boxes.values())


def _inches(text: str) -> float:
    wide = sum(letter in _WIDE or unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return _CHARACTER * (len(text) - wide) + _WIDE_CHARACTER * wide


def _draw(boxes: Sequence[_Box], path: Path, title: str, left_out: int) -> Path:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing a trie", "evaluate") from error
    columns = 1 + max((box.column for box in boxes), default=0)
    longest = [max((_inches(box.text) for box in boxes if box.column == own), default=1.0) for own in range(columns)]
    widths = [length + _GAP for length in longest]
    # Right edges of the columns, the first of which is the rightmost.
    edges = [sum(widths[own:]) for own in range(columns)]
    strongest = max((box.node.activation for box in boxes), default=1.0) or 1.0
    note = f"and {left_out} weaker nodes" if left_out else ""
    heading = "\n".join(line for line in (title, note) if line)
    width = max(sum(widths), 1.2 * max(map(_inches, heading.split("\n"))))
    height = _ROW * (1 + max((box.row for box in boxes), default=0.0) + 1.2 * len(heading.split("\n")))
    canvas = Figure(figsize=(width + 2 * _MARGIN, height + 2 * _MARGIN), facecolor="white")
    axes = canvas.add_axes((0, 0, 1, 1), xlim=(-_MARGIN, width + _MARGIN), ylim=(height + _MARGIN, -_MARGIN))
    axes.axis("off")
    axes.text(0, 0, heading, va="top", fontsize=9, color="#444444", parse_math=False)
    top = height - _ROW * (1 + max((box.row for box in boxes), default=0.0))

    def middle(box: _Box) -> tuple[float, float, float]:
        half = longest[box.column] / 2
        return edges[box.column] - _GAP / 2 - half, top + _ROW * (box.row + 0.5), half

    for box in boxes:
        x, y, half = middle(box)
        if box.parent is not None:
            next_x, next_y, next_half = middle(box.parent)
            # From middle to middle, behind the boxes; the line changes rows in the gap between two columns.
            line = [x, x + half, next_x - next_half, next_x], [y, y, next_y, next_y]
            axes.plot(*line, color="#888888", linewidth=1, zorder=1)
        share = min(max(box.node.activation / strongest, 0.0), 1.0)
        colour, edge = (1 - 0.6 * share, 1 - 0.35 * share, 1.0), 1.8 if box.node.end else 0.5
        axes.text(
            x, y, box.text, ha="center", va="center", fontsize=8, parse_math=False, zorder=2,
            bbox={"facecolor": colour, "edgecolor": "#333333", "boxstyle": "round,pad=.3", "linewidth": edge},
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # The corpus may have letters that the font does not have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        canvas.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
