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

from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.train.decoding import DecodedText, UnreadableFileError, clean_text, decode_text, read_bytes

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
        UnreadableFileError: The file cannot be opened or decoded, or is a table without a column `text`.
        CorpusError: (while iterating) a row is malformed; the message names the file and the line.
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
    header_line = text[: max(text.find("\n"), 0) or len(text)]
    delimiter = next((mark for mark in _DELIMITERS if "text" in _names(header_line, mark)), ",")
    return _csv_fields(path, text, delimiter, _names(header_line, delimiter))


def _names(header_line: str, delimiter: str) -> list[str]:
    names = next(csv.reader([header_line], delimiter=delimiter), [])
    # `Text` and ` text` mean the column `text`; other names stay as they are.
    known = ("_id", "id", "title", "text")
    return [name.strip().lower() if name.strip().lower() in known else name.strip() for name in names]


def _csv_fields(path: Path, text: str, delimiter: str, names: list[str]) -> Iterator[Row]:
    if not names:
        return
    if "text" not in names and len(names) > 1:
        raise UnreadableFileError(
            f"it has no column 'text': rename the column that holds the text; its columns are {', '.join(names)}"
        )
    if "text" not in names:
        names = ["text"]
    first_line = 2
    with _long_csv_fields():
        reader = csv.reader((line for _, line in _lines(text)), delimiter=delimiter, strict=True)
        try:
            next(reader, None)
            for values in reader:
                if len(values) > len(names):
                    raise CorpusError(
                        f"{path}, line {first_line} has {len(values)} fields, its header has {len(names)}: put "
                        f"texts that hold a {delimiter!r} between double quotes; given: {_excerpt(values[0])}"
                    )
                if values:
                    yield _row(first_line, {name: value for name, value in zip(names, values, strict=False) if value})
                first_line = reader.line_num + 1
        except csv.Error as error:
            raise CorpusError(f"{path}, line {first_line} is not valid CSV: {error}") from error


@contextmanager
def _long_csv_fields() -> Iterator[None]:
    # The csv module refuses fields over 128 KiB by a limit of the whole process: it is put back afterwards.
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _excerpt(line: str) -> str:
    line = " ".join(line[:200].split())
    return line if len(line) <= 60 else line[:60] + "..."


def _json_type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
