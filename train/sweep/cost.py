"""Cost of a sweep and of the same sweep with the teacher in the loop: forward passes and hours.

    cache        N · V forwards, once                          N samples, V views of the cache
    online       Σ over the students of the views of each      a teacher in each run
    cohorts      Σ over the streams of the views of each       one teacher per batch of a cohort
    hours        students + forwards · seconds per forward

The students' time is that of their runs. A teacher's forward pass is timed on the cache's own
views, from pixels to the kept classes, as stage 1 and mode=online do it.

Shapes: B views of a batch.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from cache_tools.errors import KdcacheError
from cache_tools.runtime import progress, threads
from cache_tools.runtime.text import counted
from train.data import create_loader
from train.data.device_batch import ONLINE, online_targets, to_device
from train.data.inputs import Inputs
from train.data.schedule import Schedule
from train.sweep import cohorts
from train.sweep.runner import Sweep

IMAGENET = 1_281_167
"""Training images of ImageNet-1k."""
_BATCHES = 9


def sweep_cost(
    sweep: Sweep, rows: Sequence[dict[str, Any]], seconds: float | None, device: str = ""
) -> dict[str, Any]:
    """Compute the cost of a sweep's finished students.

    `rows` are those of `runner.rows`, `seconds` those of a teacher's forward pass per view on
    `device`; None: unknown, no hours.
    """
    finished = [row for row in rows if row["state"] == "finished"]
    recipes = {student.name: student.recipe for student in sweep.students}
    streams: dict[tuple[Any, ...], int] = {}
    for row in finished:
        recipe = recipes[row["name"]]
        key = recipe.stream, recipe.phases
        streams[key] = max(streams.get(key, 0), row["images"])
    store = sweep.inputs.store
    samples, views = len(store.table), sweep.inputs.members.num_views
    shown = sum(recipes[row["name"]].views_shown for row in finished)
    student_hours = sum(row["cost_seconds"] for row in finished) / 3600
    teachers = len(sweep.inputs.members.caches)
    forwards = {
        "cache": teachers * samples * views,
        "online": teachers * sum(row["images"] for row in finished),
        "online_cohorts": teachers * sum(streams.values()),
    }
    facts: dict[str, Any] = {
        "students": len(finished),
        "forwards": forwards,
        "student_hours": student_hours,
        "imagenet": {
            "images": IMAGENET,
            "views": views,
            "views_shown": shown,
            "forwards": {"cache": IMAGENET * views, "online": IMAGENET * shown},
        },
    }
    if seconds is None:
        return facts
    facts["teacher"] = {"seconds_per_view": seconds, "device": device}
    facts["hours"] = {n: student_hours + count * seconds / 3600 for n, count in forwards.items()}
    of_imagenet = facts["imagenet"]["forwards"].items()
    facts["imagenet"]["teacher_hours"] = {n: count * seconds / 3600 for n, count in of_imagenet}
    return facts


def lines(facts: dict[str, Any]) -> list[str]:
    """Format the cost as lines of text, formulas included."""
    if not facts["students"]:
        return ["No student is finished yet: there is no cost to compare."]
    forwards, imagenet = facts["forwards"], facts["imagenet"]
    runs = counted(facts["students"], "run")
    text = [
        f"teacher forwards  {forwards['cache']:,} once, for the cache; with the teacher in the "
        f"loop {forwards['online']:,} in {runs}, or "
        f"{forwards['online_cohorts']:,} in cohorts with one teacher per batch"
    ]
    if "hours" in facts:
        hours, each = facts["hours"], 1000 * facts["teacher"]["seconds_per_view"]
        text.append(
            f"hours             students {facts['student_hours']:.3g} (measured) + forwards × "
            f"{each:.3g} ms (measured, {facts['teacher']['device']}) = {hours['cache']:.3g}; "
            f"{hours['online']:.3g} with the teacher in each run, {hours['online_cohorts']:.3g} in "
            "cohorts"
        )
    once, online = imagenet["forwards"]["cache"], imagenet["forwards"]["online"]
    text.append(
        f"ImageNet          {IMAGENET:,} images × {imagenet['views']:,} views = {once:,} forwards "
        f"once; × {imagenet['views_shown']:,} views in the students' training = {online:,} online"
    )
    if "teacher_hours" in imagenet:
        teacher = imagenet["teacher_hours"]
        text.append(
            f"                  × {each:.3g} ms = {teacher['cache']:,.1f} hours of this teacher "
            f"against {teacher['online']:,.1f} (projected)"
        )
    return text


def time_teacher(
    inputs: Inputs, names: Sequence[str], device: torch.device, batch: int
) -> tuple[float, str] | None:
    """Time a teacher's forward pass: seconds per view and the device; None without a teacher.

    `names` has names or folders of the teacher where those in the cache do not suffice.

    Raises:
        KdcacheError: The teacher of `names` cannot be run.
    """
    online = ONLINE.find()
    if online is None or len(inputs.members.caches) > 1:
        return None
    try:
        ask = online(inputs.store, list(names), device)
    except KdcacheError:
        if names:
            raise
        return None
    batch = min(batch, len(inputs.images))
    schedule = Schedule(inputs.store, 1, batch, seed=0)
    replay = create_loader.native(inputs.store, inputs.images, schedule, threads.cpu_count())
    first = next(iter(replay.epoch(0)))
    seconds = []
    with progress.bar("time the teacher", _BATCHES, "batches") as advance:
        for _ in range(_BATCHES):
            begin = time.perf_counter()
            uploaded = to_device(first.pictures, device)
            online_targets(ask, first, inputs.store.spec, uploaded)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append((time.perf_counter() - begin) / batch)
            advance(1)
    return statistics.median(seconds[1:]), cohorts.device_name(device)
