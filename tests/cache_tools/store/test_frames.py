"""Entries of a part are decoded piece by piece: memory is theirs, not that of their room."""

from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

from cache_tools.errors import CacheDamaged
from cache_tools.store import frames, layout
from cache_tools.store.cache import Cache

WIDTH = 2**22 + 17


def chunk(values: np.ndarray, level: int) -> bytes:
    """A chunk as zarr writes it: a frame of Blosc and its crc32c."""
    frame = bytes(blosc.compress(values, b"zstd", level, 1))
    return frame + google_crc32c.value(frame).to_bytes(4, "little")


@pytest.mark.parametrize("level", [0, 5])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("count", [0, 5000, WIDTH])
def test_pieces_are_the_values(dtype: str, count: int, level: int) -> None:
    values = np.zeros(WIDTH, dtype)
    values[:count] = np.random.default_rng(0).integers(1, 200, count)
    data = chunk(values, level)
    found = frames.decode_entries(data, WIDTH, np.dtype(dtype), count)
    assert np.array_equal(found, values[:count])
    if count:
        with pytest.raises(ValueError, match="do not end"):
            frames.decode_entries(data, WIDTH, np.dtype(dtype), count - 1)


def test_a_changed_checksum_is_found() -> None:
    data = chunk(np.ones(100, "u1"), 5)
    with pytest.raises(ValueError, match="crc32c"):
        frames.decode_entries(data[:-1] + b"\0", 100, np.dtype("u1"), 100)


def test_more_entries_than_their_bytes_can_have_are_refused(
    digits_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MOST_EXPANSION", 0)
    monkeypatch.setattr(layout, "FREE_ENTRIES", 10)
    store = Cache.open(digits_cache)
    with pytest.raises(CacheDamaged, match="at most 10 fit its bytes"):
        store.read(next(store.parts()))
