"""Views in compiled code have the pixels and the errors of those that Python makes."""

from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import types
from PIL import Image

from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheMismatch, KdcacheError
from cache_tools.numerics import field_arrays
from cache_tools.render import batch, kernels
from cache_tools.render.addresses import OK, address_of
from cache_tools.runtime.device_memory import is_out_of_memory
from cache_tools.spec.views import ViewSpec
from cache_tools.views import ops
from cache_tools.views.draw import ViewParams
from tests.helpers.both_ways import A2, BOX, NEEDS_TURBO, Lab, photographs
from tests.helpers.jpegs import KINDS, PHOTO, WHOLE, compressed, made, saved, without_tables

pytestmark = NEEDS_TURBO


@pytest.mark.parametrize("spec", [BOX, A2], ids=["crop and flip", "A2"])
def test_plain_and_odd_jpegs_have_the_pixels_of_pythons_way(spec: ViewSpec, tmp_path: Path) -> None:
    lab = Lab(tmp_path, photographs(KINDS, 3 * len(KINDS), 0), spec)
    row_P, params = np.arange(len(lab.table)), lab.params(2)
    left = {row for row in row_P.tolist() if any(w in KINDS[row % len(KINDS)] for w in WHOLE)}
    expected = lab.expected(row_P, params)
    for _ in range(2):  # read and compared by Python, then in compiled code
        assert (lab.render(row_P, params) == expected).all()
        stray = {row for row in lab.by_hand if "stray" in KINDS[row % len(KINDS)]}
        assert {*lab.by_hand} - stray == left


@pytest.mark.slow
@pytest.mark.parametrize("spec", [BOX, A2], ids=["crop and flip", "A2"])
def test_2000_views_have_the_pixels_of_pythons_way(spec: ViewSpec, tmp_path: Path) -> None:
    lab = Lab(tmp_path, photographs(KINDS, 200, 1), spec)
    row_P = np.arange(len(lab.table))
    for turn in range(5):
        params = lab.params(2, 2 * turn)
        assert (lab.render(row_P, params) == lab.expected(row_P, params)).all()


def test_every_operation_and_erasing(tmp_path: Path) -> None:
    lab = Lab(tmp_path, [compressed(PHOTO[:200, :300], 90, 2, {})] * len(ops.NAMES), BOX)
    params, row_P = lab.params(1), np.arange(len(lab.table))
    arguments_BL6 = np.zeros((len(row_P), 2, 6), np.int32)
    arguments_BL6[:, :, 0] = 70_000
    arguments_BL6[[ops.POSTERIZE, ops.SOLARIZE, ops.SOLARIZE_ADD, ops.HUE], 0, 0] = 3, 99, 31, 20
    arguments_BL6[:, 1] = 60_000, 4_000, -9_000, -5_000, 66_000, 70_000
    for affine in (ops.AFFINE_BILINEAR, ops.AFFINE_BICUBIC, ops.AFFINE_NEAREST):
        arguments_BL6[affine, 0] = arguments_BL6[affine, 1]
    codes_BL = np.stack([row_P, np.full(len(row_P), ops.AFFINE_BICUBIC)], axis=1).astype(np.int8)
    codes_BL[::2, 1] = ops.NOTHING
    erase_BE8 = np.zeros((len(row_P), 2, 8), np.int32)
    erase_BE8[::3, 0], erase_BE8[::4, 1] = (5, 30, 9, 20, 0, 9, 99, 200), (-3, 4, 9, 8, 1, 1, 2, 3)
    noise_BE2 = np.random.default_rng(0).integers(0, 2**64, (len(row_P), 2, 2), np.uint64)
    params = ViewParams(
        *(params.box_B4, params.filter_B, params.flip_B, codes_BL),
        *(arguments_BL6, erase_BE8, noise_BE2),
    )
    expected = lab.expected(row_P, params)
    assert (lab.render(row_P, params) == expected).all()
    assert not lab.by_hand
    params.codes_BL[7, 1] = 99
    with pytest.raises(ValueError, match="there is no operation 99"):
        lab.render(row_P, params)


@numba.njit
def _crop_without_memory(picture, top, left, height, width, flip, out):  # type: ignore[no-untyped-def]
    if out.size:
        raise MemoryError("no room")
    return OK


