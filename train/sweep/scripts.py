"""A sweep as commands for other machines: one for each cohort, or a Slurm array of them."""

import shlex
from collections.abc import Sequence
from typing import Literal

from cache_tools.errors import UsageError
from cache_tools.store import info
from train.sweep.grid import Student

_CPUS = 8
"""Cores of a Slurm task, which decodes for its student, where no recipe says."""


def script(
    form: Literal["commands", "slurm"],
    words: Sequence[str],
    named: Sequence[Student],
    planned: Sequence[Sequence[Student]],
    gpu: bool,
) -> str:
    """Commands that train the students of a cohort each, and no others.

    Args:
        form: Lines, or a script for sbatch.
        words: What follows `kdcache` on the command line.
        named: All students of the grid.
        planned: The cohorts.
        gpu: Whether a task takes one.

    Raises:
        UsageError: There is nothing to do.
    """
    if not planned:
        raise UsageError(
            "nothing is left to train. Without --print the command writes table and picture."
        )
    place = {student.name: number for number, student in enumerate(named)}
    sets = [info.ranges(sorted(place[one.name] for one in cohort)) for cohort in planned]
    words = _without(_without(words, "--print"), "--students")
    if form == "commands":
        return "\n".join(shlex.join(["kdcache", *words, "--students", each]) for each in sets)
    cores = max(one.recipe.threads for cohort in planned for one in cohort) or _CPUS
    return _slurm(words, sets, gpu, cores)


def _without(words: Sequence[str], option: str) -> list[str]:
    """A command line but for one option and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith(f"{option}="):
            skip = False
        elif word == option:
            skip = True
        else:
            kept.append(word)
    return kept


def _slurm(words: Sequence[str], sets: Sequence[str], gpu: bool, cores: int) -> str:
    """A job array: a task is killed and requeued as Slurm likes, and goes on."""
    command = shlex.join(["kdcache", *words])
    return "\n".join(
        [
            "#!/bin/bash",
            "# sbatch this; what sbatch is told (--cpus-per-task=16 --time=…) goes before what",
            "# stands here. Once all is done, the sweep's own command writes table and picture.",
            "#SBATCH --job-name=kdcache-sweep",
            f"#SBATCH --array=0-{len(sets) - 1}",
            "#SBATCH --ntasks=1",
            *["#SBATCH --gpus-per-task=1"] * gpu,
            f"#SBATCH --cpus-per-task={cores}",
            "#SBATCH --requeue",
            "#SBATCH --signal=TERM@120",
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # or srun takes one",
            f"students=({' '.join(sets)})",
            f'srun {command} --students "${{students[$SLURM_ARRAY_TASK_ID]}}"',
        ]
    )
