"""Photographs and extreme pictures, and operations on them, for the tests of kernels."""

import cv2
import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

from cache_tools.render import kernels

FILL = (10, 20, 30)
random = np.random.default_rng(0)


def photographs() -> list[np.ndarray]:
    pictures = [skimage.data.astronaut(), skimage.data.chelsea()]
    pictures += [skimage.data.coffee(), skimage.data.rocket(), *load_sample_images().images]
    return [cv2.resize(p, (224, 200), interpolation=cv2.INTER_AREA) for p in pictures]


def extremes() -> list[np.ndarray]:
    noise = [random.integers(0, 256, (*s, 3), np.uint8) for s in [(40, 50), (1, 1), (2, 3), (3, 3)]]
    flat = [np.full((20, 30, 3), c, np.uint8) for c in [0, 255, 1, (17, 200, 90)]]
    steps = np.zeros((16, 16, 3), np.uint8)
    steps[:, 8:, 1] = 255
    nearly_flat = np.full((30, 30, 3), 9, np.uint8)
    nearly_flat[0, 0] = (200, 10, 9)
    return [*noise, *flat, steps, nearly_flat]


PHOTOGRAPHS, EXTREMES = photographs(), extremes()
PICTURES = PHOTOGRAPHS + EXTREMES


def ours(code: int, picture: np.ndarray, *arguments: int, fill: object = FILL) -> np.ndarray:
    image, scratch = picture.copy(), np.full_like(picture, 77)
    row, codes = np.zeros((1, 6), np.int32), np.array([code], np.int8)
    row[0, : len(arguments)] = arguments
    kernels.apply(codes, row, np.array(fill, np.uint8), image, scratch)
    return image


def distance(image: np.ndarray, theirs: Image.Image) -> int:
    """Largest difference of any value."""
    return int(np.abs(image.astype(int) - np.asarray(theirs)).max())


def fixed(value: float) -> int:
    return round(value * 65536)
