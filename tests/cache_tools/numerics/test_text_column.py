"""Strings in one array of bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_tools.numerics import text_column
from cache_tools.numerics.text_column import TextColumn

text = st.lists(st.text(st.sampled_from("ab/é\n\udc80"), max_size=5), max_size=12)


@given(text)
def test_a_column_is_like_a_tuple(values: list[str]) -> None:
    column = TextColumn.of(values)
    assert list(column) == values
    assert [column[i] for i in range(-len(values), len(values))] == values * 2
    assert column == values
    assert column == tuple(values)
    assert column[1:7:2] == tuple(values[1:7:2])
    assert column != [*values, "a"]
    assert column == TextColumn.of(values)
    assert text_column.of(column) is column
    with pytest.raises(IndexError):
        column[len(values)]


@given(text, st.data())
def test_rows_are_selected_without_copies(values: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(values) - 1)) if values else st.just([]))
    column = TextColumn.of(values)
    found = text_column.take(column, np.array(rows, np.int64))
    assert isinstance(found, TextColumn)
    assert found.bytes_L is column.bytes_L
    wanted = [values[i] for i in rows]
    assert found == wanted
    assert list(text_column.take(values, np.array(rows, np.int64))) == wanted
    assert found.compact() == wanted
    encoded = [value.encode("utf-8", "surrogateescape") for value in wanted]
    assert found.joined == found.compact().joined == b"\n".join(encoded)
    assert found.holds(ord("\n")).tolist() == ["\n" in value for value in wanted]


@given(text)
def test_stems_are_behind_the_last_slash(values: list[str]) -> None:
    stems = TextColumn.of(values).stems()
    assert list(stems) == [value.rpartition("/")[2] for value in values]
    assert list(stems.compact().stems()) == list(stems)


@given(st.lists(text))
def test_columns_are_concatenated(lists: list[list[str]]) -> None:
    found = TextColumn.concatenate([TextColumn.of(values) for values in lists])
    assert list(found) == [value for values in lists for value in values]


@given(st.lists(st.text(st.sampled_from("ab/é")), min_size=1))
def test_lines_are_read(values: list[str]) -> None:
    assert TextColumn.of_lines("\n".join(values).encode()) == values


def test_rows_that_are_far_apart_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_column, "_ROWS", 2)
    values = [f"n{i:05d}" for i in range(30_000)]
    column = TextColumn.of(values)
    rows = np.array([29_999, 0, 7, 8, 15_000])
    assert list(column.take(rows)) == [values[i] for i in rows]
    assert column.take(rows).compact().begin_N.tolist() == [0, 7, 14, 21, 28]
