import io

import cv2
import numpy as np
import pytest
from PIL import Image

from cache_tools import kernels, mixing, render, views
from cache_tools.errors import DataError
from cache_tools.spec import ViewSpec


def photo(height: int = 120, width: int = 160) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_jpeg_has_the_bits_of_pillow() -> None:
    data = encoded(Image.fromarray(photo()), "JPEG", quality=87)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (render.decode(data, "k") == theirs).all()
    assert render.size(data, "k") == (120, 160)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB")],
)
def test_every_kind_of_image_becomes_rgb(kind: str, mode: str) -> None:
    data = encoded(Image.fromarray(photo()).convert(mode), kind)
    decoded = render.decode(data, "k")
    assert decoded.shape == (120, 160, 3)
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize(
    "data", [b"", b"no image", encoded(Image.fromarray(photo()), "JPEG")[:300]]
)
def test_what_does_not_decode_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match="n01440764_10026"):
        render.decode(data, "n01440764_10026")


def test_flip_comes_after_the_resize() -> None:
    box = np.array([[3, 5, 90, 100]] * 2, np.int32)
    params = views.Views(box, np.array([False, True]), None)
    out = np.empty((2, 64, 64, 3), np.uint8)
    for row in range(2):
        render.render(photo(), ViewSpec(size=64), params, row, out[row])
    assert (out[1] == out[0][:, ::-1]).all()


def test_affine_identity_changes_nothing() -> None:
    source, out = photo(64, 64), np.empty((64, 64, 3), np.uint8)
    identity = np.array([65536, 0, 0, 0, 65536, 0])
    kernels.affine(source, identity, np.zeros(3, np.uint8), out)
    assert (out == source).all()


def test_affine_is_within_one_grey_value_of_the_exact_bilinear_map() -> None:
    source, out = photo(64, 64), np.empty((64, 64, 3), np.uint8)
    matrix = np.array([64000, 9000, -90000, -9000, 64000, 300000])
    kernels.affine(source, matrix, np.array([10, 20, 30], np.uint8), out)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    a = matrix / 65536
    sx = np.rint((a[0] * x + a[1] * y + a[2]) * 256) / 256
    sy = np.rint((a[3] * x + a[4] * y + a[5]) * 256) / 256
    padded = np.empty((68, 68, 3))
    padded[:] = (10, 20, 30)
    padded[2:66, 2:66] = source
    left, top = np.floor(sx).astype(int), np.floor(sy).astype(int)
    exact = np.zeros((64, 64, 3))
    for dy in range(2):
        for dx in range(2):
            rows, columns = np.clip(top + dy, -2, 65) + 2, np.clip(left + dx, -2, 65) + 2
            weight = np.abs(1 - dy - (sy - top)) * np.abs(1 - dx - (sx - left))
            exact += weight[..., None] * padded[rows, columns]
    assert np.abs(out - exact).max() <= 1.0


def test_a_rotated_digit_stays_in_the_middle() -> None:
    """The matrix of a view maps the centre to the centre."""
    spec = ViewSpec(size=33, degrees=90)
    ids = np.arange(50, dtype=np.uint64)
    side = np.full(50, 33, np.int32)
    affine = views.draw(spec, ids, side, side, 0).affine_B6
    assert affine is not None
    centre = (affine[:, [0, 3]] + affine[:, [1, 4]]) * 16 + affine[:, [2, 5]]
    assert (np.abs(centre - 16 * 65536) <= 20).all()


def test_mixing_is_exact_in_single_precision() -> None:
    random = np.random.default_rng(1)
    a, b = random.integers(0, 256, (2, 100_000)).astype(np.float32)
    lam = random.integers(0, 65537, 100_000).astype(np.float32)
    double = mixing.mix(a.astype(np.float64), b.astype(np.float64), lam.astype(np.float64))
    assert (mixing.mix(a, b, lam) == double).all()


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    data = encoded(Image.new("1", (20000, 20000)), "PNG")
    with pytest.raises(DataError):
        render.decode(data, "bomb")
