"""Photographs as JPEGs in tar shards, and caches of them: what benchmarks of loaders read."""

from pathlib import Path

import webdataset

from benchmarks.pipelines import A2
from benchmarks.render import pictures
from pipeline import recipe as recipes
from pipeline.run import run

KINDS = {"imagenet": "500×375, quality 90", "short256": "short side 256"}
CACHES = {"rrc": [], "a2": [f"views.auto_augment={A2}", "views.cutmix=1.0"]}
"""Settings of each cache: crop and flip, and A2."""
SHARDS = 4


def samples(kind: str, count: int) -> list[tuple[str, bytes, int]]:
    """Key, JPEG and label of each sample; few pictures, again and again."""
    encoded = pictures(kind)
    return [(f"{i:05d}", encoded[i % len(encoded)], i % 10) for i in range(count)]


def write_shards(kind: str, count: int, folder: Path) -> None:
    """Write `folder/tars`."""
    tars, every = folder / "tars", samples(kind, count)
    tars.mkdir(parents=True)
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(tars / f"photos-train-{shard:04d}.tar")) as tar:
            for key, data, label in every[shard::SHARDS]:
                tar.write({"__key__": key, "jpg": data, "cls": str(label).encode()})


def write_folder(kind: str, count: int, folder: Path) -> None:
    """Write `folder/folder`, with a folder for each class."""
    for key, data, label in samples(kind, count):
        where = folder / f"folder/class{label}"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{key}.jpg").write_bytes(data)


def write_caches(folder: Path) -> None:
    """Write the caches of the shards."""
    small = ["num_views=3", "views.teacher_size=32", "targets.tau=0.0", "targets.k_max=20"]
    small += ["views.mixup=0.0", "views.scale=[0.08,1.0]", "views.pair_views=3"]
    for name, own in CACHES.items():
        recipe, out = recipes.load("photos", [*small, *own]), folder / f"{name}.zarr"
        run(recipe, str(folder / "tars"), "test_resnet", out, "cpu", random_weights=True)
