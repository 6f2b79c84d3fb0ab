"""Failures of stage 1: images, the teacher's memory and numbers, the disk."""

import errno
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cache_tools.data.images import ImageDataset
from cache_tools.errors import (
    CacheIncomplete,
    DataError,
    KdcacheError,
    NonFinite,
    OutOfMemory,
    TeacherError,
)
from cache_tools.spec import sample_table
from cache_tools.storage import atomic
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from pipeline import recipe as recipes
from pipeline.run import run
from pipeline.teacher.forward import Forward
from pipeline.worker import failures as outcome
from pipeline.worker import stage1
from tests.helpers.workbench import (
    BLOCKS,
    COUNT,
    CPU,
    WINDOWS,
    Bench,
    Counting,
    Opener,
    one_after_another,
)


class Small(Forward):
    """A device with memory for 20 views."""

    room = 20

    def __call__(self, pixels, partner, mix, label=None):  # type: ignore[no-untyped-def]
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return super().__call__(pixels, partner, mix, label)


def test_out_of_memory_halves_the_batch_for_good(
    opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    bench = opened([*BLOCKS, "num_views=1"])
    expected = one_after_another(bench, 16)
    assert bench.make(forward=bench.ask(Small)) == []
    assert bench.chunks() == expected
    said = [r.message for r in caplog.records if "out of memory" in r.message]
    assert [m.partition(". ")[2] for m in said] == [
        f"Pass batch_size={n} to begin with them." for n in (32, 16)
    ]


def test_a_teacher_that_never_fits_is_explained(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Small, "room", 0)
    bench = opened(BLOCKS)
    with pytest.raises(TeacherError, match=r"single view \(CUDA out of memory"):
        bench.make(forward=bench.ask(Small))
    assert not bench.chunks()


def broken_reads(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    kind: type[KdcacheError] = DataError,
) -> str:
    """Reading the last row fails so many times, with such an error; the key of that row."""
    left, read, key = [times], ImageDataset.read, bench.store.table.keys[-1]

    def fails(self: ImageDataset, number: int) -> bytes:
        if number == COUNT - 1 and left[0]:
            left[0] -= 1
            raise kind(f"cannot read sample {key!r}: Input/output error.")
        return read(self, number)

    monkeypatch.setattr(ImageDataset, "read", fails)
    return key


@pytest.mark.parametrize("kind", [DataError, OutOfMemory])
def test_reading_that_recovers_costs_another_try(
    kind: type[KdcacheError], opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = opened([*WINDOWS, "num_views=1"])
    broken_reads(bench, monkeypatch, stage1.TRIES - 1, kind)
    done: list[int] = []
    assert bench.make(done=done.append) == []
    assert all(bench.store.check_part(part) is None for part in bench.store.parts())
    assert sum(done) == COUNT * bench.store.num_views


def test_an_image_that_stays_broken_costs_its_parts_and_no_others(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = opened(BLOCKS)
    key = broken_reads(bench, monkeypatch, 10**6)
    asked = Counting(bench.network, bench.store.spec.targets, CPU)
    failures = bench.make(*bench.groups(1), forward=asked)
    assert {f.part for f in failures} == {Part(0, 1), Part(1, 1)}
    assert all(f.kind == "DataError" and key in f.error for f in failures)
    assert [p for p in bench.store.parts() if bench.store.present(p)] == [Part(0, 0), Part(1, 0)]
    assert asked.views == 2 * 1024


def test_after_a_broken_image_the_teacher_does_not_run_on_those_before_it(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = opened([*WINDOWS, "num_views=4"])
    broken_reads(bench, monkeypatch, 10**6)
    asked = Counting(bench.network, bench.store.spec.targets, CPU)
    assert len(bench.make(*bench.groups(1), forward=asked)) == bench.store.num_views
    assert asked.views <= 2 * 1024  # of the group after it the first window may have begun


def test_a_deleted_image_is_named_with_what_to_do(
    photos: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kdcache: Callable[..., object],
) -> None:
    folder = tmp_path / "images"
    with tarfile.open(photos / "photos-train-0000.tar") as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".jpg")][:40]
        for i, member in enumerate(members):
            (folder / f"class{i % 10}").mkdir(parents=True, exist_ok=True)
            data = tar.extractfile(member)
            assert data is not None
            (folder / f"class{i % 10}" / member.name).write_bytes(data.read())
    read, gone, reads = ImageDataset.read, folder / "class7" / "17.jpg", []

    def delete(self: ImageDataset, number: int) -> bytes:
        if self.names[number] == "class7/17":
            reads.append(number)
            if len(reads) > 5:  # of nine views and what opening reads
                gone.unlink(missing_ok=True)
        return read(self, number)

    monkeypatch.setattr(ImageDataset, "read", delete)
    monkeypatch.setattr(stage1, "PAUSE_SECONDS", 0.0)
    out, keys = tmp_path / "cache.zarr", ["num_views=9", "views_per_decode=1"]
    result = kdcache("cache", "digits", "--data", folder, "--teacher", teacher, "--out", out, *keys)
    assert result.code == 1  # type: ignore[attr-defined]
    err = result.err  # type: ignore[attr-defined]
    assert "DataError: cannot read sample 'class7/17'" in err
    assert f"kdcache status {out} --missing" in err
    assert f"continue with: kdcache cache digits --data {folder}" in err
    store = Cache.open(out)
    left = [p for p in store.parts() if not store.present(p)]
    assert 0 < len(left) < 9
    assert f"{len(left)} part" in err


class Nan(Forward):
    """A teacher that overflows on everything after its first window."""

    seen = 0

    def __call__(self, pixels, partner, mix, label=None):  # type: ignore[no-untyped-def]
        index, p, tail, *others = super().__call__(pixels, partner, mix, label)
        self.seen += len(pixels)
        return index, p, tail * float("nan") if self.seen > 1024 else tail, *others


def test_a_teacher_of_nothing_but_nan_ends_the_run(opened: Opener) -> None:
    bench = opened(BLOCKS)
    with pytest.raises(NonFinite, match=r"64 of 64 in its batch.*precision=fp32"):
        bench.make(*bench.groups(1), forward=bench.ask(Nan))
    assert [p for p in bench.store.parts() if bench.store.present(p)] == [Part(0, 0)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_what_cannot_be_written_ends_the_run_and_costs_nothing_else(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    bench, sync, write = opened(BLOCKS), os.fsync, Cache.write

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    def write_one(self: Cache, *arguments: object) -> bool:
        written = write(self, *arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "fsync", full)
        return written

    monkeypatch.setattr(Cache, "write", write_one)
    with pytest.raises(KdcacheError, match=r"disk is full|cannot write"):
        bench.make(*bench.groups(1))
    monkeypatch.setattr(os, "fsync", sync)
    there = [p for p in bench.store.parts() if bench.store.storage.size(p.record) is not None]
    assert there == [Part(0, 0)]
    assert bench.store.check_part(Part(0, 0)) is None
    assert not list(bench.store.path.rglob(f"*{atomic.PARTIAL}"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 220 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up(disk: Path, photos: Path, teacher: Path) -> None:
    recipe = recipes.load("digits", ["views.size=16", "num_views=50", "views_per_decode=1"])
    out = disk / "cache.zarr"
    with pytest.raises(KdcacheError, match=r"disk is full: .*run the same command again"):
        run(recipe, str(photos), str(teacher), out, "cpu", force=True)
    store = Cache.open(out)
    there = [p for p in store.parts() if store.storage.size(p.record) is not None]
    assert there
    assert all(store.check_part(p) is None for p in there)
    assert not list(disk.rglob(f"*{atomic.PARTIAL}"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(KdcacheError, match=r"cannot (write|lock).*Read-only file system"):
        run(recipe, str(photos), str(teacher), out, "cpu", force=True)


def test_failures_are_listed_with_the_next_step(opened: Opener) -> None:
    store = opened(BLOCKS).store
    outcome.refuse_failures(store, [])
    failures = [
        outcome.Failure(Part(0, 1), "cannot read 'x'.", "DataError"),
        outcome.Failure(Part(1, 1), "cannot read 'x'.", "DataError"),
        outcome.Failure(Part(0, 0), "NaN of 'y'.", "NonFinite"),
    ]
    with pytest.raises(CacheIncomplete) as told:
        outcome.refuse_failures(store, failures)
    text = str(told.value)
    assert "parts 1,3: DataError: cannot read 'x'." in text
    assert "parts 0: NonFinite: NaN of 'y'." in text
    assert f"kdcache status {store.name} --missing" in text


def test_an_image_that_changed_is_not_read_twice(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, tries = opened(BLOCKS), []
    check = sample_table.check_digest

    def changed(table: sample_table.SampleTable, row: int, data: bytes) -> None:
        if row == COUNT - 1:
            tries.append(row)
            data += b"\0"
        check(table, row, data)

    monkeypatch.setattr(sample_table, "check_digest", changed)
    failures = bench.make()
    assert {(f.kind, f.part.block) for f in failures} == {("CacheMismatch", 1)}
    assert "Restore the original file" in failures[0].error
    assert len(tries) == 1
