"""Fetching caches over a network that fails: only time is lost, and only what is needed moves."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache_tools.errors import CacheDamaged
from cache_tools.spec.targets import TargetSpec
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.verify import verify
from tests.helpers import lab
from tests.helpers.outcome import Outcome
from tests.helpers.range_server import RangeServer, per_file, serve
from tests.helpers.sizes import needed

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 views of 200 samples in 4 blocks; every chunk is large beside its headers."""
    root = tmp_path_factory.mktemp("served")
    everything = TargetSpec(40, 0.0, 40, 127, (1.0, 2.0))
    lab.build(root / "cache.zarr", lab.keys(200), range(6), block=64, targets=everything)
    return root


@pytest.fixture
def server(served: Path) -> Iterator[RangeServer]:
    with serve(served) as running:
        yield running


def content(cache: Path) -> dict[str, bytes]:
    found = (p for p in cache.rglob("*") if p.is_file() and p.name != "zarr.json")
    return {str(p.relative_to(cache)): p.read_bytes() for p in found}


def test_a_pull_moves_what_is_needed_and_no_more(
    server: RangeServer, served: Path, tmp_path: Path, kdcache: Command
) -> None:
    url, out = f"{server.url}/cache.zarr", tmp_path / "few.zarr"
    said = kdcache("pull", url, out, "--views", "0:2", "--json")
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    assert facts["parts"] == {"there": 0, "made": 8}
    assert facts["fingerprint"] == Cache.open(served / "cache.zarr").spec.fingerprint
    assert abs(server.sent / needed(served / "cache.zarr", range(2)) - 1) < 0.05
    here, there = content(out), content(served / "cache.zarr")
    assert here == {name: there[name] for name in here}
    assert verify.verify(Cache.open(out)).status == "ok"
    sent = server.sent
    assert kdcache("pull", url, out, "--views", "0:2").code == 0
    assert server.sent - sent < 5000  # the manifest
    assert kdcache("pull", url, out).code == 0
    assert content(out) == there


def test_whatever_the_network_does_the_bytes_are_right(
    server: RangeServer, served: Path, tmp_path: Path, kdcache: Command
) -> None:
    server.trouble = per_file({3: "500", 4: "cut", 5: "flip", 0: "flip"}, 13)
    out = tmp_path / "all.zarr"
    said = kdcache("pull", f"{server.url}/cache.zarr", out)
    assert said.code == 0, said.err
    assert content(out) == content(served / "cache.zarr")
    assert verify.verify(Cache.open(out)).status == "ok"


def test_a_source_that_is_damaged_is_named_and_not_written(
    server: RangeServer, tmp_path: Path, kdcache: Command
) -> None:
    bad = "cache.zarr/targets/code/c/1/2"
    server.trouble = lambda number, path: "flip" if path == bad else ""
    out = tmp_path / "all.zarr"
    said = kdcache("pull", f"{server.url}/cache.zarr", out)
    assert said.code == 1
    assert "targets/code/c/1/2 of view 1, block 2 is damaged" in said.err
    assert not Cache.open(out).present(Part(1, 2))
    server.trouble = lambda number, path: ""
    assert kdcache("pull", f"{server.url}/cache.zarr", out).code == 0


@pytest.mark.parametrize("views", ["0:2", "1:2"])
def test_a_cut_is_made_on_arrival(
    views: str, server: RangeServer, served: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "few.zarr"
    asked = ("--views", views, "--samples", "0.3", "--keep", "k=10")
    said = kdcache("pull", f"{server.url}/cache.zarr", out, *asked)
    assert said.code == 0, said.err
    assert "1 of 4 blocks with the 60 samples, and 4 others" in said.err
    parts = {name.rpartition("/")[2] for name, _ in server.asked if "targets/code/c" in name}
    assert parts == {"0"}  # block 0 alone
    local = tmp_path / "local.zarr"
    assert kdcache("select", served / "cache.zarr", local, *asked).code == 0
    assert content(out) == content(local)


@pytest.mark.slow
def test_a_killed_pull_goes_on(server: RangeServer, served: Path, tmp_path: Path) -> None:
    """Ten times, with SIGKILL; what is lost is what was in flight."""
    url, out = f"{server.url}/cache.zarr", tmp_path / "all.zarr"
    command = [sys.executable, "-c", "from cache_tools.cli.main import console; console()"]
    command += ["pull", url, str(out), "--jobs", "2"]
    slow = threading.Event()
    flips = per_file({7: "flip"}, 31)
    server.trouble = lambda number, path: (slow.wait(0.02), flips(number, path))[1]
    kills = 0
    while kills < 10:
        before = len(server.asked)
        running = subprocess.Popen(command, stderr=subprocess.PIPE)
        while running.poll() is None and len(server.asked) < before + 20:
            time.sleep(0.005)
        running.kill()
        running.communicate()
        kills += 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert content(out) == content(served / "cache.zarr")


def test_a_plain_web_server_is_enough(served: Path, tmp_path: Path, kdcache: Command) -> None:
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(
        [*command, "-d", str(served)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stdout is not None
        try:
            port = running.stdout.readline().split("port ")[1].split(" ")[0]
            said = kdcache("pull", f"http://127.0.0.1:{port}/cache.zarr", tmp_path / "c.zarr")
        finally:
            running.terminate()
    assert said.code == 0, said.err
    assert content(tmp_path / "c.zarr") == content(served / "cache.zarr")


def test_nothing_there_is_explained(server: RangeServer, tmp_path: Path, kdcache: Command) -> None:
    said = kdcache("pull", f"{server.url}/none.zarr", tmp_path / "c.zarr")
    assert (said.code, "there is no cache at" in said.err) == (2, True)


def test_bytes_are_requested_a_few_times_only(server: RangeServer) -> None:
    store = Cache.open(f"{server.url}/cache.zarr")
    server.trouble = lambda number, path: "flip" if "tail" in path else ""
    assert isinstance(store.check_part(Part(0, 0)), CacheDamaged)
    assert len([name for name, _ in server.asked if "tail" in name]) < 10
