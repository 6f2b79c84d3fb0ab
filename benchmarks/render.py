"""Speed of rendering views, per core, beside timm's and torchvision's pipelines.

    python -m benchmarks.render [--repeats 5] [--json FILE]

The pictures are JPEGs made from photographs (scikit-image's and scikit-learn's): 500×375 at quality
90 like ImageNet's, and with the short side at 256. Every contestant does the whole way from encoded
bytes to a uint8 array in one thread; contestants take turns, so that a noisy
machine hits all alike, and each figure is the median of the repeats. Absolute figures are this
machine's; ratios travel. A rate counts views, not pictures.

Contestants:

* "decode" is simplejpeg alone, "decode, our regions" only what the crop shows, which the shares are
  counted with (`render.turbojpeg`); "decode, resize" adds OpenCV's shrinking of the whole picture
  and a flip, without any of our code.
* "ours" decodes regions and runs our integer kernels on drawn parameters. A2 is
  rand-m7-mstd0.5 (its mixing happens on batches and is in no contestant). Both stages draw a whole
  block's parameters in one call; "draw" is such a call for 65,536 views, and its share per view is
  added to every "ours".
* "torchvision" and "timm" are their transforms on Pillow's images, decoded by Pillow, as their
  training scripts put them together, to a uint8 array.
* "3 repeats" is repeated augmentation: three views of each picture one after another. Ours makes
  them from one decode. timm's opens and decodes the picture for each, since its RepeatAugSampler
  repeats indices outside its data set; so its rate is about that of "timm A2".
* "stage 1" decodes whole pictures, since damage must be found. Stage 2 checks their digests
  instead, and decodes only what the crop shows. With "8 views per
  decode" stage 1 makes a cache of several views. timm has no counterpart.

So the ratio with three repeats compares two ways of doing the same job, and most of it comes from
decoding once; the ratio of single views is the gain of the code alone.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from torchvision import transforms

from benchmarks.machine import machine
from cache_tools.render import decode
from cache_tools.render.view import render_views
from cache_tools.spec import sample_table
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw

RRC = ViewSpec(size=224, interpolation="box")
A2 = replace(RRC, auto_augment="rand-m7-mstd0.5", mixup=0.1, cutmix=1.0)
SIDES = {"imagenet": (500, 375), "short256": (341, 256), "large": (1000, 750)}
"""Width and height in pixels; the sources have 640 at most."""
COUNT = 96
BLOCK = 65_536
LIBRARIES = ("pillow", "timm", "torchvision", "simplejpeg", "opencv-python-headless", "numba")

# what runs once over all pictures, and how many views of each it makes
Contestant = tuple[Callable[[], object], float]


def pictures(kind: str) -> list[bytes]:
    """Encoded crops of photographs, of one of the sizes of SIDES."""
    width, height = SIDES[kind]
    sources = [getattr(skimage.data, n)() for n in ("chelsea", "astronaut", "coffee", "rocket")]
    sources += load_sample_images().images
    random, encoded = np.random.default_rng(0), []
    for i in range(COUNT):
        source = sources[i % len(sources)]
        h = int(random.integers(source.shape[0] // 2, source.shape[0] + 1))
        w = min(source.shape[1], h * width // height)
        top = int(random.integers(0, source.shape[0] - h + 1))
        left = int(random.integers(0, source.shape[1] - w + 1))
        cut = cv2.resize(source[top : top + h, left : left + w], (width, height))
        buffer = io.BytesIO()
        Image.fromarray(cut).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def table(encoded: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Id, height and width of the samples of a block, whose pictures are these again and again."""
    ids = np.array([sample_table.sample_id(f"k{i}") for i in range(BLOCK)], np.uint64)
    sides = np.array([decode.size(data, "k") for data in encoded], np.int32)
    height, width = np.resize(sides, (BLOCK, 2)).T.copy()
    return ids, height, width


def ours(spec: ViewSpec, encoded: list[bytes], count: int = 1, seen: bool = True) -> Contestant:
    """`count` views of each picture, which is decoded once, as stage 2 does it or as stage 1."""
    first = [column[: len(encoded)] for column in table(encoded)]
    params = [draw.draw(spec, *first, view) for view in range(count)]
    out = np.empty((count, spec.size, spec.size, 3), np.uint8)
    reuse = decode.DecodeBuffer()

    def run() -> None:
        for row, data in enumerate(encoded):
            wanted = [(drawn, row, out[view]) for view, drawn in enumerate(params)]
            render_views(data, "k", spec, wanted, reuse, seen)

    return run, count


def drawing(spec: ViewSpec, encoded: list[bytes]) -> Contestant:
    """The parameters of a block's views in one call."""
    columns = table(encoded)
    return lambda: draw.draw(spec, *columns, 0), BLOCK / len(encoded)


