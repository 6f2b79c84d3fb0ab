"""Rows of dataclasses whose fields are arrays with a common first axis."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def concatenate(parts: Sequence[T]) -> T:
    """Concatenate at least one instance of a class, field by field."""
    names = [field.name for field in fields(cast(Any, parts[0]))]
    return type(parts[0])(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def select(table: T, row_R: NDArray[np.int64]) -> T:
    """Select rows in any order, field by field."""
    columns = (getattr(table, field.name) for field in fields(cast(Any, table)))
    return type(table)(*(column[row_R] for column in columns))
