"""Files of data sets that stay open: as many as the system allows, for all data sets together."""

import gc
import logging
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from cache_tools.data import file_pool
from cache_tools.data.file_pool import FilePool


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process's limits of open files, soft and hard: five more files may stay open."""
    gc.collect()  # pools of other tests
    found = [2 * (FilePool.kept + 5)] * 2
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(found))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: found.__setitem__(slice(None), new))
    file_pool._log_full.cache_clear()
    return found


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{i}" for i in range(8)]
    for i, path in enumerate(found):
        path.write_bytes(bytes([i] * 3))
    return found


def test_all_pools_together_keep_half_of_the_limit(paths: list[Path]) -> None:
    first, second = FilePool(), FilePool()
    opened = [first.descriptor(path) >= 0 for path in paths[:3]]
    opened += [second.descriptor(path) >= 0 for path in paths]
    assert opened == [True] * 5 + [False] * 6
    assert [second.read(path, 1, 9) for path in paths] == [bytes([i] * 2) for i in range(8)]
    del first
    assert [second.descriptor(path) >= 0 for path in paths] == [True] * 5 + [False] * 3


def test_another_process_gets_no_descriptors(paths: list[Path]) -> None:
    pool = FilePool()
    assert pool.descriptor(paths[3]) >= 0
    copy = pickle.loads(pickle.dumps(pool))
    del pool
    with paths[4].open("rb"):  # has the number of the closed file
        assert copy.read(paths[3], 0, 9) == bytes([3] * 3)


def test_a_full_pool_opens_no_file_to_close_it_again_and_logs_it_once(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")
    pool, opened, real = FilePool(), list[str](), os.open

    def spy(path: Path, flags: int) -> int:
        opened.append(path.name)
        return real(path, flags)

    monkeypatch.setattr(os, "open", spy)
    for _ in range(3):
        for path in paths:
            pool.descriptor(path)
    assert opened == ["0", "1", "2", "3", "4"]
    assert caplog.text.count(f"{FilePool.kept} files of the data set stay open") == 1


@pytest.mark.parametrize(
    ("before", "after"), [([10, 40], 40), ([10, 10**6], 2**16), ([10, -1], 2**16), ([99, 40], 99)]
)
def test_the_limit_is_raised_where_that_is_allowed(
    before: list[int], after: int, limits: list[int]
) -> None:
    limits[:] = before
    assert FilePool()._most == after // 2
    assert limits == [after, before[1]]


def test_a_system_that_refuses_a_higher_limit_is_served(
    limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refused)
    limits[:] = [10, 40]
    assert FilePool()._most == 5


def test_a_pool_that_outlives_the_module_ends_without_a_message() -> None:
    program = """
import sys, threading
from cache_tools.data.file_pool import FilePool
threading.pool = FilePool()
print(threading.pool.descriptor(sys.executable) >= 0)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_a_child_of_a_process_whose_thread_reads_reads_as_well(paths: list[Path]) -> None:
    pool, held, leave = FilePool(), threading.Event(), threading.Event()

    def hold() -> None:
        with FilePool._lock:
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the fork beside a thread
            child = multiprocessing.get_context("fork").Process(
                target=pool.read, args=(paths[0], 0, 3)
            )
            child.start()
        child.join(20)
        assert child.exitcode == 0
    finally:
        leave.set()
        thread.join()
        if child.exitcode is None:
            child.kill()
