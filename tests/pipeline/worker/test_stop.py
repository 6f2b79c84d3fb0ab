"""Signals stop stage 1 after the parts that are nearly done; the next run goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_tools.runtime import signals
from cache_tools.storage import atomic
from cache_tools.store.cache import Cache
from pipeline import recipe as recipes
from pipeline.run import run
from pipeline.worker import stage1
from pipeline.worker.stage1 import Stage1
from tests.helpers.workbench import BATCH, BLOCKS, WINDOWS, Opener


@pytest.mark.parametrize(
    ("number", "grace"),
    [
        (signal.SIGTERM, 0.0),
        (signal.SIGUSR1, 1e9),
        pytest.param(signal.SIGINT, 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_keeps_what_is_committed_and_names_the_next_step(
    photos: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    grace: float,
) -> None:
    """It comes while the second group's first window is asked about."""
    monkeypatch.setattr(stage1, "GRACE_SECONDS", grace)
    recipe = recipes.load("digits", [*WINDOWS, "num_views=3", "views_per_decode=1"])
    out, predict = tmp_path / "cache.zarr", stage1.Predictor.predict

    def signalled(self: stage1.Predictor, window: stage1.Window, view: int) -> Iterator[object]:
        if window.group.views == (1,) and window.rows.start == 0:
            os.kill(os.getpid(), number)
        return predict(self, window, view)

    monkeypatch.setattr(stage1.Predictor, "predict", signalled)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(recipe, str(photos), str(teacher), out, "cpu", force=True)
    kept = 2 if grace else 1
    assert f"Stopped by {number.name}. {kept} of 3 parts" in str(stopped.value)
    monkeypatch.undo()
    store = Cache.open(out)
    assert [store.check_part(p) is None for p in store.parts()] == [v < kept for v in range(3)]
    assert not list(out.rglob(f"*{atomic.PARTIAL}"))
    run(recipe, str(photos), str(teacher), out, "cpu", force=True)
    assert all(store.check_part(p) is None for p in store.parts())


def test_a_second_signal_stops_at_once(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, asked = opened(BLOCKS), []

    def signalled(self: stage1.Predictor, window: stage1.Window, view: int) -> Iterator[object]:
        asked.append(view)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        yield from ()

    monkeypatch.setattr(stage1.Predictor, "predict", signalled)
    monkeypatch.setattr(signals, "PASSED_ON", 0.0)
    worker = Stage1(bench.store, bench.images, bench.ask(), BATCH, 2)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        worker.make(bench.groups(2), lambda _: None)
    worker.close()
    assert asked == [0]
    assert not bench.chunks()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_command_that_gets_a_signal(
    photos: Path, teacher: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "cache.zarr"
    kdcache = str(Path(sys.executable).parent / "kdcache")
    arguments = ["cache", "digits", "--data", photos, "--teacher", teacher, "--out", out, "--force"]
    command = [kdcache, *map(str, arguments), *WINDOWS, "num_views=4000", "views_per_decode=1"]
    environment = {**os.environ, "PATH": os.defpath}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not list(out.glob("commits/v*/*.json")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        told = process.communicate()[1]
    store = Cache.open(out)
    done = [p for p in store.parts() if store.present(p)]
    assert process.returncode == 130
    assert 0 < len(done) < 4000
    assert f"Stopped by {number.name}. {len(done)} of 4,000 parts of {out} are committed" in told
    assert f"Continue with: {kdcache} cache digits --data {photos}" in told  # not on PATH
    assert "Traceback" not in told
    assert all(store.check_part(p) is None for p in done)
