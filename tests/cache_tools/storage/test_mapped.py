"""Files of arrays that the processes of a machine share: whole, made once, again if damaged."""

import errno
import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cache_tools.errors import CacheMismatch, KdcacheError
from cache_tools.storage import disk_cache, mapped
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.storage.mapped import Arrays

NAME = disk_cache.key("some arrays")
WHOLE = {"a": np.arange(5000), "b": np.array([], np.uint16), "c": np.frombuffer(b"xyz", np.uint8)}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def path() -> Path:
    found = DiskCache().shard(NAME)
    assert found is not None
    return found


def make() -> Arrays:
    return Arrays(WHOLE, {"classes": ["cat", "dög"]})


def never() -> Arrays:
    raise AssertionError("made again")


def check(found: Arrays) -> None:
    assert found.facts == {"classes": ["cat", "dög"]}
    assert found.arrays.keys() == WHOLE.keys()
    for name, values in WHOLE.items():
        assert found.arrays[name].dtype == values.dtype
        assert np.array_equal(found.arrays[name], values)


def test_arrays_are_made_once_and_mapped() -> None:
    check(mapped.load(NAME, make))
    found = mapped.load(NAME, never)
    check(found)
    assert not found.arrays["a"].flags.writeable
    assert not found.arrays["a"].flags.owndata
    os.truncate(path(), 0)  # the map is of the file itself
    check(mapped.load(NAME, make))


@pytest.mark.parametrize("damage", ["bit", "cut", "longer", "sparse", "empty", "folder", "other"])
def test_a_damaged_file_is_made_again(
    damage: str, patience: None, caplog: pytest.LogCaptureFixture
) -> None:
    mapped.load(NAME, make)
    data = bytearray(path().read_bytes())
    if damage == "bit":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        data = data[:-1]
    elif damage == "longer":
        data += b"\0"
    elif damage == "empty":
        data.clear()
    where = path()
    where.unlink()
    if damage == "folder":
        where.mkdir()
    elif damage == "other":  # whole, but stored under another name
        other = disk_cache.key("other")
        mapped.load(other, lambda: Arrays({"a": np.zeros(3)}))
        where.with_name(other).rename(where)
    else:
        where.write_bytes(data)
    if damage == "sparse":
        os.truncate(where, 2**40)
    with caplog.at_level(logging.WARNING, "kdcache"):
        check(mapped.load(NAME, make))
    check(mapped.load(NAME, never))
    assert "it is made again" in caplog.text


def test_what_cannot_be_stored_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: Path
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "1K")
    with caplog.at_level(logging.WARNING, "kdcache"):
        check(mapped.load(NAME, make))
    assert "KDCACHE_CACHE_LIMIT" in caplog.text
    assert DiskCache().shard(NAME) is None
    caplog.clear()
    monkeypatch.setenv("KDCACHE_CACHE", str(kept / "file" / "below"))
    (kept / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, "kdcache"):
        check(mapped.load(NAME, make))
    assert "not shared" in caplog.text


def test_a_file_on_a_network_is_read_and_not_mapped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A page of a map whose file another machine has removed ends the process."""
    monkeypatch.setattr(mapped, "_file_system", lambda _: "nfs4")
    mapped._log_network.cache_clear()
    monkeypatch.setattr(mapped, "_is_whole", never)  # a second read
    found = [mapped.load(NAME, make), mapped.load(NAME, never)]
    os.truncate(path(), 0)
    for arrays in found:
        check(arrays)
        assert not arrays.arrays["a"].flags.writeable
    for data in (b"", bytes(9), bytes(99)):
        path().write_bytes(data)
        check(mapped.load(NAME, make))
    assert caplog.text.count("--data-cache with a folder on a local disk") == 1


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="of Linux")
def test_the_kind_of_a_file_system_is_found(tmp_path: Path) -> None:
    assert mapped._file_system(Path("/proc/self/mountinfo")) == "proc"
    assert not mapped._file_system(tmp_path).startswith("proc")


def load_of_another() -> None:
    check(mapped.load(NAME, never))
    assert DiskCache().index(NAME) == b"an index"


def test_a_file_whose_times_cannot_be_set_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that cannot be written."""
    check(mapped.load(NAME, make))
    DiskCache().store_index(NAME, b"an index")

    def refused(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "utime", refused)
    load_of_another()


