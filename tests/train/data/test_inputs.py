"""Labels of a validation split mean the classes of the training split, by the folders' names."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models import save_for_hf

from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import CacheMismatch
from tests.helpers.outcome import Outcome
from train.data.inputs import align_labels

Command = Callable[..., Outcome]


def folder(root: Path, split: str, *names: str) -> ImageDataset:
    for name in names:
        (root / split / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / split / name / f"{name}.png")
    return open_images(str(root), "train" if split == "train" else "validation")


def test_a_split_without_pictures_of_a_class_keeps_its_numbers(tmp_path: Path) -> None:
    train = folder(tmp_path, "train", "ant", "bee", "cow")
    validation = folder(tmp_path, "val", "ant", "cow")
    assert validation.label_N.tolist() == [0, 1]
    alike = align_labels(validation, train.class_names)
    assert alike.label_N.tolist() == [0, 2]
    assert alike.class_names == ("ant", "bee", "cow")
    assert alike.read(1) == validation.read(1)


def test_a_class_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    train = folder(tmp_path, "train", "ant", "cow")
    with pytest.raises(CacheMismatch, match="class folder 'bee'"):
        align_labels(folder(tmp_path, "val", "ant", "bee"), train.class_names)


def test_train_and_eval_number_the_validation_split_alike(tmp_path: Path, kdcache: Command) -> None:
    """Three classes to learn, pictures of the first and the last to measure on."""
    data, rng = tmp_path / "data", np.random.default_rng(0)
    for split, names in (("train", "abc"), ("val", "ac")):
        for name in names:
            (data / split / name).mkdir(parents=True)
            for i in range(8):
                picture = rng.integers(0, 40, (32, 32, 3), dtype=np.uint8)
                picture[..., "abc".index(name)] += 200  # a is red, b is green, c is blue
                Image.fromarray(picture).save(data / split / name / f"{name}-{split}-{i}.png")
    teacher = tmp_path / "teacher"
    save_for_hf(
        timm.create_model("test_resnet", num_classes=3), str(teacher), safe_serialization=True
    )
    cache, run_ = tmp_path / "cache.zarr", tmp_path / "run"
    keys = ["num_views=2", "targets.k_min=1", "targets.k_max=3", "dataset.num_classes=3"]
    made = kdcache(
        "cache",
        "digits",
        *keys,
        "--data",
        data,
        "--teacher",
        teacher,
        "--out",
        cache,
    )
    assert made.code == 0
    keys = ["mode=labels", "epochs=12", "views_per_epoch=2", "batch_size=24", "model_ema_decay=0"]
    assert kdcache("train", "digits", "--cache", cache, "--out", run_, *keys).code == 0
    assert json.loads((run_ / "result.json").read_text())["top1"] > 90
    row = json.loads(kdcache("eval", run_, "--json").out)["data"][0]["networks"]["student"]
    assert (row["images"], row["top1"] > 90) == (16, True)
