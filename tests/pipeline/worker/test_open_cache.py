"""`dataset.labels=auto`: class folders that are the teacher's synsets are labels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from cache_tools.data.open import open_images
from cache_tools.report import sheet_source
from cache_tools.spec import class_names
from cache_tools.store.cache import Cache
from tests.helpers.outcome import Outcome
from train.data.inputs import open_inputs

Command = Callable[..., Outcome]
CATS = {"n02123045": 281, "n02123159": 282}
SMALL = ("num_views=1", "views.size=32", "views.mixup=0.0", "views.hflip=0.0")


def pictures(folder: Path, *classes: str) -> Path:
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(4):
            picture = Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8))
            picture.save(folder / name / f"{name}_{number}.png")
    return folder


@pytest.fixture(scope="module")
def imagenet_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    save_for_hf(timm.create_model("test_resnet"), str(folder), safe_serialization=True)
    return folder


@pytest.fixture
def cache(kdcache: Command, imagenet_teacher: Path, tmp_path: Path) -> Command:
    def call(data: Path, *more: str) -> Outcome:
        words = ("--data", data, "--teacher", imagenet_teacher, "--out", tmp_path / "c.zarr")
        return kdcache(
            "cache", "photos", *words, "--force", *SMALL, *more
        )  # the teacher is not trained

    return call


def test_synsets_of_the_teacher_are_labels(
    cache: Command, kdcache: Command, tmp_path: Path
) -> None:
    data = pictures(tmp_path / "data" / "train", *CATS).parent
    pictures(data / "val", "n02123159")
    made = cache(data)
    assert made.code == 0, made.err
    assert "labels are stored: 2 of the teacher's 1000 synsets" in made.err
    store = Cache.open(tmp_path / "c.zarr")
    of_key = dict(zip(store.table.keys, store.table.label_N.tolist(), strict=True))
    assert of_key == {f"{name}_{i}": label for name, label in CATS.items() for i in range(4)}
    assert store.spec.dataset.num_classes == 1000
    assert class_names.of_cache(store.spec) == class_names.synsets(1000)
    assert "0 of 1 part to make" in cache(data).err
    assert kdcache("verify", tmp_path / "c.zarr", "--data", data).code == 0
    inputs = open_inputs(tmp_path / "c.zarr", str(data))
    assert inputs.images.label_N.tolist() == store.table.label_N.tolist()
    assert inputs.validation is not None
    assert {*inputs.validation.label_N.tolist()} == {282}
    shards = kdcache("shard", data, tmp_path / "shards")
    assert shards.code == 0, shards.err
    assert open_images(str(tmp_path / "shards"), "train").class_names == tuple(CATS)
    assert kdcache("verify", tmp_path / "c.zarr", "--data", tmp_path / "shards").code == 0


def test_people_read_names_of_synsets(cache: Command, kdcache: Command, tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "data", *CATS), tmp_path / "c.zarr"
    assert cache(data).code == 0
    top = sheet_source.of_cache(Cache.open(out), str(data)).top_classes
    assert top is not None
    names = {class_names.described(name) for name in class_names.synsets(1000)}
    assert all(name in names and "(n0" in name for name, _ in top(0, 0))
    assert "1,000: tench (n01440764), goldfish (n01443537)" in kdcache("info", out).out
    card = kdcache("card", out).out
    assert "| classes | 1,000: tench (n01440764)" in card


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (
            ("n02123045", "dogs"),
            r"1 of the 2 classes of .* among the teacher's synsets (first: 'dogs')",
        ),
        (("0", "1"), "has no class names to compare"),
    ],
)
def test_other_folders_are_no_labels_and_the_log_has_the_reason(
    cache: Command, tmp_path: Path, classes: tuple[str, ...], reason: str
) -> None:
    made = cache(pictures(tmp_path / "data", *classes))
    assert made.code == 0, made.err
    line = next(line for line in made.err.splitlines() if "labels are not stored" in line)
    assert all(part in line for part in reason.split(".*"))
    assert {*Cache.open(tmp_path / "c.zarr").table.label_N.tolist()} == {-1}


def test_an_image_without_a_class_and_a_teacher_of_other_classes(
    cache: Command, kdcache: Command, teacher: Path, tmp_path: Path
) -> None:
    data = pictures(tmp_path / "data", *CATS)
    words = ("--data", data, "--teacher", teacher, "--out", tmp_path / "d.zarr", *SMALL)
    told = kdcache("cache", "photos", *words).err
    assert "the names of the 10 classes of local:test_resnet are unknown" in told
    assert "has 2 classes, the teacher local:test_resnet predicts 10: check that it is" in told
    Image.new("RGB", (40, 40)).save(data / "beside.png")
    made = cache(data)
    assert (made.code, "not every image of" in made.err) == (0, True), made.err


def test_a_cache_begun_without_labels_goes_on_without(cache: Command, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", *CATS)
    assert cache(data, "dataset.labels=ignore").code == 0
    fingerprint = Cache.open(tmp_path / "c.zarr").spec.fingerprint
    again = cache(data, "num_views=2")
    assert again.code == 0, again.err
    assert "was begun without labels, and goes on without" in again.err
    store = Cache.open(tmp_path / "c.zarr")
    assert (store.spec.fingerprint, store.num_views) == (fingerprint, 2)
