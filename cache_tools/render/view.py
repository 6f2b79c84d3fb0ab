"""Decoded image → uint8 view: crop and resize, flip, operations, erasing.

One function for both stages. Augmentation is in uint8 RGB and nothing depends on a model's mean or
std. INTER_AREA's bits have not changed from OpenCV 4.6 to 5.0; Pillow resamples in integers.
"""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache_tools.errors import CacheMismatch, KdcacheError
from cache_tools.numerics.array_types import I4, U1
from cache_tools.render import decode, kernels, resample
from cache_tools.runtime import host_memory
from cache_tools.spec.views import ViewSpec
from cache_tools.storage.compiled import njit
from cache_tools.views import draw

# callers render many images in parallel; threads within one only get in the way
cv2.setNumThreads(1)


def versions() -> dict[str, str]:
    """Versions of the libraries that make pixels, as commit records keep them."""
    packages = ("simplejpeg", "opencv-python-headless", "pillow", "numba", "numpy")
    return {name: version(name) for name in packages}


def crop_resize(
    picture: U1,
    box: tuple[int, int, int, int],
    side: int,
    filter_: int = draw.AREA,
    flip: bool = False,
    out: U1 | None = None,
) -> U1:
    """Cut top, left, height, width out of [H, W, 3] and resize it to [side, side, 3].

    Args:
        picture: Decoded image.
        box: What to cut out, in pixels.
        side: Height and width of the result in pixels.
        filter_: AREA is OpenCV's mean, BOX the same in integers, where an axis grows both are
            `resample`'s; BILINEAR and BICUBIC are Pillow's, as timm crops and resizes; AREA_1 and
            BOX_1 enlarge by OpenCV's INTER_AREA, nearly the nearest pixel.
        flip: Flip the result horizontally.
        out: Where to write it; None makes new memory.
    """
    top, left, height, width = box
    if out is None:
        out = np.empty((side, side, 3), dtype=np.uint8)
    if in_integers(filter_, height, width, side):
        resample.crop(picture, top, left, height, width, flip, out)
        return out
    cut = picture[top : top + height, left : left + width]
    if filter_ in (draw.AREA, draw.AREA_1, draw.BOX_1):
        resized = np.empty_like(out) if flip else out
        cv2.resize(cut, (side, side), dst=resized, interpolation=cv2.INTER_AREA)
    else:
        bilinear = filter_ == draw.BILINEAR
        of_pillow = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        resized = np.asarray(Image.fromarray(cut).resize((side, side), of_pillow))
    if flip:
        cv2.flip(resized, 1, dst=out)
    elif resized is not out:
        out[:] = resized
    return out


@njit(nogil=True, cache=True)
def in_integers(filter_: int, height: int, width: int, side: int) -> bool:
    """Check that a crop of `height` by `width` pixels is resized to `side` by `resample`."""
    return filter_ in (draw.BOX, draw.AREA if min(height, width) < side else draw.BOX_1)


def render_views(
    data: bytes,
    key: str,
    spec: ViewSpec,
    wanted: Sequence[tuple[draw.ViewParams, int, U1]],
    reuse: decode.DecodeBuffer | None = None,
    seen: bool = False,
    sides: tuple[int, int] | None = None,
) -> None:
    """Render views of an encoded image, decoded once (with scaled decoding: once per scale).

    Args:
        data: The encoded image.
        key: Name of the sample, for messages.
        spec: The augmentation.
        wanted: For each view: parameters of B views, which of them, and [S, S, 3] to write, with
            an S of its own that the parameters were drawn for.
        reuse: Where to decode to.
        seen: These bytes were decoded as a whole before, so that what no box shows need not be.
        sides: Height and width of the image that the parameters were drawn for, in pixels.

    Raises:
        DataError: The image cannot be decoded.
        CacheMismatch: It has another size, or a box leaves it.
    """
    part = None
    if seen:
        top, left, bottom, right = edges(
            np.array([params.box_B4[row] for params, row, _ in wanted])
        )
        part = int(top), int(left), int(bottom - top), int(right - left)
    crops = [(*params.box_B4[row, 2:].tolist(), len(out)) for params, row, out in wanted]
    scales = [scale_log2(spec, height, width, size) for height, width, size in crops]
    for scale in sorted(set(scales)):
        with decode.decoded(data, key, reuse, scale, part, sides) as picture:
            for (params, row, out), own in zip(wanted, scales, strict=True):
                if own == scale:
                    render(picture, spec, params, row, out, scale, key)


