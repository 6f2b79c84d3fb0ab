"""Regions of JPEGs of all kinds: the pixels of the whole picture, or not used."""

import contextlib
import ctypes.util
import importlib.util
import logging
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cache_tools.errors import DataError
from cache_tools.render import decode, turbojpeg
from tests.helpers.jpegs import KINDS, PHOTO, WHOLE, made, saved, without_tables

BOX = (30, 40, 20, 30)

CALLS_F = turbojpeg.functions()
INSTALLED = importlib.util.find_spec("pylibjxl") is not None
"""Whether `make install` has taken the extra: then a library that is refused fails the tests."""
pytestmark = pytest.mark.skipif(not (CALLS_F.size or INSTALLED), reason="needs the extra [turbo]")


def crops(kind: str, count: int, seed: int) -> Iterator[tuple[bytes, decode.Box]]:
    """Random boxes of random pictures, of an odd size or so small that they are one unit."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        height, width = (random.integers(1, (40, 300)[random.integers(2)], 2)).tolist()
        y, x = random.integers(0, 512 - height), random.integers(0, 512 - width)
        data = made(kind, PHOTO[y : y + height, x : x + width], int(random.integers(5, 100)))
        h, w = int(random.integers(1, height + 1)), int(random.integers(1, width + 1))
        yield (
            data,
            (int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w),
        )


def check(kind: str, count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used, region = [], turbojpeg.region
    turbojpeg.functions()  # which compares regions itself, once

    def spy(*arguments: Any) -> Any:
        used.append(region(*arguments))
        return used[-1]

    monkeypatch.setattr(turbojpeg, "region", spy)
    reuse = decode.DecodeBuffer()
    for data, box in crops(kind, count, seed):
        top, left, height, width = box
        whole = decode.decode(data, "k")
        if kind != "cmyk":
            reuse.room(3 * whole.size)[:] = 1  # what is not decoded is not right by chance
        part = decode.decode(data, "k", reuse, box=box)
        at = slice(top, top + height), slice(left, left + width)
        assert (part[at] == whole[at]).all(), (whole.shape, box)
    decoded = sum(found[0] > 0 for found in used)
    if kind == "stray bytes":  # with the last row they are read, and the picture is decoded again
        assert decoded
    else:
        assert decoded == (0 if any(name in kind for name in WHOLE) else count)


@pytest.mark.parametrize("kind", KINDS)
def test_a_region_has_the_pixels_of_the_whole_picture(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(kind, 12, 0, monkeypatch)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not any(n in kind for n in WHOLE)])
@pytest.mark.parametrize("side", [3, 5, 17, 35])
def test_all_columns_and_all_rows_have_the_pixels_of_the_whole_picture(
    kind: str, side: int
) -> None:
    """One column, or one row, is the narrowest: libjpeg blends less than that otherwise."""
    data = made(kind, PHOTO[100 : 100 + side, 200 : 200 + side], 80)
    whole, encoded = decode.decode(data, "k"), np.frombuffer(data, np.uint8)
    random = np.random.default_rng(side)
    edges = [(begin, end) for end in range(1, side + 1) for begin in range(end)]
    others = random.permutation(len(edges)).tolist()
    for (top, bottom), at in zip(edges, others, strict=True):
        for rows, columns in (((top, bottom), edges[at]), (edges[at], (top, bottom))):
            room = np.ones_like(whole)
            box = rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0]
            assert turbojpeg.region(CALLS_F, encoded, *box, room.reshape(-1))[0]
            shown = slice(*rows), slice(*columns)
            assert (room[shown] == whole[shown]).all(), box


@pytest.mark.parametrize("factors", ["221212", "222121", "212121", "121212", "313131", "211121"])
def test_unusual_sampling_factors(factors: str) -> None:
    """Blocks of an RGB strip, which share one Huffman table, counted as those of other factors."""
    each = [int(pair, 16) for pair in (factors[:2], factors[2:4], factors[4:])]
    across, down = max(f >> 4 for f in each), max(f & 15 for f in each)
    blocks = sum((f >> 4) * (f & 15) for f in each)
    strip = PHOTO.reshape(64, 8, 64, 8, 3).swapaxes(1, 2).reshape(-1, 8, 8, 3)[: 36 * blocks]
    data = bytearray(saved(np.concatenate([*strip], axis=1), keep_rgb=True, quality=85))
    frame = data.index(b"\xff\xc0")
    height, width = 6 * 8 * down - 3, 18 * 8 * across - 5
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    for k, pair in enumerate(each):
        data[frame + 11 + 3 * k] = pair
    whole, random, used = decode.decode(bytes(data), "k"), np.random.default_rng(0), 0
    assert whole.shape == (height, width, 3)
    for top, left in zip(random.integers(height - 9, size=24), range(0, 120, 5), strict=True):
        room = np.ones(3 * (top + 9) * width, np.uint8)
        encoded = np.frombuffer(bytes(data), np.uint8)
        rows, _ = turbojpeg.region(CALLS_F, encoded, int(top), left, 9, 20, room)
        part = room.reshape(-1, width, 3)[top:, left : left + 20]
        assert not rows or (part == whole[top : top + 9, left : left + 20]).all()
        used += rows > 0
    assert used or factors == "211121"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_2000_regions_have_the_pixels_of_the_whole_picture(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(kind, 2000 // len(KINDS) + 1, 1, monkeypatch)


def test_damage_before_the_last_row_of_a_region_is_reported() -> None:
    data = saved(PHOTO[:151, :203], quality=90, subsampling=0)
    scan = data.index(b"\xff\xda")
    lost = data[: scan + 300] + b"\xff\xd9"
    for box in ((100, 90, 20, 20), (0, 0, 151, 203)):
        with pytest.raises(DataError, match="sample 'k' cannot be decoded"):
            decode.decode(lost, "k", box=box)
    late = data[:-300] + b"\xff\xd9"
    with pytest.raises(DataError, match="sample 'k' cannot be decoded"):
        decode.decode(late, "k")
    part, whole = decode.decode(late, "k", box=(10, 90, 20, 20)), decode.decode(data, "k")
    assert (part[10:30, 90:110] == whole[10:30, 90:110]).all()


def test_nothing_of_a_picture_is_left_for_the_next() -> None:
    data, reuse = without_tables(saved(PHOTO[:151, :203])), decode.DecodeBuffer()
    whole = decode.decode(data, "k")
    tables = data[: data.index(b"\xff\xc0")] + b"\xff\xd9"
    other = saved(PHOTO[200:400, 200:400], quality=30, optimize=True)
    for before in (other, other[: len(other) // 2], tables):
        with contextlib.suppress(DataError):
            decode.decode(before, "k", reuse, box=(100, 40, 30, 30))
        part = decode.decode(data, "k", reuse, box=BOX)
        assert part.shape == (50, 203, 3)
        assert (part[30:50, 40:70] == whole[30:50, 40:70]).all()
    room = np.zeros(3 * 50 * 203, np.uint8)
    assert turbojpeg.region(CALLS_F, np.frombuffer(tables, np.uint8), *BOX, room) == (0, 0)


def test_a_damaged_jpeg_has_the_outcome_of_its_whole_picture_or_the_same_pixels() -> None:
    random, reuse = np.random.default_rng(2), decode.DecodeBuffer()
    kinds = [made(kind, PHOTO[40:140, 150:250], 80) for kind in ("420, plain", "444, plain")]
    for _ in range(300):
        broken = bytearray(kinds[random.integers(2)])
        for at in random.integers(2, len(broken), random.integers(1, 4)):
            broken[at] = random.integers(256)
        try:
            whole = decode.decode(bytes(broken), "k")
        except DataError:
            continue
        if whole.shape == (100, 100, 3):
            part = decode.decode(bytes(broken), "k", reuse, box=BOX)
            assert (part[30:50, 40:70] == whole[30:50, 40:70]).all()


@pytest.mark.parametrize("box", [(-1, 0, 9, 9), (0, -8, 9, 9), (90, 0, 11, 9), (0, 99, 9, 2)])
def test_a_region_outside_of_the_picture_is_not_decoded(box: decode.Box) -> None:
    data = np.frombuffer(saved(PHOTO[:100, :100]), np.uint8)
    room = np.zeros(30_000, np.uint8)
    assert turbojpeg.region(CALLS_F, data, *box, room) == (0, 0)
    assert not room.any()


def test_a_region_without_room_is_not_decoded() -> None:
    data = np.frombuffer(saved(PHOTO[:100, :100]), np.uint8)
    room = np.zeros(3 * 50 * 100, np.uint8)
    assert turbojpeg.region(CALLS_F, data, *BOX, room[:-1]) == (0, 0)
    assert turbojpeg.region(CALLS_F, data, *BOX, room) == (50, 100)


def test_threads_decode_at_once() -> None:
    reuse, data = decode.DecodeBuffer(), saved(PHOTO)
    whole = decode.decode(data, "k")

    def wrong(seed: int) -> int:
        found, random = 0, np.random.default_rng(seed)
        for _ in range(20):
            top, left = random.integers(0, 400, 2).tolist()
            part = decode.decode(data, "k", reuse, box=(top, left, 100, 100))
            at = slice(top, top + 100), slice(left, left + 100)
            found += int((part[at] != whole[at]).sum())
        return found

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, range(4))) == 0


def test_a_forked_process_decodes_on() -> None:
    reuse, data = decode.DecodeBuffer(), saved(PHOTO)
    expected = decode.decode(data, "k", reuse, box=BOX)[30:50, 40:70].copy()

    def child(queue: Any) -> None:
        part = decode.decode(data, "k", reuse, box=BOX)[30:50, 40:70]
        queue.put(bool((part == expected).all()))

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert queue.get()
    assert (decode.decode(data, "k", reuse, box=BOX)[30:50, 40:70] == expected).all()


@pytest.fixture
def looked_for_again() -> Iterator[None]:
    turbojpeg._found.cache_clear()
    yield
    turbojpeg._found.cache_clear()


@pytest.mark.parametrize("places", [[], ["nowhere.so"], [ctypes.util.find_library("c")]])
def test_without_the_functions_pixels_are_the_same_and_it_is_logged_once(
    places: list[str],
    looked_for_again: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = saved(PHOTO)
    whole = decode.decode(data, "k")
    monkeypatch.setattr(turbojpeg, "_places", lambda: places)
    start = threading.Barrier(4)

    def equal(_: int) -> bool:
        start.wait()
        part = decode.decode(data, "k", box=BOX)
        return part.shape == (50, 512, 3) and bool((part[30:50] == whole[30:50]).all())

    with caplog.at_level(logging.INFO, "kdcache"), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(equal, range(4)))
    assert caplog.text.count("pip install 'kdcache[turbo]'") == 1


def test_a_library_of_other_pixels_is_refused(
    looked_for_again: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = turbojpeg.simplejpeg.decode_jpeg
    monkeypatch.setattr(turbojpeg.simplejpeg, "decode_jpeg", lambda *a: real(*a, fastdct=True))
    assert not turbojpeg.functions().size
    assert "its pixels are not those of simplejpeg" in caplog.text
