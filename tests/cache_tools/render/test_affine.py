"""Affine maps: within one of what timm makes of the same matrix, for any picture of any size."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from PIL import Image
from timm.data import auto_augment as timm_ops

from cache_tools.render import affine, vectors
from cache_tools.views import ops
from tests.helpers.guarded import guarded
from tests.helpers.pictures import FILL, PHOTOGRAPHS, PICTURES, distance, fixed, ours


def shear_x(share: float, width: int, height: int) -> list[float]:
    return [1, share, 0, 0, 1, 0]


def shear_y(share: float, width: int, height: int) -> list[float]:
    return [1, 0, 0, share, 1, 0]


def translate_x(share: float, width: int, height: int) -> list[float]:
    return [1, 0, share * width, 0, 1, 0]


def translate_y(share: float, width: int, height: int) -> list[float]:
    return [1, 0, 0, 0, 1, share * height]


def rotate(degrees: float, width: int, height: int) -> list[float]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return [c, -s, x - c * x + s * y, s, c, y - s * x - c * y]


def pixel_matrix(corner: list[float]) -> list[int]:
    """Pillow's matrix, counted from the corner, for pixel centres on integers, in 1/65536."""
    a, b, x, c, d, y = corner
    return [fixed(v) for v in (a, b, x + (a + b - 1) / 2, c, d, y + (c + d - 1) / 2)]


def corner_matrix(matrix: list[int]) -> list[float]:
    """The inverse of `pixel_matrix`, exactly."""
    a, b, x, c, d, y = (v / 65536 for v in matrix)
    return [a, b, x - (a + b - 1) / 2, c, d, y - (c + d - 1) / 2]


GEOMETRY = {
    "rotate": (rotate, timm_ops.rotate, [-30, -17.3, -1, 0.0, 0.4, 9, 30]),
    "shear_x": (shear_x, timm_ops.shear_x, [-0.3, -0.11, 0.013, 0.3]),
    "shear_y": (shear_y, timm_ops.shear_y, [-0.3, -0.11, 0.013, 0.3]),
    "translate_x_rel": (translate_x, timm_ops.translate_x_rel, [-0.45, -0.123, 0.0, 0.3, 0.45]),
    "translate_y_rel": (translate_y, timm_ops.translate_y_rel, [-0.45, -0.123, 0.0, 0.3, 0.45]),
}


SAMPLERS = {
    "bilinear": (ops.AFFINE_BILINEAR, Image.Resampling.BILINEAR),
    "bicubic": (ops.AFFINE_BICUBIC, Image.Resampling.BICUBIC),
}