@numba.njit
def _blur_without_memory(image, radius, scratch):  # type: ignore[no-untyped-def]
    if image.size:
        raise MemoryError("no room")
    return OK


_DROPPED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@_DROPPED
def test_a_crop_that_ends_in_an_error_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 4, 7))
    row_P, params = np.arange(4), lab.params(2)
    expected = lab.expected(row_P, params)
    calls_F, integers = batch.functions().copy(), (types.int64,) * 4
    kinds = kernels.PIXELS, *integers, types.boolean, kernels.PIXELS
    calls_F[batch._CROP] = address_of(_crop_without_memory, *kinds)
    monkeypatch.setattr(batch, "functions", lambda: calls_F)
    for _ in range(2):
        assert (lab.render(row_P, params) == expected).all()
        assert lab.by_hand == [*range(4)]


@_DROPPED
def test_an_operation_without_memory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 2, 8))
    row_P, params = np.arange(2), lab.params(1)
    params = replace(params, codes_BL=np.full((2, 1), ops.BLUR, np.int8))
    params = replace(params, arguments_BL6=np.full((2, 1, 6), 70_000, np.int32))
    address_C = np.zeros_like(kernels._ADDRESS_C)
    kinds = kernels.PIXELS, types.int64, kernels.PIXELS
    address_C[ops.BLUR] = address_of(_blur_without_memory, *kinds)
    monkeypatch.setattr(kernels, "_ADDRESS_C", address_C)
    for render in (lab.render, lab.expected):
        with pytest.raises(KdcacheError, match=r"render sample '.+' \(.* fewer cores") as error:
            render(row_P, params)
        assert not is_out_of_memory(error.value)  # of the device


def test_what_compiled_code_does_not_resize_is_made_by_python(tmp_path: Path) -> None:
    encoded = photographs(["420, plain"], 12, 2)
    for name in ("area", "bilinear", "random"):
        lab = Lab(tmp_path, encoded, replace(BOX, interpolation=name))
        row_P, params = np.arange(12), lab.params(2)
        expected = lab.expected(row_P, params)
        assert (lab.render(row_P, params) == expected).all()
        assert lab.by_hand
    lab = Lab(tmp_path, encoded, replace(BOX, size=8, scaled_decode=True))
    row_P, params = np.arange(12), lab.params(2)
    assert (lab.render(row_P, params) == lab.expected(row_P, params)).all()


def test_other_formats_and_pictures_without_tables(tmp_path: Path) -> None:
    Image.fromarray(PHOTO[:50, :90]).save(tmp_path / "p.png")
    Image.fromarray(PHOTO[:50, :90]).save(tmp_path / "p.webp")
    others = [(tmp_path / name).read_bytes() for name in ("p.png", "p.webp")]
    plain = saved(PHOTO[200:400, 200:400], quality=30, optimize=True)
    bare = without_tables(saved(PHOTO[:151, :203]))
    lab = Lab(tmp_path, [plain, bare, others[0], plain, others[1], bare])
    row_P, params = np.arange(6), lab.params(2)
    expected = lab.expected(row_P, params)
    for _ in range(2):
        assert (lab.render(row_P, params) == expected).all()
        assert lab.by_hand == [2, 4]


def test_damage_ends_in_the_same_error(tmp_path: Path) -> None:
    """Damage that the sample table has, too, as of a cache whose author's decoder overlooked it."""
    random, encoded = np.random.default_rng(3), []
    whole = [made(kind, PHOTO[40:140, 150:250], 80) for kind in ("420, plain", "444, plain")]
    for i in range(150):
        broken = bytearray(whole[i % 2])
        for at in random.integers(2, len(broken), random.integers(1, 4)):
            broken[at] = random.integers(256)
        encoded.append(bytes(broken))
    encoded += [data[:size] for data in whole for size in (0, 1, 3, 100, 700, len(data) // 2)]
    lab = Lab(tmp_path, encoded)
    params, kinds = lab.params(2), set[type]()
    for row in range(len(encoded)):
        expected = lab.outcome(row, params, False)
        for _ in range(2):
            assert lab.outcome(row, params, True) == expected
        kinds.add(type(expected))
    assert kinds == {tuple, bytes}


def test_bytes_that_change_are_refused_as_before(tmp_path: Path) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 6, 4))
    params, row_P = lab.params(1), np.arange(6)
    assert (lab.render(row_P, params) == lab.expected(row_P, params)).all()
    data = bytearray(lab.path.read_bytes())
    data[int(lab.images.offset_N[3]) + 300] ^= 1
    lab.path.write_bytes(data)
    changed = [lab.outcome(3, params, compiled) for compiled in (False, True)]
    assert changed[0] == changed[1]
    assert "'k3' has changed since the cache was made" in str(changed)
    lab.path.write_bytes(data[:-40])
    short = [lab.outcome(5, params, compiled) for compiled in (False, True)]
    assert short[0] == short[1]
    assert "were there when the data set was opened" in str(short)
    with pytest.raises(KdcacheError, match="'k3' has changed"):  # among others that are whole
        lab.render(row_P, params)


