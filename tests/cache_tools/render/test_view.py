import hashlib
import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools.errors import CacheMismatch
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


def weights(length: int, size: int) -> np.ndarray:
    """[size, length]: the mean over each output pixel's area, or linear where the axis grows."""
    pixel, i = np.arange(length), np.arange(size)[:, None]
    if length < size:
        centre = np.clip((i + 0.5) * length / size - 0.5, 0, length - 1)
        return np.maximum(0, 1 - np.abs(centre - pixel))
    low, high = i * length / size, (i + 1) * length / size
    covered = np.minimum(high, pixel + 1) - np.maximum(low, pixel)
    return np.maximum(0, covered) * size / length


@pytest.mark.parametrize("filter_", [draw.AREA, draw.BOX])
@pytest.mark.parametrize("size", [1, 2, 32, 100, 224])
def test_an_axis_has_the_mean_over_the_area_or_grows_linearly(size: int, filter_: int) -> None:
    """Each axis by itself, whichever shrinks and whichever grows; within rounding of the exact."""
    picture, grey = photo(300, 400), photo(300, 400)
    grey[:] = grey[..., :1]
    boxes = [(0, 0, 300, 400), (13, 57, 250, 233), (7, 9, 224, 224), (5, 5, 60, 300)]
    boxes += [(0, 5, 300, 60), (3, 4, 112, 112), (3, 4, 33, 75), (20, 30, 1, 1), (9, 8, 1, 300)]
    for box in (*boxes, (9, 9, 2, 2), (0, 399, 300, 1)):
        top, left, height, width = box
        cut = picture[top : top + height, left : left + width]
        by_axis = weights(height, size), weights(width, size)
        exact = np.einsum("yh,xw,hwc->yxc", *by_axis, cut, optimize=True)
        ours = view.crop_resize(picture, box, size, filter_)
        assert np.abs(ours - exact).max() <= 0.6, box
        assert (view.crop_resize(grey, box, size, filter_) == ours[..., :1]).all()


def test_crops_that_grow_have_these_bits_everywhere() -> None:
    y, x, c = np.ogrid[:60, :80, :3]
    picture = (7 * y * y + 3 * x * x + 5 * x * y + 90 * c).astype(np.uint8)
    boxes = ((0, 0, 60, 80), (1, 2, 32, 32), (3, 5, 21, 31), (9, 4, 1, 70), (59, 0, 1, 1))
    for box, digest in zip(boxes, GROWN, strict=True):
        for filter_ in (draw.AREA, draw.BOX):
            grown = view.crop_resize(picture, box, 64, filter_)
            assert hashlib.blake2b(grown.tobytes(), digest_size=8).hexdigest() == digest


GROWN = (
    "2f5834d7fccf91b0", "ed2738a906ffc3ae", "76632afd2f394c9e", "b6b96e64a4cc0d9f",
    "e4263ad8bdb29824",
)  # fmt: skip


def test_the_first_renderer_enlarges_by_inter_area() -> None:
    picture = photo()
    for top, left, height, width in ((3, 5, 32, 32), (3, 5, 100, 31), (20, 30, 1, 1)):
        cut = picture[top : top + height, left : left + width]
        theirs = cv2.resize(cut, (64, 64), interpolation=cv2.INTER_AREA)
        for filter_ in (draw.AREA_1, draw.BOX_1):
            box = top, left, height, width
            assert (view.crop_resize(picture, box, 64, filter_) == theirs).all()
    for old, new in ((draw.AREA_1, draw.AREA), (draw.BOX_1, draw.BOX)):
        both = [view.crop_resize(picture, (3, 5, 100, 90), 64, filter_) for filter_ in (old, new)]
        assert (both[0] == both[1]).all()


def test_one_colour_stays_that_colour() -> None:
    for filter_ in (draw.AREA, draw.BOX, draw.BILINEAR, draw.BICUBIC):
        plain = np.full((301, 403, 3), (3, 128, 255), np.uint8)
        for box in ((1, 2, 299, 400), (1, 2, 30, 40)):
            assert (view.crop_resize(plain, box, 97, filter_) == plain[0, 0]).all()


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


@pytest.mark.parametrize("interpolation", ["area", "box", "bilinear", "bicubic"])
def test_views_of_what_their_boxes_show_are_those_of_the_whole_picture(interpolation: str) -> None:
    buffer, size = io.BytesIO(), (361, 403)
    Image.fromarray(photo(*size)).save(buffer, "JPEG")
    spec = ViewSpec(size=64, scale=(0.005, 0.5), interpolation=interpolation)
    ids, sides = np.arange(90, dtype=np.uint64), [np.full(90, side, np.int32) for side in size]
    params, reuse = draw.draw(spec, ids, *sides, 0), decode.DecodeBuffer()
    whole, seen = np.empty((2, 90, 64, 64, 3), np.uint8)
    for first, count in ((0, 60), (60, 3), *((row, 1) for row in range(63, 90))):
        rows = range(first, first + count)
        view.render_views(buffer.getvalue(), "k", spec, [(params, row, whole[row]) for row in rows])
        reuse.room(3 * size[0] * size[1])[:] = 77  # what is not decoded is not right by chance
        wanted = [(params, row, seen[row]) for row in rows]
        view.render_views(buffer.getvalue(), "k", spec, wanted, reuse, seen=True)
    assert (whole == seen).all()


@pytest.mark.parametrize("interpolation", ["area", "box", "bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(-1, 0, 9, 9), (0, 5, 9, -1), (90, 0, 31, 9), (0, 140, 200, 21)])
def test_a_box_that_leaves_the_picture_is_refused(
    interpolation: str, box: tuple[int, int, int, int]
) -> None:
    spec = ViewSpec(size=64, interpolation=interpolation)
    sides = [np.array([side], np.int32) for side in (120, 160)]
    params = draw.draw(spec, np.zeros(1, np.uint64), *sides, 0)
    params.box_B4[0] = box
    out = np.full((64, 64, 3), 7, np.uint8)
    for scale in (0, 1):
        picture = photo(120 >> scale, 160 >> scale)
        with pytest.raises(CacheMismatch, match="leaves sample 'k', of which 120×160 pixels"):
            view.render(picture, spec, params, 0, out, scale, "k")
    assert (out == 7).all()
