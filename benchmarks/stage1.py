"""Speed of stage 1 as a share of the bare teacher's, or of the renderer's where that is the limit.

    python -m benchmarks.stage1 [--repeats 7] [--only WORD] [--json FILE]

Views are A2's (random resized crop, flip, RandAugment, mixup or cutmix) of JPEGs made from
photographs (`benchmarks.render`). Contestants take turns, each time from another one on, so that a
noisy machine hits all alike:

* "bare": the network alone on a random batch on its device; no top-k, nothing comes back.
* "render G": the first stage alone with all cores, G views of each decode. No teacher.
* "pipeline G": `pipeline.worker.stage1.Stage1` itself: images to committed parts on disk.

Ratios are taken within a turn; medians and ranges are over the turns. On a GPU the pipeline can be
as fast as the slower one of both; on a CPU both use the same cores, and no order of work makes them
cheaper:

    limit = max(bare, render) seconds per view on a GPU, their sum on a CPU

"of bare" is the share of the teacher's speed (the bar: 0.97 where the teacher is the bottleneck),
"of limit" the share of perfect overlap. Two clocks: "wall"; and "CPU", the time of all threads of
the process, which hardly depends on other programs on the machine (and not on a GPU). Where those
use all cores, pin it to one (`taskset -c 0`): threads of one operation that wait for each
other burn both clocks. A core's speed drifts over minutes: more turns say more (`--repeats 21`).
A turn of a pipeline is timed from its first batch to the last commit record, its CPU time as a
whole.

"splits" measures divisions of a CPU's cores: torch threads + render threads.

"memory" makes hundreds of parts and records the resident memory on the way.

A part's commit costs some 30 ms of a core, whatever its size: nothing in a real one of 65,536
views, but seen in the small ones here.

Teachers have random weights: they keep as many classes as the cache may, more than trained ones.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.machine import machine
from benchmarks.pairs import Pair, write
from benchmarks.parts import wait
from benchmarks.rounds import ratio, shown, spread
from cache_tools.data.open import open_images
from cache_tools.runtime import threads
from cache_tools.spec.teacher import Precision
from pipeline import recipe as recipes
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward
from pipeline.teacher.logits import Execution
from pipeline.worker import open_cache
from pipeline.worker.groups import DecodeGroup, decode_groups
from pipeline.worker.stage1 import Stage1

LIBRARIES = ("torch", "timm", "numpy", "numba", "zarr", "simplejpeg", "opencv-python-headless")
GOAL = 0.97
"""Least speed of the pipeline over the bare teacher, where that is the bottleneck."""
IMAGENET_VIEWS = 1_281_167 * 300
A2 = ('views.auto_augment="rand-m7-mstd0.5"', "views.mixup=0.1", "views.cutmix=1.0")


@dataclass(frozen=True)
class Case:
    """A teacher and its input."""

    teacher: str
    """timm name; weights random."""
    size: int
    """Side of the views in pixels."""
    batch: int
    """Views per forward pass."""
    samples: int
    """Pictures."""
    views: int
    """Views of each in a turn; G, 2·G or more."""
    decodes: tuple[int, ...] = (4,)
    """Views per decode, G."""
    precision: Precision = "fp32"
    """Autocast type."""
    compile: bool = False
    """Whether torch.compile makes the kernels."""
    bound: str = "teacher"
    """What the bottleneck is meant to be."""

    @property
    def name(self) -> str:
        """Teacher and settings in words."""
        how = f"{self.precision}, compiled" if self.compile else self.precision
        return f"{self.teacher}, {self.size} px, {how}, batch {self.batch}"


CPU = (
    Case("resnet50", 224, 16, samples=64, views=4),
    Case("test_resnet", 64, 32, samples=512, views=16, decodes=(1, 4, 16), bound="rendering"),
)
GPU = tuple(
    Case(f"beitv2_{size}_patch16_224", 224, 256, 4096, 8, precision="bf16", compile=compiled)
    for size in ("base", "large")
    for compiled in (False, True)
)
MEMORY = Case("test_resnet", 32, 32, samples=1100, views=300, decodes=(4,))


@dataclass(frozen=True)
class Cost:
    """Cost of a turn, per view."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of CPU time of all threads."""
    wait: float = 0.0
    """Share of the time in which the teacher waited for pixels, as the commit records say."""


