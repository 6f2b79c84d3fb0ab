"""Several processes make the cache that one makes, whatever becomes of some of them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from cache_tools.runtime import progress
from cache_tools.runtime.progress import Advance
from cache_tools.store.cache import Cache
from pipeline.engines import local
from pipeline.engines.work_queue import TRIES, WorkQueue, names, uncommitted
from pipeline.worker.groups import DecodeGroup
from tests.helpers.outcome import Outcome
from tests.helpers.stage1 import KDCACHE, PATIENCE, arguments, files, gone


def groups(count: int) -> list[DecodeGroup]:
    return [DecodeGroup(0, (view,)) for view in range(count)]


@pytest.mark.parametrize("takers", [1, 3])
def test_lots_shrink_to_one_group_and_lose_none(takers: int) -> None:
    lots, sizes, taken = WorkQueue(groups(100), takers), [], []
    while lot := lots.take():
        sizes.append(len(lot))
        taken += lot
    assert taken == groups(100)
    assert sizes[0] == 8
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_what_a_lost_worker_had_comes_back_until_it_has_cost_too_many() -> None:
    lots = WorkQueue(groups(9), 1)
    in_hand = lots.take()
    assert len(in_hand) == 4
    lots.requeue(in_hand[2:])
    assert [lots.take(), lots.take()] == [[group] for group in in_hand[2:]]
    for _ in range(TRIES - 1):
        assert lots.given_up == []
        lots.requeue(in_hand[2:3])
        assert lots.take() == (in_hand[2:3] if not lots.given_up else groups(9)[4:6])
    assert lots.given_up == in_hand[2:3]
    assert names(lots.given_up) == "block 0, view 2"


def test_what_is_left_of_a_lot_is_found_in_the_cache(mutable_cache: Path) -> None:
    store = Cache.open(mutable_cache)
    for part in list(store.parts())[1:3]:
        (mutable_cache / part.record).unlink()
    lot = [DecodeGroup(0, (0, 1)), DecodeGroup(0, (2, 3))]
    assert uncommitted(store, lot) == [DecodeGroup(0, (1,)), DecodeGroup(0, (2,))]


def wait_for_a_lot(pipe: Connection) -> None:
    """Be a worker whose lot was complete when the signal to stop came."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send("ready")
    sys.exit(0 if pipe.recv() is None else 1)


def test_a_worker_that_waits_for_its_next_lot_is_not_waited_for() -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=wait_for_a_lot, args=(theirs,))
    process.start()
    assert ours.recv() == "ready"
    pool = object.__new__(local._WorkerPool)
    pool._workers = {ours: local._Worker(0, process, ours)}
    begin = time.monotonic()
    pool.stop()
    assert time.monotonic() - begin < local._GRACE / 2
    assert process.exitcode == 0


def test_two_workers_make_the_cache_of_one(
    digits_cache: Path,
    digits: Path,
    teacher: Path,
    tmp_path: Path,
    kdcache: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = set(psutil.Process().children(recursive=True))  # of other tests in this process
    counted: list[int] = []

    @contextmanager
    def bar(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        yield lambda views, note="": counted.append(views if unit == "views" else 0)

    monkeypatch.setattr(progress, "bar", bar)
    done = kdcache(*arguments(digits, teacher, tmp_path / "c.zarr", "--workers=2"))
    assert done.code == 0, done.err
    assert "4 of 4 parts" in done.out
    assert "2 workers: cpu, cpu" in done.err
    assert done.err.count(": forward pass: fp32") == 1  # what they choose, whoever is first says
    assert files(tmp_path / "c.zarr") == files(digits_cache)
    left = set(psutil.Process().children(recursive=True)) - before
    assert all("resource_tracker" in " ".join(child.cmdline()) for child in left)
    assert sum(counted) == 400  # the bar ends where the work does


def test_what_one_worker_cannot_do_ends_all_with_its_message(
    mutable_cache: Path, digits: Path, teacher: Path, kdcache: Callable[..., Outcome]
) -> None:
    told = arguments(digits, teacher, mutable_cache, "--workers=2", "views.degrees=3.0")
    refused = kdcache(*told)
    assert refused.code == 1
    assert "CacheMismatch: " in refused.err
    assert "views.degrees" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.slow
def test_three_workers_and_torchrun_make_the_cache_of_one(
    digits_cache: Path, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    """Every rank finds no cache at first: one makes it, the other waits."""
    three = [KDCACHE, *arguments(digits, teacher, tmp_path / "three.zarr", "--workers=3")]
    subprocess.run(three, check=True)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ranks += ["--no-python", KDCACHE, *arguments(digits, teacher, tmp_path / "ranks.zarr")]
    done = subprocess.run(ranks, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "task 0 of 2, from torchrun" in done.stderr
    assert "task 1 of 2, from torchrun" in done.stderr
    assert files(tmp_path / "three.zarr") == files(digits_cache)
    assert files(tmp_path / "ranks.zarr") == files(digits_cache)


def started(
    command: list[str], out: Path, workers: int
) -> tuple[psutil.Popen, list[psutil.Process]]:
    """A run that has committed something, and its workers."""
    parent = psutil.Popen(command, stderr=subprocess.DEVNULL)
    while not list(out.glob("commits/*/*.json")):
        assert parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE
        time.sleep(0.02)
    tree = [c for c in parent.children() if "resource_tracker" not in " ".join(c.cmdline())]
    assert len(tree) == workers
    return parent, tree


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(
    digits: Path, teacher: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "c.zarr"
    told = arguments(digits, teacher, out, "--workers=2", "num_views=4000")
    parent, workers = started([KDCACHE, *told], out, 2)
    parent.send_signal(number)
    code = parent.wait(PATIENCE)
    assert code == (-number if number == signal.SIGKILL else 130)
    assert gone(workers)
    store = Cache.open(out)
    done = [part for part in store.parts() if store.present(part)]
    assert done
    assert all(store.check_part(part) is None for part in done)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_named(
    digits: Path,
    teacher: Path,
    tmp_path: Path,
    digits_cache: Path,
    kdcache: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is killed with a lot in hand: halted before it gets it, it cannot be done too soon."""
    out, hand_out, killed = tmp_path / "c.zarr", local._WorkerPool._hand_out, list[int]()

    def kill_one(crew: local._WorkerPool) -> None:
        waiting = [one for one in crew._workers.values() if one.ready and not killed]
        for pid in [one.process.pid for one in waiting[:1]]:
            os.kill(pid, signal.SIGSTOP)
            hand_out(crew)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        hand_out(crew)

    monkeypatch.setattr(local._WorkerPool, "_hand_out", kill_one)
    done = kdcache(*arguments(digits, teacher, out, "--workers=2", "num_views=30"))
    assert done.code == 0, done.err
    assert f"(process {killed[0]}) was killed by SIGKILL, perhaps for lack of memory" in done.err
    assert "with block 0, view 0; block 0, view 1;" in done.err
    assert "in hand" in done.err
    assert all(Cache.open(out).present(part) for part in Cache.open(out).parts())
    records = files(digits_cache)
    ours = files(out)
    chunks = [name for name in records if "/c/" in name and "samples" not in name]
    assert all(ours[name] == records[name] for name in chunks)
