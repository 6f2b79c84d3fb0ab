"""The Ray engine: a cluster of this machine's two cores, with actors that come and go."""

import builtins
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import ray_cluster, threads
from cache_tools.store.cache import Cache
from cache_tools.verify import verify
from pipeline.engines import ray as engine
from pipeline.engines.ray import Stage1Actor
from pipeline.recipe import TeacherSource
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.job import JobSpec
from tests.helpers.outcome import Outcome
from tests.helpers.stage1 import KDCACHE, PATIENCE, arguments, files, gone

KILLS = 5
SIZE = ["num_views=240", "views_per_decode=2", "batch_size=20", "views.teacher_size=32"]
RAY = str(Path(sys.executable).parent / "ray")
HERE = os.environ | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
HERE |= {"RAY_AUTH_MODE": "disabled"}  # a token would be written into the home folder


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
    urls = JobSpec(recipe, "https://me:s3cr3t@h/d?sig=s3cr3t", (), "s3://b/c")
    assert engine._absolute_paths(urls) == urls


def test_a_node_that_does_not_see_the_cache_is_named(
    own_log: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Any = None
    monkeypatch.setattr(threads, "_max_cores", threads._max_cores)
    answer = Stage1Actor().make(
        JobSpec(recipe, "", (), str(tmp_path / "c")), 1, None, 1, [DecodeGroup(0, (0,))]
    )
    assert "cannot find the cache" in str(answer.error)


def test_an_actor_logs_no_secret(own_log: None, capfd: pytest.CaptureFixture[str]) -> None:
    Stage1Actor()
    engine.log.info("a choice, which each actor makes")
    engine.log.warning("https://me:s3cr3t@host/a.tar?sig=s3cr3t is read again")
    assert capfd.readouterr().err == "https://host/a.tar is read again\n"


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


def test_a_cluster_that_does_not_start_in_time_is_an_error_with_the_next_step() -> None:
    late = MagicMock(side_effect=Exception("The current node timed out during startup."))
    with pytest.raises(UsageError, match=r"at this machine \(The current node timed .*ray start"):
        ray_cluster.join(SimpleNamespace(init=late))


def test_a_cluster_that_refuses_is_not_called_missing() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        refusing = SimpleNamespace(init=MagicMock(side_effect=ConnectionError("InvalidAuthToken")))
        with pytest.raises(UsageError, match=rf"{address} refuses this .*Token.*RAY_AUTH_MODE"):
            ray_cluster.join(refusing, address)


@pytest.mark.parametrize("alive", [True, False])
def test_a_late_result_is_waited_for_while_the_head_listens(alive: bool) -> None:
    late = type("GetTimeoutError", (Exception,), {})
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        if alive:
            head.listen()
        ray = MagicMock()
        ray.exceptions.GetTimeoutError = late
        ray.get.side_effect = [late(), late(), "result"]
        ray.util.client.ray.is_connected.return_value = False
        ray.get_runtime_context.return_value.gcs_address = address
        if alive:
            assert ray_cluster.fetch(ray, "reference") == "result"
        else:
            with pytest.raises(KdcacheError, match=r"lost .its head does not respond: .*refused"):
                ray_cluster.fetch(ray, "reference")


@pytest.fixture(scope="module")
def alone(
    digits: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Files of the cache that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "c.zarr"
    subprocess.run([KDCACHE, *arguments(digits, teacher, out), *SIZE], check=True, timeout=PATIENCE)
    return files(out)


@dataclass
class Drivers:
    """Drivers of Ray on one cache, whose log is one file."""

    words: list[str]
    out: Path
    log: Path
    started: contextlib.ExitStack
    """Ends each driver that still runs, and closes its pipe."""

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Start one in a group of its own."""
        with self.log.open("a") as stderr:
            driver = subprocess.Popen(
                [KDCACHE, *self.words, *more], stderr=stderr, stdout=subprocess.PIPE, text=True,
                env=HERE, start_new_session=True,
            )  # fmt: skip
        self.started.enter_context(driver)
        self.started.callback(driver.kill)
        return driver

    @property
    def parts(self) -> int:
        return len(list(self.out.glob("commits/*/*.json")))

    def advances(self, driver: subprocess.Popen[str], more: int) -> bool:
        """Wait until some more parts are committed; False if the driver ends before."""
        end, deadline = self.parts + more, time.monotonic() + PATIENCE
        while self.parts < end:
            time.sleep(0.05)
            if driver.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.log.read_text()
        return True

    def wait(self, driver: subprocess.Popen[str], more: int = 3) -> None:
        """Wait until some more parts are committed."""
        assert self.advances(driver, more), self.log.read_text()

    def check(self, alone: dict[str, bytes]) -> None:
        """The cache is whole and that of one process, and no error was a traceback."""
        assert verify.verify(Cache.open(self.out)).status == "ok"
        ours = {n: data for n, data in files(self.out).items() if not n.endswith(".partial")}
        assert ours == alone
        assert "Traceback" not in self.log.read_text()


@pytest.fixture
def drivers(digits: Path, teacher: Path, tmp_path: Path) -> Iterator[Drivers]:
    out = tmp_path / "c.zarr"
    words = [*arguments(digits, teacher, out, "--engine=ray"), *SIZE]
    with contextlib.ExitStack() as started:
        yield Drivers(words, out, tmp_path / "log", started)


def named(process: psutil.Process, *names: str) -> bool:
    """Whether a process lives and its name begins with one of these."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return Path(" ".join(process.cmdline()[:1])).name.startswith(names)
    return False


def processes(driver: subprocess.Popen[str], *names: str) -> list[psutil.Process]:
    """Processes of a driver's own cluster, by the beginning of their names."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):  # the driver has ended
        found = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in found if named(process, *names)]


@pytest.mark.slow
def test_actors_that_are_killed_are_replaced_and_the_cache_is_that_of_one_process(
    drivers: Drivers, alone: dict[str, bytes]
) -> None:
    """The actor that counts the views is killed as well."""
    driver, dice, kills = drivers.start("--workers=2"), random.Random(7), 0
    while kills < KILLS and drivers.advances(driver, 1):
        time.sleep(dice.uniform(0, 0.3))
        counter = ["ray::ProgressCounter"] if kills == 1 else []
        if victims := processes(driver, *(counter or ["ray::Stage1Actor"])):
            dice.choice(victims).kill()
            kills += 1
    printed = driver.communicate(timeout=PATIENCE)[0]
    text = drivers.log.read_text()
    assert driver.returncode == 0, text
    assert kills > 1  # a fast machine ends before the last of them
    assert "2 actors of Ray with 0 GPUs and 1 core each" in text
    assert printed.startswith(f"{drivers.out}: 240 of 240 parts")
    drivers.check(alone)


@pytest.mark.slow
def test_a_driver_that_loses_its_cluster_or_is_killed_or_stopped_goes_on(
    drivers: Drivers, alone: dict[str, bytes]
) -> None:
    """Without its raylet a driver may still end well, or be ended by Ray before our message."""
    lost = "the cluster of Ray was lost ("
    for mishap, message in (("raylet", ""), ("SIGKILL", ""), ("SIGTERM", "Stopped by SIGTERM. ")):
        driver = drivers.start("--workers=2")
        if not drivers.advances(driver, 1):
            break  # nothing is left to do
        everything = processes(driver, "")
        if mishap == "raylet":
            next(one for one in everything if named(one, "raylet")).kill()
        elif mishap == "SIGKILL":
            driver.kill()
        else:
            os.killpg(driver.pid, signal.SIGTERM)
        printed, text = driver.communicate(timeout=PATIENCE)[0], drivers.log.read_text()
        complete = printed.startswith(f"{drivers.out}: 240 of 240 parts")
        if mishap == "raylet":
            assert driver.returncode == 0 if complete else driver.returncode != 0, text
            assert driver.returncode != 1 or lost in text
        elif not complete:
            assert driver.returncode == (-signal.SIGKILL if mishap == "SIGKILL" else 130), text
            assert message in text
        assert gone(everything)
    driver = drivers.start("--workers=2")
    assert driver.communicate(timeout=PATIENCE)[0].startswith(f"{drivers.out}: 240 of 240 parts")
    drivers.check(alone)


@contextlib.contextmanager
def head(port: int, client_port: int) -> Iterator[None]:
    """A cluster of two cores at a port; killed with all its processes at the end."""
    folder = tempfile.mkdtemp(prefix="ray")  # short: the paths of sockets are
    words = [
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=2",
        f"--ray-client-server-port={client_port}",
    ]
    words += ["--include-dashboard=false", f"--temp-dir={folder}"]
    process = subprocess.Popen(
        [RAY, *words], stdout=subprocess.DEVNULL, env=HERE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                ray_cluster.check_reachable(f"127.0.0.1:{port}")
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        everything = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it did not start
            everything = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for one in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(PATIENCE)
        assert gone(everything)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_two_drivers_on_one_cache_make_that_of_one(
    drivers: Drivers, alone: dict[str, bytes]
) -> None:
    """Each has a cluster of its own."""
    both = [drivers.start("--workers=1") for _ in range(2)]
    ended = [driver.communicate(timeout=PATIENCE)[0] for driver in both]
    assert [driver.returncode for driver in both] == [0, 0], drivers.log.read_text()
    assert all(text.startswith(f"{drivers.out}: 240 of 240 parts") for text in ended)
    drivers.check(alone)


@pytest.mark.slow
def test_two_drivers_on_one_cluster_end_with_its_head_and_go_on_with_the_next(
    drivers: Drivers, alone: dict[str, bytes]
) -> None:
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in (one, two)]
    order = ("--workers=1", f"--address=127.0.0.1:{ports[0]}")
    with head(*ports):
        both = [drivers.start(*order) for _ in range(2)]
        drivers.wait(both[0])
    for driver in both:
        assert driver.communicate(timeout=PATIENCE)[0] == ""
        assert driver.returncode == 1, drivers.log.read_text()
    assert drivers.log.read_text().count("the cluster of Ray was lost (") == 2
    with head(*ports):
        both = [drivers.start(*order) for _ in range(2)]
        for driver in both:
            assert driver.communicate(timeout=PATIENCE)[0].startswith(f"{drivers.out}: 240 of 240")
    drivers.check(alone)
