"""Training from several caches at once, and from their ensemble."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_tools.data.images import ImageDataset
from cache_tools.store.aligned import open_ensemble
from cache_tools.store.cache import Cache
from cache_tools.targets import dense
from tests.helpers.mixtures import WEIGHTS, mean
from tests.helpers.outcome import Outcome
from train.data import create_loader
from train.data.loader import Loader
from train.data.native_renderer import NativeRenderer
from train.data.schedule import Schedule
from train.data.stored_targets import StoredTargets

Command = Callable[..., Outcome]


FAST = ["epochs=1", "batch_size=50", "views_per_epoch=1"]  # two steps


def test_two_steps_from_two_caches(
    digits_cache: Path, sibling_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    both = ("--cache", digits_cache, "--cache", sibling_cache)
    arguments = ("train", "digits", *both, "--out", tmp_path / "run", *FAST)
    done = kdcache(*arguments, "--weight", "0.7", "--weight", "0.3")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run/config.json").read_text())
    fingerprints = [Cache.open(p).spec.fingerprint for p in (digits_cache, sibling_cache)]
    assert config["weights"] == dict(zip(fingerprints, WEIGHTS, strict=True))
    assert "is finished" in kdcache(*arguments, "--weight", "70", "--weight", "30").err
    other = kdcache(*arguments, "--weight", "0.5", "--weight", "0.5")
    assert other.code == 2
    assert f"weights.{min(fingerprints)}: " in other.err
    assert "another run" in other.err
    single = kdcache("train", "digits", *both[:2], "--out", tmp_path / "run", *FAST)
    assert single.code == 2
    measured = kdcache("eval", tmp_path / "run", "--json")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert json.loads(measured.out)["top1"] == result["top1"]
    swapped = (
        "--cache",
        sibling_cache,
        "--cache",
        digits_cache,
        "--weight",
        "0.3",
        "--weight",
        "0.7",
    )
    kdcache("train", "digits", *swapped, "--out", tmp_path / "swapped", *FAST)
    assert result["loss"] == json.loads((tmp_path / "swapped/result.json").read_text())["loss"]
    online = kdcache("train", "digits", *both, "--out", tmp_path / "o", *FAST, "mode=online")
    assert "mode=online runs the teacher of one cache" in online.err


@pytest.mark.parametrize("views_per_epoch", [1, 2])
def test_batches_hold_the_mean_of_the_caches(
    views_per_epoch: int, digits_cache: Path, sibling_cache: Path, images: ImageDataset
) -> None:
    members = open_ensemble([digits_cache, sibling_cache], WEIGHTS)
    schedule = Schedule(members.reference, views_per_epoch, 40, seed=5)
    epochs = [create_loader.native(store, images, schedule, 1).epoch(1) for store in members.caches]
    epochs.append(
        Loader(schedule, StoredTargets(members), NativeRenderer(members.reference, images)).epoch(1)
    )
    for a, b, both in zip(*epochs, strict=True):
        p = [
            dense.densify(batch.targets, store.spec.targets, 10)
            for batch, store in zip((a, b), members.caches, strict=True)
        ]
        q = dense.densify(both.targets, members.reference.spec.targets, 10)
        assert np.abs(q - mean(*p, weights=members.weights)).max() < 1e-6
        assert (a.pixels == both.pixels).all()
        assert (a.label_B == both.label_B).all()


@pytest.mark.parametrize("loss", ["kd", "bkd", "dkd", "dist"])
def test_every_loss_takes_two_caches_or_their_ensemble(
    loss: str, digits_cache: Path, sibling_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    """Near each other: a code's rounding and what a step of training makes of it."""
    keep = "tau=0.0,max=10,min=6,levels=254"
    assert (
        kdcache(
            "ensemble", digits_cache, sibling_cache, "--out", tmp_path / "e", "--keep", keep
        ).code
        == 0
    )
    found = []
    for name, caches in {"two": (digits_cache, sibling_cache), "one": (tmp_path / "e",)}.items():
        named = [word for path in caches for word in ("--cache", path)]
        arguments = ("--out", tmp_path / name, *FAST, f"loss={loss}", "temperature=1.0")
        outcome = kdcache("train", "digits", *named, *arguments)
        assert outcome.code == 0, outcome.err
        found.append(json.loads((tmp_path / name / "result.json").read_text())["loss"])
        said = "takes the tail of a mixture as flat" in outcome.err
        assert said == (loss == "dist" and name == "two")
    assert found[0] == pytest.approx(found[1], rel=0.03)


@pytest.mark.parametrize("tail", ["bucket", "zero"])
def test_other_tails_train_too(
    tail: str, digits_cache: Path, sibling_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    both = ("--cache", digits_cache, "--cache", sibling_cache)
    done = kdcache("train", "digits", *both, "--out", tmp_path / "r", *FAST, f"tail={tail}")
    assert done.code == 0, done.err
