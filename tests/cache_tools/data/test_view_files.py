"""Files of encoded pictures are read once in each epoch, by compiled code where it can."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from cache_tools.data.file_pool import FilePool
from cache_tools.data.images import ImageDataset
from cache_tools.errors import CacheMismatch, DataError
from cache_tools.render import batch
from tests.helpers.both_ways import BOX, NEEDS_TURBO, Lab, photographs

pytestmark = NEEDS_TURBO


def in_files(lab: Lab, folder: Path) -> list[Path]:
    """Put each picture into a file of its own."""
    paths, count = [folder / f"{i}.jpg" for i in range(len(lab.encoded))], len(lab.encoded)
    for path, data in zip(paths, lab.encoded, strict=True):
        path.write_bytes(data)
    lab.images = replace(lab.images, paths=paths, file_N=np.arange(count, dtype=np.int32))
    lab.images.offset_N, lab.images.sharded = np.zeros(count, np.int64), False
    lab.compiled = lab.renderer()
    return paths


def test_a_folder_of_files(tmp_path: Path) -> None:
    lab = Lab(tmp_path, photographs(["444, plain"], 5, 5))
    row_P, params = np.arange(5), lab.params(2)
    expected = lab.expected(row_P, params)
    paths = in_files(lab, tmp_path)
    for _ in range(2):
        assert (lab.render(row_P, params) == expected).all()
        assert not lab.by_hand
    paths[2].unlink()
    with pytest.raises(DataError, match="cannot read sample 'k2'"):
        lab.render(row_P, params)


@pytest.mark.parametrize("interpolation", ["box", "area", "bilinear", "random"])
def test_a_picture_is_read_once_in_each_epoch(
    interpolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = photographs(["420, plain", "420, progressive", "cmyk"], 12, 9)
    lab = Lab(tmp_path, encoded, replace(BOX, interpolation=interpolation))
    row_P, params, reads = np.arange(12), lab.params(2), list[int]()
    expected = lab.expected(row_P, params)
    in_files(lab, tmp_path)
    real = ImageDataset.read

    def spy(self: ImageDataset, number: int) -> bytes:
        reads.append(number)
        return real(self, number)

    monkeypatch.setattr(ImageDataset, "read", spy)
    for _ in range(3):
        reads.clear()
        assert (lab.render(row_P, params) == expected).all()
        assert sorted(reads) == [*range(12)]


def test_encoded_pictures_in_memory_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 6, 11))
    row_P, params = np.arange(6), lab.params(2)
    expected = lab.expected(row_P, params)
    in_files(lab, tmp_path)
    monkeypatch.setattr(batch, "MOST_HELD", sum(map(len, lab.encoded[:4])))
    for _ in range(2):
        assert (lab.render(row_P, params) == expected).all()
        assert lab.by_hand == [4, 5]


def test_files_are_compared_in_compiled_code_from_the_second_epoch_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 6, 10))
    row_P, params, compared = np.arange(6), lab.params(2), list[int]()
    paths, real = in_files(lab, tmp_path), google_crc32c.value
    expected = lab.render(row_P, params)
    assert not lab.by_hand

    def spy(data: bytes) -> int:
        compared.append(len(data))
        return int(real(data))

    monkeypatch.setattr(google_crc32c, "value", spy)
    assert (lab.render(row_P, params) == expected).all()
    assert not compared
    assert not lab.by_hand
    data = bytearray(lab.encoded[4])
    data[-9] ^= 1
    paths[4].write_bytes(data)
    for _ in range(2):
        with pytest.raises(CacheMismatch, match="image 'k4' has changed since the cache was made"):
            lab.render(row_P, params)


def test_more_shards_than_files_may_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, photographs(["420, plain"], 5, 6))
    row_P, params = np.arange(5), lab.params(1)
    expected = lab.expected(row_P, params)
    monkeypatch.setattr("resource.getrlimit", lambda _: (0, 0))
    lab.images._file_pool = FilePool()
    for _ in range(2):
        assert (lab.render(row_P, params) == expected).all()
        assert not lab.by_hand
    assert (lab.images.locate(row_P)[0] == -1).all()


def test_a_crc_that_is_not_in_c_is_logged_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As of google-crc32c on a platform without its C extension, or linked statically."""
    lab = Lab(tmp_path, photographs(["420, plain"], 3, 12))
    row_P, params = np.arange(3), lab.params(1)
    expected = lab.expected(row_P, params)
    monkeypatch.setitem(sys.modules, "google_crc32c._crc32c", None)
    monkeypatch.delattr(google_crc32c, "_crc32c", raising=False)
    batch._others.cache_clear()
    with caplog.at_level(logging.INFO, "kdcache"):
        for _ in range(2):
            assert (lab.render(row_P, params) == expected).all()
            assert lab.by_hand == [*range(3)]
    batch._others.cache_clear()
    [said] = [record.getMessage() for record in caplog.records if "crc32c" in record.getMessage()]
    assert "pip install --force-reinstall google-crc32c" in said
