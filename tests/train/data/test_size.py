"""Students of any size from one cache: the same views, rendered from the originals."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kdcache as api
from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.spec.views import ViewSpec
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.views import draw
from tests.helpers.outcome import Outcome
from train.data import create_loader
from train.data.schedule import Schedule

Command = Callable[..., Outcome]
FAST = ("epochs=1", "views_per_epoch=1", "batch_size=50")


@pytest.mark.parametrize("size", [16, 32, 48])
def test_pixels_are_those_of_a_cache_of_this_size(
    size: int, digits_cache: Path, images: ImageDataset
) -> None:
    """As stage 1 would render them; boxes, operations, order and partners are the cache's."""
    store = Cache.open(digits_cache)
    schedule, own = Schedule(store, 1, 50, 3, size=size), Schedule(store, 1, 50, 3)
    plan, spec = schedule.plan(1), store.spec.views.at(size)
    assert np.array_equal(plan.row_M, own.plan(1).row_M)
    assert np.array_equal(plan.partner_M, own.plan(1).partner_M)
    batch = next(iter(create_loader.native(store, images, schedule, 2).epoch(1)))
    theirs = next(iter(create_loader.native(store, images, own, 2).epoch(1)))
    renderer, [view] = ViewRenderer(images, spec, store.table), plan.views
    params = view_params.parameters(store, view, np.arange(100), spec=spec)
    drawn = view_params.parameters(store, view, np.arange(100))
    for name in ("box_B4", "filter_B", "flip_B", "codes_BL", "noise_BE2"):
        assert np.array_equal(getattr(params, name), getattr(drawn, name)), name
    assert len(np.unique(params.box_B4, axis=0)) > 90
    for i in range(50):
        row = int(plan.row_M[i])
        assert np.array_equal(batch.pixels[i], renderer.render_one(row, params, row))
    assert batch.pixels.shape == (50, size, size, 3)
    assert np.array_equal(batch.targets.probability_BK, theirs.targets.probability_BK)
    assert np.array_equal(batch.label_B, theirs.label_B)


@pytest.mark.parametrize("size", [16, 112, 160, 448])
def test_erased_boxes_scale_unless_another_try_is_the_first_that_fits(size: int) -> None:
    """Of 20,000 views: FORMAT.md, 3.3, Other sizes."""
    spec, scale = ViewSpec(size=224, re_prob=0.5, re_mode="rand"), size / 224
    ids = np.random.default_rng(0).integers(1, 2**63, 20_000).astype(np.uint64)
    side = np.full(len(ids), 300, np.int32)
    own, there = (draw.draw(of, ids, side, side, 3) for of in (spec, spec.at(size)))
    assert np.array_equal(own.noise_BE2, there.noise_BE2)
    assert np.array_equal(own.erase_BE8[..., 4:], there.erase_BE8[..., 4:])
    a, b = own.erase_BE8[:, 0, :4], there.erase_BE8[:, 0, :4]
    erased = a[:, 2] > 0
    assert np.array_equal(erased, b[:, 2] > 0)
    assert 0.48 < erased.mean() < 0.52
    elsewhere = (np.abs(b - scale * a) > 1.01 * (1 + scale)).any(1)
    assert (size < 224) <= elsewhere.sum() < (300 if size == 16 else 10)


@pytest.mark.parametrize("size", [16, 112, 448])
def test_cutmix_boxes_scale(size: int) -> None:
    spec, scale = ViewSpec(size=224, cutmix=1.0), size / 224
    ids = np.random.default_rng(0).integers(1, 2**63, 2_000).astype(np.uint64)
    (lam, a), (other, b) = (draw._pairs(of, ids, 3) for of in (spec, spec.at(size)))
    cut = (a[:, 2] > 0) & (b[:, 2] > 0)  # a box may have less than a pixel
    assert cut.mean() > 0.9
    assert np.abs(b - scale * a)[cut].max() < 2 * (1 + scale)
    assert np.abs(other - lam).max() / draw.LAMBDA_SCALE < 4 / min(size, 224)


def test_batches_of_another_size(digits_cache: Path, digits: Path) -> None:
    options = {"batch_size": 50, "device": "cpu"}
    small = api.Batches(digits_cache, digits, size=16, **options)
    pixels, targets = next(iter(small))
    assert pixels.shape == (50, 3, 16, 16)
    assert (
        targets.label.tolist()
        == next(iter(api.Batches(digits_cache, digits, **options)))[1].label.tolist()
    )
    with pytest.raises(api.UsageError, match="of other batches"):
        api.Batches(digits_cache, digits, **options).load_state_dict(small.state_dict())


def test_a_run_has_its_size_everywhere(
    digits_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    run, words = tmp_path / "run", (*FAST, "size=16", "eval_size=24")
    planned = kdcache("train", "digits", "--cache", digits_cache, *words, "--plan", "--json")
    facts = json.loads(planned.out)
    assert (facts["size"], facts["eval_size"]) == (16, 24)
    made = kdcache("train", "digits", "--cache", digits_cache, "--out", run, *words, "--json")
    assert made.code == 0, made.err
    result = json.loads(made.out)
    assert (result["size"], result["eval_size"]) == (16, 24)
    found = kdcache("eval", run, "--views", 50, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["view_size"] == 24
    assert json.loads(found.out)["cache"]["views"] == 50
    exported = kdcache("export", run, "--out", tmp_path / "export", "--json")
    assert exported.code == 0, exported.err
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]
    assert config["pretrained_cfg"]["test_input_size"] == [3, 24, 24]
    assert "at 24 px" in (tmp_path / "export/README.md").read_text()
    alone = kdcache("eval", tmp_path / "export", "--data", facts_data(run), "--views", 0, "--json")
    assert json.loads(alone.out)["view_size"] == 24
    assert json.loads(alone.out)["top1"] == json.loads(found.out)["top1"]
    other = kdcache("train", "digits", "--cache", digits_cache, "--out", run, *words, "size=48")
    assert "recipe.size: 16 against 48" in other.err


def facts_data(run: Path) -> str:
    return str(json.loads((run / "config.json").read_text())["data"])


def test_what_cannot_be_is_refused(digits_cache: Path, tmp_path: Path, kdcache: Command) -> None:
    train = ("train", "digits", "--cache", digits_cache, "--out", tmp_path / "run", *FAST)
    online = kdcache(*train, "size=16", "mode=online")
    assert online.code == 2
    assert "size=16 differs from the cache's 32 px" in online.err
    vit = ("student=test_vit", "student_kwargs.img_size=32")
    fixed = kdcache(*train, *vit, "student_kwargs.dynamic_img_size=false", "size=48")
    assert "does not take images of 48 px" in fixed.err
    assert "keys size and eval_size" in fixed.err


def test_a_sheet_of_another_size(
    digits_cache: Path, digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    asked = "views", digits_cache, "--data", digits, "--samples", 2, "--views", 2
    own = json.loads(kdcache(*asked, "--json").out)["views"]
    out = tmp_path / "s.png"
    small = json.loads(kdcache(*asked, "--size", 16, "--out", out, "--json").out)["views"]
    assert out.is_file()
    assert [(v["box"], v["flip"]) for v in small] == [(v["box"], v["flip"]) for v in own]
