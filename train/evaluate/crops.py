"""Images of an evaluation: as timm's validate.py prepares them, or the training loop's faster crop.

`kdcache eval` uses timm's transform: Pillow resizes the whole image, then the centre is cropped.
The training loop cuts the same centre out of the original and resizes it once by the mean over an
area, like the views: one resize of fewer pixels, in compiled code. Networks of different input
sizes share the decoding.

Shapes: B images, S pixels a side.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform

from cache_tools.data.images import ImageDataset
from cache_tools.numerics.array_types import U1
from cache_tools.render import decode, view
from cache_tools.runtime import threads
from cache_tools.views import draw

BATCH = 64
INTERPOLATION = "bicubic"
"""timm's name nearest to the mean over areas: from 512 to 224 pixels the images differ by 0.9 of
255, with bilinear by 1.1, and with box, which splits no pixel, by 1.5."""
_OF_PUBLISHED = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes")
"""timm's keys of the architecture's published weights, which are not these."""


@dataclass(frozen=True)
class Frame:
    """Size and centre crop of a network's input, in the training loop."""

    size: int
    """S, pixels a side."""
    crop: float
    """Share of the shorter side that the crop keeps."""

    def cropped(self, image: U1) -> U1:
        """Cut the centre out of [H, W, 3] and resize it to [S, S, 3]."""
        height, width = image.shape[:2]
        return view.crop_resize(image, draw.center(height, width, self.crop), self.size)


@dataclass(frozen=True)
class TimmFrame(Frame):
    """Preprocessing of timm's validate.py but for the normalisation."""

    interpolation: str
    """Filter of Pillow, by timm's name."""
    crop_mode: str
    """timm's: center, squash or border."""
    mean: tuple[float, float, float]
    """Colour of the border, of 0..1."""

    def cropped(self, image: U1) -> U1:
        """Resize [H, W, 3] and cut the centre out of it, to [S, S, 3]."""
        pixels: U1 = _transform(self)(Image.fromarray(image)).permute(1, 2, 0).numpy()
        return pixels


@cache
def _transform(frame: TimmFrame) -> Any:
    """Transform of timm to a tensor of bytes."""
    return create_transform(
        (3, frame.size, frame.size),
        use_prefetcher=True,
        interpolation=frame.interpolation,
        mean=frame.mean,
        crop_pct=frame.crop,
        crop_mode=frame.crop_mode,
    )


def preprocessing(known: dict[str, Any], frame: Frame, size: int) -> dict[str, Any]:
    """Timm's `pretrained_cfg` of a network trained at `size` pixels and measured on such crops."""
    test = {"test_input_size": (3, frame.size, frame.size), "fixed_input_size": False}
    test = {} if frame.size == size else test
    dropped = (*_OF_PUBLISHED, "test_input_size", "test_crop_pct", "pool_size", "test_pool_size")
    return {name: value for name, value in known.items() if name not in dropped} | {
        "input_size": (3, size, size),
        **test,
        "interpolation": INTERPOLATION,
        "crop_pct": frame.crop,
        "crop_mode": "center",
    }


def batches(images: ImageDataset, frames: Sequence[Frame]) -> Iterator[tuple[slice, list[U1]]]:
    """Numbers and pixels [B, S, S, 3] for each frame of every batch, one batch ahead."""

    def cropped(number: int) -> list[U1]:
        image = images.pixels(number)
        if image is None:
            image = decode.decode(images.read(number), images.names[number])
        return [frame.cropped(image) for frame in frames]

    numbers = [slice(b, min(b + BATCH, len(images))) for b in range(0, len(images), BATCH)]
    with ThreadPoolExecutor(threads.cpu_count()) as pool:
        ahead = [pool.submit(cropped, i) for i in range(len(images))[numbers[0]]] if numbers else []
        for here, following in zip(numbers, [*numbers[1:], slice(0)], strict=True):
            batch = ahead
            ahead = [pool.submit(cropped, i) for i in range(len(images))[following]]
            yield here, [np.stack(of) for of in zip(*(f.result() for f in batch), strict=True)]
