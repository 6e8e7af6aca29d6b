"""Reading files of which each row is one text: .jsonl, .jsonl.gz and .csv."""

from __future__ import annotations

import csv
import gzip
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sae_steer_retriever.corpus.decoding import DecodedText, UnreadableFileError, clean_text, decode_text, read_bytes
from sae_steer_retriever.errors import CorpusError

Scalar = str | int | float | bool

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv")
"""Lower-case suffixes of the files that `read_rows` reads."""

_DELIMITERS = ",;\t|"
_LARGEST_INTEGER = 2**63 - 1


class Row(NamedTuple):
    """One row: its text with what else it says of itself.

    Attributes:
        line: The line of the file on which it begins, counted from 1.
        id: Its `_id` or `id`, or None.
        title: Its `title`, or "".
        text: Its `text`; "" when it has none.
        metadata: Its other fields, as far as they are scalars (vector stores take no others).
        fields: The names of all its fields.
    """

    line: int
    id: str | None
    title: str
    text: str
    metadata: dict[str, Scalar]
    fields: tuple[str, ...]


def read_rows(path: Path) -> tuple[Iterator[Row], str]:
    """Open a file of rows.

    Args:
        path: A file with one of `ROW_SUFFIXES`.

    Returns:
        Its rows, those without a text included, and a note on how the file was read ("" when there is none).

    Raises:
        UnreadableFileError: The file cannot be opened or decoded or (while iterating) has no column `text`.
        CorpusError: (while iterating) A row is malformed; the message names the file and the line.
    """
    text, note = read_text(path)
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)
    return rows, note


def read_text(path: Path) -> DecodedText:
    """Read and decode a text file, unpacking it when its name ends in `.gz`.

    Raises:
        UnreadableFileError: It cannot be opened, unpacked or decoded.
    """
    data = read_bytes(path)
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableFileError(f"it is not a gzip file, or a damaged one: {error}") from error
    return decode_text(data)


def json_objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON Lines text with their line numbers; blank lines are passed over.

    Raises:
        CorpusError: A line is not a JSON object; the message names `path` and the line.
    """
    for number, line in _lines(text):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise CorpusError(
                f"{path}, line {number} is not valid JSON ({reason}): a .jsonl file has one complete "
                f"JSON object on each line; given: {_excerpt(line)}"
            ) from error
        if not isinstance(found, dict):
            raise CorpusError(
                f"{path}, line {number} is a JSON {_json_type(found)}, expected an object such as "
                f'{{"text": "..."}}; given: {_excerpt(line)}'
            )
        yield number, found


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """A string field without white space around it; "" when it is absent or no string."""
    value = fields.get(name)
    return clean_text(value).strip() if isinstance(value, str) else ""


def row_id(fields: Mapping[str, Any]) -> str | None:
    """The `_id`, else the `id`, of a row as a string; None when it has neither."""
    for name in ("_id", "id"):
        value = fields.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
            return clean_text(str(value)).strip()
    return None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # str.splitlines would also end a line at U+2028 and others, which JSON strings may hold as they are.
    number = start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end + 1
        number += 1
        yield number, text[start:end]
        start = end


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, fields in json_objects(path, text):
        yield _row(number, fields)


def _row(line: int, fields: Mapping[str, Any]) -> Row:
    metadata = {
        str(name): value
        for name, given in fields.items()
        if name not in ("_id", "id", "title", "text") and (value := _scalar(given)) is not None
    }
    return Row(line, row_id(fields), text_field(fields, "title"), text_field(fields, "text"), metadata, tuple(fields))


def _scalar(value: object) -> Scalar | None:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float)) else None


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    lines = [line for _, line in _lines(text)]
    with _long_csv_fields():
        delimiter, names = _csv_header(path, lines[:1])
        records = _csv_records(path, lines, delimiter)
    for line, values in records:
        if len(values) > len(names):
            raise CorpusError(
                f"{path}, line {line} has {len(values)} fields, its header has {len(names)}: put texts that hold "
                f"a {delimiter!r} between double quotes; given: {_excerpt(values[0])}"
            )
        yield _row(line, {name: value for name, value in zip(names, values, strict=False) if value})


def _csv_header(path: Path, first_line: list[str]) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns; a table of one column has the column `text`."""
    headers: dict[str, list[str]] = {}
    known = ("_id", "id", "title", "text")
    for delimiter in _DELIMITERS:
        try:
            names = [name.strip() for name in next(csv.reader(first_line, delimiter=delimiter), [])]
        except csv.Error as error:
            raise CorpusError(f"{path}, line 1 is not valid CSV: {error}") from error
        # `Text` and ` text` mean the column `text`; other names stay as they are.
        headers[delimiter] = [name.lower() if name.lower() in known else name for name in names]
        if "text" in headers[delimiter]:
            return delimiter, headers[delimiter]
    if len(headers[","]) > 1:
        raise UnreadableFileError(
            "it has no column 'text': rename the column that holds the text; its columns are "
            + _excerpt(", ".join(headers[","]))
        )
    return ",", ["text"]


def _csv_records(path: Path, lines: list[str], delimiter: str) -> list[tuple[int, list[str]]]:
    """The records below the header, each with the line that it begins on."""
    records = []
    first_line = 1
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for values in reader:
            if values and first_line > 1:
                records.append((first_line, values))
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise CorpusError(f"{path}, line {first_line} is not valid CSV: {error}") from error
    return records


@contextmanager
def _long_csv_fields() -> Iterator[None]:
    # The csv module refuses fields over 128 KiB by a limit of the whole process: it is put back afterwards.
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _excerpt(line: str) -> str:
    line = " ".join(line[:300].split())
    return line if len(line) <= 80 else line[:80] + "..."


def _json_type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
