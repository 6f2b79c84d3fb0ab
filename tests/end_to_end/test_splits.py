"""A cache of another split than the training split: every later command finds its images."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import kdcache as api
from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import UsageError
from cache_tools.store.cache import Cache
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
SHORT = ("epochs=1", "views_per_epoch=1", "batch_size=16")


@pytest.fixture
def halves(images: ImageDataset, tmp_path: Path) -> Path:
    """Two splits of 50 images each, whose names are the same: 0.png … 49.png."""
    for number in range(100):
        folder = tmp_path / "data" / ("train", "val")[number // 50] / str(images.label_N[number])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number % 50}.png").write_bytes(images.read(number))
    for label in range(10):
        for split in ("train", "val"):
            (tmp_path / "data" / split / str(label)).mkdir(exist_ok=True)
    return tmp_path / "data"


@pytest.fixture
def of_validation(halves: Path, teacher: Path, tmp_path: Path, kdcache: Command) -> Path:
    out = tmp_path / "cache.zarr"
    said = kdcache("cache", "digits", "num_views=2", "dataset.split=validation", "--data", halves,
                   "--teacher", teacher, "--out", out, "--device", "cpu")  # fmt: skip
    assert said.code == 0, said.err
    return out


def test_a_cache_of_the_validation_split(
    halves: Path, teacher: Path, of_validation: Path, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache("verify", of_validation, "--data", halves, "--recompute", 2, "--json",
                   "--teacher", teacher)  # fmt: skip
    assert said.code == 0, said.err
    assert "the cache is of its validation split" in said.err
    assert json.loads(said.out)["images"] == 50
    said = kdcache("verify", of_validation, "--data", halves, "--repair", "--json")
    assert (said.code, json.loads(said.out)["images"]) == (0, 50), said.err
    store, validation = Cache.open(of_validation), open_images(str(halves), "validation")
    assert sorted(store.table.bytes_N.tolist()) == sorted(validation.length_N.tolist())
    assert api.open(of_validation).images()[store.table.keys[7], 1].shape == (32, 32, 3)
    run = tmp_path / "run"
    said = kdcache("train", "digits", "--cache", of_validation, "--out", run, *SHORT)
    assert said.code == 0, said.err
    assert "the cache is of the validation split" in said.err
    said = kdcache("eval", run, "--views", 20, "--json", "--device", "cpu")
    assert json.loads(said.out)["cache"]["views"] == 20, said.err
    assert "is of the validation split, on which the run was trained" in said.err
    said = kdcache("views", of_validation, "--out", tmp_path / "x.png", "--samples", 2)
    assert said.code == 0, said.err
    said = kdcache("advise", of_validation, "--recompute", 10, "--teacher", teacher, "--json",
                   "--device", "cpu")  # fmt: skip
    assert said.code == 0, said.err


def test_another_data_set_than_any_split_is_the_mismatch_of_the_training_split(
    halves: Path, of_validation: Path, kdcache: Command
) -> None:
    for path in (halves / "val").rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    said = kdcache("verify", of_validation, "--data", halves)
    assert said.code == 1
    assert "images in" in said.err + said.out
    with pytest.raises(api.CacheMismatch, match=r"are not the teacher's .*Pass the original"):
        api.open(of_validation).images()


def test_the_split_with_most_samples_and_fewest_others_is_the_cache_s(
    halves: Path, teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    """The training split has all images of the teacher split, too, and half of the other one."""
    for number, path in enumerate(sorted((halves / "val").rglob("*.png"))):
        name = f"copy{path.name}"
        (halves / "train" / path.parent.name / name).write_bytes(path.read_bytes())
        if number % 2:
            path.unlink()
    (halves / "val").rename(halves / "teacher")
    out = tmp_path / "of-teacher.zarr"
    said = kdcache("cache", "digits", "num_views=2", "dataset.split=teacher", "--data", halves,
                   "--teacher", teacher, "--out", out, "--device", "cpu")  # fmt: skip
    assert said.code == 0, said.err
    said = kdcache("verify", out, "--data", halves, "--json")
    assert (said.code, json.loads(said.out)["images"]) == (0, 25), said.err
    store = Cache.open(out)
    for partial in (False, True):
        args = store.table, store.spec.dataset, str(halves), partial
        images, covered = match.open_aligned(*args)
        assert (covered.split, covered.missing, covered.extra) == ("teacher", 0, 0)
        assert len(images) == 25


def test_an_error_of_another_split_hides_no_mismatch(
    halves: Path, teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "cache.zarr"
    said = kdcache("cache", "digits", "num_views=2", "--data", halves, "--teacher", teacher,
                   "--out", out, "--device", "cpu")  # fmt: skip
    assert said.code == 0, said.err
    for path in (halves / "val").rglob("*.png"):
        path.unlink()
    for path in (halves / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    said = kdcache("verify", out, "--data", halves)
    assert said.code == 1
    assert "are not the teacher's" in said.err + said.out
    assert "its validation split cannot be opened: there is no image in" in said.err
    said = kdcache("train", "digits", "--cache", out, "--data", halves, "--out", tmp_path / "run",
                   *SHORT)  # fmt: skip
    assert said.code != 0
    assert "are not the teacher's" in said.err


def test_splits_of_another_data_set_are_opened_once(
    halves: Path, of_validation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in halves.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    opened = list[str]()

    def spy(source: str, split: str) -> ImageDataset:
        opened.append(split)
        return open_images(source, split)

    monkeypatch.setattr(match, "open_images", spy)
    store = Cache.open(of_validation)
    images = match.open_unordered(store.table, store.spec.dataset, str(halves))
    assert opened == ["train", "validation"]
    assert images.names == open_images(str(halves), "train").names


@pytest.mark.parametrize("split", ["val", "test", "trian"])
def test_a_split_that_there_is_not(
    split: str, digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache("cache", "digits", f"dataset.split={split}", "--data", digits, "--teacher", "x",
                   "--out", tmp_path / "c")  # fmt: skip
    assert said.code == 2, said.err
    expected = f"dataset: split: '{split}' is not one of 'train', 'validation', 'teacher'."
    assert expected in said.err
    with pytest.raises(UsageError, match=f"'{split}' is no split. .*Known are: train, validation"):
        open_images(str(digits), split)