@njit(nogil=True, cache=True)
def edges(box_B4: I4) -> tuple[np.int64, np.int64, np.int64, np.int64]:
    """Top, left, bottom and right of all boxes together: a picture is decoded once for them."""
    top, left = np.int64(box_B4[0, 0]), np.int64(box_B4[0, 1])
    bottom = right = np.int64(0)
    for k in range(box_B4.shape[0]):
        y, x, height, width = box_B4[k]
        top, left = min(top, np.int64(y)), min(left, np.int64(x))
        bottom, right = max(bottom, np.int64(y + height)), max(right, np.int64(x + width))
    return top, left, bottom, right


def scale_log2(spec: ViewSpec, height: int, width: int, size: int = 0) -> int:
    """Compute how often a picture is halved in decoding, 0..3, for a crop of this size.

    `size` is that of the view in pixels; 0: the spec's.
    """
    return int(scale_of(size or spec.size, height, width)) if spec.scaled_decode else 0


@njit(nogil=True, cache=True)
def scale_of(size: int, height: int, width: int) -> int:
    """Compute the most halvings, 0..3, after which a crop has no side below `size` pixels."""
    scale, shorter = 0, min(height, width)
    while scale < 3 and shorter >> (scale + 1) >= size:
        scale += 1
    return scale


@njit(nogil=True, cache=True)
def scaled_box(
    box4: NDArray[np.int32], scale: int, rows: int, columns: int
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a box in a picture that was halved `scale` times to this size."""
    top, left = int(box4[0]), int(box4[1])
    height, width = int(box4[2]), int(box4[3])
    if scale:
        half = 1 << scale >> 1
        top = min(top + half >> scale, rows - 1)
        left = min(left + half >> scale, columns - 1)
        height = min(height + half >> scale, rows - top)
        width = min(width + half >> scale, columns - left)
    return top, left, height, width


def render(
    picture: U1,
    spec: ViewSpec,
    params: draw.ViewParams,
    row: int,
    out: U1,
    scale: int = 0,
    key: str = "",
) -> None:
    """Render view `row` of `params` of a decoded image, [H, W, 3] RGB, into `out`, [S, S, 3].

    The size is that of `out`, whatever the spec's. The picture was halved `scale` times; boxes
    count in pixels of the whole one. `key` names the sample in messages.

    Raises:
        CacheMismatch: The view's box leaves the picture.
        KdcacheError: There is no memory for an operation.
    """
    rows, columns = picture.shape[:2]
    top, left, height, width = params.box_B4[row].tolist()
    if (
        min(top, left) < 0
        or min(height, width) < 1
        or top + height > rows << scale
        or left + width > columns << scale
    ):
        raise CacheMismatch(
            f"the box of a view, {height}×{width} pixels from row {top} and column {left}, leaves "
            f"sample {key!r}, of which {rows << scale}×{columns << scale} pixels are there. Its "
            "views were drawn for a picture of another size: verify the cache (kdcache verify) and "
            "pass the data set it was made from."
        )
    top, left, height, width = scaled_box(params.box_B4[row], scale, rows, columns)
    filter_, flip = int(params.filter_B[row]), bool(params.flip_B[row])
    crop_resize(picture, (top, left, height, width), len(out), filter_, flip, out)
    codes, fill = params.codes_BL[row], np.array(spec.fill, np.uint8)
    if codes.any():
        try:
            kernels.apply(codes, params.arguments_BL6[row], fill, out, np.empty_like(out))
        except MemoryError as error:
            raise KdcacheError(host_memory.shortage(f"render sample {key!r}", error)) from None
    if params.erase_BE8[row, :, 2].any():
        kernels.erase_all(out, params.erase_BE8[row], params.noise_BE2[row])


def fingerprint(view: U1) -> int:
    """64-bit fingerprint of a view's pixels (before mixing): BLAKE2b-8, little endian."""
    digest = hashlib.blake2b(np.ascontiguousarray(view).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
