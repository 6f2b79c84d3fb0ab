"""A run that is stopped, at any step, ends with the student of an undisturbed one."""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cache_tools.runtime.signals import StopRequest
from tests.helpers import patched
from tests.helpers.outcome import Outcome
from tests.helpers.stage1 import KDCACHE
from tests.helpers.training import FAST, same, weights
from train import recipe as recipes
from train import run_dir
from train.data.inputs import Inputs, open_inputs
from train.trainer import checkpoint, loop

Command = Callable[..., Outcome]


INTERRUPTED = """
from train.trainer.student import StudentTrainer

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
name, left = settings[0], int(settings[1])
real = getattr(StudentTrainer, name)

def interrupted(self, *arguments, **options):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGINT)
    return real(self, *arguments, **options)

setattr(StudentTrainer, name, interrupted)
"""
"""`kdcache train` that gets Ctrl-C at its n-th call of a method of the learner."""


_SLOW = [pytest.param(*stop, marks=pytest.mark.slow) for stop in [("__init__", 1), ("turn", 1)]]


@pytest.mark.parametrize(("name", "number"), [*_SLOW, ("turn", 7)])
def test_ctrl_c_and_going_on_give_the_undisturbed_student(
    finished: Path, digits_cache: Path, tmp_path: Path, name: str, number: int
) -> None:
    run = tmp_path / "run"
    arguments = ["train", "digits", "--cache", str(digits_cache), "--out", str(run), *FAST]
    stopped = patched.run(INTERRUPTED, [name, number], arguments)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert (run / "checkpoint.pt").exists() == (name == "turn")
    subprocess.run([KDCACHE, *arguments], check=True)
    assert same(weights(run), weights(finished))
    assert same(weights(run, "model-ema"), weights(finished, "model-ema"))
    rows = [(f / "log.jsonl").read_text() for f in (run, finished)]
    assert rows[0] == rows[1]


def stops_of(
    recipe: recipes.TrainRecipe, inputs: Inputs, out: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """Train with a stop after every update, and go on; how many stops there were, at each."""
    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
    run_dir.init_run(out, recipe, inputs, fresh=False)
    for number in itertools.count(1):
        with contextlib.suppress(KeyboardInterrupt):
            loop.train(recipe, inputs, out, torch.device("cpu"))
            return
        yield number


def test_a_checkpoint_in_the_middle_of_an_epoch_is_exact(
    finished: Path, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops after every step, and still ends with the same student."""
    recipe, inputs = recipes.load("digits", FAST), open_inputs(digits_cache, None)
    out = tmp_path / "run"
    assert len([*stops_of(recipe, inputs, out, monkeypatch)]) == 10
    assert same(weights(out), weights(finished))


def test_stopped_between_updates_and_with_a_broken_last_checkpoint_it_is_still_exact(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulation a stop waits for the update; the checkpoint before the last one serves."""
    recipe, inputs = (
        recipes.load("digits", [*FAST, "grad_accum_steps=2"]),
        open_inputs(digits_cache, None),
    )
    run_dir.init_run(tmp_path / "undisturbed", recipe, inputs, fresh=False)
    loop.train(recipe, inputs, tmp_path / "undisturbed", torch.device("cpu"))
    out = tmp_path / "run"
    for stops in stops_of(recipe, inputs, out, monkeypatch):
        if stops == 3:
            assert (out / checkpoint.PREVIOUS).exists()
            data = bytearray((out / checkpoint.NAME).read_bytes())
            data[len(data) // 2] ^= 1  # within a tensor: torch would load it
            (out / checkpoint.NAME).write_bytes(data)
    assert stops == 7  # five updates in two epochs of five batches; one of them done twice
    assert same(weights(out), weights(tmp_path / "undisturbed"))
    assert not list(out.glob("checkpoint*"))


def test_a_broken_checkpoint_gets_a_next_step(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "digits", "--cache", digits_cache, "--out", run, *FAST)
    assert kdcache(*arguments).code == 0
    (run / "result.json").unlink()
    (run / "checkpoint.pt").write_bytes(os.urandom(1000))
    outcome = kdcache(*arguments)
    assert outcome.code == 1
    assert "--fresh" in outcome.err
