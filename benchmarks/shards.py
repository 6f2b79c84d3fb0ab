"""Time to open 1,281,167 samples in 1,282 shards: `python -m benchmarks.shards`.

The images are a few bytes each: 2.6 GB of tars hold as many headers as the real 140 GB. The first
opening reads the headers, the second the kept index.
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

from cache_tools.data import scan
from cache_tools.data.open import open_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--shard-size", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KDCACHE_CACHE"] = f"{folder}/kept"
        for begin in range(0, arguments.samples, arguments.shard_size):
            numbers = range(begin, min(begin + arguments.shard_size, arguments.samples))
            write(Path(folder) / f"train-{begin // arguments.shard_size:04d}.tar", numbers)
        for which in ("first", "second"):
            begin_s = time.perf_counter()
            images = open_images(folder, "train")
            print(
                f"{which} opening: {len(images):,} samples, {time.perf_counter() - begin_s:.2f} s"
            )
        begin_s = time.perf_counter()
        scan.in_table_order(images, None)
        print(f"in the order of the table: {time.perf_counter() - begin_s:.2f} s")


def write(path: Path, numbers: range) -> None:
    """A shard of images of a few bytes."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            name = f"n{number % 1000:08d}/n{number % 1000:08d}_{number}"
            for extension, data in ((".cls", b"%d" % (number % 1000)), (".jpg", b"\xff\xd8\xff")):
                member = tarfile.TarInfo(name + extension)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
