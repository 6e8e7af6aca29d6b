"""Vectors by position: what is read is what the array holds, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_steer_retriever.encoders.vector_rows import VectorRows
from sae_steer_retriever.sae.codes import Array

STORE = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
POSITIONS = st.lists(st.integers(0, 29), max_size=40).map(lambda found: np.array(found, dtype=np.int64))


@given(positions=POSITIONS, data=st.data())
def test_reading_equals_an_array_of_the_same_rows(positions: np.ndarray, data: st.DataObject) -> None:
    rows, expected = VectorRows(STORE, positions), STORE[positions]
    assert rows.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(rows), expected)
    np.testing.assert_array_equal(rows[3:17], expected[3:17])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), dtype=bool)
    np.testing.assert_array_equal(rows[mask], expected[mask])
    np.testing.assert_array_equal(rows.select(mask)[:], expected[mask])
    np.testing.assert_array_equal(
        VectorRows.joined([rows, rows.select(mask)])[:], np.vstack([expected, expected[mask]])
    )
    np.testing.assert_array_equal(np.vstack([expected[:0], *rows.batches(7)]), expected)
    if len(rows):
        chosen = np.array([[0, len(rows) - 1], [len(rows) // 2, 0]])
        np.testing.assert_array_equal(rows[chosen], expected[chosen])


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    STORE.tofile(tmp_path / "rows")
    mapped: Array = np.memmap(tmp_path / "rows", dtype=np.float32, mode="r", shape=STORE.shape)
    rows = VectorRows(mapped)
    for part in (rows[:5], rows[np.arange(5)], np.asarray(rows)):
        assert not isinstance(part, np.memmap)
        part += 1
    np.testing.assert_array_equal(rows[:], STORE)


def test_rows_of_two_stores_are_not_joined() -> None:
    with pytest.raises(ValueError, match="one store"):
        VectorRows.joined([VectorRows(STORE), VectorRows(STORE.copy())])