@pytest.mark.parametrize(
    "box", [(-1, 0, 9, 9), (0, -8, 9, 9), (0, 0, 0, 9), (190, 0, 11, 9), (0, 195, 9, 6)]
)
def test_boxes_outside_of_the_picture_are_refused(tmp_path: Path, box: tuple[int, ...]) -> None:
    lab = Lab(tmp_path, [saved(PHOTO[:200, :200])])
    params = lab.params(1)
    params.box_B4[0] = box
    first_P, out = np.array([0, 1]), np.zeros((40, 40, 3), np.uint8)
    at_V, row_P = np.array([out.ctypes.data]), np.array([0])
    assert (
        lab.compiled._compiled(row_P, first_P, params, at_V, np.array([40]))[0] != batch.DONE
    ).all()
    for _ in range(2):
        with pytest.raises(CacheMismatch, match="leaves sample 'k0'"):
            lab.compiled.render_many(row_P, first_P, params, [out], at_V)
    assert not out.any()


@pytest.mark.parametrize("sides", [(3000, 3000), (200, 301), (201, 300), (199, 300), (200, 299)])
def test_a_table_of_other_sizes_is_refused(tmp_path: Path, sides: tuple[int, int]) -> None:
    """Boxes are drawn by the table: larger ones than the picture would be cut out of the heap."""
    lab = Lab(tmp_path, [saved(PHOTO[:200, :300])] * 2)
    height_N, width_N = (np.full(2, side, np.int32) for side in sides)
    lab.table = replace(lab.table, height_N=height_N, width_N=width_N)
    lab.compiled, lab.python, params = lab.renderer(), lab.renderer(), lab.params(2)
    said = f"sample table of the cache has {sides[0]}×{sides[1]}"
    for _ in range(2):
        for compiled in (False, True):
            kind, message = lab.outcome(1, params, compiled)
            assert kind is CacheMismatch
            assert said in message
    unseen = ViewRenderer(lab.images, lab.spec, lab.table)
    for attempt in (lambda: unseen.render_one(1, params), lambda: unseen.decode(1)):
        with pytest.raises(CacheMismatch, match="image 'k1' has 200×300 pixels"):
            attempt()
    with pytest.raises(CacheMismatch, match="image 'k1' has 200×300 pixels"):
        lab.images.compare(lab.table, 1)


def test_views_of_several_sizes_are_made_in_one_call(tmp_path: Path) -> None:
    lab, sizes, drawn = Lab(tmp_path, photographs(KINDS, len(KINDS), 0), A2), (24, 40), []
    for size in sizes:
        lab.spec = A2.at(size)
        drawn.append(lab.params(2))
    row_P = np.arange(len(lab.table))
    order = np.arange(4 * len(row_P)).reshape(2, len(row_P), 2).transpose(1, 0, 2).reshape(-1)
    params = field_arrays.select(field_arrays.concatenate(drawn), order)
    shapes = [(size, size, 3) for _ in row_P for size in sizes for _ in range(2)]
    made, wanted = ([np.full(shape, 77, np.uint8) for shape in shapes] for _ in range(2))
    at_V = np.array([pixels.ctypes.data for pixels in made], np.int64)
    for _ in range(2):
        lab.by_hand.clear()
        lab.compiled.render_many(row_P, np.arange(len(row_P) + 1) * 4, params, made, at_V)
    assert len({*lab.by_hand}) < len(row_P)
    for row in row_P.tolist():
        lab.python.render(row, [(params, v, wanted[v]) for v in range(4 * row, 4 * row + 4)])
    assert all(np.array_equal(a, b) for a, b in zip(made, wanted, strict=True))
