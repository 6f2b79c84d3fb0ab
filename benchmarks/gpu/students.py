"""Students on a GPU: labels, cached, online, threads of the renderer, regions, a cohort of four."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import replay, sweep
from benchmarks.gpu import workbench
from benchmarks.gpu.budget import Allowance
from benchmarks.gpu.workbench import Figures, Workbench
from benchmarks.pairs import Bench
from benchmarks.parts import Parts
from benchmarks.replay import Turn
from benchmarks.rounds import ratio, shown, spread
from cache_tools.render import batch as compiled_batch
from cache_tools.render import turbojpeg
from train.data import create_loader
from train.data.schedule import Schedule

ROUNDS = 5
THREADS, FEW_THREADS = (1, 4, 16), (1, 2)
"""Renderer threads, and those of the short form."""
REACHED = 0.95
"""Least speed of cached over online, of its limit."""
COHORT = 4
BATCHES_PER_THREAD, LEAST_BATCHES, FIRST = 2, 8, 3
"""Batches of a turn of the loader alone, and its first ones, which do not count."""


def of(bench: Workbench, student: str) -> Bench:
    """Pair of a student and the teacher of all, with the pictures and the cache of all."""
    shared = bench.students
    torch.set_num_threads(1)
    own = workbench.SHORT if bench.short else workbench.pair(student, bench.batch)
    return replace(shared, pair=own, recipe=replace(shared.recipe, student=own.student))


def with_threads(bench: Bench, count: int) -> Bench:
    """Bench with a number of renderer threads."""
    return replace(bench, recipe=replace(bench.recipe, threads=count))


def measure(bench: Workbench, allowance: Allowance, student: str) -> Figures:
    """All contestants with the most threads, cached with fewer as well."""
    *few, most = FEW_THREADS if bench.short else THREADS
    ready = of(bench, student)
    alone = Parts(ready).seconds()
    field: dict[str, Callable[[], Turn]] = {
        name: partial(replay.turn, with_threads(ready, most), name) for name in replay.MODES
    }
    for count in few:
        field[_with(count)] = partial(replay.turn, with_threads(ready, count), "cached")
    turns = allowance.turns(field, 2 if bench.short else ROUNDS)
    of_modes = {name: turns[name] for name in replay.MODES}
    found = replay.summary(ready, of_modes, alone)
    by_threads = {count: turns[_with(count)] for count in few} | {most: turns["cached"]}
    found |= {"batch": ready.pair.batch, "rounds": len(turns["cached"])}
    found["cached by renderer threads"] = {
        str(count): {
            "images per second": spread(1 / t.wall for t in each),
            "data wait": spread(t.wait for t in each),
        }
        for count, each in by_threads.items()
    }
    found["bars"] |= {
        f"cached / online at least {REACHED} of its limit": found["reached"] >= REACHED
    }
    return found


def _with(threads: int) -> str:
    return f"cached, {threads} renderer threads"


def lines(name: str, found: Figures) -> Iterator[str]:
    """Figures of a student in lines of text."""
    yield from replay.table(name, found)
    yield "| renderer threads | cached images/s | data wait |"
    yield "|---|---|---|"
    for count, facts in found["cached by renderer threads"].items():
        wait = facts["data wait"]
        yield f"| {count} | {shown(facts['images per second'], 1)} | {wait['median']:.1%} |"
    yield ""


def regions(bench: Workbench, allowance: Allowance) -> Figures:
    """Loader alone by threads, and a cached student, with and without region decoding."""
    threads = FEW_THREADS if bench.short else THREADS
    ready, middle = of(bench, "resnet18"), threads[1]
    field: dict[str, Callable[[], float]] = {}
    for how, decoding in (("regions", nullcontext), ("whole", whole)):
        for count in threads:
            field[f"{how} {count}"] = partial(load, ready, count, decoding)
        field[f"{how} student"] = partial(_student, with_threads(ready, middle), decoding)
    seconds = allowance.turns(field, 2 if bench.short else ROUNDS)
    found: Figures = {
        "regions are decoded here": bool(turbojpeg.functions().size),
        "rounds": len(seconds["whole student"]),
    }
    names = {f"loader, {count} threads": str(count) for count in threads}
    for name, key in {**names, f"cached student, {middle} threads": "student"}.items():
        fast, slow = seconds[f"regions {key}"], seconds[f"whole {key}"]
        found[name] = {
            "views per second, regions": spread(1 / s for s in fast),
            "views per second, whole": spread(1 / s for s in slow),
            "regions / whole": ratio(slow, fast),
        }
    return found


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Decode whole rows by simplejpeg, down to a crop's last one, as without TurboJPEG 3."""
    with contextlib.ExitStack() as stack:
        for module in (turbojpeg, compiled_batch):
            nothing = mock.patch.object(module, "functions", lambda: np.empty(0, np.int64))
            stack.enter_context(nothing)
        yield


