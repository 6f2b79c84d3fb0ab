from dataclasses import replace

import cv2
import numpy as np
import torch

from cache_tools import mixing, render, views
from cache_tools.spec import ViewSpec


def photo(height: int = 120, width: int = 160) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_flip_comes_after_the_resize() -> None:
    box = np.array([[3, 5, 90, 100]] * 2, np.int32)
    plain = ViewSpec(size=64, hflip=0)
    ids, sides = (
        np.arange(2, dtype=np.uint64),
        (np.full(2, 120, np.int32), np.full(2, 160, np.int32)),
    )
    drawn = views.draw(plain, ids, *sides, 0)
    params = replace(drawn, box_B4=box, flip_B=np.array([False, True]))
    out = np.empty((2, 64, 64, 3), np.uint8)
    for row in range(2):
        render.render(photo(), ViewSpec(size=64), params, row, out[row])
    assert (out[1] == out[0][:, ::-1]).all()


def test_mixing_is_exact_in_single_precision() -> None:
    random = np.random.default_rng(1)
    a, b = random.integers(0, 256, (2, 100_000)).astype(np.float32)
    lam = random.integers(0, 65537, 100_000).astype(np.float32)
    exact = (a.astype(int) * lam.astype(int) + b.astype(int) * (65536 - lam.astype(int))) / 65536
    single = [torch.from_numpy(x)[:, None, None, None] for x in (a, b)]
    cut = torch.zeros(len(a), 4, dtype=torch.int32)
    mixed = mixing.mix(*single, torch.from_numpy(lam), cut, torch.arange(1))
    assert mixed.dtype == torch.float32
    assert (mixed.reshape(-1).numpy() == exact.astype(np.float32)).all()


def test_cutmix_takes_the_box_from_the_partner() -> None:
    a, b = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 200.0)
    cut = torch.tensor([[2, 1, 3, 4], [0, 0, 0, 0]], dtype=torch.int32)
    mixed = mixing.mix(a, b, torch.tensor([65536.0 * 52 / 64, 32768.0]), cut, torch.arange(8))
    expected = torch.zeros(8, 8)
    expected[2:5, 1:5] = 200
    assert (mixed[0] == expected).all()
    assert (mixed[1] == 100).all()
