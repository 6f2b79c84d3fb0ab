"""Layout of repeated views in batches: as many pictures in each as timm's sampler has."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from timm.data.distributed_sampler import RepeatAugSampler

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import UsageError
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from pipeline import recipe as caching
from pipeline.run import run
from tests.helpers import lab
from train import recipe as training
from train import run_dir
from train.data.inputs import open_inputs
from train.data.loader import Batch, Loader
from train.data.native_renderer import NativeRenderer
from train.data.schedule import Plan, Schedule
from train.data.stored_targets import StoredTargets
from train.distributed import ALONE, World

UNMIXED, PAIRS, ODD, CHANGING = "unmixed", "pairs", "odd windows", "other partners in each view"


def store(kind: str, samples: int = 800) -> Any:
    """The part of a cache that a schedule reads."""
    table = lab.table(lab.keys(samples))
    spec = lab.spec(table, block=2**16, mixup=0.0 if kind == UNMIXED else 0.5)
    views = replace(spec.views, pair_views=1 if kind == CHANGING else 6)
    spec = replace(spec, views=views, window=151 if kind == ODD else 1024)
    return SimpleNamespace(spec=spec, table=table, num_views=12)


def batches(schedule: Schedule, plan: Plan, processes: int) -> Iterator[list[np.ndarray]]:
    """Positions in the plan of every step, by process."""
    for step in range(schedule.steps):
        yield [schedule.share(plan, step, World(rank, processes)) for rank in range(processes)]


def timms(batch: int, processes: int, repeats: int) -> int:
    """Pictures that timm's sampler has in a batch of a process."""
    sampler = RepeatAugSampler(range(9000), processes, 0, num_repeats=repeats)
    return len(set([*sampler][:batch]))


@pytest.mark.parametrize("kind", [UNMIXED, PAIRS, ODD, CHANGING])
@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize(
    ("processes", "accumulate", "batch"),
    [
        (1, 1, 96),
        (1, 8, 96),
        (2, 1, 96),
        (2, 8, 96),
        (8, 1, 96),
        (8, 8, 96),
        (8, 1, 24),
        (1, 8, 33),
    ],
)
def test_a_batch_has_as_many_pictures_as_timms_sampler_gives_it(
    kind: str, repeats: int, processes: int, accumulate: int, batch: int
) -> None:
    schedule = Schedule(
        store(kind), 1, batch, seed=3, aug_repeats=repeats, grad_accum_steps=accumulate
    )
    plan, own = schedule.plan(1), batch // processes
    last = schedule.steps - schedule.steps % accumulate  # the update after it has fewer steps
    for step, shares in enumerate(batches(schedule, plan, processes)):
        for at in shares if step < last else ():
            pictures = len(set(plan.row_M[at].tolist()))
            assert pictures >= timms(own, processes * accumulate, repeats)
            if processes * accumulate >= repeats:
                assert pictures == own == len(at)


def test_eight_processes_of_256_have_256_pictures_each_and_one_a_third_of_2048() -> None:
    schedule = Schedule(store(PAIRS, 9000), 1, 2048, seed=0, aug_repeats=3)
    plan = schedule.plan(0)
    for processes, pictures in ((8, 256), (1, 684)):
        for shares in batches(schedule, plan, processes):
            assert {len(set(plan.row_M[at].tolist())) for at in shares} == {pictures}
    assert timms(256, 8, 3) == 256
    assert timms(2048, 1, 3) == 683  # ours are two pictures, partners, at each end


@pytest.mark.parametrize("kind", [UNMIXED, PAIRS, ODD, CHANGING])
@pytest.mark.parametrize("accumulate", [1, 8])
def test_a_step_has_the_same_views_on_any_number_of_processes(kind: str, accumulate: int) -> None:
    schedule = Schedule(store(kind), 1, 48, seed=1, aug_repeats=3, grad_accum_steps=accumulate)
    plan = schedule.plan(2)
    assert set(Counter(zip(plan.row_M.tolist(), plan.slot_M.tolist(), strict=True)).values()) == {1}
    for processes in (1, 2, 3, 8, 16):
        for step, shares in enumerate(batches(schedule, plan, processes)):
            assert sorted(np.concatenate(shares)) == [*range(48 * step, 48 * step + 48)]
            assert {len(share) for share in shares} == {48 // processes}


@pytest.mark.parametrize("accumulate", [1, 4, 8])
def test_an_update_has_the_views_it_would_have_without_accumulation(accumulate: int) -> None:
    few = Schedule(store(PAIRS), 1, 24, seed=1, aug_repeats=3, grad_accum_steps=accumulate)
    whole = Schedule(store(PAIRS), 1, 24 * accumulate, seed=1, aug_repeats=3)
    plans = few.plan(4), whole.plan(4)
    for update in range(whole.steps):
        at = slice(24 * accumulate * update, 24 * accumulate * (update + 1))
        views = [{*zip(p.row_M[at].tolist(), p.slot_M[at].tolist(), strict=True)} for p in plans]
        assert views[0] == views[1]


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 8), (2, 1), (8, 1), (8, 8)])
def test_partners_are_in_the_same_batch_of_a_process(processes: int, accumulate: int) -> None:
    schedule = Schedule(store(PAIRS), 1, 96, seed=5, aug_repeats=3, grad_accum_steps=accumulate)
    plan = schedule.plan(0)
    for shares in batches(schedule, plan, processes):
        for at in shares:
            slots = plan.slot_M[at].tolist()
            there = {*zip(plan.row_M[at].tolist(), slots, strict=True)}
            assert {*zip(plan.partner_M[at].tolist(), slots, strict=True)} == there


