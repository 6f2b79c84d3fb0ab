"""Ingredients of hostile inputs: honest files of a laboratory, and ways to put others there."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.bombs import GIB
from benchmarks.faults.lab import Lab

ESCAPES = "\x1b[31mred\x07\x1b]0;title\x07"


class Ingredients:
    """Ingredients of the cases of a laboratory."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.folder, self.random = lab.folder, random.Random(seed)
        here = lab.folder
        self._stage1 = ("--teacher", str(here / "teacher1"), "--device=cpu", "--out", "o.zarr")
        self.picture = next((here / "pictures/train/n00").glob("*.jpg")).read_bytes()
        self.manifest = (here / "c.zarr/zarr.json").read_bytes()
        self.again = ("train", str(here / "student.toml"), "--data", str(here / "shards"))
        self.train = (*self.again, "epochs=1")

    def cache(self, data: str) -> tuple[str, ...]:
        """Arguments of a cache of images."""
        return ("cache", str(self.folder / "open.toml"), "--data", data, *self._stage1)


def written(name: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    """Write one file, and the folders above it."""

    def write(work: Path) -> None:
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.exists():
            path.unlink()
        path.write_bytes(data() if callable(data) else data)

    return write


def copied(source: Path, then: Callable[[Path], object]) -> Callable[[Path], object]:
    """Copy an honest folder or file, and change it."""

    def write(work: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, work / source.name)
        else:
            shutil.copy(source, work / source.name)
        then(work)

    return write


def unsealed(place: str, text: bytes) -> Callable[[Path], object]:
    """Write a file of a run, without the digests that would refuse any other."""

    def write(work: Path) -> None:
        for path in work.rglob("digests.json"):
            path.unlink()
        written(place, text)(work)

    return write


def strange(place: str) -> dict[str, Callable[[Path], object]]:
    """Return what may lie in the place of a file, and is none of ours."""

    def put(make: Callable[[Path], object]) -> Callable[[Path], object]:
        def write(work: Path) -> None:
            (work / place).unlink(missing_ok=True)
            make(work / place)

        return write

    return {
        "a pipe": put(os.mkfifo),
        "a link to /dev/zero": put(lambda path: path.symlink_to("/dev/zero")),
        "a link to itself": put(lambda path: path.symlink_to(path)),
        "a link to nothing": put(lambda path: path.symlink_to("nowhere")),
        "a folder": put(lambda path: path.mkdir()),
        "3 GB of zeros": put(lambda path: path.touch() or os.truncate(path, 3 * GIB)),
    }
