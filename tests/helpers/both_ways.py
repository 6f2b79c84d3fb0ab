"""Views of encoded pictures by both ways: in compiled code, and by Python."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import DataError, KdcacheError
from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import I8, U1
from cache_tools.render import batch, decode
from cache_tools.spec import sample_table
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw
from cache_tools.views.draw import ViewParams
from tests.helpers.jpegs import PHOTO, made

NEEDS_TURBO = pytest.mark.skipif(not batch.functions().size, reason="needs the extra [turbo]")
BOX = ViewSpec(size=40, interpolation="box")
A2 = replace(BOX, auto_augment="rand-m7-mstd0.5", re_prob=0.5, re_count=2)


class Renderer(ViewRenderer):
    """A renderer that notes the rows it renders by Python.

    Attributes:
        by_hand: These rows, in their order.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.by_hand: list[int] = []
        super().__init__(*arguments, **options)

    def render(self, row: int, *arguments: Any, **options: Any) -> None:
        self.by_hand.append(row)
        super().render(row, *arguments, **options)


class Lab:
    """Encoded pictures in one file, and views of them by both ways."""

    def __init__(self, folder: Path, encoded: Sequence[bytes], spec: ViewSpec = BOX) -> None:
        self.path, self.spec, self.encoded = folder / "pictures.tar", spec, encoded
        self.path.write_bytes(b"".join(encoded))
        length_N = np.array([len(data) for data in encoded])
        keys = [f"k{i}" for i in range(len(encoded))]
        none_N = np.zeros(len(encoded), np.int32)
        begin_N = np.cumsum(length_N) - length_N
        self.images = ImageDataset("s", [self.path], keys, none_N, begin_N, length_N, none_N)
        sides_N2 = np.array([side(data) for data in encoded], np.int32)
        self.table = SampleTable(
            tuple(keys),
            np.array([sample_table.sample_id(key) for key in keys], np.uint64),
            np.array([sample_table.digest(data) for data in encoded], np.uint64),
            none_N,
            *sides_N2.T.copy(),
            length_N,
        )
        self.compiled, self.python = self.renderer(), self.renderer()

    @property
    def by_hand(self) -> list[int]:
        """Rows that compiled code has left in the last call of `render`."""
        return self.compiled.by_hand

    def renderer(self) -> Renderer:
        return Renderer(self.images, self.spec, self.table, decoded_before=True)

    def params(self, views: int, first: int = 0) -> ViewParams:
        """Views `first` and following of all pictures, those of a picture side by side."""
        table = self.table
        columns = table.id_N, table.height_N, table.width_N
        drawn = [draw.draw(self.spec, *columns, first + v) for v in range(views)]
        order = np.arange(views * len(table)).reshape(views, -1).T.reshape(-1)
        return field_arrays.select(field_arrays.concatenate(drawn), order)

    def render(self, row_P: I8, params: ViewParams) -> U1:
        """Views of pictures in compiled code, but for those of `by_hand`."""
        self.compiled.by_hand.clear()
        size, views = self.spec.size, len(params) // len(row_P)
        out = np.full((len(params), size, size, 3), 77, np.uint8)
        at_V = np.array([pixels.ctypes.data for pixels in out], np.int64)
        first_P = np.arange(len(row_P) + 1) * views
        self.compiled.render_many(row_P, first_P, params, [*out], at_V)
        return out

    def expected(self, row_P: I8, params: ViewParams) -> U1:
        """The same views by Python."""
        size, views = self.spec.size, len(params) // len(row_P)
        out = np.full((len(params), size, size, 3), 99, np.uint8)
        for i, row in enumerate(row_P.tolist()):
            own = range(i * views, (i + 1) * views)
            self.python.render(row, [(params, v, out[v]) for v in own])
        return out

    def outcome(self, row: int, params: ViewParams, compiled: bool) -> Any:
        """Pixels of the views of one picture, or the message of the error."""
        views = len(params) // len(self.table)
        own = field_arrays.part(params, slice(row * views, (row + 1) * views))
        try:
            made = (self.render if compiled else self.expected)(np.array([row]), own)
        except KdcacheError as error:
            return type(error), str(error)
        return made.tobytes()


def side(data: bytes) -> tuple[int, int]:
    """Height and width, those of the photograph where the header is damaged."""
    try:
        return decode.size(data, "k")
    except DataError:
        return 100, 100


def photographs(kinds: Sequence[str], count: int, seed: int) -> list[bytes]:
    """Parts of a photograph of random sizes, down to one pixel."""
    random, encoded = np.random.default_rng(seed), []
    for i in range(count):
        height, width = random.integers(1, (40, 300)[random.integers(2)], 2).tolist()
        y, x = random.integers(0, 512 - height), random.integers(0, 512 - width)
        part = PHOTO[y : y + height, x : x + width]
        encoded.append(made(kinds[i % len(kinds)], part, int(random.integers(5, 100))))
    return encoded
