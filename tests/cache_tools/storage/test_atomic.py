"""Files and locks on file systems that lack something: fsync of folders, modes, locks, renames."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools.errors import KdcacheError
from cache_tools.storage import atomic, disk_cache
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.store.cache import Cache
from tests.helpers import lab
from tests.helpers.outcome import Outcome


def refuse_folders(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """As CIFS: files can be synced, folders cannot."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_folders_that_cannot_be_synced_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse_folders(monkeypatch, code)
    store = lab.build(tmp_path / "new" / "cache", lab.keys(8), range(1))
    assert store.committed()


def test_a_folder_whose_sync_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_folders(monkeypatch, errno.EIO)
    with pytest.raises(KdcacheError, match="cannot write"):
        atomic.write(tmp_path / "file", b"1")


def test_locks_can_be_shared_by_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path / "data"))
    before = os.umask(0o002)
    try:
        with (
            atomic.locked(tmp_path / "one"),
            DiskCache().writing("two", temporary=True),
        ):
            locks = [tmp_path / "one", tmp_path / "data/shards/two.lock"]
            assert [stat.S_IMODE(path.stat().st_mode) for path in locks] == [0o664, 0o664]
    finally:
        os.umask(before)


def test_a_thread_that_holds_a_lock_may_lock_again(tmp_path: Path) -> None:
    path, other = tmp_path / "lock", tmp_path / "link/lock"
    other.parent.symlink_to(tmp_path)

    def is_free() -> bool:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    with atomic.locked(path):
        with atomic.locked(other):
            assert not is_free()
        assert not is_free()
    assert is_free()


def test_a_lock_that_its_holder_removes_is_locked_again(tmp_path: Path) -> None:
    """Else the one that waited and a third process would both hold a lock."""
    path, waits, held = tmp_path / "lock", threading.Event(), threading.Event()

    def wait() -> None:
        waits.set()
        with atomic.locked(path):
            held.set()
            done.wait(30)

    done = threading.Event()
    with path.open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(target=wait)
        second.start()
        waits.wait(30)
        time.sleep(0.2)
        path.unlink()
    assert held.wait(30)
    with path.open() as third, pytest.raises(BlockingIOError):
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    done.set()
    second.join()


def test_a_lock_of_another_user_is_held_by_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a lock of mode 0644: it can be opened for reading alone."""
    (tmp_path / "lock").touch()
    plain = os.open

    def open_(path: str, flags: int, *mode: int, **options: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return plain(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", open_)
    with atomic.locked(tmp_path / "lock"):
        pass
    with atomic.locked(tmp_path / "beside.lock", folder=tmp_path):
        pass
    with pytest.raises(KdcacheError, match="cannot write"), atomic.locked(tmp_path / "none.lock"):
        pass


def test_a_cache_is_made_in_a_linked_folder(tmp_path: Path) -> None:
    for name in ("there", "later"):
        (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
    (tmp_path / "there").mkdir()
    for name in ("there", "later"):
        store = lab.build(tmp_path / f"link-{name}", lab.keys(8), range(1))
        store.set_data_path("images")
        assert (tmp_path / f"link-{name}").is_symlink()
        assert Cache.open(tmp_path / name).source == "images"


def test_a_cache_is_made_in_a_folder_that_stays(tmp_path: Path) -> None:
    """As a mount point does; what a killed creation left there is taken up, other files are not."""
    out = tmp_path / "mount"
    (out / "samples/key").mkdir(parents=True)
    (out / "samples/key/zarr.json").write_text("half")
    there = out.stat().st_ino
    store = lab.build(out, lab.keys(8), range(1))
    assert list(store.metadata_faults()) == []
    assert out.stat().st_ino == there
    (tmp_path / "other/samples").mkdir(parents=True)
    (tmp_path / "other/samples/photo.jpg").touch()
    with pytest.raises(KdcacheError, match="not an empty folder"):
        lab.build(tmp_path / "other", lab.keys(8), range(1))


def test_a_cache_is_made_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert lab.build(Path(), lab.keys(8), range(1)).committed()


HELD = """
import sys
from pathlib import Path
from cache_tools.storage import atomic
with atomic.temporary(Path(sys.argv[1])), atomic.temporary(Path(sys.argv[1]), folder=True) as last:
    print(last, flush=True)
    sys.stdin.read()
"""


def test_the_next_run_removes_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    """Those of a process that lives stay, however old; so do files of other programs."""
    command = [sys.executable, "-c", HELD, str(tmp_path / "living.beton")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as of:
        assert of.stdout
        of.stdout.readline()
        living = set(tmp_path.iterdir())
        others = {tmp_path / "film.1.partial", tmp_path / "film.mkv.partial", tmp_path / "x.lock"}
        killed = tmp_path / "c[1]/deep/file.0123456789ab.partial"
        killed.parent.mkdir(parents=True)
        several = [tmp_path / f"killed.{number:012x}.partial" for number in range(3)]
        for path in (*others, killed, *several[1:]):
            path.write_bytes(b"half")
        (several[0] / "inner").mkdir(parents=True)
        for path in (*tmp_path.iterdir(), killed):
            os.utime(path, (0, 0))
        several[2].touch()  # just now
        assert atomic.sweep(tmp_path / "c[1]") == 3
        assert set(tmp_path.iterdir()) == living | others | {tmp_path / "c[1]", several[2]}
        of.communicate("")
    assert not living & set(tmp_path.iterdir())


COMMANDS = {
    "beton": "beton {digits} {out}/x.beton",
    "shard": "shard {digits} {out}/x.beton --split train",
    "pull": "pull {cache} {out}/x.beton --views 0",
    "convert": "convert {cache} {out}/x.beton --to parquet",
    "push": "push {cache} file://{out}/x.beton",
    "views": "views {cache} --data {digits} --samples 1 --views 1 --out {out}/v.png",
    "card": "card {cache} --license mit --out {out}/card.md",
    "report": "report {cache} --no-images --out {out}/r.html",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_removes_leftovers(
    command: str, digits: Path, digits_cache: Path, tmp_path: Path, kdcache: Callable[..., Outcome]
) -> None:
    left = tmp_path / "x.beton.0123456789ab.partial"
    left.touch()
    os.utime(left, (0, 0))
    words = COMMANDS[command].format(digits=digits, cache=digits_cache, out=tmp_path)
    said = kdcache(*words.split())
    assert (said.code, left.exists()) == (0, False), said.err
