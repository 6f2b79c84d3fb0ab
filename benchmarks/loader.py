"""Images per second and core of our loaders, beside FFCV's, torchvision's, timm's and WebDataset's.

    python -m benchmarks.loader [--repeats 5] [--samples 1024] [--json FILE]

It needs `make ffcv`. The pictures are JPEGs made from photographs (`benchmarks.render`), 500×375 at
quality 90 like ImageNet's, and with the short side at 256. The contestants (`benchmarks.pipelines`)
take turns of one whole epoch, each round beginning with another one, so that a noisy machine hits
all alike; each has had an epoch to compile and to start its workers before. Two clocks: CPU seconds
of the process and its workers, of which the rates per core are made, and wall seconds, which other
programs disturb. Ratios are taken within a round; figures are the median and range over the rounds.

"Beside the pixels" is the loader's work on a cached run beside the pixels (`benchmarks.beside`), as
a share of a view's CPU time in the native loader on the same augmentation.
"""

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import webdataset

from benchmarks import beside, pipelines
from benchmarks.machine import machine
from benchmarks.render import pictures
from benchmarks.rounds import Figure, ratio, shown, spread
from benchmarks.seats import Seat, Turn
from cache_tools.data import beton
from cache_tools.data.open import open_images
from pipeline import recipe as recipes
from pipeline.run import run

KINDS = {"imagenet": "500×375, quality 90", "short256": "short side 256"}
SHARDS = 4
CACHES = {"rrc": [], "a2": [f"views.auto_augment={pipelines.A2}", "views.cutmix=1.0"]}
PROCESSES: tuple[dict[str, pipelines.Make], ...] = (
    {
        "native": pipelines.native,
        "ffcv replay": pipelines.ffcv_replay,
        "ffcv replay, raw": partial(pipelines.ffcv_replay, raw=True),
        "native, A2": partial(pipelines.native, cache="a2"),
        "native, A2, 3 repeats": partial(pipelines.native, cache="a2", repeats=3),
        "ffcv replay, A2": partial(pipelines.ffcv_replay, cache="a2"),
    },
    {"FFCV": pipelines.ffcv_own, "FFCV, raw": partial(pipelines.ffcv_own, raw=True)},
    {
        "torchvision": pipelines.torchvision,
        "torchvision, tensors": partial(pipelines.torchvision, tensors=True),
        "timm": pipelines.timm,
        "WebDataset": pipelines.webdataset,
        "torchvision, A2": partial(pipelines.torchvision, auto_augment=True),
        "timm, A2": partial(pipelines.timm, auto_augment=pipelines.A2),
    },
)
"""Who shares a process, by name."""
GOALS = (
    ("ffcv replay", "FFCV", 1.1),
    ("ffcv replay, raw", "FFCV", 2.3),
    ("native", "FFCV", 1.25),
    ("native", "torchvision", 1.6),
    ("native, A2", "timm, A2", 3.0),
)
"""Whose rate per core is to be at least so many times whose."""
MOST_BESIDE = 0.01
LIBRARIES = (
    *("torch", "torchvision", "timm", "webdataset", "ffcv", "numba", "numpy"),
    *("simplejpeg", "opencv-python-headless", "pillow"),
)


def prepare(kind: str, count: int, folder: Path) -> None:
    """The pictures as shards, as a folder and as betons, and caches of them."""
    encoded, tars = pictures(kind), folder / "tars"
    tars.mkdir(parents=True)
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(tars / f"photos-train-{shard:04d}.tar")) as tar:
            for i in range(shard, count, SHARDS):
                data, label = encoded[i % len(encoded)], i % 10
                tar.write({"__key__": f"{i:05d}", "jpg": data, "cls": str(label).encode()})
                where = folder / f"folder/class{label}"
                where.mkdir(parents=True, exist_ok=True)
                (where / f"{i:05d}.jpg").write_bytes(data)
    images = open_images(str(tars), "train")
    for name, raw in (("jpeg", False), ("raw", True)):
        beton.write(images, folder / f"{name}.beton", raw, 2, lambda _: None)
    small = ["num_views=3", "views.teacher_size=32", "targets.tau=0.0", "targets.k_max=20"]
    small += ["views.mixup=0.0", "views.scale=[0.08,1.0]", "views.pair_views=3"]
    for name, own in CACHES.items():
        recipe = recipes.load("photos", [*small, *own])
        run(recipe, str(tars), "test_resnet", folder / f"{name}.zarr", "cpu", random_weights=True)


def compete(folder: Path, seats: dict[str, Seat], repeats: int) -> dict[str, list[Turn]]:
    """Turns of all contestants."""
    names = list(seats)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for epoch in range(repeats + 1):
        first = epoch % len(names)
        for name in names[first:] + names[:first]:
            turn = seats[name].turn(folder, name, epoch)
            if epoch:  # the first one compiles
                turns[name].append(turn)
    return turns


def summary(turns: dict[str, list[Turn]], apart: dict[str, float]) -> dict[str, Any]:
    """Rates, ratios and the goals reached."""
    view = statistics.median(turn.cpu for turn in turns["native, A2"])
    share = sum(apart.values()) / view
    reached = {
        f"{ours} at least {least} × {theirs}": (per_core(turns, ours, theirs), least)
        for ours, theirs, least in GOALS
    }
    return {
        "images per second per core": {
            name: spread(1 / turn.cpu for turn in each) for name, each in turns.items()
        },
        "images per second": {
            name: spread(1 / turn.wall for turn in each) for name, each in turns.items()
        },
        "per core, over FFCV": {name: per_core(turns, name, "FFCV") for name in turns},
        "beside the pixels": {name: value / view for name, value in apart.items()} | {"all": share},
        "goals": {
            **{goal: {**found, "held": found["median"] >= least}
               for goal, (found, least) in reached.items()},
            f"beside the pixels below {MOST_BESIDE:.0%}": {"held": share < MOST_BESIDE},
        },
    }  # fmt: skip


def per_core(turns: dict[str, list[Turn]], ours: str, theirs: str) -> Figure:
    """Ratio of two contestants' views per CPU second, round by round."""
    return ratio([turn.cpu for turn in turns[theirs]], [turn.cpu for turn in turns[ours]])


def table(kind: str, result: dict[str, Any]) -> Iterator[str]:
    """One kind of pictures in Markdown."""
    yield f"| {KINDS[kind]} | images/s per core | over FFCV's | images/s |"
    yield "|---|---|---|---|"
    for name, rate in result["images per second per core"].items():
        over, wall = result["per core, over FFCV"][name], result["images per second"][name]
        yield f"| {name} | {shown(rate, 0)} | {shown(over, 2)} | {shown(wall, 0)} |"
    parts = (f"{name} {share:.2%}" for name, share in result["beside the pixels"].items())
    yield f"\nbeside the pixels: {', '.join(parts)}"
    for goal, found in result["goals"].items():
        figure = f": {shown(found, 2)}" if "median" in found else ""
        yield f"{'PASS' if found['held'] else 'FAIL'}  {goal}{figure}"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.ERROR)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        apart = beside.seconds(work / "block")
        started = [(Seat(names), names) for names in PROCESSES]
        seats = {name: seat for seat, names in started for name in names}
        try:
            for kind in KINDS:
                prepare(kind, options.samples, work / kind)
                results[kind] = summary(compete(work / kind, seats, options.repeats), apart)
                print("\n".join(table(kind, results[kind])), flush=True)
        finally:
            for seat, _ in started:
                seat.close()
    results |= {"repeats": options.repeats, "samples": options.samples}
    results["machine"] = machine(LIBRARIES)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
