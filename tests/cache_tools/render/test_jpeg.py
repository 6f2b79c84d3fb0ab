"""Without TurboJPEG 3: the first rows are those of the whole JPEG, and damage there is an error."""

import io
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from cache_tools.errors import DataError
from cache_tools.render import decode, jpeg, turbojpeg

PHOTO = Image.fromarray(cv2.resize(astronaut(), (203, 151), interpolation=cv2.INTER_AREA))
KINDS = {f"4:{name}": {"subsampling": f"4:{name}"} for name in ("4:4", "2:2", "2:0", "1:1")}
KINDS |= {"optimized": {"optimize": True}, "quality 30": {"quality": 30}}
KINDS |= {"progressive": {"progressive": True}, "restarts": {"restart_marker_rows": 2}}
WHOLE_ONLY = ("progressive", "restarts")


@pytest.fixture(autouse=True)
def without_turbojpeg(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(turbojpeg, "_places", lambda: [])
    turbojpeg._found.cache_clear()
    yield
    turbojpeg._found.cache_clear()


def encoded(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_rows_are_those_of_the_whole_picture(kind: str, grey: bool) -> None:
    data = encoded(PHOTO.convert("L") if grey else PHOTO, **KINDS[kind])
    whole = decode.decode(data, "k")
    for rows in range(1, 152):
        beginning = decode.decode(data, "k", box=(0, 0, rows, 203))
        assert (beginning[:rows] == whole[:rows]).all(), rows
        spared = kind not in WHOLE_ONLY and rows + jpeg.BLENDED < 151
        assert (len(beginning) == rows) == spared or rows == 151


def test_damage_in_the_wanted_rows_is_reported_and_below_them_is_not_looked_for() -> None:
    data = encoded(PHOTO, quality=90)
    scan = data.index(b"\xff\xda")
    early, late = data[: scan + 300] + b"\xff\xd9", data[:-300] + b"\xff\xd9"
    for broken, box in ((early, (0, 0, 100, 203)), (late, None)):
        with pytest.raises(DataError, match="sample 'k'"):
            decode.decode(broken, "k", box=box)
    assert (decode.decode(data, "k")[:20] == decode.decode(late, "k", box=(0, 0, 20, 203))).all()


def test_no_beginning_of_a_file_makes_it_read_on() -> None:
    """As Python, where an index behind the end is an error; compiled code would read on."""
    compiled: Any = jpeg
    sequential, height_at = compiled._sequential.py_func, compiled.height_at.py_func
    data, found = encoded(PHOTO), 0
    scan = data.index(b"\xff\xda")
    for size in range(2, scan + 12):
        sequential(np.frombuffer(data[:size], np.uint8))
    random = np.random.default_rng(0)
    for _ in range(500):
        broken = bytearray(data[: random.integers(3, 700)])
        broken[random.integers(2, len(broken))] = random.integers(256)
        header = np.frombuffer(broken, np.uint8)
        sequential(header)
        found += height_at(header, 20) > 0
        jpeg.shorter(bytes(broken), 20)
    assert found


@pytest.mark.parametrize("bare", [b"\xff", b"\xff\x01", b"\xff\xd3", b"\xff\x00"])
def test_a_header_that_decoders_read_otherwise_is_not_ours_to_change(bare: bytes) -> None:
    data = encoded(PHOTO)
    assert jpeg.is_sequential(np.frombuffer(data, np.uint8))
    at = data.index(b"\xff\xdb")
    odd = data[:at] + bare + data[at:]
    assert not jpeg.is_sequential(np.frombuffer(odd, np.uint8))
    assert jpeg.shorter(odd, 20) is None