def load(bench: Bench, threads: int, decoding: Callable[[], AbstractContextManager[Any]]) -> float:
    """Seconds per view of the loader alone in a first epoch, when its first batches are made."""
    store, batch = bench.inputs.store, bench.pair.batch
    schedule = Schedule(store, 1, batch, 0)
    count = min(schedule.steps, max(LEAST_BATCHES, BATCHES_PER_THREAD * threads))
    loader = create_loader.native(store, bench.inputs.images, schedule, threads)
    epoch: Any = loader.epoch(0)
    with decoding(), contextlib.closing(epoch) as batches:
        times = [time.perf_counter() for _ in itertools.islice(batches, count)]
    return (times[-1] - times[FIRST]) / (len(times) - 1 - FIRST) / batch


def _student(bench: Bench, decoding: Callable[[], AbstractContextManager[Any]]) -> float:
    with decoding():
        return replay.turn(bench, "cached").wall


def lines_of_regions(name: str, found: Figures) -> Iterator[str]:
    """Figures with and without regions in lines of text."""
    if not found["regions are decoded here"]:
        yield "there is no TurboJPEG 3: no regions, both are the same"
    yield f"| {name} | views/s, regions | views/s, whole | regions / whole |"
    yield "|---|---|---|---|"
    for key, facts in found.items():
        if isinstance(facts, dict):
            fast, slow, over = facts.values()
            yield f"| {key} | {shown(fast, 1)} | {shown(slow, 1)} | {shown(over, 2)} |"
    yield ""


def cohort(bench: Workbench, allowance: Allowance) -> Figures:
    """Four students at once beside one."""
    ready = of(bench, "resnet18")
    field: dict[str, Callable[[], Turn]] = {
        str(count): partial(sweep.turn, ready, count) for count in (1, COHORT)
    }
    turns = allowance.turns(field, 2 if bench.short else ROUNDS)
    one, four = (_walls(turns[key]) for key in ("1", str(COHORT)))
    return {
        "student": ready.pair.student,
        "students": COHORT,
        "rounds": len(one),
        "images per second, one": spread(1 / s for s in one),
        "images per second, cohort": spread(1 / s for s in four),
        "cohort / one": ratio(four, one),
        "cohort / separate runs": ratio(four, [COHORT * s for s in one]),
        "data wait, one": spread(t.wait for t in turns["1"]),
        "data wait, cohort": spread(t.wait for t in turns[str(COHORT)]),
    }


def _walls(turns: Sequence[Turn]) -> list[float]:
    return [turn.wall for turn in turns]


def lines_of_cohort(name: str, found: Figures) -> Iterator[str]:
    """Figures of a cohort in lines of text."""
    over, apart = (shown(found[f"cohort / {to}"], 2) for to in ("one", "separate runs"))
    yield f"{name} of {found['students']} {found['student']}, cost of an image: {over} of one's, "
    yield f"{apart} of separate runs'"
    yield ""
