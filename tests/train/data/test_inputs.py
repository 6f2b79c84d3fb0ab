"""Labels of a validation split mean the classes of the training split, by the folders' names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
from PIL import Image
from timm.models import save_for_hf

from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


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


def test_a_damaged_validation_split_is_an_error(
    digits: Path, digits_cache: Path, kdcache: Command, tmp_path: Path
) -> None:
    """A run that is not measured would be found out at its end."""
    data = shutil.copytree(digits, tmp_path / "data")
    shard = sorted(data.glob("*validation*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:2000])
    said = kdcache("train", "digits", "--cache", digits_cache, "--data", data,
                   "--out", tmp_path / "run", "epochs=1", "views_per_epoch=1")  # fmt: skip
    assert (said.code, shard.name in said.err) == (1, True), said.err
    assert not (tmp_path / "run" / "result.json").exists()
