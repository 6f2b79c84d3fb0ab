"""Reading a cache from Python: rows, targets and pixels as the stages have them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheIncomplete, UsageError
from cache_tools.reader import CacheReader, open_reader
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.targets import codec, dense


@pytest.fixture
def reader(digits_cache: Path) -> CacheReader:
    return open_reader(digits_cache)


def test_a_cache_has_its_samples_and_identity(reader: CacheReader, digits_cache: Path) -> None:
    store = Cache.open(digits_cache)
    assert reader.keys == store.table.keys
    assert (reader.labels == store.table.label_N).all()
    assert (len(reader), reader.num_views, reader.num_classes) == (100, 4, 10)
    assert reader.fingerprint == store.spec.fingerprint
    assert repr(reader).endswith("cache.zarr: 100 samples, 4 views>")


@pytest.mark.parametrize("form", ["slice", "numbers", "keys", "mask", "reverse"])
def test_rows_come_in_the_order_in_which_they_are_named(reader: CacheReader, form: str) -> None:
    whole = codec.decode(reader.store.read_view(2), reader.spec.targets)
    row_B = np.arange(40, 70)
    mask = np.isin(np.arange(100), row_B)
    asked = {
        "slice": slice(40, 70),
        "numbers": row_B,
        "keys": [reader.keys[row] for row in row_B],
        "mask": mask,
        "reverse": row_B[::-1] - 100,
    }[form]
    row_B = row_B[::-1] if form == "reverse" else row_B
    found = reader.targets(2, asked)
    assert len(found) == 30
    empty = whole.probability_BK[row_B] == 0
    assert (found.index == np.where(empty, -1, whole.index_BK[row_B])).all()
    assert (found.probability == whole.probability_BK[row_B]).all()
    assert (found.tail == whole.tail_BT[row_B, 0]).all()


def test_dense_rows_are_the_teachers_distributions(reader: CacheReader) -> None:
    whole = codec.decode(reader.store.read_view(0), reader.spec.targets)
    for temperature in (1.0, 2.5):
        rows = reader.targets(0).dense(temperature)
        assert rows.dtype == np.float32
        assert rows.sum(axis=1) == pytest.approx(np.ones(100), abs=1e-6)
        expected = dense.densify(whole, reader.spec.targets, 10, temperature)
        assert (rows == expected.astype(np.float32)).all()
    assert reader.targets(0, []).dense().shape == (0, 10)


def test_pixels_are_those_of_the_stages(
    reader: CacheReader, digits: Path, images: ImageDataset
) -> None:
    store = reader.store
    renderer = ViewRenderer(images, store.spec.views, store.table)
    every = view_params.parameters(store, 3, np.arange(100))
    pixels = reader.images(str(digits))
    for row in (0, 57, 99):
        expected = renderer.render_one(row, every, row)
        assert (pixels[reader.keys[row], 3] == expected).all()
        assert (pixels[row, 3] == expected).all()


def test_what_is_not_there_is_refused_by_name(reader: CacheReader, mutable_cache: Path) -> None:
    with pytest.raises(UsageError, match="has no sample 'nobody'"):
        reader.targets(0, ["nobody"])
    with pytest.raises(UsageError, match="100 rows, none is 100"):
        reader.targets(0, [3, 100])
    with pytest.raises(UsageError, match="the views 0 to 3 of each sample, none is 4"):
        reader.targets(4)
    with pytest.raises(UsageError, match="temperature=0 must be positive"):
        reader.targets(0).dense(0)
    for chunk in mutable_cache.glob("targets/*/c/*"):
        if chunk.is_file():
            chunk.unlink()
    for record in mutable_cache.glob("commits/v0001/*"):
        record.unlink()
    with pytest.raises(CacheIncomplete, match="view 1"):
        open_reader(mutable_cache).targets(1)


def test_rows_by_numbers_keys_and_masks(reader: CacheReader) -> None:
    keys, mask = reader.keys, [row in (1, 98) for row in range(100)]
    for rows in (mask, tuple(mask), np.array(mask), torch.tensor(mask)):
        assert reader.rows(rows).tolist() == [1, 98]
    numbers = ([98, -2], np.array([98, 98], np.uint8), torch.tensor([98, 98]), (98, keys[98]))
    for rows in (*numbers, np.array([keys[98]] * 2), np.array([98, keys[98]], object)):
        assert reader.rows(rows).tolist() == [98, 98]
    for one in (98, -2, np.int16(98), np.array(98), keys[98], np.str_(keys[98])):
        assert reader.rows(one).tolist() == [98]
    for empty in ([], np.array([]), np.zeros(100, bool), slice(5, 2)):
        assert reader.rows(empty).tolist() == []
        assert len(reader.targets(0, empty)) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            np.array([True, False]),
            r"a mask of the shape \(2,\) selects no rows: .* has 100 samples",
        ),
        ([True, False], "a mask of the shape"),
        (np.ones((100, 1), bool), r"a mask of the shape \(100, 1\)"),
        (True, "a mask of the shape"),
        ([True, 7], r"rows=\[True, 7\] must be numbers of rows"),
        ([0.9], "must be numbers of rows"),
        (np.array([1.0]), "must be numbers of rows"),
        (1.0, "must be numbers of rows"),
        (None, "must be numbers of rows"),
        ([[1, 2], [3, 4]], "must be numbers of rows"),
        ([[1], [2, 3]], "must be numbers of rows"),
        (np.array([2**63], np.uint64), f"none is {2**63}"),
        ([-101], "none is -101"),
    ],
)
def test_other_rows_are_refused(reader: CacheReader, rows: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reader.targets(0, rows)


def test_pixels_are_of_one_sample_and_view(reader: CacheReader, digits: Path) -> None:
    pixels: Any = reader.images(str(digits))
    with pytest.raises(UsageError, match=r"\[3, 4\] names 2 samples"):
        pixels[[3, 4], 0]
    for view in (0.5, None, -1):
        with pytest.raises(UsageError, match=f"none is {view}"):
            pixels[3, view]
