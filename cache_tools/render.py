"""Encoded image → uint8 view: decode, crop-resize, flip, affine. One function for both stages.

JPEG is decoded by libjpeg-turbo with the accurate DCT (Pillow, OpenCV and torchvision give the same
bits), everything else by Pillow. The crop is resized by OpenCV's INTER_AREA, whose bits have not
changed from 4.6 to 5.0; then flip, then affine. Augmentation is in uint8 RGB and nothing depends on
a model's mean or std.
"""

import hashlib
import io
from importlib.metadata import version

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from cache_tools import kernels, views
from cache_tools.errors import DataError
from cache_tools.spec import ViewSpec

U1 = NDArray[np.uint8]
MAX_PIXELS = 2**28
"""An image of more pixels than this is refused before it is decoded."""

cv2.setNumThreads(
    1
)  # callers render many images in parallel; threads within one only get in the way


def versions() -> dict[str, str]:
    """Versions of the libraries that make pixels, as commit records keep them."""
    packages = ("simplejpeg", "opencv-python-headless", "pillow", "numba", "numpy")
    return {name: version(name) for name in packages}


def size(data: bytes, key: str) -> tuple[int, int]:
    """Height and width of an encoded image in pixels, read from its header.

    Raises:
        DataError: Not an image, or one of absurd size; `key` names it.
    """
    try:
        if simplejpeg.is_jpeg(data):
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
        else:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _undecodable(key, error) from None
    if height * width > MAX_PIXELS:
        raise DataError(f"sample {key!r} has {width}×{height} pixels; {MAX_PIXELS} is the limit.")
    return height, width


def decode(data: bytes, key: str) -> U1:
    """Decode an image to [H, W, 3] RGB; DataError names the sample when that fails."""
    size(data, key)
    try:
        if simplejpeg.is_jpeg(data) and simplejpeg.decode_jpeg_header(data)[2] != "CMYK":
            return np.asarray(
                simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
            )
        with Image.open(io.BytesIO(data)) as image:
            rgba = image.convert("RGBA") if image.mode in ("P", "PA", "LA") else image
            return np.array(rgba.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise _undecodable(key, error) from None


def crop_resize(picture: U1, box: tuple[int, int, int, int], side: int) -> U1:
    """Cut top, left, height, width out of [H, W, 3] and resize it to [side, side, 3]."""
    top, left, height, width = box
    cut = picture[top : top + height, left : left + width]
    return np.asarray(cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def render(picture: U1, spec: ViewSpec, params: views.Views, row: int, out: U1) -> None:
    """Render one view.

    Args:
        picture: Decoded image, [H, W, 3] RGB.
        spec: The augmentation.
        params: Parameters of B views.
        row: Which of them.
        out: [size, size, 3], written.
    """
    top, left, height, width = (int(v) for v in params.box_B4[row])
    view = crop_resize(picture, (top, left, height, width), spec.size)
    if params.flip_B[row]:
        view = view[:, ::-1]
    if params.affine_B6 is None:
        out[:] = view
    else:
        fill = np.array(spec.fill, dtype=np.uint8)
        kernels.affine(np.ascontiguousarray(view), params.affine_B6[row], fill, out)


def fingerprint(view: U1) -> int:
    """64-bit fingerprint of a view's pixels (before mixing): BLAKE2b-8, little endian."""
    digest = hashlib.blake2b(np.ascontiguousarray(view).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _undecodable(key: str, error: Exception) -> DataError:
    return DataError(
        f"sample {key!r} cannot be decoded ({error}). Repair or remove this image; "
        "a cache never contains an image it could not read."
    )
