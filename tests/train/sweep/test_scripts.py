"""Commands and Slurm scripts that run a sweep on other machines."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from cache_tools.store import info
from tests.helpers.sweeps import SMALL, Command


def test_commands_for_other_machines(
    kdcache: Command, digits_cache: Path, written: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    arguments = ("sweep", written(SMALL), "--cache", digits_cache, "--out", out, "--together", 3)
    lines = kdcache(*arguments, "--print", "commands").out.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["0-2", "3"]
    assert lines[0].startswith(f"kdcache sweep {tmp_path}/grid.toml --cache")
    assert "--print" not in lines[0]
    for more, words in {
        ("--fresh",): "and --fresh",
        ("--engine", "ray"): "excludes --engine ray",
    }.items():
        refused = kdcache(*arguments, *more, "--print", "slurm")
        assert (refused.code, refused.out) == (2, "")
        assert words in refused.err
    assert not out.exists()
    assert info.numbers("0-2,5") == [0, 1, 2, 5]
    assert info.numbers("a") is None


def test_the_tasks_of_a_slurm_array_finish_the_grid(
    kdcache: Command, digits_cache: Path, written: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "a sweep"
    sweep = ("sweep", written(SMALL), "--cache", digits_cache, "--out", out, "--together", 3)
    script = kdcache(*sweep, "--print=slurm", "--students", "0-3").out
    for line in ("#SBATCH --array=0-1", "#SBATCH --gpus-per-task=1", "#SBATCH --cpus-per-task=8"):
        assert line in script
    assert f"--out '{out}'" in script
    on_cpus = kdcache(*sweep, "--print=slurm", "--device", "cpu", "threads=2").out
    assert "--gpus" not in on_cpus
    assert "--cpus-per-task=2" in on_cpus
    assert not out.exists()
    asked = 'srun() { shift; for word; do printf "%s\\n" "$word"; done; }\n'
    for task in ("0", "1"):
        said = subprocess.run(
            ["bash", "-euc", asked + script],
            env={"SLURM_ARRAY_TASK_ID": task, "SLURM_CPUS_PER_TASK": "8"},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        outcome = kdcache(*said.stdout.splitlines())
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("begun") + outcome.out.count("  new") == (1, 0)[int(task)]
    facts = json.loads((out / "sweep.json").read_text())
    assert [row["state"] for row in facts["students"]] == ["finished"] * 4
    nothing = kdcache(*sweep, "--print", "slurm")
    assert (nothing.code, nothing.out) == (2, "")
    assert "all students are finished" in nothing.err
