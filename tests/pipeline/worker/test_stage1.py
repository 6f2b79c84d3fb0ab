"""Stage 1's stages run at the same time and make the bytes of one after another."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cache_tools.render import mixing
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.views import draw
from pipeline import recipe as recipes
from pipeline.run import run
from pipeline.teacher.forward import mix_in_place
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.stage1 import Stage1
from pipeline.worker.window import PinnedBuffer
from tests.helpers.stage1 import files
from tests.helpers.workbench import (
    BATCH,
    BLOCKS,
    COUNT,
    CPU,
    WINDOWS,
    Counting,
    Opener,
    one_after_another,
)


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
