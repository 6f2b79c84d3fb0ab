"""The Ray engine: a cluster of this machine's two cores, with actors that come and go."""

import builtins
import logging
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cache_tools.errors import UsageError
from cache_tools.runtime import ray_cluster, threads
from cache_tools.store.cache import Cache
from cache_tools.verify import verify
from pipeline.engines import ray as engine
from pipeline.engines.ray import Stage1Actor
from pipeline.recipe import TeacherSource
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.job import JobSpec
from tests.helpers.outcome import Outcome
from tests.helpers.stage1 import KDCACHE, arguments, files

KILLS = 5


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_an_actor_for_each_gpu_or_each_node() -> None:
    mixed = [node(CPU=32, GPU=4), node(CPU=16, GPU=4), node(CPU=64), node(False, CPU=9, GPU=9)]
    assert engine._resources(mixed, None, None) == (8, 1, 4)
    assert engine._resources(mixed, None, 3) == (3, 1, 4)
    assert engine._resources(mixed, "cpu", None) == (3, 0, 16)
    assert engine._resources([node(CPU=2)], None, 2) == (2, 0, 1)
    with pytest.raises(UsageError, match="more than the 8 GPUs"):
        engine._resources(mixed, None, 9)


def test_paths_mean_the_same_on_every_node(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent)
    recipe: Any = None
    job = JobSpec(recipe, "data", (TeacherSource("model"), TeacherSource("resnet18")), "c.zarr")
    there = engine._absolute_paths(job)
    assert [source.name for source in there.sources] == [str(teacher), "resnet18"]
    assert there.out == str(teacher.parent / "c.zarr")
    assert engine._absolute_paths(JobSpec(recipe, "s3://b/d", (), "s3://b/c")).out == "s3://b/c"


def test_a_node_that_does_not_see_the_cache_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Any = None
    monkeypatch.setattr(engine, "log", logging.getLogger("an actor's"))
    monkeypatch.setattr(threads, "_max_cores", threads._max_cores)
    answer = Stage1Actor().make(
        JobSpec(recipe, "", (), str(tmp_path / "c")), 1, None, 1, [DecodeGroup(0, (0,))]
    )
    assert "cannot find the cache" in str(answer.error)


def test_without_ray_the_extra_is_named(
    kdcache: Callable[..., Outcome],
    digits: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import_ = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return import_(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    refused = kdcache(*arguments(digits, teacher, tmp_path / "c.zarr", "--engine=ray"))
    assert refused.code == 2
    assert "pip install 'kdcache[ray]'" in refused.err
    assert not (tmp_path / "c.zarr").exists()
    local = kdcache(*arguments(digits, teacher, tmp_path / "c.zarr", "--address=a:1"))
    assert "pass --engine ray, too" in local.err


def test_a_cluster_that_is_not_there_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    ray = SimpleNamespace(init=lambda *args, **_: asked.append(args))
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for place in (address, f"ray://{address}"):
            with pytest.raises(UsageError, match=f"no cluster of Ray at {place} .*refused"):
                ray_cluster.join(ray, place)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UsageError, match="by --address or RAY_ADDRESS"):
            ray_cluster.join(ray)
        assert not asked
        taken.listen()
        ray_cluster.join(ray)
    monkeypatch.delenv("RAY_ADDRESS")
    ray_cluster.join(ray)
    ray_cluster.join(ray, "auto")
    assert asked == [(address,), (None,), ("auto",)]


def makers() -> list[psutil.Process]:
    """Processes of actors that make parts."""
    found = psutil.process_iter(["name", "cmdline"])
    return [p for p in found if " ".join(p.info["cmdline"] or ()).startswith("ray::Stage1Actor")]


@pytest.mark.slow
def test_actors_that_are_killed_are_replaced_and_the_cache_is_that_of_one_process(
    digits: Path, teacher: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    views = ["num_views=120", "views_per_decode=2", "batch_size=20"]
    out, alone = tmp_path / "c.zarr", tmp_path / "d.zarr"
    told = [*arguments(digits, teacher, out, "--engine=ray", "--workers=2"), *views]
    before, dice, kills, seen = {p.pid for p in makers()}, random.Random(7), 0, 0
    here = os.environ | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [KDCACHE, *told], stderr=log, stdout=subprocess.PIPE, text=True, env=here
        )
        while driver.poll() is None and kills < KILLS:
            time.sleep(0.05)
            done, actors = len(list(out.glob("commits/*/*.json"))), makers()
            mine = [actor for actor in actors if actor.pid not in before]
            if done > seen and mine:
                time.sleep(dice.uniform(0, 0.3))
                seen, kills = done, kills + 1
                dice.choice(mine).kill()
        said = driver.communicate(timeout=600)[0]
    text = (tmp_path / "log").read_text()
    assert driver.returncode == 0, text
    assert kills == KILLS
    assert "2 actors of Ray with 0 GPUs and 1 cores each" in text
    assert said.startswith(f"{out}: 120 of 120 parts")
    subprocess.run([KDCACHE, *arguments(digits, teacher, alone), *views], check=True)
    assert verify.verify(Cache.open(out)).status == "ok"
    ours = {n: data for n, data in files(out).items() if not n.endswith(".partial")}
    assert ours == files(alone)
    assert not [actor for actor in makers() if actor.pid not in before]
