"""Stage 1's stages run at the same time; nobody sees that in a cache, and nothing of it is lost."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import CacheIncomplete, DataError, KdcacheError, NonFinite, TeacherError
from cache_tools.render import mixing, view
from cache_tools.runtime import signals
from cache_tools.spec import sample_table
from cache_tools.storage import atomic
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.commits import Part
from cache_tools.store.layout import Layout
from cache_tools.targets import codec
from cache_tools.views import draw
from pipeline import recipe as recipes
from pipeline.run import run
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward, mix_in_place
from pipeline.teacher.teacher import Teacher
from pipeline.worker import open_cache, stage1
from pipeline.worker.groups import DecodeGroup, decode_groups
from pipeline.worker.meter import TIMINGS, Meter
from pipeline.worker.stage1 import Stage1
from pipeline.worker.window import PinnedBuffer
from tests.helpers.stage1 import files

CPU = torch.device("cpu")
COUNT, BATCH, PATIENCE = 1100, 64, 120.0
BLOCKS = ["views.size=16", "block_size=1024", "num_views=2", "views.mixup=0.5"]
WINDOWS = ["views.size=16", "block_size=2048", "num_views=2", "views.mixup=0.5"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,100 small labelled pictures: a window of 1,024 and one of 76."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    with tarfile.open(folder / "photos-train-0000.tar", "w") as tar:
        for i in range(COUNT):
            noise = random.integers(0, 256, (4, 5, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noise).resize((40, 32)).save(buffer, "JPEG")
            for name, data in ((f"{i}.jpg", buffer.getvalue()), (f"{i}.cls", b"%d" % (i % 10))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def network(teacher: Path) -> Teacher:
    return teachers.load(str(teacher), 32, "fp32")


@dataclass
class Bench:
    """A cache without parts, its images and its teacher."""

    store: Cache
    images: ImageDataset
    network: Teacher

    def make(
        self,
        *wanted: DecodeGroup,
        forward: Forward | None = None,
        batch: int = BATCH,
        threads: int = 2,
        done: Callable[[int], None] = lambda _: None,
    ) -> list[stage1.Failure]:
        worker = Stage1(self.store, self.images, forward or self.ask(), batch, threads)
        try:
            return worker.make(wanted or self.groups(2), done)
        finally:
            worker.close()

    def ask(self, kind: type[Forward] = Forward) -> Forward:
        return kind(self.network, self.store.spec.targets, CPU)

    def groups(self, size: int) -> list[DecodeGroup]:
        return decode_groups(list(self.store.parts()), size)

    def chunks(self) -> dict[str, bytes]:
        folder = self.store.path
        return {
            str(file.relative_to(folder)): file.read_bytes()
            for name in ("targets", "probes")
            for file in (folder / name).rglob("c/**/*")
            if file.is_file()
        }


Opener = Callable[[list[str]], Bench]


@pytest.fixture
def opened(photos: Path, network: Teacher, tmp_path: Path) -> Opener:
    def open_(overrides: list[str]) -> Bench:
        recipe = recipes.load("digits", overrides)
        images = open_images(str(photos), "train")
        return Bench(
            *open_cache.open_or_create(recipe, images, network.spec, tmp_path / "c"), network
        )

    return open_


@pytest.fixture(autouse=True)
def all_threads_end() -> Iterator[None]:
    yield
    ours = ("render", "windows", "encode", "commit")
    for thread in [t for t in threading.enumerate() if t.name.startswith(ours)]:
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread.name


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage1, "PAUSE_SECONDS", 0.0)


def one_after_another(bench: Bench, batch: int) -> dict[str, bytes]:
    """Chunks of all parts, made by nothing but loops."""
    store, forward, chunks = bench.store, bench.ask(), {}
    spec, table = store.spec, store.table
    layout = Layout(spec, store.num_views)
    for made in store.parts():
        stored, fingerprints = [], {}
        rows = spec.rows(made.block)
        for begin in range(rows.start, rows.stop, spec.window):
            window = range(begin, min(begin + spec.window, rows.stop))
            of = slice(window.start, window.stop)
            params = draw.draw(
                spec.views, table.id_N[of], table.height_N[of], table.width_N[of], made.view
            )
            pixels = np.empty((len(window), 16, 16, 3), np.uint8)
            for i, row in enumerate(window):
                wanted = [(params, i, pixels[i])]
                view.render_views(bench.images.read(row), table.keys[row], spec.views, wanted)
                fingerprints[row] = view.fingerprint(pixels[i])
            mix = draw.mix(spec.views, table.id_N[of], made.view)
            own = table.label_N[of].astype(np.int64)
            labels = np.stack([own, own[mix.partner_B]], axis=1)
            for first in range(0, len(window), batch):
                at = slice(first, first + batch)
                part_of = draw.MixParams(mix.partner_B[at], mix.lam_B[at], mix.cut_B4[at])
                said = forward(pixels[at], pixels[part_of.partner_B], part_of, labels[at])
                sparse = codec.SparseTargets(*(t.numpy() for t in said))
                stored.append(codec.encode(sparse, spec.targets, 10))
        probes = np.array([fingerprints[n] for n in probe_numbers(rows)], np.uint64)
        whole = codec.concatenate(stored)
        chunks |= layout.encode_part(made.view, made.block, whole, probes)
    return chunks


@pytest.mark.parametrize("overrides", [WINDOWS, BLOCKS], ids=["windows", "blocks"])
def test_stages_at_the_same_time_make_the_bytes_of_one_after_another(
    opened: Opener, overrides: list[str]
) -> None:
    bench = opened(overrides)
    expected = one_after_another(bench, BATCH)
    views_done: list[int] = []
    for size, threads in ((1, 1), (2, 3)):
        for record in bench.store.path.glob("commits/v*/*.json"):
            record.unlink()
        assert bench.make(*bench.groups(size), threads=threads, done=views_done.append) == []
        assert bench.chunks() == expected
        assert all(bench.store.check_part(part) is None for part in bench.store.parts())
    assert sum(views_done) == 2 * COUNT * bench.store.num_views


def test_the_order_of_the_parts_changes_no_byte(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order "views" a student can begin after the first view of all blocks."""
    write, written, made = Cache.write, list[Part](), {}
    monkeypatch.setattr(Cache, "write", lambda s, p, *a: written.append(p) or write(s, p, *a))
    for order in ("blocks", "views"):
        wanted = recipes.load("digits", [*BLOCKS, "views_per_decode=1", f"order={order}"])
        store = run(wanted, str(photos), str(teacher), tmp_path / order, "cpu", force=True)
        made[order] = store.content_id(), files(store.path)
    assert written == [Part(0, 0), Part(1, 0), Part(0, 1), Part(1, 1), *store.parts()]
    assert made["views"] == made["blocks"]


