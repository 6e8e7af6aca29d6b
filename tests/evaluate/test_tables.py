"""Tables for people, spreadsheets and programs."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.table import Column, Range, Table

TABLE = Table(
    "A | title",
    (Column("name"), Column("n"), Column("share", ".1%"), Column("seeds", ".1%")),
    (("<b>a|b</b>", 2048, Estimate(0.5, 0.25, 0.75), Range(0.4, 0.6)), ("plain, with a comma", 1, 0.125, None)),
    ("A note with [a link](http://example.com).",),
)


def test_csv_has_intervals_in_columns_of_their_own_at_full_precision() -> None:
    rows = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert list(rows[0]) == ["name", "n", "share", "share low", "share high", "seeds low", "seeds high"]
    assert (rows[0]["share"], rows[0]["share low"], rows[0]["seeds high"]) == ("0.5", "0.25", "0.6")
    assert rows[1]["name"] == "plain, with a comma"
    assert (rows[1]["share"], rows[1]["share low"], rows[1]["seeds low"]) == ("0.125", "", "")


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_csv_gives_back_any_text_and_number(text: str, number: float) -> None:
    text = text.replace("\r", "").replace("\0", "")
    made = Table("t", (Column("text"), Column("number", ".1f")), ((text, number),))
    _, row = csv.reader(io.StringIO(made.to_csv(), newline=""))
    assert row[0] == text
    assert float(row[1]) == number


def test_markdown_shows_texts_as_they_are() -> None:
    text = TABLE.to_markdown()
    assert "&lt;b&gt;a\\|b&lt;/b&gt;" in text
    assert "<b>" not in text
    assert "50.0% (25.0% to 75.0%)" in text
    assert "\\[a link\\](http://example.com)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}
    assert len({len(line) for line in rows}) == 1


def test_json_has_null_for_what_could_not_be_measured() -> None:
    nan = float("nan")
    made = Table("t", (Column("a"), Column("b")), ((nan, Estimate(nan, nan, nan)),))
    found = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert found["rows"] == [{"a": None, "b": {"value": None, "low": None, "high": None}}]
    assert made.shown() == [["–", "–"]]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="row 0 has 2 cells, expected 1"):
        Table("t", (Column("a"),), ((1, 2),))
