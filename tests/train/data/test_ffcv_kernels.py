"""The compiled code of FFCV's loader makes the native views at any size.

Where FFCV is not installed, its resampling is left out: that of views whose interpolation is "box"
is not FFCV's.
"""

import importlib
import io
import sys
from dataclasses import fields
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea

from cache_tools.data.beton.records import RAW
from cache_tools.numerics import field_arrays
from cache_tools.render import jpeg, view
from cache_tools.render import kernels as kernels_of_views
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw

VIEWS = 12


@pytest.fixture(scope="module")
def kernels() -> Any:
    pytest.importorskip("ctypes").CDLL("libturbojpeg.so.0")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("ffcv") is None:
            patch.setitem(sys.modules, "ffcv", package := ModuleType("ffcv"))
            package.libffcv = ModuleType("libffcv")  # type: ignore[attr-defined]

            def resize_crop(picture, top, bottom, left, right, out):  # type: ignore[no-untyped-def]
                out[:] = 0

            package.libffcv.resize_crop = resize_crop
        patch.delitem(sys.modules, "train.data.ffcv_kernels", raising=False)
        yield importlib.import_module("train.data.ffcv_kernels")
        patch.delitem(sys.modules, "train.data.ffcv_kernels")


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(chelsea()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("scaled", [False, True])
def test_views_of_any_size_are_the_native_ones(kernels: Any, size: int, scaled: bool) -> None:
    data = encoded()
    height, width = (np.array([side], np.int32) for side in chelsea().shape[:2])
    spec = ViewSpec(
        64, interpolation="box", auto_augment="rand-m7-mstd0.5", re_prob=0.5, scaled_decode=scaled
    ).at(size)
    ids = np.array([7], np.uint64)
    params = field_arrays.concatenate(
        [draw.draw(spec, ids, height, width, number) for number in range(VIEWS)]
    )
    columns = {f.name.replace("_B", "_V"): getattr(params, f.name) for f in fields(params)}
    columns["flip_V"] = columns["flip_V"].view(np.uint8)
    tables = kernels.Tables(
        np.zeros(1, np.uint64),
        np.array([len(data)], np.uint64),
        np.array([1 - RAW], np.uint8),
        height,
        width,
        **columns,
        operation_C=kernels_of_views.addresses(params.codes_BL),
        fill=np.array(spec.fill, np.uint8),
        scaled=int(scaled),
        status_V=np.zeros(VIEWS, np.uint8),
    )
    render_all = kernels.render_all

    @numba.njit
    def call(encoded, numbers, tables, out):  # type: ignore[no-untyped-def]
        render_all(encoded, 0, numbers, tables, out)

    made = np.zeros((VIEWS, size, size, 3), np.uint8)
    call(np.frombuffer(data, np.uint8), np.arange(VIEWS), tables, made)
    assert (tables.status_V == kernels.DONE).all()
    wanted = np.zeros_like(made)
    view.render_views(data, "cat", spec, [(params, i, wanted[i]) for i in range(VIEWS)])
    assert np.array_equal(made, wanted)


@pytest.mark.parametrize(("rows", "columns"), [(512, 0), (-40, 0), (0, 64), (0, -64), (4, 4)])
@pytest.mark.parametrize("scale", [0, 1])
def test_a_jpeg_of_another_size_than_its_row_is_left_and_writes_nothing(
    kernels: Any, rows: int, columns: int, scale: int
) -> None:
    data = np.frombuffer(bytearray(encoded()), np.uint8)
    height, width = chelsea().shape[:2]
    at = int(jpeg.height_at(data, 1))
    data[at : at + 4] = [*divmod(height + rows, 256), *divmod(width + columns, 256)]
    room = 3 * height * width
    memory = np.full(2 * room, 7, np.uint8)
    for bottom in (1, height - jpeg.BLENDED - 1, height):
        found = kernels._decode(data, height, width, scale, bottom, memory[:room])
        assert found == (0, 0)
        assert (memory == 7).all()
