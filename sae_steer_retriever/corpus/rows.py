"""Reads files of rows, each of which is one text: .jsonl, .jsonl.gz and .csv."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_steer_retriever.corpus.decoding import UnreadableFileError, clean_text, decode_text, read_bytes
from sae_steer_retriever.corpus.passage import Scalar
from sae_steer_retriever.errors import CorpusError, excerpt

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv")
"""Lower-case suffixes of the files that `read_rows` reads."""

_IDS = ("_id", "id")
_KNOWN = (*_IDS, "title", "text")
_LARGEST_INTEGER = 2**63 - 1
# str.splitlines would also end a line at U+2028 and others, which JSON strings may hold.
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_JSON_TYPES = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


class Row(NamedTuple):
    """One row of a file; an absent title or text is empty."""

    line: int  # of the file on which it begins, counted from 1
    id: str | None  # `_id` or `id`
    title: str
    text: str
    metadata: dict[str, Scalar]  # its other scalar fields; vector stores take no others
    fields: tuple[str, ...]  # the names of all its fields


def read_rows(path: Path) -> tuple[Iterator[Row], str]:
    """Returns the rows of a file, also those without a text, and a note on how it was read ("" if there is none).

    Raises:
        UnreadableFileError: The file cannot be opened or decoded or (while iterating) has no column `text`.
        CorpusError: (while iterating) A row is malformed; the message names the file and the line.
    """
    text, note = read_text(path)
    if path.suffix.lower() == ".csv":
        return _csv_rows(path, text), note
    return (_row(number, fields) for number, fields in json_objects(path, text)), note


def read_text(path: Path) -> tuple[str, str]:
    """Returns the text of a file, unpacked if its name ends in `.gz`, and a note if its encoding was guessed.

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
    """Yields the objects of a JSON Lines text with their line numbers, without blank lines.

    Raises:
        CorpusError: A line is not a JSON object; the message names `path` and the line.
    """
    for number, found in enumerate(_LINE.finditer(text), start=1):
        line = found[0]
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise CorpusError(
                f"{path}, line {number} is not valid JSON ({reason}): a .jsonl file has one complete "
                f"JSON object on each line; given: {excerpt(line)}"
            ) from error
        if not isinstance(fields, dict):
            raise CorpusError(
                f"{path}, line {number} is a JSON {_JSON_TYPES.get(type(fields), 'null')}, expected an object such as "
                f'{{"text": "..."}}; given: {excerpt(line)}'
            )
        yield number, fields


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """Returns a string field without white space around it; "" if it is absent or not a string."""
    value = fields.get(name)
    return clean_text(value).strip() if isinstance(value, str) else ""


def row_id(fields: Mapping[str, Any]) -> str | None:
    """Returns the `_id`, else the `id`, of a row as a string; None if it has neither."""
    for name in _IDS:
        value = fields.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
            return clean_text(str(value)).strip()
    return None


def _row(line: int, fields: Mapping[str, Any]) -> Row:
    others = ((str(name), _scalar(value)) for name, value in fields.items() if name not in _KNOWN)
    metadata = {name: value for name, value in others if value is not None}
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
    lines = _LINE.findall(text)
    # The csv module refuses fields over 128 KiB by a limit of the whole process, which is put back afterwards.
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        delimiter, names = _csv_header(path, lines[:1])
        records = _csv_records(path, lines, delimiter)
    finally:
        csv.field_size_limit(limit)
    for line, values in records:
        if len(values) > len(names):
            raise CorpusError(
                f"{path}, line {line} has {len(values)} fields, its header has {len(names)}: put texts that hold "
                f"a {delimiter!r} between double quotes; given: {excerpt(values[0])}"
            )
        yield _row(line, {name: value for name, value in zip(names, values, strict=False) if value})


def _csv_header(path: Path, first_line: list[str]) -> tuple[str, list[str]]:
    """Returns the delimiter and the names of the columns; the only column of a table is the column `text`."""
    headers: dict[str, list[str]] = {}
    for delimiter in ",;\t|":
        try:
            names = [name.strip() for name in next(csv.reader(first_line, delimiter=delimiter), [])]
        except csv.Error as error:
            raise CorpusError(
                f"{path}, line 1 is not valid CSV: {error}. Correct that line, or its quotation marks."
            ) from error
        # `Text` and ` text` mean the column `text`; other names stay as they are.
        headers[delimiter] = [name.lower() if name.lower() in _KNOWN else name for name in names]
        if "text" in headers[delimiter]:
            return delimiter, headers[delimiter]
    if len(headers[","]) > 1:
        raise UnreadableFileError(
            "it has no column 'text': rename the column that holds the text; its columns are "
            + excerpt(", ".join(headers[","]))
        )
    return ",", ["text"]


def _csv_records(path: Path, lines: list[str], delimiter: str) -> list[tuple[int, list[str]]]:
    """Returns the records below the header, each with the line on which it begins."""
    records = []
    first_line = 1
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for values in reader:
            if values and first_line > 1:
                records.append((first_line, values))
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise CorpusError(
            f"{path}, line {first_line} is not valid CSV: {error}. Correct that line, or its quotation marks."
        ) from error
    return records
