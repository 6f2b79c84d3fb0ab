"""A data set and a sample table that the processes of a machine share."""

import io
import os
import tarfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.errors import CacheMismatch
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import mapped
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.store.cache import Cache
from train.data.batches import Batches


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty data folder, in which small data sets are kept, too."""
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(mapped, "WORTH", 1)


@pytest.fixture
def copy(images: ImageDataset, tmp_path: Path) -> Path:
    """The training images in two shards."""
    (tmp_path / "data").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "data" / f"{shard}.tar", "w") as tar:
            for i in range(shard * 50, shard * 50 + 50):
                label = str(images.label_N[i]).encode()
                for end, data in ((".cls", label), (".png", images.read(i))):
                    member = tarfile.TarInfo(images.names[i] + end)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return tmp_path / "data"


def opened(cache: Path, source: Path, partial: bool = False) -> ImageDataset:
    store = Cache.open(cache)
    return match.open_aligned(store.table, store.spec.dataset, str(source), partial)[0]


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources that were opened, not mapped."""
    found, real = list[str](), match.open_images

    def spy(source: str, split: str) -> ImageDataset:
        found.append(source)
        return real(source, split)

    monkeypatch.setattr(match, "open_images", spy)
    return found


def test_the_table_is_mapped_and_the_same(digits_cache: Path) -> None:
    whole = Cache.open(digits_cache).table
    for _ in range(2):  # made, then mapped
        store = Cache.open(digits_cache)
        store.map_table()
        for field in fields(SampleTable):
            assert np.array_equal(getattr(store.table, field.name), getattr(whole, field.name))
        assert store.table.sha256 == whole.sha256 == store.spec.dataset.table_sha256
        assert not store.table.label_N.flags.writeable
    assert len([*DiskCache().path.glob("shards/*")]) == 1


def test_a_damaged_copy_of_the_table_is_read_from_the_cache_again(digits_cache: Path) -> None:
    store = Cache.open(digits_cache)
    store.map_table()
    [file] = DiskCache().path.glob("shards/*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = Cache.open(digits_cache)
    again.map_table()
    assert again.table.sha256 == store.spec.dataset.table_sha256


def test_an_index_is_made_once(
    digits_cache: Path, copy: Path, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = spied(monkeypatch)
    for _ in range(3):
        found = opened(digits_cache, copy)
        assert found.names == list(images.names)
        assert [found.read(i) for i in range(100)] == [images.read(i) for i in range(100)]
        assert np.array_equal(found.label_N, images.label_N)
        assert found.subset(np.array([7, 3])).names == [images.names[7], images.names[3]]
    assert len(sources) == 1


def test_a_changed_shard_is_read_again(
    digits_cache: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = spied(monkeypatch)
    opened(digits_cache, copy)
    shard = min(copy.iterdir())
    os.utime(shard)
    opened(digits_cache, copy)
    assert len(sources) == 2
    shard.rename(shard.with_name("another.tar"))
    opened(digits_cache, copy)
    assert len(sources) == 3
    (copy / "another.tar").unlink()
    with pytest.raises(CacheMismatch, match="first missing key"):
        opened(digits_cache, copy)
    with pytest.raises(CacheMismatch, match="first missing key"):  # no error is kept
        opened(digits_cache, copy)
    assert len(sources) == 5


def test_a_part_of_the_samples_is_kept_as_well(digits_cache: Path, copy: Path) -> None:
    min(copy.iterdir()).unlink()
    store = Cache.open(digits_cache)
    each = [
        match.open_aligned(store.table, store.spec.dataset, str(copy), partial=True)
        for _ in range(2)
    ]
    (made, covered), (kept, again) = each
    assert covered.missing == again.missing == 50
    assert covered.facts == again.facts
    assert str(covered) == str(again)
    assert np.array_equal(covered.present_N, again.present_N)
    rows = np.flatnonzero(covered.present_N).tolist()
    assert [made.read(i) for i in rows] == [kept.read(i) for i in rows]


def test_batches_of_mapped_files_are_the_same(
    digits_cache: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches() -> list[tuple[bytes, bytes]]:
        made = Batches(digits_cache, str(copy), batch_size=20, device="cpu", views_per_epoch=2)
        return [(x.numpy().tobytes(), t.probability.numpy().tobytes()) for x, t in made]

    mapped_ones = [batches(), batches()]
    monkeypatch.setattr(mapped, "WORTH", 10**9)
    assert mapped_ones[0] == mapped_ones[1] == batches()