class Bench:
    """A case, ready: pictures, cache, teacher."""

    def __init__(
        self,
        case: Case,
        device: torch.device,
        folder: Path,
        turns: int,
        encoded: list[bytes] | None = None,
    ) -> None:
        """Write pictures and an empty cache of as many views as all turns need.

        `encoded` has the pictures; None: generated ones.
        """
        self.case, self.device, self._turn = case, device, 0
        self.views = case.views
        """Views of each picture in a turn; at most the case's."""
        if device.type == "cpu":
            torch.set_num_threads(threads.for_torch(case.size)[0])
        pair = Pair("", case.teacher, case.size, case.batch, steps=0)
        write(pair, case.samples, folder / "data", encoded)
        changes = [f"num_views={case.views * turns}", f"views.size={case.size}", *A2]
        recipe = recipes.load("photos", changes)
        recipe = replace(recipe, precision=case.precision, compile=case.compile)
        torch.manual_seed(0)
        teacher = teachers.load(case.teacher, case.size, case.precision, random_weights=True)
        images = open_images(str(folder / "data"), "train")
        self.store, self.images = open_cache.open_or_create(
            recipe, images, teacher.spec, folder / "cache.zarr"
        )
        execution = Execution(recipe.memory_format, recipe.compile)
        self.forward = Forward(teacher, self.store.spec.targets, device, execution)
        self._logits = self.forward._logits  # compiled once
        self._resident = 255 * torch.rand(case.batch, 3, case.size, case.size, device=device)
        self._resident = self._resident.to(memory_format=torch.channels_last)

    def worker(self, render_threads: int | None = None) -> Stage1:
        """Open the process that makes the parts."""
        count = render_threads or threads.cpu_count()
        return Stage1(self.store, self.images, self.forward, self.case.batch, count)

    def take(self, decode: int, views: int) -> list[DecodeGroup]:
        """Groups of the next views still to make."""
        blocks, begin = self.store.spec.num_blocks, self._turn
        self._turn += views
        parts = [p for p in self.store.parts() if begin <= p.view < self._turn]
        assert len(parts) == views * blocks
        return decode_groups(parts, decode)

    @torch.inference_mode()
    def bare(self) -> Cost:
        """The network alone, as often as a pipeline's turn does it."""
        count = max(4, self.views * self.case.samples // self.case.batch // 2)
        with torch.inference_mode():
            return timed(lambda: [self._logits(self._resident) for _ in range(count)],
                         count * self.case.batch, self.device)  # fmt: skip

    def render(self, worker: Stage1, decode: int) -> Cost:
        """The first stage alone."""
        wanted = decode_groups([p for p in self.store.parts() if p.view < self.views], decode)

        def run() -> None:
            with worker._renderer.stream(wanted) as stream:
                for _ in stream:
                    pass

        return timed(run, self.views * self.case.samples, self.device)

    def pipeline(self, worker: Stage1, decode: int) -> Cost:
        """All stages, from the first batch on."""
        wanted, told = self.take(decode, self.views), []

        def done(count: int) -> None:
            told.append((time.perf_counter(), count))

        whole = timed(lambda: worker.make(wanted, done), sum(self._views(wanted)), self.device)
        end = time.perf_counter()
        wall = (end - told[0][0]) / (sum(self._views(wanted)) - told[0][1])
        records = [self.store.record(part) for group in wanted for part in group.parts]
        waits = [record["statistics"]["teacher_wait"] for record in records]
        return Cost(wall, whole.cpu, statistics.mean(waits))

    def _views(self, wanted: list[DecodeGroup]) -> Iterator[int]:
        for group in wanted:
            yield len(group.views) * len(self.store.spec.rows(group.block))


def timed(work: Callable[[], object], views: int, device: torch.device) -> Cost:
    """Cost of some work per view, until the device is idle again."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wait(device)
    return Cost((time.perf_counter() - wall) / views, (time.process_time() - cpu) / views)


def measure(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    """All contestants of a case, in turns; the first turn warms up."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(case, device, Path(folder), (repeats + 1) * len(case.decodes))
        worker = bench.worker()
        field: dict[str, Callable[[], Cost]] = {"bare": bench.bare}
        for g in case.decodes:
            field[f"render {g}"] = lambda g=g: bench.render(worker, g)
            field[f"pipeline {g}"] = lambda g=g: bench.pipeline(worker, g)
        costs = in_turns(field, repeats, case.name)
        worker.close()
    return summary(case, device, costs)


def in_turns(
    field: dict[str, Callable[[], Cost]], repeats: int, name: str
) -> dict[str, list[Cost]]:
    """Costs of all contestants, turn by turn."""
    costs: dict[str, list[Cost]] = {contestant: [] for contestant in field}
    names = list(field)
    for repeat in range(repeats + 1):
        first = repeat % len(names)
        for contestant in names[first:] + names[:first]:
            costs[contestant].append(field[contestant]())
        last = ", ".join(f"{n} {each[-1].cpu * 1000:.3g}" for n, each in costs.items())
        print(f"{name}: turn {repeat} of {repeats}; CPU ms per view: {last}", file=sys.stderr)
    return {contestant: each[1:] for contestant, each in costs.items()}


def summary(case: Case, device: torch.device, costs: dict[str, list[Cost]]) -> dict[str, Any]:
    """Rates and ratios of a case."""
    result: dict[str, Any] = {
        "bound by": case.bound,
        "views per second": {n: spread(1 / c.wall for c in each) for n, each in costs.items()},
    }
    on_gpu = device.type == "cuda"
    for g in case.decodes:
        facts: dict[str, Any] = {"teacher waits": spread([c.wait for c in costs[f"pipeline {g}"]])}
        for clock in ("wall",) if on_gpu else ("wall", "cpu"):
            bare, render, pipeline = (
                [getattr(cost, clock) for cost in costs[name]]
                for name in ("bare", f"render {g}", f"pipeline {g}")
            )
            limit = [max(b, r) if on_gpu else b + r for b, r in zip(bare, render, strict=True)]
            facts |= {
                f"of bare, {clock}": ratio(bare, pipeline),
                f"of rendering, {clock}": ratio(render, pipeline),
                f"of limit, {clock}": ratio(limit, pipeline),
            }
        result[f"{g} views per decode"] = facts
    best = result["views per second"][f"pipeline {case.decodes[-1]}"]["median"]
    if on_gpu:
        result["hours of ImageNet-1k x 300"] = IMAGENET_VIEWS / best / 3600
    if case.bound == "teacher":
        clock = "wall" if on_gpu else "cpu"
        held = result[f"{case.decodes[-1]} views per decode"][f"of bare, {clock}"]["median"]
        result["bars"] = {f"pipeline / bare at least {GOAL}, {clock} time": held >= GOAL}
    return result


def splits(case: Case, repeats: int) -> dict[str, Any]:
    """Views per second of the pipeline on a CPU, by torch threads + render threads."""
    cores, device = threads.cpu_count(), torch.device("cpu")
    pairs = [(t, r) for t in sorted({1, max(1, cores - 1), cores}) for r in sorted({1, cores})]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(case, device, Path(folder), (repeats + 1) * len(pairs))
        workers = {count: bench.worker(count) for count in {r for _, r in pairs}}

        def run(torch_threads: int, render_threads: int) -> Cost:
            torch.set_num_threads(torch_threads)
            return bench.pipeline(workers[render_threads], case.decodes[0])

        field: dict[str, Callable[[], Cost]] = {
            f"{t} torch + {r} render": lambda t=t, r=r: run(t, r) for t, r in pairs
        }
        costs = in_turns(field, repeats, f"splits of {case.name}")
        torch.set_num_threads(cores)
        for worker in workers.values():
            worker.close()
    return {
        name: {
            "views per second": spread(1 / cost.wall for cost in each),
            "views per CPU second": spread(1 / cost.cpu for cost in each),
        }
        for name, each in costs.items()
    }


def memory(case: Case) -> dict[str, Any]:
    """Resident memory, in MB, after each tenth of a long run; the device is the CPU."""
    process, seen = psutil.Process(), []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(case, torch.device("cpu"), Path(folder), 1)
        wanted, worker = bench.take(case.decodes[0], case.views), bench.worker()
        total, made = case.views * case.samples, 0

        def done(count: int) -> None:
            nonlocal made
            made += count
            if made * 10 // total > len(seen):
                seen.append(round(process.memory_info().rss / 2**20, 1))

        worker.make(wanted, done)
        worker.close()
    window = min(case.samples, bench.store.spec.window) * case.decodes[0] * case.size**2 * 3
    return {
        "parts": case.views * bench.store.spec.num_blocks,
        "views": total,
        "MB after each tenth": seen,
        "growth over the last nine tenths": round(seen[-1] - seen[0], 1),
        "MB of a window": round(window / 2**20, 1),
    }


def table(name: str, result: dict[str, Any]) -> Iterator[str]:
    """A case in Markdown."""
    yield f"| {name} | views/s | of bare | of rendering | of limit | teacher waits |"
    yield "|---|---|---|---|---|---|"
    for contestant, rate in result["views per second"].items():
        kind, _, g = contestant.partition(" ")
        row = [contestant, shown(rate, 1), "", "", "", ""]
        if kind == "pipeline":
            facts = result[f"{g} views per decode"]
            for place, of in enumerate(("of bare", "of rendering", "of limit"), 2):
                found = {c: facts.get(f"{of}, {c}") for c in ("wall", "cpu")}
                row[place] = "; ".join(f"{c} {shown(f, 3)}" for c, f in found.items() if f)
            row[-1] = "{median:.1%}".format(**facts["teacher waits"])
        yield f"| {' | '.join(row)} |"
    if "hours of ImageNet-1k x 300" in result:
        yield f"\nImageNet-1k x 300: {result['hours of ImageNet-1k x 300']:.1f} hours"
    for bar, holds in result.get("bars", {}).items():
        yield f"{'PASS' if holds else 'FAIL'}  {bar}"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    on_gpu = torch.cuda.is_available()
    todo = [(case, torch.device("cuda")) for case in GPU if on_gpu]
    todo += [(case, torch.device("cpu")) for case in CPU if not on_gpu]
    results: dict[str, Any] = {}
    for case, device in todo:
        if options.only in case.name:
            name = f"{case.name}, {device.type}"
            results[name] = measure(case, device, options.repeats)
            print("\n".join(table(name, results[name])), flush=True)
    if not on_gpu and threads.cpu_count() > 1 and options.only in "splits":
        results["splits"] = splits(replace(CPU[0], samples=32), options.repeats)
        print(json.dumps(results["splits"], indent=2), flush=True)
    if options.only in "memory":
        results["memory"] = memory(MEMORY)
        print(json.dumps(results["memory"], indent=2), flush=True)
    used = {"cores used": threads.cpu_count(), **machine(LIBRARIES)}
    results |= {"repeats": options.repeats, "machine": used}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
