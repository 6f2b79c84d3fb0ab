"""Odd and broken images: each becomes the pixels FORMAT.md 3.4 promises, or an error with its name.

Exact expectations come from the picture itself (lossless kinds) or from Pillow (JPEG, lossy WebP).
"""

import io
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from cache_tools.errors import DataError
from cache_tools.numerics.array_types import U1
from cache_tools.render import decode, jpeg
from cache_tools.render import pillow as by_pillow
from tests.helpers.encoded import KEY, PHOTO, RGB, chunk, encoded, png

Expected = U1 | str
GREY: U1 = np.asarray(PHOTO.convert("L"))
DEEP = GREY.astype(np.uint16) * 256 + RGB[:, :, 0]  # high bytes GREY, low bytes anything
ALPHA: U1 = RGB[:, :, 1] // 2


def pillow(data: bytes) -> U1:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def grey(channel: NDArray[np.generic]) -> U1:
    return np.repeat(channel.astype(np.uint8)[:, :, None], 3, axis=2)


def interlaced_png(kept: float = 1.0) -> bytes:
    """Adam7 by hand, as Pillow cannot write it: seven small pictures, one after another."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    cuts = [RGB[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for cut in cuts for row in cut)
    data = png(72, 88, 8, 2, rows[: int(len(rows) * kept)])
    header = struct.pack(">IIBBBBB", 88, 72, 8, 2, 0, 0, 1)
    return data[:8] + chunk(b"IHDR", header) + data[33:]


def oriented(kind: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded(PHOTO, kind, exif=exif, **options)


def patched(data: bytes, marker: bytes, offset: int, new: bytes) -> bytes:
    at = data.index(marker) + offset
    return data[:at] + new + data[at + len(new) :]


def resized_header(data: bytes, height: int, width: int) -> bytes:
    return patched(data, b"\xff\xc0", 5, struct.pack(">HH", height, width))


def with_corrupt_exif(jpeg: bytes) -> bytes:
    """Insert EXIF whose second tag points far past its end: Pillow warns of such."""
    tags = struct.pack("<HHHIIHHII", 2, 0x0128, 3, 1, 2, 0x010F, 2, 400, 1 << 20)
    body = b"Exif\0\0II*\0\x08\0\0\0" + tags + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def palette(alpha: bytes | int | None = None) -> tuple[bytes, U1]:
    picture = PHOTO.quantize(16)
    colours = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
    options = {} if alpha is None else {"transparency": alpha}
    return encoded(picture, "PNG", **options), colours[np.asarray(picture)]


def twice(kind: str, **options: object) -> bytes:
    second = Image.fromarray(255 - RGB)
    return encoded(PHOTO, kind, save_all=True, append_images=[second], **options)


JPEG = encoded(PHOTO, "JPEG", quality=87)
PROGRESSIVE = encoded(PHOTO, "JPEG", quality=87, progressive=True)
CMYK = encoded(PHOTO.convert("CMYK"), "JPEG", quality=87)
YCCK = patched(CMYK, b"Adobe", 11, b"\x02")
PNG = encoded(PHOTO, "PNG")
WEBP = encoded(PHOTO, "WEBP", quality=80)
LOSSLESS = encoded(PHOTO, "WEBP", lossless=True)
TIFF = encoded(PHOTO, "TIFF")
GIF = encoded(PHOTO.convert("L"), "GIF")
BMP = encoded(PHOTO, "BMP")
PPM = encoded(PHOTO, "PPM")
ONE_BIT = PHOTO.convert("1", dither=Image.Dither.NONE)
RGBA = Image.fromarray(np.dstack([RGB, ALPHA]))
GREY_ALPHA = Image.fromarray(np.dstack([GREY, ALPHA]))
APNG_BROKEN = PNG[:33] + chunk(b"acTL", struct.pack(">II", 0, 0)) + PNG[33:]
SCAN = JPEG.index(b"\xff\xda")
RGB48 = np.repeat(DEEP[:, :, None], 3, axis=2).astype(">u2")
ROWS48 = b"".join(b"\0" + row.tobytes() for row in RGB48)
GREYS = np.arange(8, dtype=np.uint8)[None] * 36


def subsampled(factors: str) -> bytes:
    return bytes(simplejpeg.encode_jpeg(RGB, 85, "RGB", factors))


def as_pillow(data: bytes) -> tuple[bytes, U1]:
    return data, pillow(data)


TABLE: dict[str, tuple[bytes, Expected]] = {
    "jpeg baseline": as_pillow(JPEG),
    "jpeg progressive": as_pillow(PROGRESSIVE),
    "jpeg 4:4:4": as_pillow(subsampled("444")),
    "jpeg 4:2:2": as_pillow(subsampled("422")),
    "jpeg 4:2:0": as_pillow(subsampled("420")),
    "jpeg 4:4:0": as_pillow(subsampled("440")),
    "jpeg 4:1:1": as_pillow(subsampled("411")),
    "jpeg of nameless factors": as_pillow(patched(JPEG, b"\xff\xc0", 11, b"\x42")),
    "jpeg of factors simplejpeg has no key for": as_pillow(patched(JPEG, b"\xff\xc0", 11, b"\x14")),
    "jpeg grey": as_pillow(encoded(PHOTO.convert("L"), "JPEG")),
    "jpeg in RGB": as_pillow(encoded(PHOTO, "JPEG", keep_rgb=True)),
    "jpeg restart markers": as_pillow(encoded(PHOTO, "JPEG", restart_marker_blocks=3)),
    "jpeg ICC profile": (encoded(PHOTO, "JPEG", quality=87, icc_profile=b"x" * 90), pillow(JPEG)),
    "jpeg comment": (encoded(PHOTO, "JPEG", quality=87, comment=b"c" * 300), pillow(JPEG)),
    "jpeg orientation": (oriented("JPEG", quality=87), pillow(JPEG)),
    "jpeg corrupt EXIF": (with_corrupt_exif(JPEG), pillow(JPEG)),
    "jpeg CMYK": as_pillow(CMYK),
    "jpeg CMYK corrupt EXIF": (with_corrupt_exif(CMYK), pillow(CMYK)),
    "jpeg YCCK": as_pillow(YCCK),
    "jpeg CMYK not inverted": as_pillow(CMYK.replace(b"Adobe", b"Adoby")),
    "jpeg CMYK cut and ended": (CMYK[: len(CMYK) * 3 // 4] + b"\xff\xd9", "premature end"),
    "jpeg CMYK cut": (CMYK[: len(CMYK) * 3 // 4], "Premature end"),
    "jpeg trailing garbage": (JPEG + b"garbage" * 99, pillow(JPEG)),
    "jpeg trailing jpeg": (JPEG + CMYK, pillow(JPEG)),
    "jpeg stray bytes before the end": (JPEG[:-2] + b"\0\x55\xff\xd9", pillow(JPEG)),
    "jpeg many stray bytes": (JPEG[:-2] + b"\x55" * 200 + b"\xff\xd9", "extraneous"),
    "jpeg without end marker": (JPEG[:-2], "Premature end"),
    "jpeg cut": (JPEG[: len(JPEG) * 3 // 4], "Premature end"),
    "jpeg cut and ended": (JPEG[: len(JPEG) * 3 // 4] + b"\xff\xd9", "premature end"),
    "jpeg cut, then garbage": (JPEG[: len(JPEG) * 3 // 4] + b"\0" * 400, ""),
    "jpeg progressive cut": (PROGRESSIVE[: len(PROGRESSIVE) * 3 // 4], "Premature end"),
    "jpeg of nameless factors cut": (
        patched(JPEG, b"\xff\xc0", 11, b"\x42")[: SCAN + 300],
        "truncated",
    ),
    "jpeg header only": (JPEG[:SCAN], ""),
    "jpeg start marker only": (b"\xff\xd8\xff", ""),
    "jpeg of no height": (resized_header(JPEG, 0, 88), ""),
    "jpeg bomb": (resized_header(JPEG, 60000, 60000), "limit"),
    "jpeg 1×1": as_pillow(encoded(PHOTO.crop((0, 0, 1, 1)), "JPEG")),
    "jpeg 1×5000": as_pillow(encoded(PHOTO.resize((5000, 1)), "JPEG")),
    "png": (PNG, RGB),
    "png RGBA": (encoded(RGBA, "PNG"), RGB),
    "png grey": (encoded(PHOTO.convert("L"), "PNG"), grey(GREY)),
    "png grey and alpha": (encoded(GREY_ALPHA, "PNG"), grey(GREY)),
    "png grey, a transparent grey": (
        encoded(PHOTO.convert("L"), "PNG", transparency=int(GREY[0, 0])),
        grey(GREY),
    ),
    "png RGB, a transparent colour": (
        encoded(PHOTO, "PNG", transparency=tuple(RGB[0, 0].tolist())),
        RGB,
    ),
    "png palette": palette(),
    "png palette, one transparent": palette(3),
    "png palette, some transparent": palette(bytes(range(0, 160, 10))),
    "png 1 bit": (encoded(ONE_BIT, "PNG"), grey(np.asarray(ONE_BIT) * 255)),
    "png 4 bits": (png(1, 2, 4, 0, b"\0\x3f"), grey(np.array([[51, 255]]))),
    "png 16-bit grey": (encoded(Image.fromarray(DEEP), "PNG"), grey(GREY)),
    "png 16-bit RGB": (png(72, 88, 16, 2, ROWS48), grey(GREY)),
    "png interlaced": (interlaced_png(), RGB),
    "png orientation": (oriented("PNG"), RGB),
    "png malformed animation": (APNG_BROKEN, RGB),
    "png trailing garbage": (PNG + b"garbage", RGB),
    "png animated": (twice("PNG"), RGB),
    "png 1×1": (encoded(PHOTO.crop((0, 0, 1, 1)), "PNG"), RGB[:1, :1]),
    "png 1×5000": (png(1, 5000, 8, 0, bytes(5001)), np.zeros((1, 5000, 3), np.uint8)),
    "png cut": (PNG[: len(PNG) // 2], "ends in its chunk b'IDAT'"),
    "png without end chunk": (PNG[:-12], "ends before its end chunk"),
    "png wrong CRC of pixels": (PNG[:-16] + b"\0\0\0\0" + PNG[-12:], "CRC"),
    "png wrong CRC of header": (patched(PNG, b"IHDR", 17, b"\0\0\0\0"), "checksum"),
    "png with too few rows": (
        png(72, 88, 8, 2, b"".join(b"\0" + row.tobytes() for row in RGB[:40])),
        "bytes",
    ),
    "png with too few rows, interlaced": (interlaced_png(kept=0.6), "bytes"),
    "png of black rows": (png(2, 2, 8, 0, bytes(6)), np.zeros((2, 2, 3), np.uint8)),
    "png of no pixels": (png(0, 5, 8, 0, b""), ""),
    "png bomb": (png(60000, 60000, 1, 0, b""), "limit"),
    "png header only": (PNG[:33], ""),
    "webp": as_pillow(WEBP),
    "webp lossless": (LOSSLESS, RGB),
    "webp with alpha": (encoded(RGBA, "WEBP", lossless=True, exact=True), RGB),
    "webp animated": (twice("WEBP", lossless=True), RGB),
    "webp orientation": (oriented("WEBP", lossless=True), RGB),
    "webp cut": (WEBP[: len(WEBP) // 2], ""),
    "gif": (GIF, grey(GREY)),
    "gif animated": (twice("GIF"), pillow(twice("GIF"))),
    "gif transparent": (
        encoded(PHOTO.convert("L"), "GIF", transparency=int(GREY[0, 0])),
        grey(GREY),
    ),
    "gif cut": (GIF[: len(GIF) // 2], ""),
    "bmp": (BMP, RGB),
    "bmp cut": (BMP[: len(BMP) // 2], "truncated"),
    "tiff": (TIFF, RGB),
    "tiff compressed": (encoded(PHOTO, "TIFF", compression="tiff_lzw"), RGB),
    "tiff 16-bit grey": (encoded(Image.fromarray(DEEP), "TIFF"), grey(GREY)),
    "tiff floats": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "32 bits"),
    "tiff 32-bit integers": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32 bits"),
    "tiff orientation, which Pillow applies": (oriented("TIFF"), np.rot90(RGB, 3)),
    "tiff of two pages": (twice("TIFF"), RGB),
    "tiff CMYK": as_pillow(encoded(PHOTO.convert("CMYK"), "TIFF")),
    "tiff cut": (TIFF[: len(TIFF) // 2], ""),
    "ppm": (PPM, RGB),
    "ppm cut": (PPM[: len(PPM) // 2], ""),
    "pgm": (encoded(PHOTO.convert("L"), "PPM"), grey(GREY)),
    "pgm 16-bit": (b"P5 88 72 65535\n" + DEEP.astype(">u2").tobytes(), grey(GREY)),
    "pgm plain": (
        b"P2 8 1 255\n" + b" ".join(b"%d" % v for v in GREYS[0]) + b"\n",
        grey(GREYS),
    ),
    "ppm bomb": (b"P6 60000 60000 255\n", "limit"),
    "no bytes": (b"", "empty"),
    "text": (b"no image", "no JPEG"),
    "an error page": (b"<!DOCTYPE html><html><title>404 Not Found</title>", "web page"),
    "another format": (encoded(PHOTO, "ICO"), "no JPEG"),
    "text that begins like a bmp": (b"BMW 320d, 2004", ""),
}


@pytest.mark.parametrize("kind", TABLE)
def test_every_kind_of_image_has_its_pixels_or_an_error_that_names_it(kind: str) -> None:
    data, expected = TABLE[kind]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=KEY) as caught:
            decode.decode(data, KEY)
        assert expected in str(caught.value)
    else:
        picture = decode.decode(data, KEY)
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
        assert picture.shape == (*decode.size(data, KEY), 3)
        assert (picture == expected).all()


@pytest.mark.parametrize("kind", ["jpeg bomb", "png bomb", "ppm bomb", "no bytes", "text"])
def test_the_size_of_what_is_no_image_is_an_error_that_names_it(kind: str) -> None:
    with pytest.raises(DataError, match=KEY):
        decode.size(TABLE[kind][0], KEY)


def test_a_size_between_the_limit_of_pillow_and_ours_is_no_warning() -> None:
    assert decode.size(png(15000, 15000, 1, 0, b""), KEY) == (15000, 15000)
    header = b"GIF89a" + struct.pack("<HHBBB", 12000, 12000, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 12000, 12000, 0) + b"\x08\0;"
    assert decode.size(header + frame, KEY) == (12000, 12000)


@pytest.mark.parametrize("name", ["JPEG", "PROGRESSIVE", "PNG", "WEBP", "GIF", "TIFF", "CMYK"])
def test_corrupted_bytes_decode_to_the_size_of_the_header_or_are_an_error(name: str) -> None:
    """2000 files of random changes: never another exception, a warning or another shape."""
    original: bytes = globals()[name]
    random = np.random.default_rng(7)
    changes: list[Callable[[bytearray, int], None]] = [
        lambda data, at: data.__setitem__(at, int(random.integers(256))),
        lambda data, at: data.__setitem__(at, data[at] ^ (1 << int(random.integers(8)))),
        lambda data, at: data.__setitem__(slice(at, at + 4), random.bytes(4)),
        lambda data, at: data.__delitem__(slice(at, None)),
        lambda data, at: data.__delitem__(slice(at, at + 1 + int(random.integers(8)))),
    ]
    decoded = 0
    for number in range(2000 if name in ("JPEG", "PNG", "WEBP") else 500):
        data = bytearray(original)
        for _ in range(1 + number % 3):
            # Half of the changes hit the headers, where formats differ most.
            end = len(data) if random.random() < 0.5 else min(len(data), 200)
            changes[random.integers(len(changes))](data, int(random.integers(max(end, 1))))
            data = data or bytearray(1)
        try:
            height, width = decode.size(bytes(data), KEY)
            if height * width > 2**22:  # legal, but a thousand of them take their time
                continue
            assert decode.decode(bytes(data), KEY).shape == (height, width, 3)
            decoded += 1
        except DataError as error:
            assert KEY in str(error)
    assert decoded


def test_the_outcome_does_not_depend_on_the_filters_of_warnings() -> None:
    data, expected = TABLE["png malformed animation"]
    for action in ("error", "always", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)  # type: ignore[arg-type]
            assert (decode.decode(data, KEY) == expected).all()


def test_pictures_of_all_sizes_decode_into_one_place() -> None:
    """Same pixels as in new memory, whatever lay there before, in several threads at once."""
    random, reuse = np.random.default_rng(0), decode.DecodeBuffer()
    encoded = []
    for height, width in [(40, 60), (90, 70), (8, 8), (64, 200), (1, 1)] * 4:
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG")
        encoded.append(buffer.getvalue())

    def same(data: bytes) -> bool:
        return bool((decode.decode(data, "k", reuse) == decode.decode(data, "k")).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, encoded * 5))


def test_a_git_lfs_pointer_is_named() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    with pytest.raises(DataError, match="git lfs pull"):
        decode.decode(pointer, "a")


@pytest.mark.parametrize("kind", [k for k, (_, e) in TABLE.items() if not isinstance(e, str)])
def test_pixels_do_not_depend_on_bands(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, expected = TABLE[kind]
    monkeypatch.setattr(by_pillow, "_BAND", 200)
    assert np.array_equal(decode.decode(data, KEY), expected)


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data = encoded(PHOTO, "JPEG", progressive=True)
    begin = data.rindex(b"\xff\xda")  # one scan again and again
    many = data[:begin] + data[begin:-2] * 600 + data[-2:]
    with pytest.raises(DataError, match="501 scans of 88×72 pixels"):
        decode.decode(many, KEY)
    assert jpeg.scans(data, 500)[0] > 1
    assert jpeg.scans(encoded(PHOTO, "JPEG", subsampling=2) + many, 500) == (1, 1.5)
