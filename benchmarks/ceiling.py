"""Ceiling of the native loader in one process: interpreter time of a view, and threads.

    python -m benchmarks.ceiling [--repeats 5] [--samples 8192] [--json FILE]

One lock holds the interpreter, so that the time it spends on a view bounds the views per second of
a process on any number of cores. To measure it, all functions that make pixels are replaced by
functions that do nothing (`stubs`): decoding, resizing, flipping and image operations; and the
reading and checking of an image's bytes, which compiled code does without the lock. What is left is
the way of a batch: order and pairs, parameters, calls, targets. Rows "with reading" leave reading
and checking as they are. "CPU" are the CPU seconds of the process per view with one renderer
thread, "wall" its seconds. Before it is measured, no pixel may change: a function that makes pixels
and is not replaced is an error, no figure.

Below it are views per second of one process with 1, 2, 4 and 8 renderer threads, with all pixels.
All take turns of one whole epoch (`benchmarks.loader` has pictures and rounds), after an epoch that
is not counted; median and range over the rounds. An epoch has some 20 ms of its own, for threads
and the first batches, so that few samples show more time per view.
"""

import argparse
import functools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import simplejpeg
from numba import types

from benchmarks import photos
from benchmarks.machine import machine
from benchmarks.pipelines import native_loader
from benchmarks.render import SIDES
from benchmarks.rounds import play, ratio, shown, spread
from benchmarks.seats import Turn, timed
from cache_tools.render import batch, kernels, resample, turbojpeg
from cache_tools.render.addresses import OK, address_of
from cache_tools.storage.compiled import njit
from train.data.loader import Loader

GOALS = {"crop and flip": 25.0, "A2": 35.0}
"""Most microseconds of the interpreter per view of each augmentation."""
CACHES = {"crop and flip": "rrc", "A2": "a2"}
READING = "{}, with reading"
THREADS = (1, 2, 4, 8)
Sides = tuple[int, int]
"""Width and height in pixels."""
UNTOUCHED = 77
"""Value of all pixels of a batch's memory, which no stub may change."""
LIBRARIES = ("torch", "numba", "numpy", "simplejpeg", "pylibjxl", "opencv-python-headless")


@njit(nogil=True)
def _nothing(*arguments: Any) -> None:
    """Cost a call of a compiled function, and do nothing."""


@njit(nogil=True)
def _read(descriptor: Any, to: Any, length: Any, begin: Any) -> int:
    """Read nothing, as pread does that reads all."""
    return length


@functools.cache
def stubs(sides: Sides, reading: bool) -> list[tuple[Any, str, Callable[..., object]]]:
    """Functions that make pixels: where the loader finds each, and what replaces it.

    `batch.decode_views` takes the addresses of the functions that it calls. Those from `turbojpeg`
    on are called where it leaves a picture. `sides` are width and height of the pictures; `reading`
    leaves the reading and checking of their bytes.
    """

    (width, height), both = sides, sides[1] << 32 | sides[0]

    @njit(nogil=True)
    def region_at(
        calls: Any, address: Any, size: Any, y: Any, x: Any, height: Any, columns: Any, room: Any
    ) -> int:
        return both

    @njit(nogil=True)
    def crop(picture: Any, y: Any, x: Any, height: Any, columns: Any, flip: Any, out: Any) -> int:
        return OK

    calls_F, integers = batch.functions().copy(), (types.int64,) * 4
    if calls_F.size:
        at = types.int64[::1], types.int64, types.int64, *integers, types.uint8[::1]
        calls_F[batch._REGION] = address_of(region_at, *at)
        view = kernels.PIXELS, *integers, types.boolean, kernels.PIXELS
        calls_F[batch._CROP] = address_of(crop, *view)
        if not reading:
            read = types.int32, types.int64, types.int64, types.int64
            calls_F[batch._READ] = address_of(_read, *read)
    decode_views = batch.decode_views

    def checked(calls: Any, descriptor: Any, begin: Any, length: Any, crc: Any, *more: Any) -> None:
        decode_views(calls, descriptor, begin, length, crc if reading else 0 * crc, *more)

    return [
        (batch, "functions", lambda: calls_F),
        (batch, "decode_views", checked),
        (batch, "finish_views", _nothing),
        (turbojpeg, "region", lambda *_: (height, width)),
        (simplejpeg, "decode_jpeg", lambda *_, buffer=None, **__: buffer),
        (resample, "crop", lambda *_: OK),
        (cv2, "resize", lambda *_, **__: None),
        (cv2, "flip", lambda *_, **__: None),
        (kernels, "run", _nothing),
        (kernels, "erase", _nothing),
    ]


