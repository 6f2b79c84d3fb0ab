"""Sweeps that are killed train each student once, to the weights of an undisturbed sweep."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers import patched
from tests.helpers.sweeps import SIZES, results, same_weights, steps, sweep_command

KILLED = """
from train.trainer import checkpoint

out, count, number = Path(settings[0]), int(settings[1]), int(settings[2])
save = checkpoint.save

def killed(*arguments):
    save(*arguments)
    if len(list(out.glob("*/result.json"))) >= count:
        checkpoint.save = save
        os.kill(os.getpid(), number)

checkpoint.save = killed
"""
"""A sweep that is killed after a checkpoint, once so many students are finished."""


@pytest.mark.slow
def test_twelve_students_killed_twice_are_each_trained_once(
    undisturbed: Path, digits_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = sweep_command(undisturbed, digits_cache, out, "--together", "3")
    finished: dict[str, int] = {}
    for count, kill, code in ((3, signal.SIGKILL, -9), (7, signal.SIGINT, 130)):
        killed = patched.run(KILLED, [out, count, int(kill)], command[1:])
        assert killed.returncode == code, killed.stderr
        now = results(out)
        assert len(now) >= count
        assert {name: now[name] for name in finished} == finished
        assert len(now) < 12
        finished = now
    begun = any(out.glob("*/checkpoint.pt"))  # not if its cohort was ready before it was killed
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert f"12 students, {len(finished)} of them finished" in last.stderr
    assert ("going on at epoch" in last.stderr) == begun
    assert {name: results(out)[name] for name in finished} == finished
    assert len(results(out)) == 12
    assert steps(out) == steps(undisturbed / "out")
    assert all(same_weights(out, undisturbed / "out"))


@pytest.mark.slow
def test_a_sweep_over_sizes_killed_twice_is_that_of_separate_runs(
    digits_cache: Path, tmp_path: Path
) -> None:
    """Killed after a student's checkpoint, when the others have none of this epoch."""
    (tmp_path / "grid.toml").write_text(SIZES)
    out, alone = tmp_path / "out", tmp_path / "alone"
    command = sweep_command(tmp_path, digits_cache, out)
    for _ in range(2):
        killed = patched.run(KILLED, [out, 0, int(signal.SIGKILL)], command[1:])
        assert killed.returncode == -9, killed.stderr
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert "going on at epoch" in last.stderr
    separate = sweep_command(tmp_path, digits_cache, alone, "--together", "1")
    subprocess.run(separate, check=True, capture_output=True)
    assert steps(out) == steps(alone)
    assert len(steps(out)) == 3
    assert all(same_weights(out, alone))
