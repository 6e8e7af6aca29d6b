"""A table of figures as text or Markdown for people, CSV for spreadsheets and JSON for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_steer_retriever.evaluate.bootstrap import Estimate


class Range(NamedTuple):
    """The lowest and the highest of several figures, for example of several seeds."""

    low: float
    high: float


Cell = str | int | float | Estimate | Range | None

# Markup of Markdown, and of the HTML that Markdown lets through.
_MARKDOWN = re.compile(r"([\\`*_\[\]|~])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column's name and number format.

    Attributes:
        name: The heading.
        format: Format of the numbers for Python's `format()`: ".4f", ".1%".
        intervals: Whether text and Markdown show the interval of an estimate; CSV and JSON always have it.
    """

    name: str
    format: str = ""
    intervals: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of figures under a title, with notes.

    Attributes:
        title: One line.
        columns: C columns.
        rows: Rows of C cells; None where there is no figure.
        notes: Sentences shown below the table.
        name: Name of its files, without the ending.

    Raises:
        ValueError: A row has another number of cells than there are columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    name: str = "table"

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells, expected {len(self.columns)}, one a column.")

    def records(self) -> list[dict[str, Cell]]:
        """Returns the rows, each by the columns' names."""
        return [dict(zip((column.name for column in self.columns), row, strict=True)) for row in self.rows]

    def shown(self) -> list[list[str]]:
        """Returns the cells as people read them, row by row, each on one line; nothing is escaped."""
        return [
            [" ".join(_shown(column, cell).split()) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def is_text(self) -> list[bool]:
        """Returns for each column whether it holds texts, which are aligned to the left."""
        return [any(isinstance(row[place], str) for row in self.rows) for place in range(len(self.columns))]

    def to_text(self) -> str:
        """Returns title, aligned columns and notes, for a terminal."""
        head = [column.name for column in self.columns]
        widths, left = self._widths([head, *self.shown()]), self.is_text()
        rule = ["-" * width for width in widths]
        lines = ["  ".join(_padded(row, widths, left)).rstrip() for row in [head, rule, *self.shown()]]
        return "\n".join([self.title, "", *lines, *(["", *self.notes] if self.notes else [])])

    def to_markdown(self) -> str:
        """Returns title, table and notes as Markdown; every text is escaped."""
        head = [escape_markdown(column.name) for column in self.columns]
        body = [[escape_markdown(text) for text in row] for row in self.shown()]
        widths, left = [max(3, width) for width in self._widths([head, *body])], self.is_text()
        rule = ["-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, left, strict=True)]
        lines = [f"| {' | '.join(_padded(row, widths, left))} |" for row in [head, rule, *body]]
        notes = [f"- {escape_markdown(note)}" for note in self.notes]
        return "\n".join([f"**{escape_markdown(self.title)}**", "", *lines, *(["", *notes] if notes else [])]) + "\n"

    def to_csv(self) -> str:
        """Returns header and rows at full precision; the interval of an estimate has two columns of its own."""
        places = range(len(self.columns))
        spread = [any(isinstance(row[place], Estimate | Range) for row in self.rows) for place in places]
        ranges = [any(isinstance(row[place], Range) for row in self.rows) for place in places]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        header: list[str] = []
        for column, wide, bare in zip(self.columns, spread, ranges, strict=True):
            header += [] if bare else [column.name]
            header += [f"{column.name} low", f"{column.name} high"] if wide else []
        writer.writerow(header)
        for row in self.rows:
            cells: list[str] = []
            for cell, wide, bare in zip(row, spread, ranges, strict=True):
                cells += [] if bare else [_exact(cell.value if isinstance(cell, Estimate) else cell)]
                if wide:
                    ends = (cell.low, cell.high) if isinstance(cell, Estimate | Range) else (None, None)
                    cells += [_exact(end) for end in ends]
            writer.writerow(cells)
        return text.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Returns one object: title, columns, rows by column name, notes; a figure that does not exist is null."""
        rows = [{name: _plain(cell) for name, cell in record.items()} for record in self.records()]
        columns = [column.name for column in self.columns]
        return {"title": self.title, "columns": columns, "rows": rows, "notes": list(self.notes)}

    def write(self, folder: Path) -> list[Path]:
        """Returns the files NAME.md, NAME.csv and NAME.json that it writes; `folder` is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        as_json = json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n"
        contents = {"md": self.to_markdown(), "csv": self.to_csv(), "json": as_json}
        for ending, text in contents.items():
            (folder / f"{self.name}.{ending}").write_text(text, encoding="utf-8", newline="\n")
        return [folder / f"{self.name}.{ending}" for ending in contents]

    def _widths(self, lines: Sequence[Sequence[str]]) -> list[int]:
        return [max(len(line[place]) for line in lines) for place in range(len(self.columns))]


def escape_markdown(text: str) -> str:
    """Returns a text on one line, escaped for Markdown: names of datasets and features are untrusted."""
    plain = " ".join(text.split())
    return "".join(_HTML.get(character, character) for character in _MARKDOWN.sub(r"\\\1", plain))


def _padded(row: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> list[str]:
    cells = zip(row, widths, left, strict=True)
    return [text.ljust(width) if aligned else text.rjust(width) for text, width, aligned in cells]


def _shown(column: Column, cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float):
        return format(cell, column.format) if column.format else f"{cell:,}"
    ends = f"{_shown(column, cell.low)} to {_shown(column, cell.high)}"
    if isinstance(cell, Range):
        return ends
    shown = _shown(column, cell.value)
    return f"{shown} ({ends})" if column.intervals and not math.isnan(cell.value) else shown


def _exact(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return cell if isinstance(cell, str) else repr(cell)


def _plain(cell: Cell) -> Any:  # noqa: ANN401 - what JSON can hold
    if isinstance(cell, Estimate | Range):
        fields = cell._asdict() if isinstance(cell, Range) else dataclasses.asdict(cell)
        return {name: _plain(value) for name, value in fields.items()}
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
