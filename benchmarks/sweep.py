"""Cost of training S students at once: a cohort beside S separate runs, and beside online.

    python -m benchmarks.sweep [--repeats 5] [--json FILE]

Cohorts of 1, 2, 4 and 8 students are `train.trainer.loop.train_cohort` itself, in turns, each time
from another size on, so that a noisy machine hits all alike; the first steps of a turn, in which
the loader fills and libraries warm up, are not counted. S separate runs cost S times a cohort of
one; ratios are taken within a turn, and their median and range over the turns are reported.

* "loader-bound": views of 224 px with RandAugment, mixup and cutmix (recipe vanillakd-a2) of JPEGs
  of 500×375, and a student that is next to nothing: a linear layer on every 28th pixel. Decoding
  and augmenting is what a cohort shares, so S students cost little more than one.
* "student-bound": views of 32 px and timm's test_resnet. Nothing is to be saved here: S students
  cost what S separate ones do.

The bar: loader-bound, four students cost at most 1.5 times one. Its clock is the CPU time of all
threads, which is independent of other programs; wall time is reported beside it.

"online" is the cost of a sweep measured at small scale: four students of test_efficientnet on views
of 32 px, in a cohort from the cache with the making of the cache counted in, against the four with
the teacher (test_resnet) in the loop, one after another and in a cohort. Forward passes are
counted.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import torch
from numpy.typing import NDArray
from timm.models import register_model
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.pairs import Bench, Pair, prepare
from benchmarks.replay import LIBRARIES, Clock, Turn
from benchmarks.rounds import shown, spread
from cache_tools.runtime import progress
from train import run_dir
from train.trainer import loop

SIZES = (1, 2, 4, 8)
BAR = 1.5
"""Most that four loader-bound students may cost of what one costs."""
CPU = torch.device("cpu")
HEAVY = (
    "views.auto_augment=rand-m7-mstd0.5",
    "views.mixup=0.1",
    "views.cutmix=1.0",
)
BOUNDS = {
    "loader-bound": Pair(
        "bench_glance",
        "test_resnet",
        224,
        batch=32,
        steps=12,
        warmup=5,
        short_side=375,
        views=HEAVY,
    ),
    "student-bound": Pair(
        "test_resnet", "test_resnet", 32, batch=32, steps=24, warmup=4, short_side=48
    ),
}
ONLINE = Pair("test_efficientnet", "test_resnet", 32, batch=32, steps=40, warmup=4, short_side=48)


class Glance(nn.Module):
    """A linear layer on every 28th pixel of every 28th row: a student that costs nothing."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, 3 * 8 * 8
        self.head = nn.Linear(self.num_features, num_classes)
        self.pretrained_cfg = {
            "architecture": "bench_glance",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": num_classes,
        }

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x[:, :, ::28, ::28].flatten(1))
        return logits


@register_model
def bench_glance(pretrained: bool = False, num_classes: int = 1000, **_: Any) -> nn.Module:
    return Glance(num_classes)


def turn(bench: Bench, count: int, ask: Any = None) -> Turn:
    """Train a cohort of `count` students for a turn; the costs are per batch's image."""
    clock = Clock(bench)
    mode = "kd" if ask is None else "online"
    with tempfile.TemporaryDirectory() as folder:
        students = [
            (Path(folder) / str(i), replace(bench.recipe, lr=1e-4 * (i + 1), mode=mode))
            for i in range(count)
        ]
        for out, recipe in students:
            run_dir.init_run(out, recipe, bench.inputs, fresh=False)
        with mock.patch.object(progress, "bar", clock.bar):
            results = loop.train_cohort(students, bench.inputs, bench.device, ask)
    result = results[0]
    assert isinstance(result, dict)
    return clock.turn(result["data_wait"])


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """All sizes, in turns."""
    turns: dict[int, list[Turn]] = {size: [] for size in SIZES}
    for repeat in range(repeats):
        first = repeat % len(SIZES)
        for size in SIZES[first:] + SIZES[:first]:
            turns[size].append(turn(bench, size))
        print(f"{bench.pair.name}: turn {repeat + 1} of {repeats}", file=sys.stderr)
    return {
        "pair": bench.pair.name,
        "seconds per image, one student": {
            clock: spread([getattr(t, clock) for t in turns[1]]) for clock in ("wall", "cpu")
        },
        "cohort / one": {size: _ratios(turns, size, 1) for size in SIZES},
        "cohort / separate runs": {size: _ratios(turns, size, size) for size in SIZES},
        "data wait": {size: spread([t.wait for t in turns[size]])["median"] for size in SIZES},
    }


