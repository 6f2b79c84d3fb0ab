"""Commands of a sweep for other machines: one for each cohort, or a Slurm array of them."""

import shlex
from collections.abc import Sequence
from typing import Literal

from cache_tools.errors import UsageError
from cache_tools.runtime import invocation
from cache_tools.store import info
from train.sweep.grid import Student

_CPUS = 8
"""Cores of a Slurm task, which decodes for its student, if no recipe sets `threads`."""


def script(
    form: Literal["commands", "slurm"],
    words: Sequence[str],
    students: Sequence[Student],
    planned: Sequence[Sequence[Student]],
    gpu: bool,
) -> str:
    """Write commands that train one cohort each.

    `words` is the command line after `kdcache`, `students` are all students of the grid.

    Raises:
        UsageError: All students are finished.
    """
    if not planned:
        raise UsageError(
            "all students are finished. Without --print the command writes table and plot."
        )
    index = {student.name: number for number, student in enumerate(students)}
    sets = [info.ranges(sorted(index[one.name] for one in cohort)) for cohort in planned]
    words = _without(_without(words, "--print"), "--students")
    if form == "commands":
        return "\n".join(
            shlex.join([invocation.program(), *words, "--students", each]) for each in sets
        )
    cores = max(one.recipe.threads for cohort in planned for one in cohort) or _CPUS
    return _slurm(words, sets, gpu, cores)


def _without(words: Sequence[str], option: str) -> list[str]:
    """Remove one option and its value from a command line."""
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
    """Write a job array; a task that Slurm kills and requeues resumes."""
    command = shlex.join([invocation.program(), *words])
    return "\n".join(
        [
            "#!/bin/bash",
            "# Submit with sbatch; its options (--cpus-per-task=16 --time=…) override those here.",
            "# After the last task, the sweep's own command writes table and plot.",
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
