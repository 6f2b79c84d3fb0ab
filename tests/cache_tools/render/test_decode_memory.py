"""Memory of decoding: bounded by the header, and shared by the threads that decode at once."""

import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from cache_tools.errors import DataError, KdcacheError
from cache_tools.render import decode, decode_memory, jpeg, view
from cache_tools.render.decode_memory import MAX_MEMORY, large_memory
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw
from tests.helpers.encoded import KEY, PHOTO, encoded, png


def large(kind: str, side: int) -> bytes:
    """A picture whose header has side × side pixels, without them."""
    small = encoded(PHOTO, kind, **({"progressive": True} if kind == "JPEG" else {}))
    if kind == "JPEG":
        at = small.index(b"\xff\xc2") + 5
        return small[:at] + struct.pack(">HH", side, side) + small[at + 4 :]
    if kind == "GIF":
        return small[:6] + struct.pack("<HH", side, side) + small[10:]
    if kind == "BMP":
        return small[:18] + struct.pack("<ii", side, side) + small[26:]
    if kind == "PPM":
        return b"P6 %d %d 255\n" % (side, side)
    if kind == "TIFF":
        tags = {
            256: 8,
            257: 8,
            258: 8,
            259: 5,
            262: 1,
            277: 1,
            322: side,
            323: side,
            324: 0,
            325: 1,
        }
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)  # one huge tile
    return png(side, side, 16, 6, b"")


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "PPM", "TIFF", "PNG"])
def test_memory_is_bounded_by_the_header(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"{KEY}.*is the limit of its format"):
            decode.decode(large(kind, 13_000), KEY)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_rows_that_are_missing_are_counted_in_little_memory() -> None:
    short = png(3000, 3000, 16, 6, bytes(2999 * 24_001))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"its pixels end after 71,?978,?999"):
            decode.decode(short, KEY)
        assert tracemalloc.get_traced_memory()[1] < 3 * 3000 * 3000 + 2**23
    finally:
        tracemalloc.stop()


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> decode_memory.Memory:
    """Memory for two of some pictures of a cost of their own, all of them large ones."""
    cost = decode._header(avif())[3]
    memory = decode_memory.Memory(2 * cost + cost // 2)
    monkeypatch.setattr(decode_memory, "large_memory", lambda: memory)
    monkeypatch.setattr(decode_memory, "LARGE", cost - 1)
    return memory


def avif() -> bytes:
    return encoded(Image.fromarray(np.full((40, 50, 3), 90, np.uint8)), "AVIF")


def test_the_memory_of_a_picture_is_that_of_its_format() -> None:
    assert decode._header(avif())[3] == 40 * 50 * 20
    jpeg_ = encoded(Image.fromarray(np.zeros((40, 50, 3), np.uint8)), "JPEG")
    assert decode._header(jpeg_)[3] == 40 * 50 * 3


def test_large_pictures_are_decoded_as_far_as_memory_lasts(
    little: decode_memory.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, lock, active, most, real = threading.Barrier(2), threading.Lock(), 0, 0, decode._decode

    def spy(*arguments: Any) -> Any:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        both.wait(60)  # two of them are decoded at a time
        picture = real(*arguments)
        both.wait(60)
        with lock:
            active -= 1
        return picture

    monkeypatch.setattr(decode, "_decode", spy)
    with ThreadPoolExecutor(6) as pool:
        shapes = list(pool.map(lambda _: decode.decode(avif(), KEY).shape, range(6)))
    assert shapes == [(40, 50, 3)] * 6
    assert most == 2


def test_the_memory_of_a_picture_counts_until_its_views_are_made(
    little: decode_memory.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, whole, left = ViewSpec(size=16), little._left, list[int]()
    sides = [np.array([side], np.int32) for side in (40, 50)]
    params = draw.draw(spec, np.zeros(1, np.uint64), *sides, 0)
    monkeypatch.setattr(view, "render", lambda *_: left.append(little._left))
    out = np.empty((16, 16, 3), np.uint8)
    view.render_views(avif(), KEY, spec, [(params, 0, out)] * 2)
    assert left == [whole - 40 * 50 * 20] * 2
    assert little._left == whole
    with pytest.raises(DataError):
        decode.decode(avif()[:-200], KEY)
    assert little._left == whole


@pytest.mark.parametrize(("gigabytes", "expected"), [(2, MAX_MEMORY), (64, 16 * 10**9)])
def test_large_pictures_share_a_quarter_of_the_memory(
    gigabytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_tools.runtime.host_memory.share", lambda: gigabytes * 10**9)
    decode_memory._large_memory.cache_clear()
    assert large_memory()._left == expected
    decode_memory._large_memory.cache_clear()


def test_threads_that_begin_together_share_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    together, threads = threading.Barrier(8), 8
    never = threading.Event()
    monkeypatch.setattr(
        "cache_tools.runtime.host_memory.share", lambda: (never.wait(0.01), 64 * 10**9)[1]
    )
    decode_memory._large_memory.cache_clear()
    with ThreadPoolExecutor(threads) as pool:
        found = [*pool.map(lambda _: (together.wait(), large_memory())[1], range(threads))]
    decode_memory._large_memory.cache_clear()
    assert len({id(memory) for memory in found}) == 1


class Taken(decode_memory.Memory):
    """Memory that records what is taken of it."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.counts: list[int] = []

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        self.counts.append(count)
        with super().taken(count):
            yield


def test_the_memory_of_a_part_is_that_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, noise = Taken(10**6), np.random.default_rng(1).integers(0, 255, (200, 100, 3), np.uint8)
    monkeypatch.setattr(decode_memory, "large_memory", lambda: memory)
    monkeypatch.setattr(decode_memory, "LARGE", 0)
    data = encoded(Image.fromarray(noise), "JPEG")
    part = decode.decode(data, KEY, box=(20, 10, 30, 40))
    assert (part[20:50, 10:50] == decode.decode(data, KEY)[20:50, 10:50]).all()
    decode.decode(data, KEY, scale_log2=1)
    monkeypatch.setattr(decode, "_part", lambda *_: None)  # decoded whole where a part cannot be
    decode.decode(data, KEY, box=(20, 10, 30, 40))
    whole = 3 * 200 * 100
    rows = 3 * (50 + jpeg.BLENDED) * 100
    assert memory.counts == [rows, whole, whole // 4, rows, whole]
    assert memory._left == 10**6


def test_threads_that_wait_for_memory_are_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, waiting, logged = decode_memory.Memory(100), threading.Semaphore(0), list[str]()
    real = memory._freed.wait_for

    def wait_for(holds: Callable[[], bool], seconds: float | None = None) -> bool:
        if seconds is None:
            waiting.release()
        return real(holds, seconds)

    def wait() -> None:
        with memory.taken(1):
            pass

    monkeypatch.setattr(memory._freed, "wait_for", wait_for)
    monkeypatch.setattr(decode_memory, "_PATIENCE", 0.0)
    monkeypatch.setattr(decode_memory.log, "info", lambda text, *_: logged.append(text))
    with ThreadPoolExecutor(2) as pool:
        with memory.taken(100):
            waited = [pool.submit(wait) for _ in range(2)]
            assert all(waiting.acquire(timeout=60) for _ in waited)
        assert [future.result(60) for future in waited] == [None, None]
    assert [text.partition(":")[0] for text in logged] == ["large pictures wait for each other"]


def test_memory_that_ran_out_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 3 GiB")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", without_memory)
    with pytest.raises(
        KdcacheError, match=r"not enough memory .* to decode sample .*3 GiB"
    ) as error:
        decode.decode(encoded(PHOTO, "JPEG"), KEY)
    assert not isinstance(error.value, DataError)
    assert "Repair" not in str(error.value)
