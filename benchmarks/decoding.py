"""Decoding less: speed gained by scaled decoding and smaller images, and the change of pixels.

    python -m benchmarks.decoding [--repeats 5] [--json FILE]

Three ways to the same views (random resized crop and flip, the crop's mean over areas), on JPEGs
made from photographs (`benchmarks.render`; those of 1000×750 are enlarged, and so smoother than a
camera's):

* "whole": decoded at full size, as views are by default.
* "scaled": `views.scaled_decode=true`: libjpeg decodes at 1/2, 1/4 or 1/8 where the crop keeps at
  least the view's side.
* "short side 256": of images that `kdcache shard --short-side 256 --quality 90` has made smaller.

Pixels are compared with the view of the whole picture: PSNR of the mean squared error over all
views, and the mean absolute difference, of 255. The last way's crop is the same share of a smaller
picture, rounded to its pixels, so that its views are also shifted by up to half a pixel.
CPU time per view; contestants take turns; median and range over the turns.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.render import RRC, pictures
from benchmarks.rounds import ratio
from cache_tools.data import reencode
from cache_tools.render import decode, view
from cache_tools.spec import sample_table
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw

LIBRARIES = ("simplejpeg", "opencv-python-headless", "numba", "numpy")
CASES = (("imagenet", 224), ("imagenet", 128), ("large", 224), ("large", 128))
NAMES = {"imagenet": "500×375", "large": "1000×750"}


class Way:
    """A way to the views of some pictures."""

    def __init__(self, spec: ViewSpec, encoded: list[bytes]) -> None:
        sides = np.array([decode.size(data, "k") for data in encoded], np.int32)
        ids = np.array([sample_table.sample_id(f"k{i}") for i in range(len(encoded))], np.uint64)
        self._params = draw.draw(spec, ids, sides[:, 0], sides[:, 1], 0)
        self._spec, self._encoded, self._reuse = spec, encoded, decode.DecodeBuffer()
        self.views = np.empty((len(encoded), spec.size, spec.size, 3), np.uint8)

    def run(self) -> float:
        """Make all views; CPU seconds for each."""
        begin = time.process_time()
        for row, (data, out) in enumerate(zip(self._encoded, self.views, strict=True)):
            wanted = [(self._params, row, out)]
            view.render_views(data, "k", self._spec, wanted, self._reuse, seen=True)
        return (time.process_time() - begin) / len(self._encoded)


def measure(kind: str, size: int, repeats: int) -> dict[str, Any]:
    """Speed and pixels of all ways at one size of pictures and views."""
    encoded, spec = pictures(kind), replace(RRC, size=size)
    small = [reencode.shrink(data, "k", 256, 90, decode.DecodeBuffer()) for data in encoded]
    ways = {
        "whole": Way(spec, encoded),
        "scaled": Way(replace(spec, scaled_decode=True), encoded),
        "short side 256": Way(spec, small),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            took = way.run()
            if turn:
                seconds[name].append(took)
    wanted = ways["whole"].views.astype(np.float64)
    return {
        name: {
            "µs per view": 1e6 * statistics.median(seconds[name]),
            "over whole": ratio(seconds["whole"], seconds[name]),
            **difference(way.views - wanted),
        }
        for name, way in ways.items()
    }


def difference(error: np.ndarray) -> dict[str, float | None]:
    """PSNR in dB, None when there is no difference, and the mean absolute difference."""
    square = float(np.square(error).mean())
    psnr = 10 * float(np.log10(255**2 / square)) if square else None
    return {"psnr": psnr, "mean difference": float(np.abs(error).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    print("| pictures, views | way | µs per view | speed | PSNR, dB | mean difference |")
    print("|---|---|---|---|---|---|")
    for kind, size in CASES:
        case = f"{NAMES[kind]}, {size} px"
        results[case] = measure(kind, size, options.repeats)
        for name, found in results[case].items():
            psnr = "" if found["psnr"] is None else f"{found['psnr']:.1f}"
            speed = "{median:.2f} ({least:.2f} to {most:.2f})".format(**found["over whole"])
            error = f"{found['mean difference']:.2f}"
            print(f"| {case} | {name} | {found['µs per view']:.0f} | {speed} | {psnr} | {error} |")
    results["machine"] = machine(LIBRARIES)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
