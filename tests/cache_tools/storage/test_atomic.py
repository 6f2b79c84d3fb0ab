"""Files and locks on file systems that lack something: fsync of folders, modes, locks, renames."""

import errno
import os
import stat
from pathlib import Path

import pytest

from cache_tools.errors import KdcacheError
from cache_tools.storage import atomic, disk_cache
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.store.cache import Cache
from tests.helpers import lab


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


def test_partial_files_beside_a_folder_with_brackets_are_swept(tmp_path: Path) -> None:
    (tmp_path / "c[1]").mkdir()
    old = tmp_path / f"c[1].1{atomic.PARTIAL}"
    old.touch()
    os.utime(old, (0, 0))
    assert atomic.sweep(tmp_path / "c[1]") == 1
