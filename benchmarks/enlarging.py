"""Enlarged crops: a teacher's predictions by the way of resampling, and its price.

    python -m benchmarks.enlarging FOLDER [--pictures 1000] [--repeats 5] [--json FILE]

FOLDER contains JPEG photographs. The boxes are those of `vanillakd-a2` (random resized crops to
224 pixels), one for each photograph. Divergence: KL of the teacher's probabilities
(lite0-imagenet, the extra [lite]) for Pillow's bicubic, as timm renders, to those for each other
filter, by the growth of the axis that grows more: "box" as the renderers kernels-2 and kernels-1
have it, and Pillow's bilinear. Speed: CPU time of decode, crop and resize of all views by
kernels-1 over that by kernels-2, which take turns; median and range over the turns.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.machine import machine
from benchmarks.render import RRC
from benchmarks.rounds import ratio, shown
from cache_tools.render import decode, view
from cache_tools.spec import sample_table
from cache_tools.views import draw
from pipeline.teacher import lite

LIBRARIES = ("pillow", "simplejpeg", "opencv-python-headless", "numba", "torch", "timm")
WAYS = {"kernels-1": draw.BOX_1, "kernels-2": draw.BOX, "bilinear": draw.BILINEAR}
BINS = ((0.0, 1.0), (1.0, 1.5), (1.5, 2.0), (2.0, np.inf))
GOALS = {"all": 0.015, "beyond ×2": 0.07, "speed": 0.97}
_BATCH = 50


def boxes(encoded: list[bytes]) -> NDArray[np.int32]:
    """[B, 4] crops of view 0, one for each picture."""
    sides = np.array([decode.size(data, "k") for data in encoded], np.int32)
    ids = np.array([sample_table.sample_id(f"k{i}") for i in range(len(encoded))], np.uint64)
    return draw.draw(RRC, ids, sides[:, 0], sides[:, 1], 0).box_B4


def rendered(encoded: list[bytes], box_B4: NDArray[np.int32], filter_: int) -> NDArray[np.uint8]:
    """[B, S, S, 3] crops resized by one filter."""
    out = np.empty((len(encoded), RRC.size, RRC.size, 3), np.uint8)
    for data, box, row in zip(encoded, box_B4.tolist(), out, strict=True):
        view.crop_resize(decode.decode(data, "k"), tuple(box), RRC.size, filter_, out=row)
    return out


def log_probabilities(network: torch.nn.Module, views: NDArray[np.uint8]) -> torch.Tensor:
    """[B, C] of the teacher."""
    found = []
    with torch.inference_mode():
        for begin in range(0, len(views), _BATCH):
            pixels = torch.from_numpy(views[begin : begin + _BATCH]).permute(0, 3, 1, 2)
            found.append(network((pixels.float() / 255 - 0.5) / 0.5).log_softmax(1))
    return torch.cat(found)


def divergence(encoded: list[bytes], box_B4: NDArray[np.int32]) -> dict[str, Any]:
    """KL to Pillow's bicubic for each way, in all and by growth."""
    network = lite.load().eval()
    wanted = log_probabilities(network, rendered(encoded, box_B4, draw.BICUBIC))
    growth = RRC.size / box_B4[:, 2:].min(1)
    result: dict[str, Any] = {}
    for name, filter_ in WAYS.items():
        found = log_probabilities(network, rendered(encoded, box_B4, filter_))
        kl = F.kl_div(found, wanted, reduction="none", log_target=True).sum(1).numpy()
        agree = (found.argmax(1) == wanted.argmax(1)).numpy()
        result[name] = {"all": float(kl.mean()), "agreement": float(agree.mean())}
        for low, high in BINS:
            inside = (growth > low) & (growth <= high)
            label = f"beyond ×{low:g}" if high == np.inf else f"to ×{high:g}"
            result[name][label] = float(kl[inside].mean()) if inside.any() else None
            result[name][f"share {label}"] = float(inside.mean())
    return result


def speed(encoded: list[bytes], box_B4: NDArray[np.int32], repeats: int) -> dict[str, Any]:
    """CPU time of the first renderer over that of the second."""
    seconds: dict[str, list[float]] = {"kernels-1": [], "kernels-2": []}
    for turn in range(repeats + 1):
        for name, taken in seconds.items():
            begin = time.process_time()
            rendered(encoded, box_B4, WAYS[name])
            if turn:
                taken.append(time.process_time() - begin)
    return ratio(seconds["kernels-1"], seconds["kernels-2"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = sorted(f for f in options.folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
    encoded = [file.read_bytes() for file in files[: options.pictures]]
    box_B4 = boxes(encoded)
    kl, fast = divergence(encoded, box_B4), speed(encoded, box_B4, options.repeats)
    for name, row in kl.items():
        print(name, {k: None if v is None else round(v, 4) for k, v in row.items()})
    print(f"speed, kernels-2 over kernels-1: {shown(fast, 3)}")
    reached = {
        "all": kl["kernels-2"]["all"] <= GOALS["all"],
        "beyond ×2": (kl["kernels-2"]["beyond ×2"] or 0.0) <= GOALS["beyond ×2"],
        "speed": fast["median"] >= GOALS["speed"],
    }
    print({goal: "reached" if ok else "missed" for goal, ok in reached.items()})
    if options.json:
        facts = {"pictures": len(encoded), "divergence": kl, "speed": fast, "goals": GOALS}
        text = json.dumps({**facts, "machine": machine(LIBRARIES)}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