@pytest.mark.skipif(os.getuid() != 0, reason="takes root, to be another user")
def test_a_file_of_another_user_is_mapped_and_stays(kept: Path) -> None:
    check(mapped.load(NAME, make))
    DiskCache().store_index(NAME, b"an index")
    for folder in [kept, *kept.rglob("*")]:
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    for above in kept.parents:
        if Path(tempfile.gettempdir()) in above.parents:  # pytest's own, of root alone
            above.chmod(0o755)
    before = path().stat()

    def other() -> None:
        os.setgid(65_534)
        os.setuid(65_534)
        load_of_another()
        with pytest.raises(PermissionError):
            os.utime(kept / "shards" / NAME)

    process = multiprocessing.get_context("fork").Process(target=other)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path().stat().st_ino == before.st_ino


def test_what_another_user_keeps_is_not_evicted_and_no_error(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(mapped.load(NAME, make))

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    cache = DiskCache()
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "50K")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        cache.invalidate(NAME)
        assert not cache.reserve(20_000, kept / "caches")
    assert DiskCache().reserve(20_000, kept / "caches")


def test_an_error_of_the_maker_is_raised_and_leaves_nothing(kept: Path) -> None:
    def fail() -> Arrays:
        raise CacheMismatch("other images")

    with pytest.raises(CacheMismatch, match="other images"):
        mapped.load(NAME, fail)
    assert [*kept.rglob("*.lock"), *kept.rglob("*.partial")] == []
    check(mapped.load(NAME, make))


def test_an_error_of_what_the_maker_reads_names_that_file(kept: Path) -> None:
    def fail() -> Arrays:
        raise OSError(errno.EIO, "Input/output error", "x.tar")

    with pytest.raises(OSError, match=r"Input/output error: 'x.tar'") as raised:
        mapped.load(NAME, fail)
    assert not isinstance(raised.value, KdcacheError)
    assert [*kept.rglob("*.lock"), *kept.rglob("*.partial")] == []


def test_the_rest_of_a_killed_maker_is_removed_when_a_file_is_mapped(kept: Path) -> None:
    check(mapped.load(NAME, make))
    rest = kept / "shards" / f"{NAME}.0123456789ab.partial"
    rest.write_bytes(bytes(9999))
    check(mapped.load(NAME, never))
    assert rest.exists()  # it may be in the making
    os.utime(rest, (0, 0))
    check(mapped.load(NAME, never))
    assert not rest.exists()


def test_the_least_recently_used_files_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    old, recent = disk_cache.key("old"), disk_cache.key("recent")
    for name in (old, recent):
        mapped.load(name, lambda: Arrays({"a": np.zeros(4000)}))
    os.utime(DiskCache().path / "shards" / old, (0, 0))
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "90K")
    check(mapped.load(NAME, make))
    assert DiskCache().shard(old) is None
    assert DiskCache().shard(recent) is not None
    check(mapped.load(NAME, never))


def test_shards_of_the_data_set_itself_make_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the oldest: as they are unpacked, they turn out larger than they were packed."""
    own, other = disk_cache.key("own"), disk_cache.key("other")
    for name, used in ((own, 0), (other, 9)):
        mapped.load(name, lambda: Arrays({"a": np.zeros(4000)}))
        os.utime(DiskCache().path / "shards" / name, (used, used))
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "90K")
    cache = DiskCache()
    assert cache.evict({own: 32_000}) == {own}
    with cache.writing(NAME) as partial:
        assert cache.reserve(40_000)
        partial.write_bytes(bytes(40_000))
        assert cache.shard(other) is None
        assert not cache.reserve(40_000)
        assert cache.shard(own) is not None


def test_a_table_and_shards_beyond_the_limit_evict_each_other_never(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards of a remote data set of 200 KB, at each of three starts, in a folder of 150 KB."""
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "150K")
    table, done = disk_cache.table_key("a table"), list[str]()
    wanted = {disk_cache.key("shard", i): 20_000 for i in range(10)}

    def made() -> Arrays:
        done.append("table")
        return make()

    for _ in range(3):
        check(mapped.load(table, made))
        cache = DiskCache()
        for name in cache.evict(wanted):
            if cache.shard(name) is None:
                done.append(name)
                with cache.writing(name) as partial:
                    partial.write_bytes(bytes(20_000))
    assert sorted(done) == sorted(["table", *list(wanted)[:5]])
    os.utime(kept / "shards" / table, (0, 0))  # not used for long
    assert len(DiskCache().evict(wanted)) == 7
    assert DiskCache().shard(table) is None


