"""Batches for other training loops: views and targets of `kdcache train`, resumable anywhere."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cache_tools.data.images import ImageDataset
from cache_tools.errors import UsageError
from cache_tools.reader import CacheReader, open_reader
from cache_tools.store.cache import Cache
from train import recipe as recipes
from train import run_dir
from train.data import create_loader
from train.data.batches import Batches
from train.data.device_batch import InputTransform
from train.data.inputs import open_inputs
from train.data.schedule import Schedule
from train.distributed import ALONE
from train.loss import losses
from train.loss.task import CachedDistillationTask
from train.trainer import factory, loop

CPU = torch.device("cpu")
MEAN = STD = (0.5, 0.5, 0.5)


def opened(cache: Path | CacheReader, **options: Any) -> Batches:
    normal = {"batch_size": 32, "device": "cpu", "mean": MEAN, "std": STD, "seed": 3}
    return Batches(cache, **normal | options)


def test_batches_are_those_of_the_loader(digits_cache: Path, images: ImageDataset) -> None:
    store = Cache.open(digits_cache)
    schedule = Schedule(store, 2, 32, seed=3)
    expected = create_loader.native(store, images, schedule, 1).epoch(1)
    transform = InputTransform(CPU, "fp32", MEAN, STD)
    batches = opened(digits_cache, views_per_epoch=2)
    batches.set_epoch(1)
    found = list(DataLoader(batches, batch_size=None))
    assert len(found) == len(batches) == 6
    for (pixels, targets), batch in zip(found, expected, strict=True):
        x, wanted = transform.batch(batch)
        assert torch.equal(pixels, x)
        assert torch.equal(targets.probability, wanted.probability)
        assert torch.equal(targets.label, wanted.label)
        assert targets.dense(2.0).sum(1) == pytest.approx(torch.ones(32), abs=1e-5)


def test_a_dictionary_has_the_pixels_labels_and_teacher(digits_cache: Path) -> None:
    one = next(iter(opened(digits_cache, as_dict=True)))
    assert one["pixel_values"].shape == (32, 3, 32, 32)
    assert torch.equal(one["labels"], one["teacher"].label)


def test_epochs_follow_each_other_and_a_state_goes_on_anywhere(digits_cache: Path) -> None:
    whole = opened(digits_cache)
    expected = [pixels for _ in range(2) for pixels, _ in whole]
    assert len(expected) == 6
    for stop in (0, 2, 3, 5):
        first, seen = opened(digits_cache), []
        state = json.loads(json.dumps(first.state_dict()))
        for pixels in (pixels for _ in range(2) for pixels, _ in first):
            if len(seen) == stop:
                break
            seen.append(pixels)
            state = json.loads(json.dumps(first.state_dict()))
        second = opened(digits_cache)
        second.load_state_dict(state)
        assert second.state_dict() == state
        for epoch in range(second.epoch, 2):
            second.set_epoch(epoch)
            seen += [pixels for pixels, _ in second]
        assert len(seen) == 6
        assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_the_next_epoch_follows_the_last_batch_of_this_one(
    digits_cache: Path,
) -> None:
    """As Lightning does, which knows the length and leaves the iterator where it is."""
    whole, batches = opened(digits_cache), opened(digits_cache)
    expected = [pixels for _ in range(2) for pixels, _ in whole]
    iterators = [iter(batches), iter(batches)]
    seen = [next(iterator)[0] for iterator in iterators for _ in range(len(batches))]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert (batches.epoch, batches.step) == (2, 0)


def test_an_epoch_begins_at_a_step_of_ones_own_count(digits_cache: Path) -> None:
    """For loops that count themselves, since their loader reads ahead."""
    cache = open_reader(digits_cache)
    whole, batches = opened(cache), opened(cache)
    expected = [pixels for _ in range(2) for pixels, _ in whole]
    next(iter(batches))
    batches.set_epoch(1, 2)
    assert (batches.epoch, batches.step) == (1, 2)
    batches.set_epoch(1)  # as trainers call it before each epoch
    [(pixels, targets)] = list(batches)
    assert torch.equal(pixels, expected[5])
    moved = targets.to("meta")
    assert moved.index.device == moved.lam.device == torch.device("meta")
    assert (moved.temperatures, moved.num_classes) == (targets.temperatures, 10)
    batches.set_epoch(0, 0)
    assert torch.equal(next(iter(batches))[0], expected[0])


def test_the_step_after_the_last_is_the_next_epochs_first(digits_cache: Path) -> None:
    """As loops that count their own steps have it, at the end of an epoch."""
    cache = open_reader(digits_cache)
    whole, batches = opened(cache), opened(cache)
    expected = [pixels for _ in range(2) for pixels, _ in whole]
    batches.set_epoch(0, len(batches))
    assert (batches.epoch, batches.step) == (1, 0)
    assert all(torch.equal(a, b) for (a, _), b in zip(list(batches), expected[3:], strict=True))
    state = batches.state_dict() | {"epoch": 0, "step": 3}
    batches.load_state_dict(state)
    assert (batches.epoch, batches.step) == (1, 0)


@pytest.mark.parametrize(("epoch", "step"), [(0, -1), (0, 4), (5, 4), (-1, 0)])
def test_an_epoch_or_step_that_cannot_be_is_refused(
    epoch: int, step: int, digits_cache: Path
) -> None:
    batches = opened(digits_cache)
    before = batches.state_dict()
    name = "epoch=-1" if epoch < 0 else f"step={step} cannot be: epoch {epoch} has 3 steps"
    with pytest.raises(UsageError, match=name):
        batches.set_epoch(epoch, step)
    with pytest.raises(UsageError, match=name):
        batches.load_state_dict(before | {"epoch": epoch, "step": step})
    with pytest.raises(UsageError, match="no 'step'"):
        batches.load_state_dict({"epoch": 0})
    assert batches.state_dict() == before


def test_targets_of_a_batch_are_the_dense_rows_of_the_reader(digits_cache: Path) -> None:
    cache, batches = open_reader(digits_cache), opened(digits_cache, views_per_epoch=2)
    plan = batches.schedule.plan(0)
    for step, (_, targets) in enumerate(batches):
        at = batches.schedule.share(plan, step, ALONE)
        for temperature in (1.0, 2.0, 3.0):
            dense = targets.dense(temperature).numpy()
            for i, (row, slot) in enumerate(zip(plan.row_M[at], plan.slot_M[at], strict=True)):
                [read] = cache.targets(plan.views[slot], [int(row)]).dense(temperature)
                assert dense[i] == pytest.approx(read, rel=1e-5, abs=1e-7)
        if step:
            break


def test_an_iteration_that_was_left_begins_again(digits_cache: Path) -> None:
    batches = opened(digits_cache)
    first = next(iter(batches))[0]
    assert torch.equal(next(iter(batches))[0], first)


def test_processes_share_each_batch(digits_cache: Path) -> None:
    whole = [targets.label for _, targets in opened(digits_cache)]
    shares = [opened(digits_cache, rank=rank, world_size=2) for rank in range(2)]
    for label, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([targets.label for _, targets in parts]), label)


def test_what_cannot_be_is_refused(digits_cache: Path) -> None:
    batches = opened(digits_cache)
    with pytest.raises(UsageError, match="num_workers=0"):
        next(iter(DataLoader(batches, batch_size=None, num_workers=1)))
    with pytest.raises(UsageError, match="state is of other batches"):
        opened(digits_cache, seed=4).load_state_dict(batches.state_dict())
    with pytest.raises(UsageError, match="num_views=5 cannot be shown"):
        opened(digits_cache, num_views=5)
    with pytest.raises(UsageError, match="rank=2 cannot be"):
        opened(digits_cache, rank=2, world_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "Batches: batch_size must be at least 1"),
        ({"view_order": "shuffel"}, "Batches: view_order: 'shuffel' is not one of"),
        ({"loader": "fcv"}, "Batches: loader: 'fcv' is not one of"),
        ({"tail": "none"}, "Batches: tail: 'none' is not one of"),
        ({"epochs": 0}, "Batches: epochs must be at least 1"),
        ({"size": "16", "epochs": 2}, "Batches: size: expected int, found '16'"),
        ({"size": [[0, 16]]}, "Pass epochs, too"),
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\) must be three numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "that are finite and above 0"),
    ],
)
def test_arguments_that_cannot_be_are_named(
    digits_cache: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        opened(digits_cache, **options)


def test_a_state_of_a_cache_that_has_more_views_now_is_refused(mutable_cache: Path) -> None:
    """The rest of its epoch would show another view; with the old number it goes on."""
    batches = opened(mutable_cache, epochs=6)
    batches.set_epoch(5)
    expected = list(batches)[2][0]
    batches.set_epoch(5, 2)
    state = json.loads(json.dumps(batches.state_dict()))
    Cache.open(mutable_cache).resize(8)
    options: dict[str, Any] = {"follow": True, "epochs": 6}
    with pytest.raises(UsageError, match=r"num_views: 4 against 8 here\. Pass num_views=4"):
        opened(mutable_cache, **options).load_state_dict(state)
    pinned = opened(mutable_cache, num_views=4, **options)
    pinned.load_state_dict(state)
    [(pixels, _)] = list(pinned)
    assert torch.equal(pixels, expected)


def test_a_state_of_kdcache_0_1_is_loaded_where_its_number_of_views_is_known(
    digits_cache: Path,
) -> None:
    """It has `num_views` as it was passed, 0 for all of the cache."""
    now = opened(digits_cache, num_views=3)
    state = now.state_dict() | {"epoch": 1, "step": 2}
    del state["samples"]
    every = {**state, "stream": [0 if value == 3 else value for value in state["stream"]]}
    every["stream"][2] = 3  # the seed
    with pytest.raises(UsageError, match="num_views: 3 against 4"):
        opened(digits_cache).load_state_dict(state)
    with pytest.raises(UsageError, match="Pass num_views with that number; the cache has 4 now"):
        opened(digits_cache).load_state_dict(every)
    for old in (state, every):
        now.load_state_dict(old)
        assert (now.epoch, now.step) == (1, 2)
        now.set_epoch(0, 0)


def test_a_state_of_other_samples_of_equal_number_is_refused(
    digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    def without(*left_out: int) -> Batches:
        folder = tmp_path / f"without-{left_out[0]}"
        with tarfile.open(next(digits.glob("*train*.tar"))) as shard:
            members = shard.getmembers()
            keys = sorted({member.name.partition(".")[0] for member in members})
            gone = {keys[number] for number in left_out}
            folder.mkdir(exist_ok=True)
            with tarfile.open(folder / "digits-train-0000.tar", "w") as kept:
                for member in members:
                    if member.name.partition(".")[0] not in gone:
                        kept.addfile(member, shard.extractfile(member))
        return opened(digits_cache, data=folder, allow_partial=True, batch_size=8)

    state = without(3).state_dict()
    without(3).load_state_dict(state)
    with pytest.raises(UsageError, match="samples: 'sha256:"):
        without(4).load_state_dict(state)
    del state["samples"]
    without(3).load_state_dict(state | {"stream": [*state["stream"][:7], 4, state["stream"][8]]})


def test_a_state_of_other_values_of_pixels_or_targets_is_refused(digits_cache: Path) -> None:
    state = json.loads(json.dumps(opened(digits_cache).state_dict()))
    others: dict[str, Any] = {"tail": "zero", "mean": (0.25,) * 3, "std": (0.125,) * 3}
    for name, value in others.items():
        with pytest.raises(UsageError, match=f"other batches: {name}: .* here"):
            opened(digits_cache, **{name: value}).load_state_dict(state)
    with pytest.raises(UsageError, match=r"weights=0\.5 is one number\. Pass a list"):
        opened(digits_cache, weights=0.5)
    del state["values"]  # as of earlier versions
    opened(digits_cache, **others).load_state_dict(state)


def test_a_plain_loop_has_the_losses_of_kdcache_train(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load(
        "digits", ["epochs=2", "views_per_epoch=2", "batch_size=50", "temperature=2.0", "seed=7"]
    )
    expected: list[float] = []
    forward = CachedDistillationTask.forward

    def record(task: CachedDistillationTask, x: Tensor, targets: Any) -> dict[str, Tensor]:
        result = forward(task, x, targets)
        expected.append(result["loss"].item())
        return result

    monkeypatch.setattr(CachedDistillationTask, "forward", record)
    inputs = open_inputs(digits_cache, None)
    run_dir.init_run(tmp_path / "run", recipe, inputs, fresh=False)
    loop.train(recipe, inputs, tmp_path / "run", CPU)

    torch.manual_seed(recipe.seed)
    student: Any = factory.create_student(recipe, 10)
    config = student.pretrained_cfg
    batches = opened(
        digits_cache,
        batch_size=50,
        views_per_epoch=2,
        seed=7,
        mean=config["mean"],
        std=config["std"],
    )
    optimizer = factory.create_optimizer(recipe, student)
    scheduler = factory.create_scheduler(recipe, optimizer, len(batches))
    found, updates = [], 0
    student.train()
    for epoch in range(2):
        batches.set_epoch(epoch)
        for images, targets in batches:
            scheduler.step(epoch)
            scheduler.step_update(updates)
            loss = losses.kd(student(images), targets, temperature=2.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            found.append(loss.item())
    assert found == expected
    assert len(found) == 8
