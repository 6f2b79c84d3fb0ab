"""Rows of dataclasses of arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics import field_arrays


@dataclass(frozen=True)
class Pairs:
    """Two columns."""

    a_R: NDArray[np.int64]
    b_R2: NDArray[np.int64]


def test_rows_are_concatenated_and_selected_in_every_field() -> None:
    parts = [Pairs(np.array([i]), np.array([[i, -i]])) for i in range(3)]
    found = field_arrays.select(field_arrays.concatenate(parts), np.array([2, 0]))
    assert isinstance(found, Pairs)
    assert found.a_R.tolist() == [2, 0]
    assert found.b_R2.tolist() == [[2, -2], [0, 0]]


def test_parts_are_collected_as_they_come() -> None:
    parts = [Pairs(np.arange(n), np.ones((n, 2), np.int64) * n) for n in (2, 0, 3)]
    found, whole = field_arrays.collect(iter(parts), 5), field_arrays.concatenate(parts)
    assert np.array_equal(found.a_R, whole.a_R)
    assert np.array_equal(found.b_R2, whole.b_R2)
