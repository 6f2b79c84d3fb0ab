"""Share of the parts and device of this process, from its launcher or the command line.

torchrun, srun, mpirun, PyTorchJob and Slurm's arrays each give a process its number and their
count, in the environment (`cache_tools.runtime.launcher`); `--task I --tasks N` does so by hand.
Nothing is negotiated: processes with the same count have disjoint shares. Numbers by which parts
would be made twice, or never, are refused.
"""

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cache_tools.errors import UsageError
from cache_tools.runtime import arguments, launcher, threads
from pipeline.engines import base, local
from pipeline.engines.local import LocalEngine
from pipeline.engines.ray import RayEngine
from pipeline.worker.stage1 import Stage1

log = logging.getLogger("kdcache")
Kind = Literal["local", "ray"]
_ARRAY = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Task:
    """This process among all that make one cache."""

    number: int = 0
    """Number, from 0."""
    count: int = 1
    """Count of processes."""
    local: int = 0
    """Number among those of this machine."""
    local_count: int = 1
    """Count on this machine."""
    rank: int = 0
    """Number among those started at the same time."""
    reason: str = ""
    """Source of the numbers."""
    started_by: str = ""
    """Launcher of these processes; empty = none."""

    @property
    def is_main(self) -> bool:
        """True for the process that logs and prints, the first of those started together."""
        return self.rank == 0


def choose(
    number: int | None = None,
    count: int | None = None,
    by_number: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Task:
    """Choose the task of this process: from the command line, else from its launcher.

    Args:
        number: Value of --task.
        count: Value of --tasks.
        by_number: True if --parts selects the parts, as the tasks of an array do: then the array
            divides nothing.
        environ: The environment.

    Raises:
        UsageError: The numbers are invalid, or contradict the launcher's.
    """
    arguments.check_count("task", number, 0)
    arguments.check_count("tasks", count, 1)
    launch = launcher.find(environ)  # a launcher starts its processes at the same time
    by, here = launch.by if launch.count > 1 else "", (launch.local, launch.local_count)
    launched = Task(launch.rank, launch.count, *here, launch.rank, by, by)
    if number is None and count is None:
        return launched if by_number else _in_array(launched, environ)
    if count is None:
        raise UsageError(f"--task {number} of how many? Pass --tasks, too.")
    explicit = number is not None
    if number is None:
        array = _array(environ)
        given = launched if launched.reason else array
        if not given.reason:
            raise UsageError(
                f"which of the {count} tasks is this? Pass --task, counted from 0; torchrun, srun, "
                "mpirun and Slurm's arrays set it."
            )
        number = given.number
    if launched.count not in (1, count) and launched.started_by == launcher.BY_RANK and explicit:
        launched = Task()  # numbers of a job whose processes divide their work by hand
    if launched.count not in (1, count):
        raise UsageError(
            f"--tasks {count}, but {launched.started_by} started {launched.count} processes: parts "
            "would be made twice, or never. Leave --task and --tasks out."
        )
    if not 0 <= number < count:
        raise UsageError(f"--task {number} is none of 0..{count - 1}: tasks are counted from 0.")
    return replace(launched, number=number, count=count, reason="--task and --tasks")


def engine(
    task: Task,
    device: str | None,
    workers: int | None,
    kind: Kind = "local",
    address: str | None = None,
) -> base.Open:
    """Choose the engine of a task: this process, several that it starts, or Ray's actors.

    Raises:
        UsageError: The launcher has started several already, or there are fewer GPUs than workers.
    """
    if task.reason:
        log.info("task %d of %d, from %s", task.number, task.count, task.reason)
    if not task.is_main:
        log.setLevel(logging.WARNING)
    option = f"--workers {workers}" if workers and workers > 1 else ""
    option = "--engine ray" if kind == "ray" else option
    if task.local_count > 1 and option:
        raise UsageError(
            f"{option}, but {task.started_by} started {task.local_count} processes on this machine "
            f"already. Leave {option.partition(' ')[0]} out, or start one process."
        )
    if kind == "ray":
        return functools.partial(RayEngine, workers=workers, address=address)
    if address:
        raise UsageError(f"--address {address} is for Ray's cluster: pass --engine ray, too.")
    if task.local_count > 1:
        threads.limit(threads.cpu_count() // task.local_count)
        named = local.devices(device, None)
        return _on(named[task.local % len(named)])
    named = local.devices(device, workers)
    if len(named) == 1:
        return _on(named[0])
    log.info("%d workers: %s", len(named), ", ".join(n or "cpu" for n in named))
    return functools.partial(LocalEngine, devices=named)


def _on(device: str | None) -> base.Open:
    """Open `Stage1` in this process, on a device."""
    return lambda job: Stage1.open(replace(job, device=device))


def _array(environ: Mapping[str, str]) -> Task:
    """Task given by a Slurm array, whose numbers need not begin at 0."""
    if _ARRAY + "ID" not in environ:
        return Task()
    number, count = (
        launcher.number(environ, _ARRAY + "ID"),
        launcher.number(environ, _ARRAY + "COUNT", 1),
    )
    return Task(number, count, reason="the Slurm array")


def _in_array(inner: Task, environ: Mapping[str, str]) -> Task:
    """Task of a process within a task of a Slurm array, started by srun, torchrun or neither."""
    array = _array(environ)
    if not array.reason:
        return inner
    first = launcher.number(environ, _ARRAY + "MIN", 0)
    last = launcher.number(environ, _ARRAY + "MAX", first + array.count - 1)
    if last - first + 1 != array.count or not first <= array.number <= last:
        raise UsageError(
            f"the Slurm array has {array.count} tasks, numbered from {first} to {last}: which "
            "share is this? Pass --tasks with the number of all shares, or --parts "
            "$SLURM_ARRAY_TASK_ID when its numbers are those of parts."
        )
    reason = f"{array.reason} and {inner.reason}" if inner.reason else array.reason
    number = (array.number - first) * inner.count + inner.number
    return replace(inner, number=number, count=array.count * inner.count, reason=reason)
