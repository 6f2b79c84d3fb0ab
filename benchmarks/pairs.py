"""Pairs of student and teacher on photographs, ready to be timed: images, cache, recipe."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import timm
import torch
import webdataset
from PIL import Image
from timm.models import save_for_hf

from benchmarks.render import pictures
from cache_tools.render import decode
from cache_tools.spec.teacher import Precision
from pipeline import recipe as recipes
from pipeline.run import run as make
from pipeline.teacher.online import TeacherFn, online
from train import recipe as training
from train.data.inputs import Inputs, open_inputs
from train.recipe import TrainRecipe


@dataclass(frozen=True)
class Pair:
    """A student, its teacher and the settings of their measurement."""

    student: str
    """timm name."""
    teacher: str
    """lite0-imagenet with its weights; else a timm name, weights random."""
    size: int
    """Side of the views in pixels."""
    batch: int
    """Views per step."""
    steps: int
    """Steps that count in a turn."""
    warmup: int = 3
    """Steps before them."""
    short_side: int = 256
    """Shorter side of the pictures in pixels."""
    precision: Precision = "fp32"
    """Autocast type of student and teacher."""
    views: tuple[str, ...] = ()
    """What the recipe of the cache is told of the augmentation, as key=value."""

    @property
    def name(self) -> str:
        """Student, teacher and view size in words."""
        return f"{self.student} from {self.teacher}, {self.size} px, batch {self.batch}"


CPU = (
    Pair("test_efficientnet", "test_resnet", 32, batch=64, steps=120, warmup=8, short_side=48),
    Pair("resnet18", "lite0-imagenet", 128, batch=16, steps=6, warmup=2),
    Pair("vit_tiny_patch16_224", "vit_small_patch16_224", 224, batch=4, steps=6, warmup=2),
)
GPU = tuple(
    Pair(student, "beitv2_base_patch16_224", 224, 256, steps=40, warmup=10, precision="bf16")
    for student in ("resnet50", "vit_small_patch16_224")
)


@dataclass(frozen=True)
class Bench:
    """A pair, ready to be measured."""

    pair: Pair
    inputs: Inputs
    recipe: TrainRecipe
    ask: TeacherFn
    device: torch.device


def prepare(
    pair: Pair, device: torch.device, work: Path, encoded: list[bytes] | None = None
) -> Bench:
    """Write the pictures, make the cache, open everything; arguments as of `write`."""
    count = pair.batch * (pair.warmup + pair.steps)
    write(pair, count, work / "data", encoded)
    teacher = pair.teacher if pair.teacher == "lite0-imagenet" else _random(pair, work / "teacher")
    recipe = recipes.load("photos", _changes(pair, count))
    data = str(work / "data")  # noise: teachers of any kind agree with its labels by chance
    store = make(recipe, data, teacher, work / "cache.zarr", device.type, force=True)
    torch.set_num_threads(1)
    arguments = {"student": pair.student, "batch_size": pair.batch, "precision": pair.precision}
    trained = replace(
        training.load("photos", [f"{key}={value}" for key, value in arguments.items()]),
        epochs=1, views_per_epoch=1, aug_repeats=1, grad_accum_steps=1,
        task_loss_weight=0.0, model_ema_decay=0.0,
        warmup_epochs=0, compile=False,
    )  # fmt: skip
    inputs = replace(open_inputs(store.path, None), validation=None)
    return Bench(pair, inputs, trained, online(inputs.store, teacher, device), device)


def _changes(pair: Pair, count: int) -> list[str]:
    return [
        "num_views=1",
        f"views.size={pair.size}",
        f"precision={pair.precision}",
        f"dataset.num_samples={count}",
        "dataset.labels=use",
        "dataset.num_classes=1000",
        *pair.views,
    ]


def write(pair: Pair, count: int, folder: Path, encoded: list[bytes] | None = None) -> None:
    """Write `count` labelled JPEGs into a shard: those of `encoded` in turn.

    None: 96 generated ones, whose shorter side is the pair's.
    """
    if encoded is None:
        encoded = pictures("short256")
        if pair.short_side != 256:
            encoded = [_shrunk(data, pair.short_side) for data in encoded]
    folder.mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "photos-train-0000.tar")) as shard:
        for i in range(count):
            label = str(i * 997 % 1000).encode()
            shard.write({"__key__": f"{i:05d}", "jpg": encoded[i % len(encoded)], "cls": label})


def _shrunk(data: bytes, short_side: int) -> bytes:
    picture = decode.decode(data, "photo")
    scale, buffer = short_side / min(picture.shape[:2]), io.BytesIO()
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    Image.fromarray(small).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _random(pair: Pair, folder: Path) -> str:
    """A folder with the teacher's architecture and random weights."""
    torch.manual_seed(0)
    save_for_hf(
        timm.create_model(pair.teacher, num_classes=1000), str(folder), safe_serialization=True
    )
    return str(folder)
