"""Loaders of libraries that have an environment of their own: DALI's and SPDL's.

    PYTHON -m benchmarks.apart FD

`benchmarks.loader --dali PYTHON` starts it, as `seats.Seat.in_interpreter`; FD is the number of its
pipe. Besides the libraries that environment needs numpy and psutil. Batches are those of
`benchmarks.pipelines`, threads those of `cache_tools.runtime.threads`, both from this working tree:
nothing of it is installed there. The contestants:

* "DALI": a pipeline on the CPU, files, `decoders.image_random_crop` (which decodes a region),
  resize, flip. "DALI, whole pictures" decodes with `decoders.image` and crops in
  `random_resized_crop`.
* "SPDL": its pipeline of threads, a batch each, and its decoder, FFmpeg's, which crops, resizes and
  flips in FFmpeg's filters. It decodes whole pictures. FFmpeg's shared libraries must be there.
"""

import importlib
import math
import random
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import seats
from benchmarks.pipelines import BATCH, SIZE, Epoch, Make
from cache_tools.runtime import threads

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Area of a crop as a share of its picture's, and its width over its height."""
IN_FLIGHT = 2
"""Batches in the making in DALI: its own default."""


def _import_dali() -> None:
    importlib.import_module("nvidia.dali.fn")


def _import_spdl() -> None:
    importlib.import_module("spdl.io").cpu_storage(1, pin_memory=False)  # loads FFmpeg


LIBRARIES = {"DALI": ("nvidia-dali-cuda120", _import_dali), "SPDL": ("spdl-io", _import_spdl)}
"""Distribution of each library, and a function that fails where it cannot be used."""


def dali(folder: Path, whole: bool = False) -> Epoch:
    """DALI on the CPU, by regions or by whole pictures."""
    from nvidia.dali import fn, pipeline_def, types

    def graph() -> Any:
        encoded, labels = fn.readers.file(
            file_root=str(folder / "folder"), random_shuffle=True, name="files"
        )
        drawn = {"random_area": list(AREA), "random_aspect_ratio": list(RATIO)}
        if whole:
            decoded = fn.decoders.image(encoded, output_type=types.RGB)
            views = fn.random_resized_crop(decoded, size=[SIZE, SIZE], **drawn)
        else:
            region = fn.decoders.image_random_crop(encoded, output_type=types.RGB, **drawn)
            views = fn.resize(region, size=[SIZE, SIZE])
        return fn.flip(views, horizontal=fn.random.coin_flip()), labels

    options = {"batch_size": BATCH, "num_threads": threads.cpu_count(), "device_id": None}
    pipeline = pipeline_def(graph)(**options, prefetch_queue_depth=IN_FLIGHT)
    pipeline.schedule_run()  # starts IN_FLIGHT batches, but every later call one
    for _ in range(IN_FLIGHT):
        pipeline.share_outputs()
        pipeline.release_outputs()
    batches = pipeline.epoch_size("files") // BATCH
    return lambda _: _count(_outputs(pipeline, batches))


def _outputs(pipeline: Any, batches: int) -> Iterator[np.ndarray]:
    """Yield the pixels of so many batches, and have none in the making afterwards."""
    for started in range(batches + IN_FLIGHT):
        if started >= IN_FLIGHT:
            pixels, _ = pipeline.share_outputs()
            yield np.asarray(pixels.as_tensor())
            pipeline.release_outputs()
        if started < batches:
            pipeline.schedule_run()


def spdl(folder: Path) -> Epoch:
    """SPDL's pipeline and decoder."""
    from spdl.pipeline import PipelineBuilder

    paths = sorted((folder / "folder").glob("*/*.jpg"))
    random_ = random.Random(0)
    batch = partial(_batch, random_=random_)

    def run(_: int) -> int:
        random_.shuffle(paths)
        parts = [paths[i : i + BATCH] for i in range(0, len(paths) - BATCH + 1, BATCH)]
        pool = threads.cpu_count()
        builder = PipelineBuilder().add_source(parts).pipe(batch, concurrency=pool).add_sink()
        pipeline = builder.build(num_threads=pool)
        with pipeline.auto_stop():
            return _count(pixels for pixels, _ in pipeline)

    return run


def _batch(paths: Sequence[Path], random_: random.Random) -> tuple[np.ndarray, list[int]]:
    """Views and labels of a batch, by SPDL."""
    from spdl import io

    frames = []
    for path in paths:
        packets = io.demux_image(str(path))
        top, left, height, width = crop(packets.height, packets.width, random_)
        steps = f"crop={width}:{height}:{left}:{top}:exact=1,scale={SIZE}:{SIZE}:flags=bilinear,"
        steps += "format=pix_fmts=rgb24" + (",hflip" if random_.random() < 0.5 else "")
        frames.append(io.decode_packets(packets, filter_desc=steps))
    pixels = io.to_numpy(io.convert_frames(frames))
    return pixels, [int(path.parent.name.removeprefix("class")) for path in paths]


def crop(height: int, width: int, random_: random.Random) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a crop as torchvision's RandomResizedCrop does.

    After ten crops that do not fit: the largest in the middle whose ratio is within the range.
    """
    for _ in range(10):
        area = random_.uniform(*AREA) * height * width
        ratio = math.exp(random_.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random_.randint(0, height - h), random_.randint(0, width - w), h, w
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _count(batches: Iterator[np.ndarray]) -> int:
    """Count the views of all batches, which must be as ours."""
    count = 0
    for pixels in batches:
        if pixels.shape != (BATCH, SIZE, SIZE, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"a batch is {pixels.dtype} of {pixels.shape}")
        count += len(pixels)
    return count


CONTESTANTS: dict[str, Make] = {
    "DALI": dali,
    "DALI, whole pictures": partial(dali, whole=True),
    "SPDL": spdl,
}


def found() -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the libraries that are here, and the reasons why others cannot be used."""
    versions, lacks = {}, {}
    for library, (distribution, probe) in LIBRARIES.items():
        try:
            probe()
            versions[distribution] = version(distribution)
        except Exception as error:
            lacks[library] = textwrap.shorten(str(error), 160, placeholder="…")
    return versions, lacks


def main() -> None:
    orders = Connection(int(sys.argv[1]))
    orders.send(found())
    seats.serve(orders, CONTESTANTS)


if __name__ == "__main__":
    main()