def _ratios(turns: dict[int, list[Turn]], size: int, runs: int) -> dict[str, dict[str, float]]:
    pairs = list(zip(turns[size], turns[1], strict=True))
    return {
        clock: spread([getattr(a, clock) / (runs * getattr(b, clock)) for a, b in pairs])
        for clock in ("wall", "cpu")
    }


class Counted:
    """The teacher in the loop, its forward passes counted."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask
        self.views = 0

    def __call__(self, pixels: NDArray[Any], *rest: Any) -> Any:
        self.views += len(pixels)
        return self._ask(pixels, *rest)


def against_online(folder: Path, students: int = 4) -> dict[str, Any]:
    """Measure the cost of a sweep: whole runs, all of them in this process."""
    begin = time.perf_counter(), time.process_time()
    bench = prepare(ONLINE, CPU, folder)
    made = _since(begin)
    cached = _timed(lambda: _whole(bench, students))
    separate, shared = Counted(bench.ask), Counted(bench.ask)
    apart = _timed(lambda: [_whole(bench, 1, separate) for _ in range(students)])
    together = _timed(lambda: _whole(bench, students, shared))
    return {
        "pair": ONLINE.name,
        "students": students,
        "teacher forwards": {
            "cache": len(bench.inputs.store.table) * bench.inputs.store.num_views,
            "online": separate.views,
            "online, cohort": shared.views,
        },
        "seconds": {
            "data and cache, made once": made,
            "cohort from the cache": cached,
            "online, one after another": apart,
            "online, cohort": together,
        },
    }


def _whole(bench: Bench, count: int, ask: Any = None) -> None:
    """Four epochs, from one view of the cache."""
    longer = replace(bench, recipe=replace(bench.recipe, epochs=4))
    with mock.patch.object(Clock, "turn", lambda self, waited: None):
        turn(longer, count, ask)


def _since(begin: tuple[float, float]) -> dict[str, float]:
    return {"wall": time.perf_counter() - begin[0], "cpu": time.process_time() - begin[1]}


def _timed(work: Callable[[], object]) -> dict[str, float]:
    begin = time.perf_counter(), time.process_time()
    work()
    return _since(begin)


def table(results: dict[str, Any]) -> Iterator[str]:
    """The results in Markdown."""
    for name, found in results.items():
        yield f"| {name}: {found['pair']} | over one, CPU | over one, wall | over separate, CPU |"
        yield "|---|---|---|---|"
        for size in SIZES:
            one, apart = found["cohort / one"][size], found["cohort / separate runs"][size]
            cells = " | ".join(shown(r, 2) for r in (one["cpu"], one["wall"], apart["cpu"]))
            yield f"| S = {size} | {cells} |"
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    for name, pair in BOUNDS.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(prepare(pair, CPU, Path(folder)), options.repeats)
    print("\n".join(table(results)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results["online"] = against_online(Path(folder))
    print(json.dumps(results["online"], indent=2))
    held = results["loader-bound"]["cohort / one"][4]["cpu"]["median"]
    print(f"{'PASS' if held <= BAR else 'FAIL'}  four loader-bound students cost {held:.2f} of one")
    results |= {"bars": {f"loader-bound, S = 4 at most {BAR} of one, CPU time": held <= BAR}}
    results |= {"repeats": options.repeats, "machine": machine(LIBRARIES)}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
