"""A student follows a stage 1 that is killed twice, and is the one trained afterwards."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from cache_tools.store.cache import Cache
from tests.helpers import bucket
from tests.helpers.stage1 import KDCACHE, PATIENCE, arguments
from tests.helpers.zygote import Run, Zygote

VIEWS, BATCH = 6, 5
PACE = 0.1
"""Seconds that a batch takes longer than it would."""


@contextmanager
def following(command: list[str], said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A student in a process of its own, which is ended with the body."""
    with said.open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def until_it_waits(said: Path, times: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a student has begun to wait so many times."""
    end = time.monotonic() + PATIENCE
    while said.read_text().count("wait for view") < times:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < end, said.read_text()
        time.sleep(0.05)


def killed_after_a_part(zygote: Zygote, now: Run) -> None:
    """Kill a run in the middle of its second part."""
    while not (mine := [e for e in zygote.events() if e[:2] == [now.process.pid, "committed"]]):
        assert now.alive()
        time.sleep(0.05)
    now.process.kill()
    assert now.wait() < 0, mine


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model/model.safetensors").read_bytes()).hexdigest()


SMALLER, RISING = "size=16", "size=[[0.0, 16], [0.3, 24, 20], [0.7, 48]]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "words", "processes"),
    [
        ("folder", [], 1),
        ("bucket", [], 1),
        ("folder", [SMALLER], 1),
        ("folder", [RISING], 1),
        ("bucket", [RISING], 1),
        ("folder", [], 2),
        ("folder", [RISING], 2),
    ],
)
def test_it_equals_the_one_trained_afterwards(
    place: str,
    words: list[str],
    processes: int,
    digits: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process beside stage 1, or two of torchrun (gloo), at one size or with a schedule.

    In the bucket without locks, and with other answers than a folder's.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with bucket.serve() as s3:
        keys = {"ACCESS_KEY_ID": "nobody", "SECRET_ACCESS_KEY": "none", "ENDPOINT_URL": s3.url}
        for name, value in (keys | {"DEFAULT_REGION": "us-east-1"}).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("caches")
        cache = "s3://caches/c.zarr" if place == "bucket" else str(tmp_path / "c.zarr")
        follow_two_kills(cache, digits, teacher, tmp_path, words, processes)


def follow_two_kills(
    cache: str, digits: Path, teacher: Path, tmp_path: Path, words: list[str], processes: int
) -> None:
    size = [f"num_views={VIEWS}", f"batch_size={BATCH}", "order=views"]
    made = [*arguments(digits, teacher, Path("OUT")), *size]
    made[made.index("OUT")] = cache
    train = [KDCACHE, "train", "digits", "--cache", cache, "--data", str(digits), "--device=cpu"]
    train += [f"epochs={VIEWS}", "views_per_epoch=1", "batch_size=50", *words]
    if processes > 1:
        torchrun = str(Path(sys.executable).parent / "torchrun")
        train = [torchrun, "--standalone", f"--nproc-per-node={processes}", "--no-python", *train]
    (tmp_path / "zygote").mkdir()
    zygote = Zygote(tmp_path / "zygote")
    zygote.log.write_text("")
    try:
        assert zygote.run([*made, "--limit=1"], tmp_path / "first").wait() == 0
        said, follower = tmp_path / "said", [*train, "--out", str(tmp_path / "run"), "follow=true"]
        with following(follower, said) as student:
            for times in (1, 2):
                until_it_waits(said, times, student)
                killed_after_a_part(zygote, zygote.run(made, tmp_path / f"{times}", pace=PACE))
            until_it_waits(said, 3, student)
            last = zygote.run(made, tmp_path / "last", pace=PACE)
            assert last.wait() == 0, (tmp_path / "last").read_text()
            assert student.wait(PATIENCE) == 0, said.read_text()
    finally:
        zygote.close()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["cache_content_id"] == Cache.open(cache).content_id()
    shutil.rmtree(os.environ["KDCACHE_CACHE"])  # what was kept of the bucket is fetched again
    subprocess.run([*train, "--out", str(tmp_path / "afterwards")], check=True)
    assert digest(tmp_path / "run") == digest(tmp_path / "afterwards")