def at_the_edge(corner: list[float], width: int, height: int) -> np.ndarray:
    """Where a matrix's last bit decides if a pixel is inside of the source: [height, width]."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    sx = corner[0] * x + corner[1] * y + corner[2]
    sy = corner[3] * x + corner[4] * y + corner[5]
    gap = np.minimum.reduce([abs(sx), abs(sx - width), abs(sy), abs(sy - height)])
    return np.asarray(gap < 0.004)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", GEOMETRY)
def test_maps_are_within_one_of_timm(name: str, sampler: str) -> None:
    corner_of, theirs, magnitudes = GEOMETRY[name]
    code, filter_ = SAMPLERS[sampler]
    for picture, magnitude in itertools.product(PHOTOGRAPHS, magnitudes):
        height, width = picture.shape[:2]
        corner = corner_of(magnitude, width, height)
        pil = Image.fromarray(picture)
        expected = np.asarray(theirs(pil, magnitude, resample=filter_, fillcolor=FILL)).astype(int)
        image = ours(code, picture, *pixel_matrix(corner))
        off = np.abs(image - expected).max(axis=-1) > 1
        assert not (off & ~at_the_edge(corner, width, height)).any(), magnitude


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_maps_of_any_picture_with_the_same_matrix(sampler: str) -> None:
    code, filter_ = SAMPLERS[sampler]
    for picture in PICTURES:
        height, width = picture.shape[:2]
        for corner_of, _, magnitudes in GEOMETRY.values():
            for magnitude in magnitudes:
                matrix = pixel_matrix(corner_of(magnitude, width, height))
                theirs = Image.fromarray(picture).transform(
                    (width, height),
                    Image.Transform.AFFINE,
                    tuple(corner_matrix(matrix)),
                    filter_,
                    fillcolor=FILL,
                )
                limit = 0 if sampler == "bilinear" else 1
                assert distance(ours(code, picture, *matrix), theirs) <= limit


@pytest.mark.parametrize("code", [ops.AFFINE_BILINEAR, ops.AFFINE_BICUBIC])
def test_what_maps_from_outside_has_the_fill_colour(code: int) -> None:
    picture = PHOTOGRAPHS[0]
    image = ours(code, picture, 65536, 0, -10 * 65536, 0, 65536, 0)
    assert (image[:, :10] == FILL).all()
    assert (image[:, 10:] == picture[:, :-10]).all()


MATRIX = st.one_of(
    st.tuples(*[st.integers(-131072, 131072)] * 6),
    st.builds(lambda b, x, y: (65536, b, x, 0, 65536, y << 16), *[st.integers(-90000, 90000)] * 2,
              st.integers(-9, 9)),
    st.builds(lambda x, d, y: (65536, 0, x << 16, d, 65536, y), st.integers(-9, 9),
              *[st.integers(-90000, 90000)] * 2),
)  # fmt: skip


@settings(max_examples=200)
@given(MATRIX, st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_any_map_of_any_size(matrix: tuple[int, ...], height: int, width: int, seed: int) -> None:
    """Bilinear is its definition to the bit, bicubic within 1 of it; one colour stays."""
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    a, b, x0, d, e, y0 = matrix
    y, x = np.mgrid[:height, :width]
    sx, sy = a * x + b * y + x0, d * x + e * y + y0
    inside = (sx >= -32768) & (sx < width * 65536 - 32768)
    inside &= (sy >= -32768) & (sy < height * 65536 - 32768)

    fx, fy = (sx & 65535)[..., None], (sy & 65535)[..., None]
    left, right = (np.clip((sx >> 16) + k, 0, width - 1) for k in (0, 1))
    top, bottom = (np.clip((sy >> 16) + k, 0, height - 1) for k in (0, 1))
    wide = picture.astype(np.int64)
    upper = wide[top, left] * (65536 - fx) + wide[top, right] * fx
    lower = wide[bottom, left] * (65536 - fx) + wide[bottom, right] * fx
    linear = np.where(inside[..., None], (upper * (65536 - fy) + lower * fy) >> 32, FILL)
    assert (ours(ops.AFFINE_BILINEAR, picture, *matrix) == linear).all()

    cubic = ours(ops.AFFINE_BICUBIC, picture, *matrix)
    assert (cubic[~inside] == FILL).all()
    assert np.abs(cubic - exact_cubic(wide, sx, sy))[inside].max(initial=0) <= 1
    by_row = (a, d, e, y0 & 65535) == (65536, 0, 65536, 0)
    if not by_row and (a, b, e, x0 & 65535) != (65536, 0, 65536, 0):
        whole = np.where(inside[..., None], cubic_by_integers(wide, sx, sy), FILL)
        assert (cubic == whole).all()
    flat = ours(ops.AFFINE_BICUBIC, np.full_like(picture, 200), *matrix)
    assert (flat == np.where(inside[..., None], 200, FILL)).all()


def exact_cubic(picture: np.ndarray, sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """Bicubic samples in doubles at points in 1/65536 pixel, rounded down."""

    def weights(fraction: np.ndarray) -> list[np.ndarray]:
        f, g = fraction, 1 - fraction
        return [-f * g * g, 1 - 2 * f**2 + f**3, f * (1 + f * g), -f * f * g]

    by_x, by_y = (weights((s & 65535)[..., None] / 65536) for s in (sx, sy))
    total = np.zeros((*sx.shape, 3))
    for j, i in itertools.product(range(4), range(4)):
        row = np.clip((sy >> 16) + j - 1, 0, picture.shape[0] - 1)
        column = np.clip((sx >> 16) + i - 1, 0, picture.shape[1] - 1)
        total += by_y[j] * by_x[i] * picture[row, column]
    return np.clip(np.floor(total), 0, 255).astype(np.int64)


def cubic_by_integers(picture: np.ndarray, sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """Bicubic samples: columns first, to 6 bits of fraction, then rows; weights in 1/2^14."""

    def taps(position: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        f = ((position & 65535)[..., None] + 32) >> 6
        g = 1024 - f
        a, d = (-(product + 32768 >> 16) for product in (f * g * g, f * f * g))
        c = f * ((1 << 20) + f * g) + 32768 >> 16
        places = (np.clip((position >> 16) + k, 0, size - 1) for k in (-1, 0, 1, 2))
        return [*zip(places, (a, (1 << 14) - a - c - d, c, d), strict=True)]

    total = 0
    for row, by_row in taps(sy, picture.shape[0]):
        line = sum(by * picture[row, column] for column, by in taps(sx, picture.shape[1]))
        total = total + by_row * (line + 128 >> 8)
    return np.clip(total >> 20, 0, 255)


@njit
def average_four(source: Any, step: int, weights: Any, ahead: int, count: int, to: Any) -> None:
    apart = weights.strides[0]
    where = source.ctypes.data, weights.ctypes.data, to.ctypes.data
    vectors.average_four(where[0], step, where[1], apart, ahead, count, where[2])


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 48])
@pytest.mark.parametrize("ahead", [0, 64])
def test_averages_of_four_are_within_their_memory(count: int, ahead: int, at_end: bool) -> None:
    """Addresses are not checked there: a wrong one would end the process here."""
    random, sixteens, step = np.random.default_rng(count), -(-count // 16), 3
    source, to = (guarded(16 * sixteens + more, at_end) for more in (3 * step, 0))
    weights = guarded(4 * 4 * 16 * (sixteens if ahead else 1), at_end).view(np.int32).reshape(4, -1)
    source[:] = random.integers(0, 256, source.size)
    weights[:] = random.integers(-(1 << 19), 1 << 20, weights.shape)
    average_four(source, step, weights, ahead, count, to)
    by = weights if ahead else np.tile(weights, sixteens)
    sums = sum(by[k, :count].astype(np.int64) * source[step * k :][:count] for k in range(4))
    assert (to[:count] == np.clip(sums.astype(np.int32) >> 20, 0, 255)).all()


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("sides", [(4, 4), (5, 9), (30, 41)])
def test_bicubic_samples_are_within_their_memory(sides: tuple[int, int], at_end: bool) -> None:
    height, width = sides
    words = guarded(4 * height * width, at_end).view(np.uint32).reshape(sides)
    words[:] = 0x646464
    last = height * width - 3 * width - 4  # upper left of the last 4 by 4
    for count in (1, 2, 7):
        at = guarded(4 * count, at_end).view(np.uint32)
        fractions = guarded(8 * count, at_end).view(np.int32).reshape(2, count)
        at[:], fractions[:] = np.linspace(0, last, count), 65_535
        at[-1] = last
        pixels = guarded(3 * count + 1, at_end)
        affine._cubic(words, at, fractions, count, pixels)
        assert (pixels[:-1] == 100).all()
