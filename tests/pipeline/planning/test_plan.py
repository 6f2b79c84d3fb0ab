"""`kdcache plan` and `kdcache train --plan`: what the work will take, told before it is done."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from cache_tools.data.images import ImageDataset
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from tests.helpers.outcome import Outcome
from train import recipe as recipes
from train.data.prefetch import EpochPrefetcher
from train.data.schedule import Schedule
from train.trainer import plan

Command = Callable[..., Outcome]


@pytest.mark.parametrize(
    "overrides",
    [
        ["views_per_epoch=1", "batch_size=30"],
        ["views_per_epoch=2", "batch_size=64"],
        ["views_per_epoch=1", "aug_repeats=3", "batch_size=11"],
    ],
)
def test_the_plan_is_the_schedule(
    digits_cache: Path, images: ImageDataset, overrides: list[str]
) -> None:
    store, recipe = Cache.open(digits_cache), recipes.load("digits", overrides)
    schedule = Schedule(
        store,
        recipe.views_per_epoch,
        recipe.batch_size,
        recipe.seed,
        aug_repeats=recipe.aug_repeats,
    )
    facts = plan.plan(recipe, plan.of_store(store))
    assert facts["steps_per_epoch"] == schedule.steps
    assert facts["images"] == recipe.epochs * schedule.steps * recipe.batch_size
    shown = [v for epoch in range(recipe.epochs) for v in schedule.view_numbers(epoch)]
    assert facts["views_shown"] == len(shown) // recipe.aug_repeats
    epochs = EpochPrefetcher(CacheEnsemble((store,), (1.0,)), [schedule], images)
    both = [
        *epochs.get(recipe.aug_repeats - 1),
        *epochs.get(recipe.aug_repeats),
    ]  # the next is in the making
    resident = sum(
        map(_bytes, {view.number: view for _, loaded in both for view in loaded}.values())
    )
    assert facts["resident_bytes"] == pytest.approx(resident, rel=0.05)


def _bytes(view: object) -> int:
    """Bytes of the arrays of one view in RAM."""
    (stored,), params = view.stored, view.params  # type: ignore[attr-defined]
    arrays = [getattr(stored, f.name) for f in fields(stored)] + [stored.begin_B1]
    arrays += [getattr(params, f.name) for f in fields(params)]
    return sum(array.nbytes for array in arrays)


def test_a_plan_before_there_is_a_cache(kdcache: Command) -> None:
    words = ["--plan", "--rate", 2500, "--json", "opt_kwargs.betas=[0.9, 0.99]"]
    outcome = kdcache("train", "vanillakd-a2", *words)
    assert json.loads(outcome.out).pop("recipe")["opt_kwargs"] == {"betas": [0.9, 0.99]}
    facts = json.loads(outcome.out)
    assert outcome.code == 0
    assert facts["steps_per_epoch"] == 1_281_167 // 3 * 3 // 2048
    assert facts["updates"] == 300 * facts["steps_per_epoch"]
    assert facts["times_each_view"] == 1.0
    assert facts["hours"] == round(facts["images"] / 2500 / 3600, 1)
    assert "hours" not in json.loads(kdcache("train", "vanillakd-a2", "--plan", "--json").out)


def test_a_plan_of_a_cache_that_is_there(kdcache: Command, digits_cache: Path) -> None:
    outcome = kdcache("train", "digits", "--cache", digits_cache, "--plan", "views_per_epoch=2")
    assert outcome.code == 0, outcome.err
    assert "views_in_cache" in outcome.out
    assert "times_each_view 5.0" in " ".join(outcome.out.split())


def test_hours_of_stage_1(kdcache: Command) -> None:
    facts = json.loads(kdcache("plan", "vanillakd-a2", "--rate", 3000, "--json").out)
    assert facts["hours"] == round(facts["forwards"] / 3000 / 3600, 1) == 35.6


def test_too_few_views_are_refused_with_the_way_out(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    long = ["min_views=5", "views_per_epoch=1"]
    for action in (["--plan"], ["--out", tmp_path / "run"]):
        outcome = kdcache("train", "digits", "--cache", digits_cache, *action, *long)
        assert outcome.code == 2
        assert "the cache has 4 views of a sample" in outcome.err
        assert "with num_views=5; min_views=4 trains on what there is" in outcome.err
    assert not (tmp_path / "run").exists()
    outcome = kdcache("train", "vanillakd-4800", "--plan")
    assert outcome.code == 2
    assert "num_views=1800" in outcome.err


def test_each_stage_refers_to_the_recipes_of_the_other(kdcache: Command) -> None:
    outcome = kdcache("plan", "vanillakd-vit-s")
    assert outcome.code == 2
    assert "is a recipe of stage 2" in outcome.err
    assert "kdcache plan vanillakd-a2" in outcome.err


def test_training_requires_a_cache_and_an_out_folder(kdcache: Command, tmp_path: Path) -> None:
    outcome = kdcache("train", "digits")
    assert outcome.code == 2
    assert "Pass --cache CACHE and --out RUN" in outcome.err
    own = tmp_path / "own.toml"
    own.write_text('base = "digits"\n')
    outcome = kdcache("train", own, "--plan")
    assert outcome.code == 2
    assert "does not name its cache. Pass --cache CACHE" in outcome.err
    outcome = kdcache("train", "photos", "--plan")
    assert outcome.code == 2
    assert "has no number of samples. Pass --cache CACHE" in outcome.err


def test_a_student_that_does_not_take_the_views_is_refused(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    arguments = ("--cache", digits_cache, "--out", tmp_path / "run", "student=vit_tiny_patch16_224")
    outcome = kdcache("train", "digits", *arguments)
    assert outcome.code == 2
    assert "does not take the cache's views of 32 px" in outcome.err
    assert "Traceback" not in outcome.err
