"""A laboratory of tiny things: thirty pictures, a teacher, caches, runs, shards and betons.

Everything is written by kdcache's own commands, a fraction of a second each. The teachers have
random weights: what is compared is bytes.
"""

import gzip
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faults import process
from benchmarks.faults.process import Moment

CLASSES, TRAIN, VALIDATION = 10, 3, 1
"""Classes, and pictures of each."""
VIEWS = 4
RECIPE = f"""num_views = {VIEWS}
views_per_decode = 2
batch_size = 16
[dataset]
num_samples = {CLASSES * TRAIN}
num_classes = {CLASSES}
[views]
size = 32
mixup = 0.5
auto_augment = "rand-m7-mstd0.5"
[targets]
k_max = 6
k_min = 2
tau = 0.01
temperatures = [1.0, 4.0]
"""
OPEN = RECIPE[: RECIPE.index("[dataset]")] + RECIPE[RECIPE.index("[views]") :]
"""The recipe without facts of the data set."""
STUDENT = """student = "test_vit"
epochs = 2
views_per_epoch = 2
batch_size = 16
opt = "adamw"
lr = 1e-3
model_ema_decay = 0.9
crop_pct = 1.0
checkpoint_minutes = 1e-6
threads = 1
"""
GRID = """base = "{folder}/student.toml"
epochs = 1
model_ema_decay = 0.0
[grid]
temperature = [1.0, 4.0]
"""


def pictures(folder: Path) -> None:
    """Write an ImageFolder of smooth pictures, JPEG and PNG, of 36 to 48 pixels."""
    rng = np.random.default_rng(7)
    for split, count in (("train", TRAIN), ("validation", VALIDATION)):
        for label in range(CLASSES):
            for number in range(count):
                width, height = (int(n) for n in rng.integers(36, 49, 2))
                coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
                name = f"{split}_{label}_{number}.{'png' if number % 2 else 'jpg'}"
                path = folder / split / f"n{label:02d}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)


def network(folder: Path, seed: int) -> None:
    """Save a network with random weights as timm saves networks."""
    import timm
    import torch
    from timm.models import save_for_hf

    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    with torch.no_grad():
        model.get_classifier().weight.mul_(8.0)
    save_for_hf(model, str(folder), safe_serialization=True)


class Lab:
    """The folder of all inputs."""

    def __init__(self, folder: Path) -> None:
        """Make everything in `folder`."""
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "open.toml").write_text(OPEN)
        (folder / "student.toml").write_text(STUDENT)
        (folder / "grid.toml").write_text(GRID.format(folder=folder))
        pictures(folder / "pictures")
        for number in (1, 2):
            in_child(lambda number=number: network(folder / f"teacher{number}", number))
        logits = np.random.default_rng(3).normal(0, 3, (CLASSES * TRAIN, CLASSES))
        np.save(folder / "logits.npy", logits.astype("f4"))
        cache = ["cache", "recipe.toml", "--data", "shards", "--device", "cpu"]
        data = ["--cache", "c.zarr", "--data", "shards"]
        self._run("shard", "pictures", "shards", "--shard-size", "16", "--beton")
        self._run(*cache, "--teacher", "teacher1", "--out", "c.zarr")
        self._run(*cache, "--teacher", "teacher2", "--out", "d.zarr")
        self._run("select", "c.zarr", "first.zarr", "--views", "0:2")
        self._run("select", "c.zarr", "last.zarr", "--views", "2:4")
        self._run("beton", "pictures", "betons/train.beton")
        self._run("train", "student.toml", *data, "--out", "run")
        (folder / "begun").mkdir()
        begun = ["train", "student.toml", *data, "--out", "begun/run"]
        for change in range(30, 200, 10):
            process.run(begun, folder, Moment(change=change))
            if (folder / "begun/run/checkpoint-previous.pt").exists():
                break
        self._run("sweep", "grid.toml", *data, "--out", "sweep")
        hurt = folder / "hurt/c.zarr"
        shutil.copytree(folder / "c.zarr", hurt)
        for name in ("samples/id/c/0", "samples/label/zarr.json", "targets/code/c/1/0"):
            (hurt / name).write_bytes(b"damaged")
        for kind in ("plain", "packed"):
            (folder / kind).mkdir()
        for path in (folder / "shards").glob("*.tar"):
            shutil.copy(path, folder / "plain" / path.name)
            with gzip.open(folder / "packed" / f"{path.name}.gz", "wb") as file:
                file.write(path.read_bytes())
        for name in ("stdout", "stderr"):
            (folder / name).unlink()

    def fill(self, url: str) -> None:
        """Fill the data folder from `url`, which serves this folder, and with indices of tars."""
        shutil.rmtree(self.folder / "kept", ignore_errors=True)
        for data in (f"{url}/shards", "plain", "packed"):
            self._run("verify", f"{url}/c.zarr", "--data", data)

    def _run(self, *arguments: str) -> None:
        """Run a command that must succeed."""
        ending = process.run(arguments, self.folder)
        if ending.code:
            raise RuntimeError(f"kdcache {' '.join(arguments)}: {ending.text}")


def in_child(body: Callable[[], object]) -> None:
    """Call `body` in a forked process, where torch and zarr may start threads."""
    pid = os.fork()
    if not pid:
        try:
            body()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the laboratory cannot be set up")