def test_mixing_in_place_has_the_bits_of_mixing() -> None:
    random, count, size = np.random.default_rng(1), 40, 12
    own, other = random.integers(0, 256, (2, count, 3, size, size), np.uint8)
    lam = random.integers(0, draw.LAMBDA_SCALE + 1, count, np.int32)
    lam[:2] = 0, draw.LAMBDA_SCALE
    cut = random.integers(0, size // 2, (count, 4), np.int32)
    cut[::2] = 0
    x = torch.from_numpy(own.astype(np.float32))
    mix_in_place(x, torch.from_numpy(other), draw.MixParams(np.arange(count), lam, cut))
    floats = own.astype(np.float32), other.astype(np.float32), lam.astype(np.float32)
    expected = mixing.mix(*floats, cut, np.arange(size))
    assert np.array_equal(x.numpy(), expected)


def test_what_another_worker_commits_meanwhile_is_not_computed(opened: Opener) -> None:
    bench, other = opened(BLOCKS), opened(BLOCKS)
    wanted = bench.groups(2)
    asked = Counting(bench.network, bench.store.spec.targets, CPU)
    done: list[int] = []

    def handed_out() -> Iterator[DecodeGroup]:
        yield wanted[0]
        other.make(DecodeGroup(wanted[1].block, wanted[1].views[:1]))
        yield wanted[1]

    worker = Stage1(bench.store, bench.images, asked, BATCH, 2)
    assert worker.make(handed_out(), done.append) == []
    worker.close()
    assert sum(done) == COUNT * 2
    assert asked.views == COUNT * 2 - len(bench.store.spec.rows(wanted[1].block))


class Counting(Forward):
    views = 0

    def __call__(self, pixels, partner, mix, label=None):  # type: ignore[no-untyped-def]
        self.views += len(pixels)
        return super().__call__(pixels, partner, mix, label)


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


def broken_reads(bench: Bench, monkeypatch: pytest.MonkeyPatch, times: int) -> str:
    """Reading the last row fails so many times; the key of that row."""
    left, read, key = [times], ImageDataset.read, bench.store.table.keys[-1]

    def fails(self: ImageDataset, number: int) -> bytes:
        if number == COUNT - 1 and left[0]:
            left[0] -= 1
            raise DataError(f"cannot read sample {key!r}: Input/output error.")
        return read(self, number)

    monkeypatch.setattr(ImageDataset, "read", fails)
    return key


def test_reading_that_recovers_costs_another_try(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = opened([*WINDOWS, "num_views=1"])
    broken_reads(bench, monkeypatch, stage1.TRIES - 1)
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


@pytest.mark.parametrize(
    ("number", "grace"),
    [
        (signal.SIGTERM, 0.0),
        (signal.SIGUSR1, 1e9),
        pytest.param(signal.SIGINT, 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_keeps_what_is_committed_and_names_the_next_step(
    photos: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    grace: float,
) -> None:
    """It comes while the second group's first window is asked about."""
    monkeypatch.setattr(stage1, "GRACE_SECONDS", grace)
    recipe = recipes.load("digits", [*WINDOWS, "num_views=3", "views_per_decode=1"])
    out, predict = tmp_path / "cache.zarr", stage1.Predictor.predict

    def signalled(self: stage1.Predictor, window: stage1.Window, view: int) -> Iterator[object]:
        if window.group.views == (1,) and window.rows.start == 0:
            os.kill(os.getpid(), number)
        return predict(self, window, view)

    monkeypatch.setattr(stage1.Predictor, "predict", signalled)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(recipe, str(photos), str(teacher), out, "cpu", force=True)
    kept = 2 if grace else 1
    assert f"Stopped by {number.name}. {kept} of 3 parts" in str(stopped.value)
    monkeypatch.undo()
    store = Cache.open(out)
    assert [store.check_part(p) is None for p in store.parts()] == [v < kept for v in range(3)]
    assert not list(out.rglob(f"*{atomic.PARTIAL}"))
    run(recipe, str(photos), str(teacher), out, "cpu", force=True)
    assert all(store.check_part(p) is None for p in store.parts())


def test_a_second_signal_stops_at_once(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, asked = opened(BLOCKS), []

    def signalled(self: stage1.Predictor, window: stage1.Window, view: int) -> Iterator[object]:
        asked.append(view)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        yield from ()

    monkeypatch.setattr(stage1.Predictor, "predict", signalled)
    monkeypatch.setattr(signals, "PASSED_ON", 0.0)
    worker = Stage1(bench.store, bench.images, bench.ask(), BATCH, 2)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        worker.make(bench.groups(2), lambda _: None)
    worker.close()
    assert asked == [0]
    assert not bench.chunks()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_command_that_gets_a_signal(
    photos: Path, teacher: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "cache.zarr"
    kdcache = str(Path(sys.executable).parent / "kdcache")
    arguments = ["cache", "digits", "--data", photos, "--teacher", teacher, "--out", out, "--force"]
    command = [kdcache, *map(str, arguments), *WINDOWS, "num_views=4000", "views_per_decode=1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(out.glob("commits/v*/*.json")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        told = process.communicate()[1]
    store = Cache.open(out)
    done = [p for p in store.parts() if store.present(p)]
    assert process.returncode == 130
    assert 0 < len(done) < 4000
    assert f"Stopped by {number.name}. {len(done)} of 4,000 parts of {out} are committed" in told
    assert f"Continue with: kdcache cache digits --data {photos}" in told
    assert "Traceback" not in told
    assert all(store.check_part(p) is None for p in done)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_parts_that_are_made(opened: Opener) -> None:
    bench, process = opened([*BLOCKS, "num_views=48"]), psutil.Process()
    seen: list[int] = []
    bench.make(*bench.groups(2), done=lambda _: seen.append(process.memory_info().rss))
    begin, end = seen[len(seen) // 4], seen[-1]
    assert end - begin < 24 * 2**20, f"{begin >> 20} MB became {end >> 20} MB"


def test_memory_that_cannot_be_page_locked_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    new = torch.empty

    def refuse(*shape: int, pin_memory: bool = False, **options: object) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nmore")
        return new(*shape, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", refuse)
    buffer = PinnedBuffer(pinned=True)
    with caplog.at_level("INFO", "kdcache"):
        first = buffer.array((2, 3, 4, 4, 3))
    assert "not page-locked (CUDA error: out of memory)" in caplog.text
    first[:] = 7
    again = buffer.array((1, 3, 4, 4, 3))
    assert again.shape == (1, 3, 4, 4, 3)
    assert again.base is not None
    assert (again == 7).all(), "the same memory"


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


def test_commit_records_state_how_busy_the_stages_were(opened: Opener) -> None:
    bench = opened(BLOCKS)
    bench.make()
    for made in bench.store.parts():
        said = bench.store.record(made)["statistics"]
        assert set(TIMINGS) < set(said)
        assert said["views_per_second"] > 0
        assert 0 <= said["render_busy"] <= 1.01
        assert said["teacher_busy"] > 0
        assert said["teacher_wait"] >= 0
        assert said["teacher_busy"] + said["teacher_wait"] <= 1.01


def test_a_wait_that_spans_two_intervals_counts_in_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wait that spans two intervals counts in both."""
    now = [0.0]
    monkeypatch.setattr("pipeline.worker.meter.time.perf_counter", lambda: now[0])
    meter = Meter(1)
    now[0] = 3.0
    with meter.busy("wait"):
        now[0] = 4.0
        assert meter.since_last()["teacher_wait"] == 0.25
        now[0] = 5.0
        assert meter.since_last()["teacher_wait"] == 1.0
        now[0] = 6.0
    now[0] = 7.0
    assert meter.since_last()["teacher_wait"] == 0.5
    assert meter.since_last()["teacher_wait"] == 0.0


def test_the_meter_adds_up_and_forgets() -> None:
    meter = Meter(2)
    assert meter.since_last()["views_per_second"] == 0.0
    for stage in ("render", "render", "wait", "forward", "commit"):
        meter.add(stage, 1.0)
    meter.count(5)
    found = meter.since_last()
    assert found["render_busy"] == found["teacher_wait"] == found["teacher_busy"] > 1
    assert meter.since_last()["teacher_busy"] == 0.0
    meter.parts = 3
    assert meter.note().startswith("3 parts done, teacher waits ")


def test_failures_are_listed_with_the_next_step(opened: Opener) -> None:
    from pipeline.worker import failures as outcome

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
