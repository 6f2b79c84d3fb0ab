"""Zips whose directory has impossible sizes and places are refused before a member is read."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cache_tools.errors import CacheDamaged, DataError
from cache_tools.storage import zips
from cache_tools.storage.zip_folder import Zip
from cache_tools.targets import logits_file

_MIB = 2**20


def _zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def _directory(path: Path, number: int, field: int, value: int) -> None:
    """Set a field of an entry of the directory: 20 compressed size, 24 size, 42 place."""
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(number + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    struct.pack_into("<I", data, at + field, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("number", "field", "value", "reason"),
    [
        (0, 20, 500, "beyond the zip|shares bytes"),
        (1, 20, 50_000, "beyond the zip"),
        (1, 42, 0, "shares bytes"),
        (1, 24, 2**30, "would expand"),
    ],
)
def test_a_forged_directory_is_refused(
    tmp_path: Path, number: int, field: int, value: int, reason: str
) -> None:
    path = _zip(tmp_path / "c.zip", a=b"1", b=b"2")
    _directory(path, number, field, value)
    with pytest.raises(CacheDamaged, match=reason):
        Zip(path)


def test_a_member_that_unfolds_is_refused_with_the_next_step(tmp_path: Path) -> None:
    path = _zip(tmp_path / "c.zip", **{"samples/key/c/0": bytes(64 * _MIB)})
    with pytest.raises(CacheDamaged, match=r"would expand from .* unpack it and name the folder"):
        Zip(path)


def test_arrays_that_unfold_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", logits=np.zeros((4096, 4096), "f4"))
    with pytest.raises(DataError, match="would expand"):
        logits_file.read(tmp_path / "a.npz")


def test_honest_members_pass(tmp_path: Path) -> None:
    path = _zip(tmp_path / "c.zip", a=bytes(60_000), b=np.random.default_rng(0).bytes(_MIB), c=b"")
    with zipfile.ZipFile(path) as archive:
        zips.check(archive, path.stat().st_size, 4, _MIB, 2)


def test_a_large_member_may_unfold_less(tmp_path: Path) -> None:
    half = np.random.default_rng(0).bytes(_MIB // 2)
    path = _zip(tmp_path / "c.zip", a=half + bytes(_MIB))
    with zipfile.ZipFile(path) as archive:
        zips.check(archive, path.stat().st_size, 4, 2 * _MIB, 2)
        with pytest.raises(zipfile.BadZipFile, match="'a' would expand"):
            zips.check(archive, path.stat().st_size, 4, _MIB, 2)