def test_a_table_evicts_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "100K")
    cache = DiskCache()
    shards = [disk_cache.key("shard", i) for i in range(10)]
    for name in shards:
        with cache.writing(name) as partial:
            partial.write_bytes(bytes(9_000))
    check(mapped.load(disk_cache.table_key("a table"), make))
    assert sum(cache.shard(name) is not None for name in shards) == 6


def test_room_is_made_before_a_byte_is_written(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk of 100,000 bytes 80 % may be taken, by a file that takes half of it."""

    def usage(_: Path) -> SimpleNamespace:
        used = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
        return SimpleNamespace(free=100_000 - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check(mapped.load(NAME, make))
    assert path().stat().st_size > 40_000
    written = list[str]()
    monkeypatch.setattr(mapped, "_write", lambda *_: written.append("too much"))
    mapped.load(disk_cache.key("large"), lambda: Arrays({"a": np.zeros(20_000)}))
    assert not written


def test_who_has_waited_for_a_removed_lock_locks_the_new_one(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, real = kept / "shards" / f"{NAME}.lock", fcntl.flock
    waits, inside, leave = threading.Event(), threading.Event(), threading.Event()

    def flock(file: int, operation: int) -> None:
        waits.set()
        real(file, operation)

    def second() -> None:
        with DiskCache().writing(NAME):
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=second)
    with DiskCache().writing(NAME):
        monkeypatch.setattr(fcntl, "flock", flock)
        thread.start()
        assert waits.wait(60)
    try:
        assert inside.wait(60)
        with lock.open() as third, pytest.raises(BlockingIOError):
            real(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        leave.set()
        thread.join()
    assert not lock.exists()


def test_a_lock_whose_path_is_described_as_another_file_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As by object stores that are mounted as folders."""
    calls, real = list[int](), fcntl.flock

    def flock(file: int, operation: int) -> None:
        calls.append(file)
        assert len(calls) < 1000
        real(file, operation)

    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(disk_cache, "_PAUSE", 0)
    check(mapped.load(NAME, make))
    assert "is not the file that was locked" in caplog.text
    check(mapped.load(NAME, never))


def test_a_file_system_without_locks_is_used_without(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def flock(file: int, operation: int) -> None:
        calls.append(file)
        assert len(calls) < 1000
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    monkeypatch.setattr(fcntl, "flock", flock)
    os.close(disk_cache._lock(kept / "x.lock"))
    assert len(calls) == 1


def _load(log: Path, pause: float) -> None:
    def slow() -> Arrays:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(pause)
        return make()

    check(mapped.load(NAME, slow))


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    each = [context.Process(target=_load, args=(tmp_path / "log", 0.5)) for _ in range(4)]
    for process in each:
        process.start()
    for process in each:
        process.join()
    assert [process.exitcode for process in each] == [0] * 4
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_killed_maker_is_followed_by_another(tmp_path: Path) -> None:
    context, log = multiprocessing.get_context("fork"), tmp_path / "log"
    first = context.Process(target=_load, args=(log, 600.0))
    first.start()
    while not log.exists():
        time.sleep(0.01)
    second = context.Process(target=_load, args=(log, 0.0))
    second.start()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    second.join()
    first.join()
    assert second.exitcode == 0
    assert len(log.read_text().splitlines()) == 2
    check(mapped.load(NAME, never))