def of_pil(
    transform: Callable[[Image.Image], Any], encoded: list[bytes], count: int = 1
) -> Contestant:
    """A transform of PIL images, each time after Pillow's decoding."""

    def run() -> None:
        for data in encoded:
            for _ in range(count):
                transform(Image.open(io.BytesIO(data)).convert("RGB"))

    return run, count


def decode_only(encoded: list[bytes]) -> Contestant:
    """Decode with simplejpeg alone: the limit of everything that decodes whole pictures."""

    def run() -> None:
        for data in encoded:
            decode.decode(data, "k")

    return run, 1


def decode_our_regions(encoded: list[bytes]) -> Contestant:
    """Decode as our stage 2 does: into the same memory, only what the crop shows."""
    drawn = draw.draw(A2, *(column[: len(encoded)] for column in table(encoded)), 0)
    boxes, reuse = [(*box,) for box in drawn.box_B4.tolist()], decode.DecodeBuffer()

    def run() -> None:
        for data, box in zip(encoded, boxes, strict=True):
            decode.decode(data, "k", reuse, box=box)

    return run, 1


def decode_and_resize(encoded: list[bytes]) -> Contestant:
    """simplejpeg and OpenCV: the whole picture shrunk to the view, flipped, none of our code."""

    def run() -> None:
        for data in encoded:
            picture = decode.decode(data, "k")
            cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA)[:, ::-1].copy()

    return run, 1


def timm_a2() -> Callable[[Image.Image], Any]:
    """timm's training transform with its train script's defaults, to a uint8 array."""
    return create_transform(
        224,
        is_training=True,
        auto_augment="rand-m7-mstd0.5",
        interpolation="random",
        use_prefetcher=True,
    )


def contestants(encoded: list[bytes]) -> dict[str, Contestant]:
    """Contestants by name."""
    rrc = [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    timm_rrc = create_transform(224, is_training=True, color_jitter=0.0, use_prefetcher=True)
    return {
        "draw RRC+flip": drawing(RRC, encoded),
        "draw A2": drawing(A2, encoded),
        "decode": decode_only(encoded),
        "decode, our regions": decode_our_regions(encoded),
        "decode, resize": decode_and_resize(encoded),
        "ours RRC+flip": ours(RRC, encoded),
        "ours A2": ours(A2, encoded),
        "ours A2, 3 repeats": ours(A2, encoded, 3),
        "ours A2, stage 1": ours(A2, encoded, seen=False),
        "ours A2, stage 1, 8 views per decode": ours(A2, encoded, 8, seen=False),
        "torchvision RRC+flip": of_pil(transforms.Compose(rrc), encoded),
        "timm RRC+flip": of_pil(timm_rrc, encoded),
        "timm A2": of_pil(timm_a2(), encoded),
        "timm A2, 3 repeats": of_pil(timm_a2(), encoded, 3),
    }


def measure(encoded: list[bytes], repeats: int) -> dict[str, float]:
    """Median seconds per view of each contestant, in turns."""
    field = contestants(encoded)
    for run, _ in field.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in field}
    for _ in range(repeats):
        for name, (run, count) in field.items():
            begin = time.process_time()
            run()
            seconds[name].append((time.process_time() - begin) / len(encoded) / count)
    result = {name: statistics.median(values) for name, values in seconds.items()}
    for name in result:
        if name.startswith("ours"):
            result[name] += result["draw A2" if "A2" in name else "draw RRC+flip"]
    return result


# how many times the seconds of the second name go into those of the first
RATIOS = {
    "A2: ours / timm": ("timm A2", "ours A2"),
    "A2 with 3 repeats: ours / timm": ("timm A2, 3 repeats", "ours A2, 3 repeats"),
    "RRC+flip: ours / torchvision": ("torchvision RRC+flip", "ours RRC+flip"),
    "RRC+flip: ours / timm": ("timm RRC+flip", "ours RRC+flip"),
    "share of decode in our RRC+flip": ("decode, our regions", "ours RRC+flip"),
    "share of decode in our A2": ("decode, our regions", "ours A2"),
}


def summary(seconds: dict[str, float]) -> dict[str, Any]:
    """Rates, ratios of rates, and shares of the time of our A2."""
    a2, rrc = seconds["ours A2"], seconds["ours RRC+flip"]
    return {
        "images_per_second_per_core": {n: round(1 / value, 1) for n, value in seconds.items()},
        **{name: round(seconds[a] / seconds[b], 2) for name, (a, b) in RATIOS.items()},
        "share of resize in our A2": round((rrc - seconds["decode, our regions"]) / a2, 2),
        "share of operations in our A2": round(1 - rrc / a2, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results = {
        kind: summary(measure(pictures(kind), options.repeats)) for kind in ("imagenet", "short256")
    }
    results["machine"] = machine(LIBRARIES)
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
