"""Views in compiled code have the pixels and the errors of those that Python makes."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numba
import numpy as np
import pytest
from numba import types
from PIL import Image

from cache_tools.data.file_pool import FilePool
from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheMismatch, DataError, KdcacheError
from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import I8, U1
from cache_tools.render import batch, decode, kernels
from cache_tools.render.addresses import OK, address_of
from cache_tools.runtime.device_memory import is_out_of_memory
from cache_tools.spec import sample_table
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw, ops
from cache_tools.views.draw import ViewParams
from tests.helpers.jpegs import KINDS, PHOTO, WHOLE, compressed, made, saved, without_tables

FUNCTIONS_F = batch.functions()
pytestmark = pytest.mark.skipif(not FUNCTIONS_F.size, reason="needs the extra [turbo]")
BOX = ViewSpec(size=40, interpolation="box")
A2 = replace(BOX, auto_augment="rand-m7-mstd0.5", re_prob=0.5, re_count=2)


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

    def renderer(self) -> ViewRenderer:
        return ViewRenderer(self.images, self.spec, self.table, decoded_before=True)

    def params(self, views: int, first: int = 0) -> ViewParams:
        """Views `first` and following of all pictures, those of a picture side by side."""
        table = self.table
        columns = table.id_N, table.height_N, table.width_N
        drawn = [draw.draw(self.spec, *columns, first + v) for v in range(views)]
        order = np.arange(views * len(table)).reshape(views, -1).T.reshape(-1)
        return field_arrays.select(field_arrays.concatenate(drawn), order)

    def render(self, row_P: I8, params: ViewParams) -> U1:
        """Views of pictures in compiled code."""
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


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that compiled code has left."""
    rows: list[int] = []
    real = ViewRenderer.render

    def spy(self: ViewRenderer, row: int, wanted: Any, encoded: bytes | None = None) -> None:
        rows.append(row)
        real(self, row, wanted, encoded)

    monkeypatch.setattr(ViewRenderer, "render", spy)
    return rows


@pytest.mark.parametrize("spec", [BOX, A2], ids=["crop and flip", "A2"])
def test_plain_and_odd_jpegs_have_the_pixels_of_pythons_way(
    spec: ViewSpec, tmp_path: Path, by_hand: list[int]
) -> None:
    lab = Lab(tmp_path, photographs(KINDS, 3 * len(KINDS), 0), spec)
    row_P, params = np.arange(len(lab.table)), lab.params(2)
    left = {row for row in row_P.tolist() if any(w in KINDS[row % len(KINDS)] for w in WHOLE)}
    expected = lab.expected(row_P, params)
    for _ in range(2):  # read and compared by Python, then in compiled code
        by_hand.clear()
        assert (lab.render(row_P, params) == expected).all()
        stray = {row for row in by_hand if "stray" in KINDS[row % len(KINDS)]}
        assert {*by_hand} - stray == left


@pytest.mark.slow
@pytest.mark.parametrize("spec", [BOX, A2], ids=["crop and flip", "A2"])
def test_2000_views_have_the_pixels_of_pythons_way(spec: ViewSpec, tmp_path: Path) -> None:
    lab = Lab(tmp_path, photographs(KINDS, 200, 1), spec)
    row_P = np.arange(len(lab.table))
    for turn in range(5):
        params = lab.params(2, 2 * turn)
        assert (lab.render(row_P, params) == lab.expected(row_P, params)).all()


def test_every_operation_and_erasing(tmp_path: Path, by_hand: list[int]) -> None:
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
    expected, _ = lab.expected(row_P, params), by_hand.clear()
    assert (lab.render(row_P, params) == expected).all()
    assert not by_hand
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
    tmp_path: Path, by_hand: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 4, 7))
    row_P, params = np.arange(4), lab.params(2)
    expected, _ = lab.expected(row_P, params), by_hand.clear()
    calls_F, integers = FUNCTIONS_F.copy(), (types.int64,) * 4
    kinds = kernels.PIXELS, *integers, types.boolean, kernels.PIXELS
    calls_F[batch._CROP] = address_of(_crop_without_memory, *kinds)
    monkeypatch.setattr(batch, "functions", lambda: calls_F)
    for _ in range(2):
        assert (lab.render(row_P, params) == expected).all()
    assert by_hand == [*range(4)] * 2


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
        with pytest.raises(KdcacheError, match=r"render sample '.+' \(.* fewer threads") as error:
            render(row_P, params)
        assert not is_out_of_memory(error.value)  # of the device


def test_what_compiled_code_does_not_resize_is_made_by_python(
    tmp_path: Path, by_hand: list[int]
) -> None:
    encoded = photographs(["420, plain"], 12, 2)
    for name in ("area", "bilinear", "random"):
        lab = Lab(tmp_path, encoded, replace(BOX, interpolation=name))
        row_P, params = np.arange(12), lab.params(2)
        expected, _ = lab.expected(row_P, params), by_hand.clear()
        assert (lab.render(row_P, params) == expected).all()
        assert by_hand
    lab = Lab(tmp_path, encoded, replace(BOX, size=8, scaled_decode=True))
    row_P, params = np.arange(12), lab.params(2)
    assert (lab.render(row_P, params) == lab.expected(row_P, params)).all()


def test_other_formats_and_pictures_without_tables(tmp_path: Path, by_hand: list[int]) -> None:
    Image.fromarray(PHOTO[:50, :90]).save(tmp_path / "p.png")
    Image.fromarray(PHOTO[:50, :90]).save(tmp_path / "p.webp")
    others = [(tmp_path / name).read_bytes() for name in ("p.png", "p.webp")]
    plain = saved(PHOTO[200:400, 200:400], quality=30, optimize=True)
    bare = without_tables(saved(PHOTO[:151, :203]))
    lab = Lab(tmp_path, [plain, bare, others[0], plain, others[1], bare])
    row_P, params = np.arange(6), lab.params(2)
    for _ in range(2):
        expected, _ = lab.expected(row_P, params), by_hand.clear()
        assert (lab.render(row_P, params) == expected).all()
        assert by_hand == [2, 4]


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


