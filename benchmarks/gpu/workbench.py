"""Device, pictures and students' cache that the sections share."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks import render
from benchmarks.pairs import Bench, Pair, prepare

Figures = dict[str, Any]
TEACHER = "beitv2_base_patch16_224"
"""Teacher of all students."""
SHORT = Pair("test_efficientnet", "test_resnet", 32, batch=8, steps=6, warmup=2, short_side=48)
"""Pair of the short form."""


def pair(student: str, batch: int) -> Pair:
    """Pair of a student on a GPU."""
    return Pair(student, TEACHER, 224, batch, steps=20, warmup=6, precision="bf16")


class Workbench:
    """Inputs of several sections, made when they are needed."""

    def __init__(self, short: bool, pictures: Path | None, batch: int, folder: Path) -> None:
        self.short, self.folder, self.batch = short, folder, batch
        self.device = torch.device("cpu" if short else "cuda")
        self._pictures = pictures

    @cached_property
    def encoded(self) -> list[bytes]:
        """JPEGs, which samples have in turn."""
        if self._pictures is not None:
            return read(self._pictures)
        return render.pictures("short256")[:16] if self.short else render.pictures("imagenet")

    @cached_property
    def students(self) -> Bench:
        """Pictures, cache and recipe of the first student; others differ in their recipe alone."""
        first = SHORT if self.short else pair("resnet50", self.batch)
        return prepare(first, self.device, self.folder / "students", self.encoded)


def read(folder: Path, most: int = 1024) -> list[bytes]:
    """Read JPEGs of a folder, spread evenly over those it has.

    Raises:
        ValueError: It has none.
    """
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not found:
        raise ValueError(f"{folder} has no file *.jpg or *.jpeg")
    return [path.read_bytes() for path in found[:: -(-len(found) // most)]]
