import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools.render import decode, mixing, view
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw


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
    drawn = draw.draw(plain, ids, *sides, 0)
    params = replace(drawn, box_B4=box, flip_B=np.array([False, True]))
    out = np.empty((2, 64, 64, 3), np.uint8)
    for row in range(2):
        view.render(photo(), ViewSpec(size=64), params, row, out[row])
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


@pytest.mark.parametrize("size", [1, 32, 100, 224])
def test_box_is_the_mean_over_the_area(size: int) -> None:
    """Within 1 of the exact mean and of OpenCV's; where an axis grows it is OpenCV's."""
    picture = photo(300, 400)
    for box in ((0, 0, 300, 400), (13, 57, 250, 233), (7, 9, 224, 224), (5, 5, 60, 300)):
        ours = view.crop_resize(picture, box, size, draw.BOX).astype(int)
        area = view.crop_resize(picture, box, size, draw.AREA)
        top, left, height, width = box
        if min(height, width) < size:
            assert (ours == area).all()
            continue
        assert np.abs(ours - area).max() <= 1
        means = picture[top : top + height, left : left + width].astype(float)
        for axis, length in ((0, height), (1, width)):
            edges = np.arange(size + 1) * length / size
            cumulative = np.concatenate([np.zeros((1, *np.delete(means.shape, axis))),
                np.cumsum(np.moveaxis(means, axis, 0), 0)])  # fmt: skip
            low = np.minimum(edges.astype(int), length - 1)
            at = cumulative[low] + (edges - low)[:, None, None] * np.diff(cumulative, axis=0)[low]
            means = np.moveaxis(np.diff(at, axis=0) * size / length, 0, axis)
        assert np.abs(ours - means).max() <= 0.6


def test_one_colour_stays_that_colour() -> None:
    for filter_ in (draw.AREA, draw.BOX, draw.BILINEAR, draw.BICUBIC):
        plain = np.full((301, 403, 3), (3, 128, 255), np.uint8)
        assert (view.crop_resize(plain, (1, 2, 299, 400), 97, filter_) == plain[0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_scaled_decoding_is_close_and_each_view_has_its_own_scale(kind: str) -> None:
    """Views of one image rendered together or alone have the same bits."""
    buffer = io.BytesIO()
    smooth = cv2.resize(photo(40, 40), (903, 1201), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).save(buffer, kind)
    spec = ViewSpec(size=64, scale=(0.005, 1.0), scaled_decode=True)
    ids = np.arange(200, dtype=np.uint64)
    params = draw.draw(spec, ids, np.full(200, 1201, np.int32), np.full(200, 903, np.int32), 0)
    scales = {view.scale_log2(spec, *box[2:]) for box in params.box_B4.tolist()}
    assert scales == {0, 1, 2, 3}
    together, alone = np.empty((2, 200, 64, 64, 3), np.uint8)
    wanted = [(params, row, together[row]) for row in range(200)]
    view.render_views(buffer.getvalue(), "k", spec, wanted, decode.DecodeBuffer())
    whole = decode.decode(buffer.getvalue(), "k")
    for row in range(200):
        view.render_views(buffer.getvalue(), "k", spec, [(params, row, alone[row])])
        full = np.empty((64, 64, 3), np.uint8)
        view.render(whole, spec, params, row, full)
        assert np.abs(full.astype(int) - alone[row]).mean() < 4
    assert (together == alone).all()
