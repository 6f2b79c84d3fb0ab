"""Foreign copies of a data set: other shards, order and names, and copies that lack images."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import CacheMismatch
from cache_tools.spec.canonical import sha256
from cache_tools.store.cache import Cache
from cache_tools.views import draw
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers.folders import write
from tests.helpers.outcome import Outcome
from train.data.schedule import Schedule

Command = Callable[..., Outcome]
SHORT = ("epochs=1", "views_per_epoch=2", "batch_size=16")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, digits: Path, teacher: Path) -> Path:
    """A cache without mixing."""
    out = tmp_path_factory.mktemp("plain") / "cache.zarr"
    run(recipes.load("digits", ["num_views=2"]), str(digits), str(teacher), out, "cpu")
    return out


def test_renamed_images_are_found_by_their_bytes(
    images: ImageDataset, digits_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    source = write(images, tmp_path / "copy", [*range(100)], {3, 50, 51})
    said = kdcache("verify", digits_cache, "--data", source)
    assert said.code == 0, said.err
    assert "100 of 100 samples are there, 3 of them under other names" in said.out
    store = Cache.open(digits_cache)
    joined, covered = match.align(store.table, store.spec.dataset, open_images(source, "train"))
    assert covered.facts == {"samples": 100, "by_key": 97, "by_digest": 3, "missing": 0, "extra": 0}
    assert [joined.read(i) for i in range(100)] == [images.read(i) for i in range(100)]


def test_names_of_two_images_are_distinguished(
    images: ImageDataset, digits_cache: Path, tmp_path: Path
) -> None:
    """A copy that numbers the images of each class: stems repeat, and one of them is a key."""
    for number in range(100):
        folder = tmp_path / "copy" / f"{images.label_N[number]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{len(list(folder.iterdir()))}.png").write_bytes(images.read(number))
    store = Cache.open(digits_cache)
    covered = match.find(
        store.table, store.spec.dataset, open_images(str(tmp_path / "copy"), "train")
    )
    assert covered.facts["by_digest"] == 100


def test_a_cache_with_the_old_order_of_classes_is_refused(
    images: ImageDataset, digits_cache: Path, tmp_path: Path
) -> None:
    """Names sorted as text, capitals first: their numbers would mean other classes."""
    for number in range(100):
        path = tmp_path / "copy" / ("a", "B")[number % 2] / f"{images.names[number]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.read(number))
    copy = open_images(str(tmp_path / "copy"), "train")
    assert copy.class_names == ("a", "B")
    store = Cache.open(digits_cache)
    old = replace(store.spec.dataset, classes_sha256=sha256(b"B\na"))
    with pytest.raises(CacheMismatch, match="did not number classes as timm does"):
        match.match(store.table, old, copy)


def test_digests_are_kept_until_a_file_changes(
    images: ImageDataset, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    source = write(images, tmp_path / "copy", [*range(100)], {3, 4})
    store, reads = Cache.open(digits_cache), []
    read = ImageDataset.read

    def counted(data: ImageDataset, number: int) -> bytes:
        reads.append(number)
        return read(data, number)

    monkeypatch.setattr(ImageDataset, "read", counted)
    found = []
    for _ in range(2):
        opened = open_images(source, "train")
        found.append(match.find(store.table, store.spec.dataset, opened).by_digest)
    first = len(reads)
    changed = next((tmp_path / "copy").rglob("copy-3.png"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    opened = open_images(source, "train")
    found.append(match.find(store.table, store.spec.dataset, opened).by_digest)
    assert found == [2, 2, 1]
    assert len(reads) > first > 0


def test_another_data_set_is_refused_after_a_few_reads(
    images: ImageDataset, digits_cache: Path, tmp_path: Path
) -> None:
    store = Cache.open(digits_cache)
    source = write(images, tmp_path / "copy", [*range(100)], {*range(100)})
    for path in (tmp_path / "copy").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    opened = open_images(source, "train")
    with pytest.raises(CacheMismatch, match=r"has 100, of which 0 are shared") as refusal:
        match.align(store.table, store.spec.dataset, opened, partial=True)
    assert "allow-partial" not in str(refusal.value)


def test_a_part_of_the_data_is_trained_on_when_allowed(
    images: ImageDataset, plain: Path, tmp_path: Path, kdcache: Command
) -> None:
    source = write(images, tmp_path / "copy", [*range(0, 100, 2)])
    shutil.copy(next((tmp_path / "copy").rglob("*.png")), tmp_path / "copy/0/stranger.png")
    where = ("--cache", plain, "--data", source, "--out", tmp_path / "run")
    said = kdcache("train", "digits", *where, *SHORT)
    assert said.code == 1
    assert "of which 50 are shared (first missing key" in said.err
    assert "--allow-partial" in said.err
    said = kdcache("verify", plain, "--data", source, "--json")
    assert json.loads(said.out)["verdict"] == "mismatch"
    said = kdcache("verify", plain, "--data", source, "--allow-partial")
    assert (said.code, "50 of 100 samples are there" in said.out) == (0, True)
    said = kdcache("train", "digits", *where, *SHORT, "--allow-partial", "--json")
    assert said.code == 0, said.err
    assert "50 of 100 samples are there" in said.err
    counts = {"samples": 100, "by_key": 50, "by_digest": 0, "missing": 50, "extra": 1}
    assert json.loads(said.out)["coverage"] == counts
    assert json.loads((tmp_path / "run/config.json").read_text())["samples"] == 50


def test_views_of_missing_partners_are_left_out(images: ImageDataset, digits_cache: Path) -> None:
    store = Cache.open(digits_cache)
    present = np.ones(100, dtype=bool)
    present[::3] = False
    schedule = Schedule(store, 2, 10, seed=0, present_N=present)
    for epoch in range(2):
        plan = schedule.plan(epoch)
        assert len(plan.row_M) == schedule.num_views >= schedule.steps * 10
        assert present[plan.row_M].all()
        assert present[plan.partner_M].all()
        pairs = set(zip(plan.row_M.tolist(), plan.slot_M.tolist(), strict=True))
        for row, slot, partner in zip(plan.row_M, plan.slot_M, plan.partner_M, strict=True):
            mixed = draw.mix(store.spec.views, store.table.id_N, plan.views[slot])
            assert mixed.partner_B[row] == partner
        assert len(pairs) == len(plan.row_M)
    every = Schedule(store, 2, 10, seed=0)
    assert schedule.num_views < 2 * present.sum() < every.num_views
    assert np.array_equal(
        every.plan(1).row_M, Schedule(store, 2, 10, 0, present_N=np.ones(100, bool)).plan(1).row_M
    )
    with pytest.raises(ValueError, match=r"aug_repeats=1"):
        Schedule(store, 1, 10, seed=0, aug_repeats=2, present_N=present)


def test_pairs_of_a_mixing_cache_with_holes_train(
    images: ImageDataset, digits_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    source = write(images, tmp_path / "copy", [*range(80)])
    where = (
        "--cache",
        digits_cache,
        "--data",
        source,
        "--out",
        tmp_path / "run",
        "--allow-partial",
    )
    said = kdcache("train", "digits", *where, *SHORT, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["coverage"]["missing"] == 20
