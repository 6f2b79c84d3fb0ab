"""Pictures of three synsets, and what images and files of shards have."""

import io
import tarfile
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from cache_tools.data.images import ImageDataset

# kit fox is ILSVRC's first class and the 279th synset; here: the last of three
SYNSETS = {1: "n02119789", 2: "n02100735", 3: "n01440764"}


def jpeg(number: int, height: int = 60, width: int = 80) -> bytes:
    key = np.random.Philox(key=number)
    coarse = key.random_raw(6 * 8 * 3).astype(np.uint8).reshape(6, 8, 3)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 95))


def tar_of(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def contents(images: ImageDataset) -> dict[str, tuple[bytes, int]]:
    """Bytes and label of each image, by its name."""
    return {name: (images.read(i), int(images.label_N[i])) for i, name in enumerate(images.names)}


def shards(folder: Path) -> dict[str, bytes]:
    """Files of shards, without their description."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith("_")}
