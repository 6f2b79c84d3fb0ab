"""How fast views are rendered, per core, beside timm's and torchvision's pipelines.

    python -m benchmarks.render [--repeats 5] [--json FILE]

The pictures are JPEGs made from photographs (scikit-image's and scikit-learn's): 500×375 at quality
90 like ImageNet's, and with the short side at 256. Every contestant does the whole way from encoded
bytes to a uint8 array in one thread; contestants take turns, so that a noisy
machine hits all alike, and each figure is the median of the repeats. Absolute figures are this
machine's; ratios travel.
"""

import argparse
import io
import json
import platform
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

from cache_tools import decode, render, samples, views
from cache_tools.spec import ViewSpec

RRC = ViewSpec(size=224, interpolation="box")
A2 = replace(RRC, auto_augment="rand-m7-mstd0.5", mixup=0.1, cutmix=1.0)
COUNT = 96


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


def ours(spec: ViewSpec, encoded: list[bytes]) -> Callable[[], None]:
    """Parameters in one call, then decode and render."""
    ids = np.array([samples.sample_id(f"k{i}") for i in range(len(encoded))], np.uint64)
    sides = np.array([decode.size(data, "k") for data in encoded], np.int32).T
    out = np.empty((spec.size, spec.size, 3), np.uint8)

    reuse = decode.Reuse()

    def run() -> None:
        params = views.draw(spec, ids, sides[0], sides[1], 0)
        for row, data in enumerate(encoded):
            render.views_of(data, "k", spec, [(params, row, out)], reuse)

    return run


def of_pil(transform: Callable[[Image.Image], Any], encoded: list[bytes]) -> Callable[[], None]:
    """A transform of PIL images, after Pillow's decoding."""

    def run() -> None:
        for data in encoded:
            transform(Image.open(io.BytesIO(data)).convert("RGB"))

    return run


def decode_only(encoded: list[bytes]) -> Callable[[], None]:
    """simplejpeg alone: the limit of everything that decodes whole pictures."""

    def run() -> None:
        for data in encoded:
            decode.decode(data, "k")

    return run


def decode_and_resize(encoded: list[bytes]) -> Callable[[], None]:
    """simplejpeg and OpenCV without any of our code: the floor of crop and flip."""

    def run() -> None:
        for data in encoded:
            picture = decode.decode(data, "k")
            cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA)[:, ::-1].copy()

    return run


def timm_a2() -> Callable[[Image.Image], Any]:
    """timm's training transform with its train script's defaults, to a uint8 array."""
    return create_transform(
        224,
        is_training=True,
        auto_augment="rand-m7-mstd0.5",
        interpolation="random",
        use_prefetcher=True,
    )


def contestants(encoded: list[bytes]) -> dict[str, Callable[[], None]]:
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
        "torchvision RRC+flip": of_pil(transforms.Compose(rrc), encoded),
        "timm RRC+flip": of_pil(timm_rrc, encoded),
        "timm A2": of_pil(timm_a2(), encoded),
    }


def measure(encoded: list[bytes], repeats: int) -> dict[str, float]:
    """Median seconds per picture of each contestant, in turns."""
    field = contestants(encoded)
    for run in field.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in field}
    for _ in range(repeats):
        for name, run in field.items():
            begin = time.process_time()
            run()
            seconds[name].append((time.process_time() - begin) / len(encoded))
    return {name: statistics.median(values) for name, values in seconds.items()}


def summary(seconds: dict[str, float]) -> dict[str, Any]:
    """Rates, ratios and shares."""
    rate = {name: round(1 / value, 1) for name, value in seconds.items()}
    return {
        "images_per_second_per_core": rate,
        "A2: ours / timm": round(seconds["timm A2"] / seconds["ours A2"], 2),
        "RRC+flip: ours / torchvision": round(
            seconds["torchvision RRC+flip"] / seconds["ours RRC+flip"], 2
        ),
        "RRC+flip: ours / timm": round(seconds["timm RRC+flip"] / seconds["ours RRC+flip"], 2),
        "share of decode in our RRC+flip": round(seconds["decode"] / seconds["ours RRC+flip"], 2),
        "share of decode in our A2": round(seconds["decode"] / seconds["ours A2"], 2),
        "share of operations in our A2": round(
            1 - seconds["ours RRC+flip"] / seconds["ours A2"], 2
        ),
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
    results["machine"] = {"processor": platform.processor() or platform.machine()}
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
