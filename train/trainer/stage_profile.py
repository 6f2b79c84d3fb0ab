"""Profile of a training step by stage: read, decode, resize, operations, transfer, student.

A few hundred views of the first epoch go through the functions that training runs, one stage after
another. Stages of renderer threads are measured as CPU time of one thread, since that is what more
cores divide; reads, and what happens on the device, in wall time. The loader as a whole is run as
training runs it, too.

Shapes: B views of a batch.
"""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
import torch

from cache_tools.data.beton.reader import Beton
from cache_tools.data.images import ImageDataset
from cache_tools.render import decode
from cache_tools.render import view as render
from cache_tools.runtime import host_memory, threads
from cache_tools.spec.views import ViewSpec
from train.data.device_batch import InputTransform
from train.data.inputs import Inputs
from train.data.loader import AHEAD, Batch, Loader
from train.data.prefetch import EpochPrefetcher, View
from train.data.schedule import Schedule
from train.loss.task import CachedDistillationTask
from train.recipe import TrainRecipe
from train.trainer.factory import create_optimizer, create_student

_VIEWS, _PIECES = 256, 8
_STEPS, _WARMUP = 6, 2
_KEPT = 0.5
"""Share of the memory in which the kernel may keep files during training."""
_ENOUGH = 20.0
"""Seconds after which a stage's steps are enough."""


@dataclass(frozen=True)
class Stages:
    """Seconds per view, of one thread where threads share the work."""

    read: float
    """Wall time with all threads reading at once."""
    decode: float
    """CPU time; 0 of pixels that need none."""
    resize: float
    """CPU time of crop, resize and flip."""
    operations: float
    """CPU time of RandAugment, jitter, erasing, ….

    What `resize` took is subtracted, so that noise may make it 0.
    """
    loader: float
    """Wall time of the whole loader, its threads at work together."""
    transfer: float
    """Wall time of a batch's way to the device, mixing and normalisation there."""
    student: float | None
    """Wall time of forward, backward and update; None when there is no recipe."""


def measure(
    inputs: Inputs,
    loader: Loader,
    recipe: TrainRecipe | None,
    feed: InputTransform,
    size: int = 0,
) -> Stages:
    """Measure all stages of views of `size` pixels (0: the cache's own), as `loader` makes them.

    Without a recipe, all stages but the student's step.

    Raises:
        DataError, CacheMismatch: An image cannot be read or is not the cache's.
    """
    schedule = Schedule(inputs.store, 1, 1, 0, epochs=1, size=size)
    [(order, loaded)] = EpochPrefetcher(inputs.members, [schedule], inputs.images).get(0)
    rows = order.row_M[:_VIEWS].tolist()
    read, data = _read(inputs.images, rows)
    stages = _render(inputs, schedule.views, rows, data, loaded[0])
    of_loader, batch = _loader(loader)
    transfer = _on_device(feed, lambda: feed.batch(batch), batch)
    student = None
    if recipe is not None:
        student = _on_device(feed, _step(inputs, recipe, feed, batch), batch)
    return Stages(read, *stages, of_loader, transfer, student)


def read_from(images: ImageDataset) -> Literal["network", "disk", "memory"]:
    """Return the source of images after the first epoch: the kernel keeps files that have room."""
    if images.remote is not None:
        return "network"
    size = images.rows_N["size"] if isinstance(images, Beton) else images.length_N
    return "memory" if int(size.sum()) < _KEPT * host_memory.limit() else "disk"


def _read(images: ImageDataset, rows: list[int]) -> tuple[float, list[bytes]]:
    """Seconds per image with all threads at it, and the bytes."""
    if read_from(images) == "disk":  # a long epoch drops the files from the page cache
        for path in images.paths[: len(images.paths) if images.sharded else _VIEWS]:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read = images.stored if isinstance(images, Beton) else images.read
    with ThreadPoolExecutor(threads.cpu_count()) as pool:
        begin = time.perf_counter()
        data = list(pool.map(read, rows))
        return (time.perf_counter() - begin) / len(rows), data


def _render(
    inputs: Inputs, spec: ViewSpec, rows: list[int], data: list[bytes], view: View
) -> tuple[float, float, float]:
    """CPU seconds per view of decode, resize and operations."""
    keys, images = inputs.store.table.keys, inputs.images
    out, reuse = np.empty((spec.size, spec.size, 3), np.uint8), decode.DecodeBuffer()
    none = {name: np.zeros_like(getattr(view.params, name)) for name in ("codes_BL", "erase_BE8")}
    plain = replace(view.params, **none)
    seconds: dict[str, list[float]] = {"decode": [], "resize": [], "all": []}
    length = max(1, len(rows) // _PIECES)
    for at in range(0, len(rows), length):  # the first piece only warms up
        piece = range(at, min(at + length, len(rows)))
        spent = dict.fromkeys(seconds, 0.0)
        for i in piece:
            row, box = rows[i], view.params.box_B4[rows[i]].tolist()
            scale, begin = render.scale_log2(spec, *box[2:]), time.thread_time()
            picture = images.pixels(row) if isinstance(images, Beton) else None
            raw = picture is not None and not scale
            if not raw:
                picture = decode.decode(data[i], keys[row], reuse, scale, tuple(box))
            assert picture is not None
            times = [time.thread_time()]
            for params in (plain, view.params):
                render.render(picture, spec, params, row, out, scale)
                times.append(time.thread_time())
            spent["decode"] += 0.0 if raw else times[0] - begin
            spent["resize"] += times[1] - times[0]
            spent["all"] += times[2] - times[1]
        for name, total in spent.items():
            seconds[name].append(total / len(piece))
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return found["decode"], found["resize"], max(0.0, found["all"] - found["resize"])


def _loader(loader: Loader) -> tuple[float, Batch]:
    """Seconds per view of the loader as training has it, and a batch."""
    with closing(cast(Any, loader.epoch(0))) as batches:
        batch = next(batches)  # compiles, opens files, fills the queue
        begin, count = time.perf_counter(), 0
        for batch in islice(batches, _STEPS + AHEAD):
            count += len(batch)
            if time.perf_counter() - begin > _ENOUGH:
                break
        took = time.perf_counter() - begin
    return took / max(count, 1), batch


def _step(
    inputs: Inputs, recipe: TrainRecipe, feed: InputTransform, batch: Batch
) -> Callable[[], None]:
    """One training step of the student on a batch that is on the device."""
    student = create_student(recipe, inputs.num_classes).to(feed.device)
    if feed.device.type == "cuda":
        student = student.to(memory_format=torch.channels_last)
    task = CachedDistillationTask(student, recipe, feed.device).train()
    optimizer = create_optimizer(recipe, student)
    forward = torch.compile(task) if recipe.compile else task
    x, targets = feed.batch(batch)

    def step() -> None:
        with feed.autocast():
            loss = forward(x, targets)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _on_device(feed: InputTransform, call: Callable[[], object], batch: Batch) -> float:
    """Median wall seconds per view of a call, when the device is done with it."""
    seconds: list[float] = []
    first = time.perf_counter()
    while len(seconds) < _WARMUP + _STEPS:
        begin = time.perf_counter()
        call()
        if feed.device.type == "cuda":
            torch.cuda.synchronize(feed.device)
        seconds.append(time.perf_counter() - begin)
        if len(seconds) > _WARMUP and time.perf_counter() - first > _ENOUGH:
            break
    return statistics.median(seconds[_WARMUP:]) / len(batch)