def in_files(lab: Lab, folder: Path) -> list[Path]:
    """Put each picture into a file of its own."""
    paths, count = [folder / f"{i}.jpg" for i in range(len(lab.encoded))], len(lab.encoded)
    for path, data in zip(paths, lab.encoded, strict=True):
        path.write_bytes(data)
    lab.images = replace(lab.images, paths=paths, file_N=np.arange(count, dtype=np.int32))
    lab.images.offset_N, lab.images.sharded = np.zeros(count, np.int64), False
    lab.compiled = lab.renderer()
    return paths


def test_a_crc_that_is_not_in_c_is_logged_once(
    tmp_path: Path,
    by_hand: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As of google-crc32c on a platform without its C extension, or linked statically."""
    lab = Lab(tmp_path, photographs(["420, plain"], 3, 12))
    row_P, params = np.arange(3), lab.params(1)
    expected, _ = lab.expected(row_P, params), by_hand.clear()
    monkeypatch.setitem(sys.modules, "google_crc32c._crc32c", None)
    monkeypatch.delattr(google_crc32c, "_crc32c", raising=False)
    batch._others.cache_clear()
    with caplog.at_level(logging.INFO, "kdcache"):
        for _ in range(2):
            assert (lab.render(row_P, params) == expected).all()
    batch._others.cache_clear()
    assert by_hand == [*range(3)] * 2
    [said] = [record.getMessage() for record in caplog.records if "crc32c" in record.getMessage()]
    assert "pip install --force-reinstall google-crc32c" in said


def test_a_folder_of_files(tmp_path: Path, by_hand: list[int]) -> None:
    lab = Lab(tmp_path, photographs(["444, plain"], 5, 5))
    row_P, params = np.arange(5), lab.params(2)
    expected = lab.expected(row_P, params)
    paths = in_files(lab, tmp_path)
    by_hand.clear()
    for _ in range(2):
        assert (lab.render(row_P, params) == expected).all()
    assert not by_hand
    paths[2].unlink()
    with pytest.raises(DataError, match="cannot read sample 'k2'"):
        lab.render(row_P, params)


@pytest.mark.parametrize("interpolation", ["box", "area", "bilinear", "random"])
def test_a_picture_is_read_once_in_each_epoch(
    interpolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = photographs(["420, plain", "420, progressive", "cmyk"], 12, 9)
    lab = Lab(tmp_path, encoded, replace(BOX, interpolation=interpolation))
    row_P, params, reads = np.arange(12), lab.params(2), list[int]()
    expected = lab.expected(row_P, params)
    in_files(lab, tmp_path)
    real = ImageDataset.read

    def spy(self: ImageDataset, number: int) -> bytes:
        reads.append(number)
        return real(self, number)

    monkeypatch.setattr(ImageDataset, "read", spy)
    for _ in range(3):
        reads.clear()
        assert (lab.render(row_P, params) == expected).all()
        assert sorted(reads) == [*range(12)]


def test_encoded_pictures_in_memory_are_few(
    tmp_path: Path, by_hand: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 6, 11))
    row_P, params = np.arange(6), lab.params(2)
    expected, _ = lab.expected(row_P, params), by_hand.clear()
    in_files(lab, tmp_path)
    monkeypatch.setattr(batch, "MOST_HELD", sum(map(len, lab.encoded[:4])))
    for _ in range(2):
        by_hand.clear()
        assert (lab.render(row_P, params) == expected).all()
        assert by_hand == [4, 5]


def test_files_are_compared_in_compiled_code_from_the_second_epoch_on(
    tmp_path: Path, by_hand: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 6, 10))
    row_P, params, compared = np.arange(6), lab.params(2), list[int]()
    paths, real = in_files(lab, tmp_path), google_crc32c.value
    expected = lab.render(row_P, params)

    def spy(data: bytes) -> int:
        compared.append(len(data))
        return int(real(data))

    monkeypatch.setattr(google_crc32c, "value", spy)
    assert (lab.render(row_P, params) == expected).all()
    assert not compared
    assert not by_hand
    data = bytearray(lab.encoded[4])
    data[-9] ^= 1
    paths[4].write_bytes(data)
    for _ in range(2):
        with pytest.raises(CacheMismatch, match="image 'k4' has changed since the cache was made"):
            lab.render(row_P, params)


def test_more_shards_than_files_may_be_open(
    tmp_path: Path, by_hand: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 5, 6))
    row_P, params = np.arange(5), lab.params(1)
    expected, _ = lab.expected(row_P, params), by_hand.clear()
    monkeypatch.setattr("resource.getrlimit", lambda _: (0, 0))
    lab.images._file_pool = FilePool()
    for _ in range(2):
        assert (lab.render(row_P, params) == expected).all()
    assert not by_hand
    assert (lab.images.locate(row_P)[0] == -1).all()


def test_views_of_several_sizes_are_made_in_one_call(tmp_path: Path, by_hand: list[int]) -> None:
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
        by_hand.clear()
        lab.compiled.render_many(row_P, np.arange(len(row_P) + 1) * 4, params, made, at_V)
    assert len({*by_hand}) < len(row_P)
    for row in row_P.tolist():
        lab.python.render(row, [(params, v, wanted[v]) for v in range(4 * row, 4 * row + 4)])
    assert all(np.array_equal(a, b) for a, b in zip(made, wanted, strict=True))
