"""Loaders of several libraries over the same JPEGs, each as a function that runs one epoch.

All deliver batches of [224, 224, 3] uint8 views with their labels, shuffled, and drop the last
incomplete batch; ours deliver the teacher's targets and mixing partners as well. The contestants:

* "decode alone": simplejpeg decodes whole pictures in memory, in threads; no batches, nothing else.
* "native", "ffcv replay", "ffcv replay, raw": our loaders on a cache of these images; from tar
  shards, from a `.beton` with the JPEG bytes, from one with pixels.
* "FFCV", "FFCV, raw": FFCV's own Loader with its RandomResizedCropRGBImageDecoder and its flip, on
  containers of FFCV's own writer. FFCV's writer would encode the JPEGs again; it is given their
  bytes instead. FFCV decodes with the fast DCT, whose pixels differ from those of all others.
* "torchvision": ImageFolder, Pillow, transforms.v2, a DataLoader. "torchvision, tensors" decodes to
  tensors (`decode_image`) and transforms those.
* "timm": create_dataset and create_loader, up to the uint8 batch; what its prefetcher does on the
  device is not counted, and its mixing is left out.
* "WebDataset": tar shards, Pillow, transforms.v2, batches made in the workers.

* "DALI", "SPDL": `benchmarks.apart`, in an environment of their own.

Workers are processes for the three before these and threads for the others, one per core.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_tools.runtime import threads

if TYPE_CHECKING:
    from train.data.loader import Loader

BATCH, SIZE = 64, 224
A2 = "rand-m7-mstd0.5"
Epoch = Callable[[int], int]
"""Runs the epoch of this number; how many views it delivered."""
Make = Callable[[Path], Epoch]
"""Takes the folder of a data set: tars, folder, betons, caches."""


def decode_alone(folder: Path) -> Epoch:
    """simplejpeg on all pictures."""
    import simplejpeg

    from cache_tools.data.open import open_images

    images, workers = open_images(str(folder / "tars"), "train"), threads.cpu_count()
    encoded = [images.read(i) for i in range(len(images))]

    def decode(part: list[bytes]) -> int:
        for data in part:
            simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        return len(part)

    def run(_: int) -> int:
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(decode, [encoded[i::workers] for i in range(workers)]))

    return run


def native(folder: Path, cache: str = "rrc", repeats: int = 1) -> Epoch:
    """Our native loader."""
    replay = native_loader(folder, cache, repeats)
    return lambda epoch: sum(len(batch) for batch in replay.epoch(epoch))


def native_loader(
    folder: Path, cache: str = "rrc", repeats: int = 1, num_threads: int = 0
) -> "Loader":
    """Create our native loader; 0 threads: one per core."""
    from train.data import create_loader

    store, images, schedule = _inputs(folder, cache, folder / "tars", repeats)
    return create_loader.native(store, images, schedule, num_threads)


def ffcv_replay(folder: Path, cache: str = "rrc", raw: bool = False, repeats: int = 1) -> Epoch:
    """Our loader in FFCV's pipeline."""
    from train.data import create_loader

    data = folder / ("raw.beton" if raw else "jpeg.beton")
    replay = create_loader.ffcv(*_inputs(folder, cache, data, repeats))
    return lambda epoch: sum(len(batch) for batch in replay.epoch(epoch))


def _inputs(folder: Path, cache: str, data: Path, repeats: int) -> tuple[Any, Any, Any]:
    """Cache, images and schedule of our loaders."""
    from cache_tools.data import match
    from cache_tools.data.open import open_images
    from cache_tools.store.cache import Cache
    from train.data.schedule import Schedule

    store = Cache.open(folder / f"{cache}.zarr")
    images = open_images(str(data), "train")
    images = match.match(store.table, store.spec.dataset, images)
    return store, images, Schedule(store, 1, BATCH, 0, aug_repeats=repeats)


class _Pictures:
    """Images for FFCV's writer: JPEG bytes, or pixels."""

    def __init__(self, folder: Path, raw: bool) -> None:
        from cache_tools.data.open import open_images

        self._images, self._raw = open_images(str(folder / "tars"), "train"), raw

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        from cache_tools.render import decode

        data = self._images.read(number)
        picture = decode.decode(data, "k") if self._raw else data
        return picture, int(self._images.label_N[number])


def _as_they_are(field: Any, destination: Any, data: bytes, malloc: Any) -> None:
    """Replace RGBImageField.encode, which would compress pixels: store a JPEG's bytes."""
    from cache_tools.render import decode

    destination["mode"] = 0
    destination["height"], destination["width"] = decode.size(data, "k")
    destination["data_ptr"], storage = malloc(len(data))
    storage[:] = np.frombuffer(data, np.uint8)


def write_ffcv(folder: Path, raw: bool) -> Path:
    """A container by FFCV's own writer."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    out, image = folder / f"own-{'raw' if raw else 'jpeg'}.beton", RGBImageField(write_mode="raw")
    if not raw:
        image.encode = MethodType(_as_they_are, image)
    writer = DatasetWriter(str(out), {"image": image, "label": IntField()}, num_workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer.from_indexed_dataset(_Pictures(folder, raw), shuffle_indices=False)
    return out


def ffcv_own(folder: Path, raw: bool = False) -> Epoch:
    """FFCV's own loader with its random crop, which has no seed."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    image = [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip()]
    loader = Loader(
        str(write_ffcv(folder, raw)),
        batch_size=BATCH,
        num_workers=threads.cpu_count(),
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={
            "image": [*image, ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    return lambda _: _count(loader)


def torchvision(folder: Path, tensors: bool = False, auto_augment: bool = False) -> Epoch:
    """ImageFolder with transforms.v2."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image

    load = {"loader": partial(decode_image, mode=ImageReadMode.RGB)} if tensors else {}
    data = ImageFolder(str(folder / "folder"), _v2(auto_augment), **load)
    return _of_workers(DataLoader(data, BATCH, shuffle=True, drop_last=True, **_workers()))


def _v2(auto_augment: bool = False) -> Any:
    """torchvision's crop, flip and, of the strength of timm's m7, RandAugment."""
    import torch
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    if auto_augment:
        steps.append(v2.RandAugment(2, magnitude=21, num_magnitude_bins=31))
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.uint8)])


def timm(folder: Path, auto_augment: str | None = None) -> Epoch:
    """timm's data set, transforms and loader; the batch as its prefetcher gets it."""
    import torch
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", str(folder / "folder")),
        input_size=SIZE,
        batch_size=BATCH,
        is_training=True,
        color_jitter=None,
        auto_augment=auto_augment,
        interpolation="random",
        device=torch.device("cpu"),
        num_workers=threads.cpu_count(),
        persistent_workers=True,
    )
    return _of_workers(loader.loader)


def webdataset(folder: Path) -> Epoch:
    """WebDataset with Pillow and transforms.v2."""
    import webdataset as wds

    shards = sorted(map(str, (folder / "tars").glob("*.tar")))
    data = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(256).decode("pil")
    data = data.to_tuple("jpg", "cls").map_tuple(_v2(), int).batched(BATCH, partial=False)
    return _of_workers(wds.WebLoader(data, batch_size=None, **_workers()))


def _workers() -> dict[str, Any]:
    return {"num_workers": threads.cpu_count(), "persistent_workers": True}


def _of_workers(loader: Any) -> Epoch:
    return lambda _: _count(loader)


def _count(batches: Any) -> int:
    """Count the views of all batches."""
    return sum(len(pixels) for pixels, _ in batches)
