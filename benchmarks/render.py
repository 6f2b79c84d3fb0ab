"""How fast views are rendered, per core, beside timm's and torchvision's pipelines.

    python -m benchmarks.render [--repeats 5] [--json FILE]

The pictures are JPEGs made from photographs (scikit-image's and scikit-learn's): 500×375 at quality
90 like ImageNet's, and with the short side at 256. Every contestant does the whole way from encoded
bytes to a uint8 array in one thread; contestants take turns, so that a noisy
machine hits all alike, and each figure is the median of the repeats. Absolute figures are this
machine's; ratios travel. A rate counts views, not pictures.

What each contestant is:

* "decode" is simplejpeg alone; "decode, resize" adds OpenCV's shrinking of the whole picture and a
  flip, without any of our code.
* "ours" draws the parameters of all views in one call, decodes with simplejpeg and runs our integer
  kernels. A2 is rand-m7-mstd0.5 (its mixing happens on batches and is in no contestant).
* "torchvision" and "timm" are their transforms on Pillow's images, decoded by Pillow, as their
  training scripts put them together, to a uint8 array.
* "3 repeats" is repeated augmentation: three views of each picture one after another. Ours makes
  them from one decode. timm's opens and decodes the picture for each, since its RepeatAugSampler
  repeats indices and its data set knows nothing of that; so its rate is about that of "timm A2".
* "8 views per decode" is how stage 1 makes a cache of several views. timm has no counterpart.

So the ratio with three repeats compares two ways of doing the same job, and most of it comes from
decoding once; the ratio of single views says what the code alone gains.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
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

from cache_tools import decode, render, samples, views
from cache_tools.spec import ViewSpec

RRC = ViewSpec(size=224, interpolation="box")
A2 = replace(RRC, auto_augment="rand-m7-mstd0.5", mixup=0.1, cutmix=1.0)
COUNT = 96
LIBRARIES = ("pillow", "timm", "torchvision", "simplejpeg", "opencv-python-headless", "numba")

# what runs once over all pictures, and how many views of each it makes
Contestant = tuple[Callable[[], None], int]


def pictures(kind: str) -> list[bytes]:
    """Encoded crops of photographs, 500×375 ("imagenet") or 341×256 ("short256")."""
    width, height = (500, 375) if kind == "imagenet" else (341, 256)
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


def ours(spec: ViewSpec, encoded: list[bytes], count: int = 1) -> Contestant:
    """Parameters of `count` views in as many calls; each picture is decoded once and rendered."""
    ids = np.array([samples.sample_id(f"k{i}") for i in range(len(encoded))], np.uint64)
    sides = np.array([decode.size(data, "k") for data in encoded], np.int32).T
    out = np.empty((count, spec.size, spec.size, 3), np.uint8)
    reuse = decode.Reuse()

    def run() -> None:
        params = [views.draw(spec, ids, sides[0], sides[1], view) for view in range(count)]
        for row, data in enumerate(encoded):
            wanted = [(drawn, row, out[view]) for view, drawn in enumerate(params)]
            render.views_of(data, "k", spec, wanted, reuse)

    return run, count


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
    """simplejpeg alone: the limit of everything that decodes whole pictures."""

    def run() -> None:
        for data in encoded:
            decode.decode(data, "k")

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
    """What is measured, by name."""
    rrc = [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    timm_rrc = create_transform(224, is_training=True, color_jitter=0.0, use_prefetcher=True)
    return {
        "decode": decode_only(encoded),
        "decode, resize": decode_and_resize(encoded),
        "ours RRC+flip": ours(RRC, encoded),
        "ours A2": ours(A2, encoded),
        "ours A2, 3 repeats": ours(A2, encoded, 3),
        "ours A2, 8 views per decode": ours(A2, encoded, 8),
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
    return {name: statistics.median(values) for name, values in seconds.items()}


# how many times the seconds of the second name go into those of the first
RATIOS = {
    "A2: ours / timm": ("timm A2", "ours A2"),
    "A2 with 3 repeats: ours / timm": ("timm A2, 3 repeats", "ours A2, 3 repeats"),
    "RRC+flip: ours / torchvision": ("torchvision RRC+flip", "ours RRC+flip"),
    "RRC+flip: ours / timm": ("timm RRC+flip", "ours RRC+flip"),
    "share of decode in our RRC+flip": ("decode", "ours RRC+flip"),
    "share of decode in our A2": ("decode", "ours A2"),
}


def summary(seconds: dict[str, float]) -> dict[str, Any]:
    """Rates, ratios of rates, and shares of the time of our A2."""
    a2, rrc = seconds["ours A2"], seconds["ours RRC+flip"]
    return {
        "images_per_second_per_core": {n: round(1 / value, 1) for n, value in seconds.items()},
        **{name: round(seconds[a] / seconds[b], 2) for name, (a, b) in RATIOS.items()},
        "share of resize in our A2": round((rrc - seconds["decode"]) / a2, 2),
        "share of operations in our A2": round(1 - rrc / a2, 2),
    }


def machine() -> dict[str, Any]:
    """The processor, by its model's name where Linux tells it, and the libraries measured."""
    described, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    for line in described.read_text().splitlines() if described.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
    versions = {library: version(library) for library in LIBRARIES}
    return {"processor": name, "cores": os.cpu_count(), "versions": versions}


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
    results["machine"] = machine()
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
