"""Memory of the host that ran out is named, and no file, picture or network is blamed for it."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cache_tools.columnar import rows
from cache_tools.columnar.layout import Columns
from cache_tools.data.beton import reader
from cache_tools.importers import torch_file
from cache_tools.storage import system_errors
from cache_tools.storage.fsspec_client import FsspecClient
from cache_tools.storage.zip_folder import Zip
from cache_tools.targets import logits_file
from pipeline.networks import interface, of_timm, of_torchvision
from pipeline.teacher import checkpoint as of_teacher
from train.trainer import checkpoint as of_run
from train.trainer import factory, init_weights


def zip_opened(path: Path) -> None:
    path.write_bytes(b"PK")
    Zip(path)


def zip_read(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("zarr.json", "{}")
    Zip(path).read("zarr.json")


def logits(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.zeros((2, 3), np.float32))
    logits_file.read(path.with_suffix(".npy"))


def container(path: Path) -> None:
    path.write_bytes(b"1" * 99)
    reader.open_beton(path)


def url(path: Path) -> None:
    path.write_bytes(b"1" * 9)
    FsspecClient(path.parent.as_uri()).part(path.name, 0, 9, 9)


def table(path: Path) -> None:
    path = path.with_suffix(".parquet")
    path.write_bytes(b"PAR1" * 9)
    rows.layout_of_file(path, Columns())


def weights(path: Path) -> None:
    path.write_bytes(b"PK" + bytes(20))
    of_teacher._state(path)


def state(path: Path) -> None:
    folder = path.parent
    torch.save({}, folder / of_run.NAME)
    of_run._read(folder)


def legacy(path: Path) -> None:
    path.write_bytes(b"PK\3\4" + bytes(20))
    torch_file._members(path.read_bytes(), path)


class Hungry(nn.Module):
    """A network without memory for pictures of more than `most` pixels a side."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.pretrained_cfg = {"architecture": "hungry", "input_size": (3, 48, 48)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return x[:, :, 0, 0]


def student(path: Path) -> None:
    recipe: Any = SimpleNamespace(student="s", measured_size=int, sizes=lambda own: [own])
    factory.check(recipe, 3, 48)


CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a zip": ("zipfile.ZipFile._RealGetContents", zip_opened),
    "a file of a zip": ("zipfile.ZipExtFile.read", zip_read),
    "logits": ("numpy.load", logits),
    "a container": ("numpy.fromfile", container),
    "a URL": ("fsspec.implementations.local.LocalFileSystem.cat_file", url),
    "a table": ("cache_tools.columnar.parquet.schema", table),
    "weights of a teacher": ("torch.load", weights),
    "the state of a run": ("torch.load", state),
    "a file of torch": ("zipfile.ZipFile", legacy),
    "weights of timm": ("timm.create_model", lambda _: of_timm.pretrained("test_vit")),
    "weights of torchvision": (
        "pipeline.networks.of_torchvision.get_model",
        lambda _: of_torchvision.pretrained("resnet18:IMAGENET1K_V1"),
    ),
    "weights to start from": (
        "timm.create_model",
        lambda _: init_weights._from_timm("test_vit.r160_in1k", {}),
    ),
    "a student": ("train.trainer.factory.create_student", student),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_that_ran_out_is_named(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 3 GiB")

    patched, read = CASES[case]
    if case == "a student":
        monkeypatch.setattr(patched, lambda *_: Hungry(0))
    else:
        monkeypatch.setattr(patched, without_memory)
    with pytest.raises((MemoryError, OSError, RuntimeError, ValueError)) as raised:
        read(tmp_path / "x")
    error = system_errors.explained(raised.value)
    assert str(error).startswith("there is not enough memory")
    assert "run the same command again" in str(error)


@pytest.mark.parametrize("most", [0, 48])
def test_a_network_is_measured_or_memory_is_named(most: int) -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        interface.measure(Hungry(most))
    assert "fixed_input_size" not in interface.measure(Hungry(96)).pretrained_cfg
