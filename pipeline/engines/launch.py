"""Which share of the parts this process makes, and on which device: from whoever started it.

torchrun, srun and Slurm's arrays each tell a process its number and how many there are, in the
environment; `--task I --tasks N` says it by hand. Nothing is negotiated: processes that agree on
the two numbers agree on the shares. What would have processes make the same parts, or leave some
to nobody, is refused.
"""

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cache_tools.errors import UsageError
from cache_tools.runtime import threads
from pipeline.engines import base, local
from pipeline.engines.local import Processes
from pipeline.engines.ray import Actors
from pipeline.worker.job import Work

log = logging.getLogger("kdcache")
Kind = Literal["local", "ray"]
_ARRAY = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Task:
    """This process among all that make one cache."""

    number: int = 0
    """Its number, from 0."""
    count: int = 1
    """How many there are."""
    local: int = 0
    """Its number among those of this machine."""
    local_count: int = 1
    """How many of them this machine has."""
    rank: int = 0
    """Its number among those that were started at the same time."""
    reason: str = ""
    """Who said so."""
    started_by: str = ""
    """Who started these, if anybody did."""

    @property
    def speaks(self) -> bool:
        """Whether it logs and prints: of those started together, the first one does."""
        return self.rank == 0


def choose(
    number: int | None = None,
    count: int | None = None,
    by_number: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Task:
    """The task of this process: as told on the command line, else by who started it.

    Args:
        number: What --task says.
        count: What --tasks says.
        by_number: Whether --parts names the parts, as the tasks of an array do: then the array
            shares nothing out.
        environ: The environment.

    Raises:
        UsageError: The numbers cannot be, or who started the process says otherwise.
    """
    together = _together(environ)
    if number is None and count is None:
        return together if by_number else _in_array(together, environ)
    if count is None:
        raise UsageError(f"--task {number} of how many? Pass --tasks, too.")
    if number is None:
        number = _of(together, _array(environ), count)
    if together.count not in (1, count):
        raise UsageError(
            f"--tasks {count}, but {together.started_by} started {together.count} processes: they "
            "would make the same parts, or leave some to nobody. Leave --task and --tasks out."
        )
    if not 0 <= number < count:
        raise UsageError(f"--task {number} is none of 0..{count - 1}: tasks are counted from 0.")
    return replace(together, number=number, count=count, reason="--task and --tasks")


def engine(
    task: Task,
    device: str | None,
    workers: int | None,
    kind: Kind = "local",
    address: str | None = None,
) -> base.Open:
    """Who makes the parts of a task: this process, several that it starts, or Ray's actors.

    Args:
        task: This process among all.
        device: What --device says.
        workers: What --workers says.
        kind: What --engine says.
        address: Where Ray's cluster is.

    Raises:
        UsageError: Processes are there already, or there are fewer GPUs than workers.
    """
    if task.reason:
        log.info("task %d of %d, as %s said", task.number, task.count, task.reason)
    if not task.speaks:
        log.setLevel(logging.WARNING)
    asked = f"--workers {workers}" if workers and workers > 1 else ""
    asked = "--engine ray" if kind == "ray" else asked
    if task.local_count > 1 and asked:
        raise UsageError(
            f"{asked}, but {task.started_by} started {task.local_count} processes on this machine "
            f"already. Leave {asked.partition(' ')[0]} out, or start one process."
        )
    if kind == "ray":
        return functools.partial(Actors, workers=workers, address=address)
    if address:
        raise UsageError(f"--address {address} is of Ray's cluster: pass --engine ray, too.")
    if task.local_count > 1:
        threads.limit(threads.cpu_count() // task.local_count)
        named = local.devices(device, None)
        return _on(named[task.local % len(named)])
    named = local.devices(device, workers)
    if len(named) == 1:
        return _on(named[0])
    log.info("%d workers: %s", len(named), ", ".join(n or "cpu" for n in named))
    return functools.partial(Processes, devices=named)


def _on(device: str | None) -> base.Open:
    """This process, on a device."""
    return lambda job: Work(replace(job, device=device))


def _together(environ: Mapping[str, str]) -> Task:
    """What torchrun or srun says of processes that it started at the same time."""
    srun = _srun(environ)
    if "TORCHELASTIC_RUN_ID" not in environ:
        return srun
    agents = _number(environ, "GROUP_WORLD_SIZE", 1)
    if srun.count not in (1, agents):
        raise UsageError(
            f"srun started {srun.count} torchruns, and this one knows of {agents}: they would all "
            "make the same parts. Pass torchrun --nnodes and --rdzv-endpoint, or use srun alone."
        )
    local = _number(environ, "LOCAL_RANK", 0), _number(environ, "LOCAL_WORLD_SIZE", 1)
    rank = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    return Task(*rank, *local, rank[0], "torchrun", "torchrun")


def _srun(environ: Mapping[str, str]) -> Task:
    # A batch script has SLURM_PROCID and SLURM_NTASKS as well, and is one process: only a step
    # started by srun has a number and a size of its own.
    if "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        return Task()
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    count, nodes = _number(environ, size, 1), _number(environ, "SLURM_STEP_NUM_NODES", 1)
    if count == 1:
        return Task()
    local = _number(environ, "SLURM_LOCALID", 0), -(-count // nodes)
    rank = _number(environ, "SLURM_PROCID")
    return Task(rank, count, *local, rank, "srun", "srun")


def _array(environ: Mapping[str, str]) -> Task:
    """What a Slurm array says; its numbers need not begin at 0."""
    if _ARRAY + "ID" not in environ:
        return Task()
    number, count = _number(environ, _ARRAY + "ID"), _number(environ, _ARRAY + "COUNT", 1)
    return Task(number, count, reason="the Slurm array")


def _in_array(inner: Task, environ: Mapping[str, str]) -> Task:
    """The task of a process that srun or torchrun started, or nobody, within a task of an array."""
    array = _array(environ)
    if not array.reason:
        return inner
    first = _number(environ, _ARRAY + "MIN", 0)
    last = _number(environ, _ARRAY + "MAX", first + array.count - 1)
    if last - first + 1 != array.count or not first <= array.number <= last:
        raise UsageError(
            f"the Slurm array has {array.count} tasks, numbered from {first} to {last}: which "
            "share is this? Pass --tasks with the number of all shares, or --parts "
            "$SLURM_ARRAY_TASK_ID when its numbers are those of parts."
        )
    reason = f"{array.reason} and {inner.reason}" if inner.reason else array.reason
    number = (array.number - first) * inner.count + inner.number
    return replace(inner, number=number, count=array.count * inner.count, reason=reason)


def _of(together: Task, array: Task, count: int) -> int:
    """The number that goes with --tasks alone: that of the environment."""
    said = together if together.reason else array
    if not said.reason:
        raise UsageError(
            f"which of the {count} tasks is this? Pass --task, counted from 0; torchrun, srun and "
            "Slurm's arrays tell it by themselves."
        )
    return said.number


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"{name} is {text!r} and no number. Pass --task and --tasks to say which share to make."
        )
    return int(text)
