"""Embedded demonstration: real handwritten digits as shards, and a teacher for them.

scikit-learn contains 1,797 digits of 43 writers (UCI, 8×8 grey values). They are written as 32×32
RGB images into WebDataset shards in timm's layout: 1,000 with labels for the teacher, of which
100 are the transfer set of the students, and 797 for validation. The teacher is `test_resnet` of
timm, trained here in half a minute and saved in timm's format, so that it enters stage 1 like any
other.
"""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from timm.models import save_for_hf
from torch import nn
from torch.nn import functional as F

from cache_tools.data import scan
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheDamaged, KdcacheError
from cache_tools.render import decode, mixing
from cache_tools.runtime import progress, threads
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.storage import atomic, seal, system_errors
from cache_tools.views import draw

log = logging.getLogger("kdcache")

TEACHER_SIZE, TRANSFER_SIZE, SHARD_SIZE = 1000, 100, 500
AUGMENTATION = ViewSpec(
    size=32, scale=(0.5, 1.0), ratio=(0.75, 1.33), hflip=0.0, degrees=15.0, translate=0.1,
    fill=(0, 0, 0), seed=7,
)  # fmt: skip
EPOCHS, BATCH_SIZE, LEARNING_RATE = 24, 64, 3e-3
MEAN = STD = (0.5, 0.5, 0.5)
PREPROCESSING = {"mean": MEAN, "std": STD, "input_size": (3, 32, 32), "crop_pct": 1.0}


def is_whole(folder: Path, last: str, *beginnings: str) -> bool:
    """Check that files were written, the `last` one too, and that none has changed since."""
    if not (folder / last).is_file():
        return False
    try:
        seal.check_all(folder, *beginnings)
    except CacheDamaged as error:
        log.warning("%s. It is made again", str(error).partition(". ")[0])
        return False
    return True


def write_shards(folder: Path) -> None:
    """Write the digits as shards with timm's `_info.json`, the description last."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures, labels = digits.images, digits.target.astype(int)
    order = np.argsort(np.random.Philox(key=0).random_raw(len(labels)), kind="stable")
    parts = {
        "train": order[:TRANSFER_SIZE],
        "teacher": order[:TEACHER_SIZE],
        "validation": order[TEACHER_SIZE:],
    }
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, numbers in parts.items():
        begins = range(0, len(numbers), SHARD_SIZE)
        files = {f"digits-{name}-{i:04d}.tar": begin for i, begin in enumerate(begins)}
        lengths = [
            _write_shard(folder / file, numbers[begin : begin + SHARD_SIZE], pictures, labels)
            for file, begin in files.items()
        ]
        splits[name] = {
            "name": name,
            "num_samples": len(numbers),
            "filenames": list(files),
            "shard_lengths": lengths,
        }
    info = json.dumps({"name": "digits", "splits": splits}, indent=2) + "\n"
    seal.write(folder, "_info.json", info.encode())


def train_teacher(folder: Path, out: Path, at_least: float = 90.0) -> float:
    """Train the teacher on its labelled pictures and save it; its validation accuracy in %.

    Args:
        folder: Shards of 32×32 pictures of ten classes, with the splits teacher and validation.
        out: Folder of the teacher.
        at_least: Lowest accuracy of a successful training, in %.

    Raises:
        KdcacheError: The accuracy is lower.
    """
    count, why = threads.for_torch(AUGMENTATION.size)
    torch.set_num_threads(count)
    log.info("%s", why)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(
            "test_resnet", num_classes=10, pretrained_cfg_overlay=PREPROCESSING
        )
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    _, keys, images = scan.in_table_order(open_images(str(folder), "teacher"), None)
    table = scan.scan(keys, images, True, threads.cpu_count(), lambda _: None)
    renderer = ViewRenderer(images, AUGMENTATION, table)
    steps = EPOCHS * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    with progress.bar("train the teacher", EPOCHS, "epochs") as advance:
        for epoch in range(EPOCHS):
            for x, y in _epoch(renderer, table, epoch):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            advance(1)
    accuracy = _accuracy(model.eval(), open_images(str(folder), "validation"))
    if accuracy < at_least:
        raise KdcacheError(
            f"the teacher reached {accuracy:.1f} % only, expected {at_least:g} % or more. Check "
            "the installation of torch and timm."
        )
    with system_errors.writing(out), atomic.temporary(out, folder=True) as made:
        save_for_hf(model, str(made), safe_serialization=True)
        for file in sorted(made.iterdir(), reverse=True):  # config.json last
            seal.write(out.parent, f"{out.name}/{file.name}", file.read_bytes())
    return accuracy


def _write_shard(
    path: Path, numbers: NDArray[np.int64], pictures: NDArray[np.float64], labels: NDArray[np.int64]
) -> int:
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0.0, user="kdcache", group="kdcache") as shard:
        for number in numbers:
            # grey 8×8 values 0..16 as 32×32 RGB
            grey = np.rint(pictures[number] * (255.0 / 16.0)).astype(np.uint8)
            large = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_LINEAR)
            png = io.BytesIO()
            Image.fromarray(np.repeat(large[..., None], 3, axis=2)).save(png, "PNG")
            shard.write(
                {
                    "__key__": f"digit_{number:04d}",
                    "png": png.getvalue(),
                    "cls": str(labels[number]).encode(),
                }
            )
    seal.write(path.parent, path.name, buffer.getvalue())
    return len(numbers)


def _epoch(
    renderer: ViewRenderer, table: SampleTable, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Iterate over augmented batches in a fresh order: view `epoch` of every image."""
    n = len(table)
    params = draw.draw(AUGMENTATION, table.id_N, table.height_N, table.width_N, epoch)
    pixels = np.stack([renderer.render_one(i, params, i) for i in range(n)])
    order = np.argsort(np.random.Philox(key=epoch).random_raw(n), kind="stable")
    for begin in range(0, n - n % BATCH_SIZE, BATCH_SIZE):
        batch = order[begin : begin + BATCH_SIZE]
        yield _normalise(pixels[batch]), torch.from_numpy(table.label_N[batch].astype(np.int64))


def _normalise(pixels: NDArray[np.uint8]) -> torch.Tensor:
    scale, offset = mixing.normalisation(MEAN, STD)
    x = pixels.astype(np.float32) * scale + offset
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@torch.inference_mode()
def _accuracy(model: nn.Module, images: ImageDataset) -> float:
    pictures = [decode.decode(images.read(i), images.names[i]) for i in range(len(images))]
    predicted = model(_normalise(np.stack(pictures))).argmax(1).numpy()
    return 100.0 * float((predicted == images.label_N).mean())
