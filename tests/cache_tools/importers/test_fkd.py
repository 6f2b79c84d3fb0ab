"""Boxes, flips and probabilities of FKD become a cache; files of other pictures are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import Sizes
from tests.helpers.imported_caches import opened, stored_probabilities, trains
from tests.helpers.outcome import Outcome
from train.data import create_loader
from train.data.schedule import Schedule

Command = Callable[..., Outcome]


@pytest.mark.parametrize("dtype", ["f4", pytest.param("f2", marks=pytest.mark.slow)])
def test_fkd_boxes_flips_and_words_come_along(
    dtype: str, folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, kdcache: Command
) -> None:
    boxes = writers.fkd(tmp_path / "fkd", sizes, dtype=dtype)
    done = import_("fkd", tmp_path / "fkd", tmp_path / "c.zarr", "--size", 32, "--json")
    facts = json.loads(done.out)
    assert (done.code, facts["views"], facts["samples"], facts["format"]) == (0, 3, 12, "1.2")
    assert facts["spec"]["imported"]["origin"] == "FKD"
    store, _ = opened(tmp_path / "c.zarr", folder)
    stored = torch.load(next((tmp_path / "fkd").rglob("n01_2.tar")), weights_only=False)
    for view in range(3):
        row = store.table.keys.index("n01_2")
        params = view_params.parameters(store, view, np.array([row]))
        assert params.box_B4[0].tolist() == boxes["n01/n01_2"][view].tolist()
        assert bool(params.flip_B[0]) == bool(stored[1][view])
        kept, tail = stored_probabilities(store, "n01_2", view)
        expected = dict(zip(stored[2][view][0].astype(int), stored[2][view][1], strict=True))
        assert kept.keys() == expected.keys()
        assert all(abs(kept[c] - p) < 0.03 for c, p in expected.items())
        assert abs(tail - (1 - sum(map(float, expected.values())))) < 0.01
    assert kdcache("verify", tmp_path / "c.zarr", "--data", folder / "photos").code == 0
    said = kdcache("info", tmp_path / "c.zarr").out
    assert "FKD" in said
    assert "bilinear" in said
    if dtype == "f4":
        assert trains(tmp_path / "c.zarr", folder, tmp_path, kdcache).code == 0


def test_fkd_views_are_those_of_its_student(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    """Replay shows what FKD's own loader does: Pillow's crop and bilinear resize, then the flip."""
    writers.fkd(tmp_path / "fkd", sizes)
    assert import_("fkd", tmp_path / "fkd", tmp_path / "c.zarr", "--size", 32).code == 0
    store, images = opened(tmp_path / "c.zarr", folder)
    schedule = Schedule(store, 1, 12, seed=0)
    plan = schedule.plan(1)
    batch = next(iter(create_loader.native(store, images, schedule, 1).epoch(1)))
    for row, pixels in zip(plan.row_M, batch.pixels, strict=True):
        name = images.names[row]
        coords, flip, _ = torch.load(tmp_path / f"fkd/train/{name}.tar", weights_only=False)
        picture = Image.open(folder / f"photos/{name}.JPEG").convert("RGB")
        top, left, height, width = coords[1] * np.tile(picture.size[::-1], 2)
        crop = picture.crop((left, top, left + width, top + height))
        theirs = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(pixels, theirs[:, ::-1] if flip[1] else theirs)


@pytest.mark.parametrize("kind", ["legacy", "old", "smoothing"])
def test_older_files_of_fkd(kind: str, sizes: Sizes, tmp_path: Path, import_: Command) -> None:
    writers.fkd(tmp_path / "fkd", sizes, kind=kind, kept=1 if kind == "smoothing" else 2)
    done = import_("fkd", tmp_path / "fkd", tmp_path / "c.zarr", "--size", 32)
    assert done.code == 0, done.err


def rewrite(path: Path, change: Callable[[list], object]) -> None:
    value = torch.load(path, weights_only=False)
    change(value)
    torch.save(value, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.__setitem__(0, v[0] * 0.37), "another picture or another size"),
        (lambda v: v[0].__setitem__((0, 2), 1.5), "another picture or another size"),
        (lambda v: v[0].__setitem__((0, 2), np.nan), "another picture or another size"),
        (lambda v: v[2].__setitem__((0, 0, 0), 3), "outside of 0..2"),
        (lambda v: v[2].__setitem__((0, 0, 0), 0.5), "not whole"),
        (lambda v: v[2].__setitem__((0, 0), 1.0), "names a class twice"),
        (lambda v: v[2].__setitem__((0, 1), 0.9), "more than 1"),
        (lambda v: v[2].__setitem__((0, 1, 0), np.nan), "has an invalid probability"),
        (lambda v: v.pop(), "no list of coordinates"),
        (lambda v: v.__setitem__(1, [np.zeros(2)] * 3), "neither true nor false"),
        (lambda v: v.__setitem__(2, v[2][:2]), "FKD's are floats"),
        (lambda v: v.__setitem__(slice(None), [a[:2] for a in v]), "not of one run"),
    ],
)
def test_files_that_are_not_of_these_pictures_are_refused(
    change: Callable[[list], object], message: str, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.fkd(tmp_path / "fkd", sizes)
    rewrite(tmp_path / "fkd/train/n02/n02_1.tar", change)
    done = import_("fkd", tmp_path / "fkd", tmp_path / "c.zarr", "--size", 32)
    assert done.code == 1
    assert message in " ".join(done.err.split())
    assert "n02_1.tar" in done.err.replace("\n", "")


def test_a_folder_of_other_images_is_refused(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.fkd(tmp_path / "hard", sizes, kind="hard")
    assert "hard labels" in import_("fkd", tmp_path / "hard", tmp_path / "c").err
    writers.fkd(tmp_path / "fkd", sizes)
    extra = tmp_path / "fkd/train/n02/n02_9.tar"
    shutil.copy(tmp_path / "fkd/train/n02/n02_1.tar", extra)
    assert "n02_9.tar is of none" in " ".join(
        import_("fkd", tmp_path / "fkd", tmp_path / "c").err.split()
    )
    extra.rename(extra.with_name("x"))
    (tmp_path / "fkd/train/n02/n02_1.tar").unlink()
    assert "no soft label" in import_("fkd", tmp_path / "fkd", tmp_path / "c").err
    assert import_("fkd", folder / "photos", tmp_path / "c").code == 1
    assert import_("fkd", tmp_path / "nothing", tmp_path / "c").code == 2
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_caches_with_the_same_boxes_are_mixed_and_others_not(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, kdcache: Command
) -> None:
    """FKD's --reference_path gives several teachers the same boxes."""
    for name in ("a", "b", "c"):
        writers.fkd(tmp_path / name, sizes)
    for path in (tmp_path / "b").rglob("*.tar"):
        rewrite(path, lambda v: v.__setitem__(2, np.stack([v[2][:, 0], v[2][:, 1] / 2], axis=1)))
    for path in (tmp_path / "c").rglob("*.tar"):
        rewrite(path, lambda v: v.__setitem__(1, ~v[1]))
    for name in ("a", "b", "c"):
        source = tmp_path / name, tmp_path / f"{name}.zarr"
        assert import_("fkd", *source, "--size", 32, "--teacher", name).code == 0
    a, b, c = (tmp_path / f"{name}.zarr" for name in "abc")
    done = kdcache("ensemble", a, b, "--out", tmp_path / "ab.zarr")
    assert done.code == 0, done.err
    store = Cache.open(tmp_path / "ab.zarr")
    for view in range(3):
        assert store.read_params(Part(view, 0)).equals(Cache.open(a).read_params(Part(view, 0)))
    assert kdcache("verify", tmp_path / "ab.zarr", "--data", folder / "photos").code == 0
    said = kdcache("ensemble", a, c, "--out", tmp_path / "ac.zarr")
    assert said.code == 1
    train = ("train", "digits", "--cache", a, "--cache", c, "--data", folder / "photos")
    few = ("epochs=1", "views_per_epoch=1", "batch_size=12", "temperature=1.0")
    said = kdcache(*train, "--out", tmp_path / "run", *few)
    assert said.code == 1
    assert "has different boxes" in " ".join(said.err.split())