@contextmanager
def stubbed(sides: Sides, reading: bool) -> Iterator[None]:
    """Make no pixels."""
    before = []
    try:
        for place, name, stub in stubs(sides, reading):
            before.append((place, name, getattr(place, name)))
            setattr(place, name, stub)
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def check_untouched(replay: Loader) -> None:
    """Raise if the loader makes pixels: two epochs, in which memory of batches comes again."""
    marked: set[int] = set()
    again = 0
    for epoch in (0, 1):
        for made in replay.epoch(epoch):
            address = made.pictures.ctypes.data
            if address in marked:
                again += 1
                if (made.pixels != UNTOUCHED).any():
                    raise RuntimeError(
                        "the loader makes pixels with all of `stubs` replaced: a function that "
                        "makes them is not in that table"
                    )
            made.pixels[:] = UNTOUCHED
            marked.add(address)
    if not again:
        raise RuntimeError("no memory of a batch came again: take more samples")


@dataclass(frozen=True)
class Contestant:
    """A loader that takes turns."""

    loader: Loader
    stubs: tuple[Sides, bool] | None = None
    """Arguments of `stubs`; None = with all pixels."""

    def run(self, epoch: int) -> int:
        """Run an epoch; returns its views."""
        return sum(len(made) for made in self.loader.epoch(epoch))


def turn(field: dict[str, Contestant], name: str, epoch: int) -> Turn:
    """Run an epoch of one of them."""
    contestant = field[name]
    with nullcontext() if contestant.stubs is None else stubbed(*contestant.stubs):
        return timed(contestant.run, epoch)


def contestants(folder: Path, sides: Sides) -> dict[str, Contestant]:
    """Loaders of the caches in a folder, by name; those without pixels are checked."""
    without = {}
    for augmentation, cache in CACHES.items():
        for name, reading in ((augmentation, False), (READING.format(augmentation), True)):
            loader = native_loader(folder, cache, num_threads=1)
            for _ in loader.epoch(0):  # compiles and keeps all, with the functions that are there
                pass
            with stubbed(sides, reading):
                check_untouched(loader)
            without[name] = Contestant(loader, (sides, reading))
    each = {f"{n}": Contestant(native_loader(folder, num_threads=n)) for n in THREADS}
    return without | each


def summary(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Interpreter time, goals, rates by threads."""
    interpreter: dict[str, Any] = {}
    for augmentation, goal in GOALS.items():
        for name in (augmentation, READING.format(augmentation)):
            cpu = spread(1e6 * one.cpu for one in turns[name])
            wall = spread(1e6 * one.wall for one in turns[name])
            interpreter[name] = {"cpu": cpu, "wall": wall}
        held = interpreter[augmentation]["cpu"]["median"] <= goal
        interpreter[augmentation] |= {"goal": goal, "held": held}
    one = [turn.wall for turn in turns["1"]]
    return {
        "without pixels, µs per view": interpreter,
        "threads": {
            f"{n}": {
                "images per second": spread(1 / turn.wall for turn in turns[f"{n}"]),
                "over one thread": ratio(one, [turn.wall for turn in turns[f"{n}"]]),
            }
            for n in THREADS
        },
    }


def table(kind: str, result: dict[str, Any]) -> Iterator[str]:
    """One kind of pictures in Markdown."""
    yield f"| {photos.KINDS[kind]}, no pixels | CPU, µs a view | wall, µs a view | goal |"
    yield "|---|---|---|---|"
    for name, found in result["without pixels, µs per view"].items():
        goal = "–"
        if "goal" in found:
            held = "held" if found["held"] else "not held"
            goal = f"at most {found['goal']:.0f}, {held}"
        yield f"| {name} | {shown(found['cpu'], 1)} | {shown(found['wall'], 1)} | {goal} |"
    yield f"\n| {photos.KINDS[kind]}, renderer threads | images/s | of one thread's |"
    yield "|---|---|---|"
    for n, found in result["threads"].items():
        times = shown(found["over one thread"], 2)
        yield f"| {n} | {shown(found['images per second'], 0)} | {times} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.ERROR)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in photos.KINDS:
            folder = Path(temporary) / kind
            photos.write_shards(kind, options.samples, folder)
            photos.write_caches(folder)
            field = contestants(folder, SIDES[kind])
            results[kind] = summary(play([*field], options.repeats, partial(turn, field)))
            print("\n".join(table(kind, results[kind])), flush=True)
    results |= {"repeats": options.repeats, "samples": options.samples}
    results["machine"] = machine(LIBRARIES)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
