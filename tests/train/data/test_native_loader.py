"""The student's pixels are the teacher's, whatever the batch size and the number of threads."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import CacheDamaged, CacheIncomplete, CacheMismatch, UsageError
from cache_tools.render import batch as render
from cache_tools.render import decode
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers.jpegs import PHOTO, saved
from train.data import create_loader
from train.data.inputs import check_cache
from train.data.schedule import Schedule


def test_targets_belong_to_their_views(digits_cache: Path, images: ImageDataset) -> None:
    store = Cache.open(digits_cache)
    schedule = Schedule(store, 2, 40, seed=5)
    plan = schedule.plan(0)
    views = [codec.decode(store.read(Part(v, 0))[0], store.spec.targets) for v in plan.views]
    for step, batch in enumerate(create_loader.native(store, images, schedule, 2).epoch(0)):
        for i in range(40):
            place = step * 40 + i
            target, row = views[plan.slot_M[place]], plan.row_M[place]
            assert (batch.targets.index_BK[i] == target.index_BK[row]).all()
            assert (batch.targets.probability_BK[i] == target.probability_BK[row]).all()
            assert batch.label_B[i] == store.table.label_N[row]
            assert batch.partner_label_B[i] == store.table.label_N[plan.partner_M[place]]


def test_every_sample_comes_once_per_view_and_views_take_turns(digits_cache: Path) -> None:
    store = Cache.open(digits_cache)
    schedule = Schedule(store, 3, 50, seed=0)
    assert [schedule.view_numbers(e) for e in range(3)] == [(0, 1, 2), (3, 0, 1), (2, 3, 0)]
    plan = schedule.plan(1)
    counts = Counter(zip(plan.slot_M.tolist(), plan.row_M.tolist(), strict=True))
    assert set(counts.values()) == {1}
    assert len(counts) == 300
    assert not np.array_equal(plan.row_M, schedule.plan(2).row_M)
    assert np.array_equal(plan.row_M, Schedule(store, 3, 50, seed=0).plan(1).row_M)
    assert not np.array_equal(plan.row_M, Schedule(store, 3, 50, seed=1).plan(1).row_M)


def test_partners_stand_side_by_side(digits_cache: Path) -> None:
    plan = Schedule(Cache.open(digits_cache), 1, 50, seed=0).plan(0)
    position = {int(row): i for i, row in enumerate(plan.row_M)}
    assert all(abs(position[int(p)] - position[int(r)]) == 1 for r, p in zip(
        plan.row_M, plan.partner_M, strict=True
    ))  # fmt: skip


def test_going_on_in_the_middle_of_an_epoch_changes_nothing(
    digits_cache: Path, images: ImageDataset
) -> None:
    store = Cache.open(digits_cache)
    schedule = Schedule(store, 2, 32, seed=1)
    whole = [b.pixels for b in create_loader.native(store, images, schedule, 2).epoch(1)]
    rest = [
        b.pixels for b in create_loader.native(store, images, schedule, 2).epoch(1, first_step=3)
    ]
    assert len(rest) == len(whole) - 3
    assert all((a == b).all() for a, b in zip(whole[3:], rest, strict=True))


def test_only_the_pixels_of_the_crop_are_decoded(
    digits_cache: Path, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = Cache.open(digits_cache), []
    schedule = Schedule(store, 1, 50, seed=0)

    def spy(
        data: bytes, key: str, reuse: Any, scale: int, box: decode.Box | None, sides: Any
    ) -> Any:
        asked.append(box)
        return whole(data, key, reuse, scale, box, sides)

    whole = decode.decoded
    monkeypatch.setattr(decode, "decoded", spy)
    monkeypatch.setattr("cache_tools.render.batch.functions", lambda: np.empty(0, np.int64))
    for _ in create_loader.native(store, images, schedule, 1).epoch(0):
        pass
    assert all(box is not None and box[0] + box[2] <= 32 for box in asked)
    assert len(set(asked)) > 5


@pytest.mark.skipif(not render.functions().size, reason="needs the extra [turbo]")
@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_code_makes_the_batches_of_pythons_way(
    teacher: Path, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(24):
        picture = PHOTO[9 * i : 9 * i + 160, 5 * i : 5 * i + 150 + 3 * i]
        (tmp_path / f"data/c{i % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/c{i % 3}/p{i}.jpg").write_bytes(saved(picture, quality=85))
    own = ["views.size=48", "num_views=3", "views.auto_augment=rand-m7-mstd0.5", "views.cutmix=1.0"]
    run(recipes.load("photos", own), f"{tmp_path}/data", str(teacher), tmp_path / "c.zarr", "cpu")
    store = Cache.open(tmp_path / "c.zarr")
    opened = open_images(f"{tmp_path}/data", "train")
    images = match.match(store.table, store.spec.dataset, opened)
    schedule = Schedule(store, 1, 12, seed=0, aug_repeats=3)
    loader, made, real = (
        create_loader.native(store, images, schedule, threads),
        [],
        render.decode_views,
    )

    def spy(*arguments: Any) -> None:
        real(*arguments)
        made.extend(arguments[-1].tolist())

    monkeypatch.setattr(render, "decode_views", spy)
    compiled = [[b.pictures.copy() for b in loader.epoch(epoch)] for epoch in range(2)]
    assert len(made) >= 2 * 24
    assert {*made} == {render.DONE}
    monkeypatch.setattr("cache_tools.render.batch.functions", lambda: np.empty(0, np.int64))
    python = create_loader.native(store, images, schedule, threads)
    for epoch, ours in enumerate(compiled):
        for pictures, other in zip(ours, python.epoch(epoch), strict=True):
            assert (pictures == other.pictures).all()


def test_an_epoch_that_cannot_be_is_explained(digits_cache: Path) -> None:
    store = Cache.open(digits_cache)
    with pytest.raises(UsageError, match="fewer than batch_size=256"):
        Schedule(store, 1, 256, 0)
    with pytest.raises(UsageError, match="the cache has 4 views"):
        Schedule(store, 5, 32, 0)


def test_other_pixels_are_refused_naming_both_sides(
    mutable_cache: Path, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Cache.open(mutable_cache)
    check_cache(store, images)
    from cache_tools.render import view

    real = view.crop_resize

    def other(*arguments: Any) -> None:
        real(*arguments)
        arguments[-1][:] ^= 1

    monkeypatch.setattr(view, "crop_resize", other)
    with pytest.raises(CacheMismatch, match=r"other pixels.*simplejpeg.*here are.*simplejpeg"):
        check_cache(store, images)


def test_a_cache_that_is_not_whole_is_refused(mutable_cache: Path, images: ImageDataset) -> None:
    store = Cache.open(mutable_cache)
    chunk = mutable_cache / "targets/tail/c/0/3/0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1] + bytes([data[-1] ^ 128]))
    with pytest.raises(CacheDamaged, match="targets/tail/c/0/3/0"):
        check_cache(store, images)
    chunk.unlink()
    with pytest.raises(CacheIncomplete, match="targets/tail/c/0/3/0"):
        check_cache(store, images)


def test_the_order_of_views_is_drawn_anew_each_time_all_were_shown(digits_cache: Path) -> None:
    store = Cache.open(digits_cache)  # of four views
    schedule = Schedule(store, 1, 50, seed=3, shuffle=True)
    orders = [[schedule.view_numbers(4 * turn + i)[0] for i in range(4)] for turn in range(8)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 4
    assert Schedule(store, 1, 50, seed=3, shuffle=True).view_numbers(5) == (orders[1][1],)
    pairs = {Schedule(store, 2, 50, seed=s, shuffle=True).view_numbers(0) for s in range(9)}
    assert pairs == {(0, 1), (2, 3)}