def test_repeats_are_dealt_out_within_few_steps_of_one_update() -> None:
    def spans(repeats: int, accumulate: int) -> list[int]:
        schedule = Schedule(
            store(UNMIXED), 1, 12, 0, aug_repeats=repeats, grad_accum_steps=accumulate
        )
        assert [step for span in schedule.spans for step in span] == [*range(schedule.steps)]
        return [len(span) for span in schedule.spans]

    assert set(spans(1, 8)) == {1}
    assert set(spans(3, 1)) == {1}
    assert spans(3, 8)[:4] == [4, 4, 4, 4]
    assert set(spans(3, 2)) <= {1, 2}
    assert spans(2, 7)[:3] == [2, 2, 3]


@pytest.fixture(scope="module")
def cache(digits: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose partners stay for three views."""
    out = tmp_path_factory.mktemp("repeats") / "c.zarr"
    small = ["num_views=6", "views.cutmix=1.0", "views.pair_views=3"]
    run(caching.load("digits", small), str(digits), str(teacher), out, "cpu")
    return out


def loader(there: Cache, images: ImageDataset, schedule: Schedule, world: World = ALONE) -> Loader:
    targets = StoredTargets(CacheEnsemble((there,), (1.0,)))
    return Loader(schedule, targets, NativeRenderer(there, images, 2), world)


def same(one: Batch, other: Batch) -> bool:
    assert (one.targets.index_BK == other.targets.index_BK).all()
    assert one.partner is not None
    assert other.partner is not None
    return bool((one.pixels == other.pixels).all() and (one.partner == other.partner).all())


def test_views_of_an_update_are_rendered_from_one_decode_and_resume_in_its_middle(
    cache: Path, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, rendered = Cache.open(cache), Counter[int]()
    schedule = Schedule(there, 1, 12, 0, aug_repeats=3, grad_accum_steps=4)
    plan, render = schedule.plan(1), ViewRenderer.render

    def spy(self: ViewRenderer, row: int, wanted: Any, encoded: bytes | None = None) -> None:
        rendered[row] += 1
        render(self, row, wanted, encoded)

    monkeypatch.setattr(ViewRenderer, "render", spy)
    whole = [*loader(there, images, schedule).epoch(1)]
    assert len(whole) == schedule.steps == 8
    assert sum(rendered.values()) <= 33 + 4  # of 33 pictures; a pair is shown in two updates
    for step, batch in enumerate(whole):
        at = slice(12 * step, 12 * step + 12)
        assert (batch.label_B == there.table.label_N[plan.row_M[at]]).all()
        assert len({*plan.row_M[at].tolist()}) == 12
    rest = [*loader(there, images, schedule).epoch(1, first_step=2)]
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))
    halves = [[*loader(there, images, schedule, World(rank, 2)).epoch(1)] for rank in range(2)]
    for step, batch in enumerate(whole):
        for rank in range(2):
            own = schedule.share(plan, step, World(rank, 2)) - 12 * step
            assert (halves[rank][step].pixels == batch.pixels[own]).all()


def test_a_run_saved_with_the_former_layout_is_refused(cache: Path, tmp_path: Path) -> None:
    inputs, out = open_inputs(cache, None), tmp_path / "run"

    def begin(repeats: int, fresh: bool = False) -> object:
        recipe = training.load(
            "digits", [f"aug_repeats={repeats}", "views_per_epoch=1", "batch_size=24"]
        )
        return run_dir.init_run(out, recipe, inputs, fresh)

    def former() -> None:
        config = run_dir.read_json(out / "config.json")
        del config["layout"]
        run_dir.write_json(out / "config.json", config)

    begin(3)
    (out / "checkpoint.pt").write_bytes(b"begun")
    begin(3)  # of this version
    former()
    with pytest.raises(UsageError, match="aug_repeats > 1 in batches in another order"):
        begin(3)
    (out / "checkpoint.pt").rename(out / "checkpoint-previous.pt")
    with pytest.raises(UsageError, match="Finish it with that version"):
        begin(3)
    (out / "checkpoint-previous.pt").unlink()
    begin(3)  # finished, or to be begun anew
    former()
    begin(1, fresh=True)
    (out / "checkpoint.pt").write_bytes(b"begun")
    former()
    begin(1)  # its order is the same in both
