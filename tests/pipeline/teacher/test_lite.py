"""The 1000-class, 224-pixel way with a real ImageNet teacher and real photographs."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from sklearn.datasets import load_sample_images

from cache_tools.render import view
from cache_tools.spec.targets import TargetSpec
from cache_tools.views import draw
from pipeline.teacher import lite, teacher
from pipeline.teacher.forward import Forward
from tests.helpers.outcome import Outcome

TIGER_CAT, EGYPTIAN_CAT, TABBY = 282, 285, 281


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 crops of six photographs as an ImageFolder."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = [getattr(skimage.data, n)() for n in ("chelsea", "astronaut", "coffee", "rocket")]
    pictures += load_sample_images().images
    random = np.random.default_rng(0)
    for number, picture in enumerate(pictures * 12):
        height, width = picture.shape[:2]
        side = int(random.integers(200, min(height, width)))
        top, left = random.integers(0, (height - side, width - side))
        crop = np.ascontiguousarray(picture[top : top + side, left : left + side, ::-1])
        (folder / f"subject{number % 6}").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"subject{number % 6}" / f"photo_{number:03d}.jpg"), crop)
    return folder


def test_the_teacher_recognises_a_cat() -> None:
    cat = skimage.data.chelsea()
    box = draw.center(*cat.shape[:2], 0.875)
    pixels = view.crop_resize(cat, box, 224)[None]
    loaded = teacher.load(lite.NAME, 224, "fp32")
    assert loaded.spec.architecture == "tf_efficientnet_lite0"
    forward = Forward(loaded, TargetSpec(k_max=3, tau=0.0), torch.device("cpu"))
    index = forward(pixels, None, None)[0]
    assert index[0].tolist() == [TIGER_CAT, EGYPTIAN_CAT, TABBY]


def test_photographs_from_cache_to_student(
    kdcache: Callable[..., Outcome], photos: Path, tmp_path: Path
) -> None:
    cache, run = tmp_path / "photos.zarr", tmp_path / "run"
    arguments = ("--data", photos, "--teacher", lite.NAME, "--out", cache, "num_views=2")
    made = kdcache("cache", "photos", *arguments)
    assert made.code == 0, made.err
    assert json.loads(kdcache("verify", cache, "--data", photos, "--json").out)["probes"] == 8
    info = json.loads(kdcache("info", cache, "--json").out)
    assert info["spec"]["teacher"]["num_classes"] == 1000
    assert 1 < info["kept_classes_mean"] < 64
    small = ["student=test_efficientnet", "epochs=4", "lr=4e-3", "batch_size=24"]
    trained = kdcache("train", "photos", "--cache", cache, "--out", run, *small, "--json")
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["top1"] is None
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
