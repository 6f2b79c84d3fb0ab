"""Random erasing: rectangles and the noise that the format states."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.numerics import rng
from cache_tools.render import kernels
from tests.helpers.pictures import PHOTOGRAPHS


@settings(max_examples=100)
@given(*[st.integers(0, 2**64 - 1)] * 3)
def test_noise_is_drawn_from_the_philox_of_the_views(counter: int, seed0: int, seed1: int) -> None:
    zero = np.zeros(1, np.uint64)
    expected = rng.philox((np.full(1, counter, np.uint64), zero, zero, zero), (seed0, seed1))
    words = kernels.philox(np.uint64(counter), np.uint64(seed0), np.uint64(seed1))
    assert words == tuple(int(word[0]) for word in expected)


def erased(mode: int, colour: object, seed: int, *box: int) -> np.ndarray:
    image = PHOTOGRAPHS[0].copy()
    seeds = np.uint64(seed), np.uint64(2**63 + 5)
    kernels.erase(image, *box, mode, np.array(colour, np.uint8), *seeds)
    return image


def test_a_rectangle_is_erased_and_nothing_else() -> None:
    image = erased(kernels.CONSTANT, (1, 2, 3), 0, 20, 30, 50, 60)
    assert (image[20:70, 30:90] == (1, 2, 3)).all()
    image[20:70, 30:90] = PHOTOGRAPHS[0][20:70, 30:90]
    assert (image == PHOTOGRAPHS[0]).all()


def test_noise_is_as_in_the_format() -> None:
    image = erased(kernels.NOISE, (124, 116, 104), 7, 20, 30, 50, 60)
    zero = np.uint64(0)
    counters = np.arange(50 * 60, dtype=np.uint64)
    words = np.stack(rng.philox((counters, zero, zero, zero), (7, 2**63 + 5))[:3], axis=-1)
    limbs = words[..., None] >> np.arange(0, 64, 16, dtype=np.uint64) & np.uint64(0xFFFF)
    z = (limbs.astype(np.int64).sum(axis=-1) - 131070) * 113512 >> 16
    expected = np.clip((124, 116, 104) + (58 * z >> 16), 0, 255).reshape(50, 60, 3)
    assert (image[20:70, 30:90] == expected).all()


def test_noise_is_about_normal_and_another_seed_is_other_noise() -> None:
    noise = erased(kernels.NOISE, (128, 128, 128), 1, 0, 0, 200, 224).astype(float)
    assert abs(noise.mean() - 127.5) < 0.5
    assert abs(noise.std() - 58) < 1
    assert (erased(kernels.NOISE, (128, 128, 128), 2, 0, 0, 200, 224) != noise).mean() > 0.9


def test_a_rectangle_beyond_the_picture_is_cut() -> None:
    image = erased(kernels.CONSTANT, (1, 2, 3), 0, 190, 220, 50, 60)
    assert (image[190:, 220:] == (1, 2, 3)).all()
    assert (image[:190] == PHOTOGRAPHS[0][:190]).all()
