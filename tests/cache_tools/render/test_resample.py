"""Crops against their definition, and that none reads or writes beside its memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.render import resample
from tests.helpers.guarded import guarded


@settings(max_examples=200)
@given(*(st.integers(1, most) for most in (50, 200, 200)), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_box_has_the_bits_of_its_definition(
    size: int, height: int, width: int, flip: bool, seed: int
) -> None:
    """Rows first, to 8 bits of fraction, then columns; the weights are `resample.taps`."""
    assert_bits_of_definition(size, height, width, flip, seed)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [1, 3, 15, 16, 17, 224])
@pytest.mark.parametrize("sides", [(1, 1), (1, 300), (300, 1), (2, 5), (700, 5), (5, 700), (7, 6)])
def test_narrow_and_long_boxes_have_the_bits_of_their_definition(
    sides: tuple[int, int], size: int, flip: bool
) -> None:
    assert_bits_of_definition(size, *sides, flip, 0)


def assert_bits_of_definition(size: int, height: int, width: int, flip: bool, seed: int) -> None:
    """Compare a box at the end of a picture."""
    picture = np.random.default_rng(seed).integers(0, 256, (height + 1, width + 4, 3), np.uint8)
    around = np.zeros((size + 2, size, 3), np.uint8)
    out = around[1:-1]
    resample.crop(picture, 1, 4, height, width, flip, out)
    top, by_row = resample.taps(height, size, 1, False)
    left, by_column = resample.taps(width, size, 1, flip)
    by_row, by_column = by_row[..., 0], by_column[..., 0]
    box = np.pad(picture[1:, 4:].astype(np.int64), ((0, 1), (0, 1), (0, 0)))
    assert (by_row.sum(1) == 16_384).all()
    taps = np.arange(by_row.shape[1])
    rows = (by_row[..., None, None] * box[top[:, None] + taps]).sum(axis=1) + 32 >> 6
    taps = np.arange(by_column.shape[1])
    columns = (by_column[..., None] * rows[:, left[:, None] + taps]).sum(axis=2) + (1 << 21) >> 22
    assert (out == columns).all()
    assert not around[[0, -1]].any()


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("size", [1, 3, 17, 64, 224])
@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (5, 6), (40, 7), (300, 2), (2, 300), (333, 500)])
def test_no_byte_outside_of_pictures_is_touched(
    sides: tuple[int, int], size: int, at_end: bool
) -> None:
    """Addresses are not checked where pixels are read: a wrong one would end the process here."""
    picture = guarded(3 * sides[0] * sides[1], at_end).reshape(*sides, 3)
    out = guarded(3 * size * size, at_end).reshape(size, size, 3)
    picture[:] = 200
    for height, width in ((1, 1), sides, (1, sides[1]), (sides[0], 1)):
        for top, left in ((0, 0), (sides[0] - height, sides[1] - width)):
            out[:] = 0
            resample.crop(picture, top, left, height, width, True, out)
            assert (out == 200).all()
