"""Loaders leave nothing behind: no memory, no process, no pause, and one line in the log."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from cache_tools.data import match
from cache_tools.data.beton import writer
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import CacheMismatch
from cache_tools.spec import sample_table
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from tests.helpers.outcome import Outcome
from train.data import create_loader
from train.data.buffer_pool import BufferPool
from train.data.loader import Loader
from train.data.prefetch import EpochPrefetcher
from train.data.schedule import Schedule

KINDS = ["native", "ffcv"]


def container(digits: Path, out: Path) -> Path:
    writer.write(open_images(str(digits), "train"), out, False, 2, lambda _: None)
    return out


def replay(kind: str, store: Cache, images: ImageDataset, digits: Path, tmp_path: Path) -> Loader:
    schedule = Schedule(store, 1, 20, 0)
    if kind == "native":
        return create_loader.native(store, images, schedule, 2)
    pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    there = open_images(str(container(digits, tmp_path / "x.beton")), "train")
    matched = match.match(store.table, store.spec.dataset, there)
    made: Loader = create_loader.ffcv(store, matched, schedule, 2)
    return made


def test_memory_comes_back_when_no_reference_is_left() -> None:
    memory = BufferPool((4, 2, 2, 3))
    first = memory.take()
    address = first.ctypes.data
    part = torch.from_numpy(first[1]).permute(2, 0, 1)
    del first
    part[:] = 7
    second = memory.take()
    second[:] = 1
    assert second.ctypes.data != address
    assert bool((part == 7).all())
    del part
    assert memory.take().ctypes.data == address
    assert memory.take().ctypes.data == address
    assert second.ctypes.data != address


def test_batches_that_are_kept_are_not_overwritten(
    digits_cache: Path, images: ImageDataset
) -> None:
    loader = create_loader.native(
        Cache.open(digits_cache), images, Schedule(Cache.open(digits_cache), 1, 10, 0), 2
    )
    kept = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    again = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    assert all((a.pixels == b.pixels).all() for a, b in zip(kept, again, strict=True))
    assert all((a.partner == b.partner).all() for a, b in zip(kept, again, strict=True))


def test_the_next_epoch_is_made_while_this_one_runs(
    digits_cache: Path, images: ImageDataset
) -> None:
    store = Cache.open(digits_cache)
    schedule, made_by = Schedule(store, 1, 20, 0), {}
    real = schedule.plan

    def plan(epoch: int) -> Any:
        made_by[epoch] = threading.current_thread()
        return real(epoch)

    schedule.plan = plan  # type: ignore[method-assign]
    epochs = EpochPrefetcher(CacheEnsemble((store,), (1.0,)), [schedule], images)
    for epoch in range(4):
        [(made, _)] = epochs.get(epoch)
        assert made.views == schedule.view_numbers(epoch)
        assert epochs._next is not None
        [(following, _)] = epochs._next[1].result()  # nobody has asked for it
        assert (following.row_M == real(epoch + 1).row_M).all()
    assert made_by.pop(0) is threading.main_thread()
    assert threading.main_thread() not in made_by.values()
    assert (epochs.get(9)[0][0].row_M == real(9).row_M).all()  # another than was prepared
    schedule.epochs = 3
    last = EpochPrefetcher(CacheEnsemble((store,), (1.0,)), [schedule], images)
    assert (last.get(2)[0][0].row_M == real(2).row_M).all()
    assert last._next is None  # there is none to prepare


def test_every_read_is_checked_and_digests_are_compared_once(
    digits_cache: Path, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, compared = Cache.open(digits_cache), list[int]()
    real = sample_table.check_digest
    monkeypatch.setattr(
        sample_table, "check_digest", lambda t, row, d: compared.append(row) or real(t, row, d)
    )
    loader = create_loader.native(store, images, Schedule(store, 1, 20, 0), 2)
    for epoch in range(3):
        list(loader.epoch(epoch))
        assert sorted(compared) == list(range(100))
    read = ImageDataset.read

    def flipped(self: ImageDataset, number: int) -> bytes:
        data = bytearray(read(self, number))
        data[-3] ^= number == 17
        return bytes(data)

    monkeypatch.setattr(ImageDataset, "read", flipped)
    with pytest.raises(CacheMismatch, match=store.table.keys[17]):
        list(loader.epoch(3))


def test_the_choice_is_logged_once_in_a_command(
    kdcache: Callable[..., Outcome], digits_cache: Path, tmp_path: Path
) -> None:
    create_loader._log_choice.cache_clear()
    arguments = (
        "--cache",
        digits_cache,
        "--out",
        tmp_path / "r",
        "--seeds",
        "2",
        "--device",
        "cpu",
    )
    done = kdcache("train", "digits", *arguments, "epochs=1", "views_per_epoch=1")
    assert done.code == 0, done.err
    assert done.err.count("loader=") == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_as_it_is(
    kind: str, digits_cache: Path, images: ImageDataset, digits: Path, tmp_path: Path
) -> None:
    loader, process = (
        replay(kind, Cache.open(digits_cache), images, digits, tmp_path),
        psutil.Process(),
    )
    others = threading.active_count()  # servers and clients of other tests in this process

    def run(epochs: range) -> int:
        for epoch in epochs:
            for batch in loader.epoch(epoch):
                assert np.isfinite(batch.targets.tail_BT).all()
        return int(process.memory_info().rss)

    before = run(range(60))
    grown = run(range(60, 360)) - before  # 300 epochs of 900 kB with their partners
    assert grown < 16 * 2**20
    assert threading.active_count() < others + 10


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_process_leaves_nothing(
    kind: str, how: signal.Signals, digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    data = digits
    if kind == "ffcv":
        pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
        data = container(digits, tmp_path / "x.beton")
    run = tmp_path / "run"
    command = [str(Path(sys.executable).parent / "kdcache"), "train", "digits", f"loader={kind}"]
    command += [
        "--cache",
        str(digits_cache),
        "--data",
        str(data),
        "--out",
        str(run),
        "--device",
        "cpu",
    ]
    command += ["epochs=100000", "views_per_epoch=2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "log.jsonl").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        trainer = psutil.Process(process.pid)
        started = trainer.children(recursive=True)
        maps = [m.path for p in (trainer, *started) for m in p.memory_maps()]
        process.send_signal(how)
        _, err = process.communicate(timeout=600)
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(started, timeout=120)
    assert not alive
    assert not [path for path in maps if path.startswith("/dev/shm") and Path(path).exists()]
