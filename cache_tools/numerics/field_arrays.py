"""Rows of dataclasses whose fields are arrays with a common first axis."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def concatenate(parts: Sequence[T]) -> T:
    """Concatenate at least one instance of a class, field by field."""
    names = [field.name for field in fields(cast(Any, parts[0]))]
    return type(parts[0])(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def collect(parts: Iterable[T], count: int) -> T:
    """Concatenate instances of a class with `count` rows together, as they come.

    Memory is that of the result and of the instance in hand. A field may be None in all of them.
    """
    whole: T | None = None
    at = 0
    for part in parts:
        columns = {field.name: getattr(part, field.name) for field in fields(cast(Any, part))}
        if whole is None:
            whole = type(part)(
                *(
                    None if own is None else np.empty((count, *own.shape[1:]), own.dtype)
                    for own in columns.values()
                )
            )
        there = {name: own for name, own in columns.items() if own is not None}
        rows = len(next(iter(there.values())))
        for name, own in there.items():
            getattr(whole, name)[at : at + rows] = own
        at += rows
    assert whole is not None
    return whole


def share(table: T, other: T) -> T:
    """Return `table` with the arrays of another instance in place of equal ones of its own."""
    names = [field.name for field in fields(cast(Any, table))]
    pairs = {name: (getattr(table, name), getattr(other, name)) for name in names}
    equal = {name: theirs for name, (own, theirs) in pairs.items() if np.array_equal(own, theirs)}
    return cast(T, replace(cast(Any, table), **equal))


def select(table: T, row_R: NDArray[np.int64]) -> T:
    """Select rows in any order, field by field; the arrays are contiguous."""
    columns = (getattr(table, field.name) for field in fields(cast(Any, table)))
    return type(table)(*(column.take(row_R, axis=0) for column in columns))


def part(table: T, rows: slice) -> T:
    """Return neighbouring rows, field by field, not copied."""
    columns = (getattr(table, field.name) for field in fields(cast(Any, table)))
    return type(table)(*(column[rows] for column in columns))
