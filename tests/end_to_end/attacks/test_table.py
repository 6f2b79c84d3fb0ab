"""Hostile sample tables and tables of levels, and metadata that lead other readers astray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_tools.spec import sample_table
from cache_tools.spec.sample_table import SampleTable
from cache_tools.store.cache import Cache
from tests.end_to_end.attacks import attacker
from tests.end_to_end.attacks.attacker import ROWS, Json

Refused = Callable[..., str]
COLUMNS = ["digest", "label", "height", "width", "bytes"]


def _with_keys(cache: Path, keys: bytes, **columns: Any) -> None:
    """Put other keys into the table, with ids and digest that fit them where they are text."""
    table = Cache.open(cache).table
    listed = tuple(keys.decode("utf-8", "replace").split("\n"))
    ids = np.array([sample_table.sample_id(k) for k in listed], dtype=np.uint64)
    values = {f"{c}_N": getattr(table, f"{c}_N") for c in COLUMNS} | columns
    put = SampleTable(listed, ids, **values)
    attacker.put_array(cache, "samples/key", np.frombuffer(keys, dtype=np.uint8))
    attacker.put_array(cache, "samples/id", ids)
    attacker.edit(cache / "samples/key/zarr.json", lambda m: _reshape(m, len(keys)))
    attacker.edit_spec(cache, dataset__table_sha256=put.sha256)


def _reshape(metadata: Json, length: Any) -> None:
    metadata["shape"] = [length]
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [length]


def _keys(cache: Path) -> list[str]:
    return list(Cache.open(cache).table.keys)


def test_other_keys_in_order_are_a_table(forged: Path, victim: Any) -> None:
    """The attacks below fail for what they do, not for how they do it."""
    keys = sorted((f"m{i}" for i in range(ROWS)), key=sample_table.sample_id)
    _with_keys(forged, "\n".join(keys).encode())
    assert not victim.open(forged).refusals


@pytest.mark.parametrize("key", ["two\nlines", "", "k" * 4097, "a\n\nb"])
def test_keys_that_are_none(forged: Path, refused: Refused, key: str) -> None:
    """In their order by id, so that nothing else is wrong."""
    keys = sorted([*_keys(forged)[1:], key], key=sample_table.sample_id)
    _with_keys(forged, "\n".join(keys).encode())
    refused(forged, "sample")


@pytest.mark.parametrize("raw", [b"\xed\xa0\x80", b"\xff\xfe", b"\xc0\xaf"])
def test_keys_that_are_no_text(forged: Path, refused: Refused, raw: bytes) -> None:
    _with_keys(forged, "\n".join(_keys(forged)).encode()[:-3] + raw)
    refused(forged, "samples/key")


def test_keys_that_stand_twice(forged: Path, refused: Refused) -> None:
    keys = _keys(forged)
    _with_keys(forged, "\n".join([keys[0], *keys[:-1]]).encode())
    assert "not sorted" in refused(forged, "sample table")


def test_keys_out_of_order(forged: Path, refused: Refused) -> None:
    _with_keys(forged, "\n".join(reversed(_keys(forged))).encode())
    assert "not sorted" in refused(forged, "sample table")


@pytest.mark.parametrize("length", [0, -1, 2**40, 2**70, 0.5, None, "x", True, [300]])
def test_absurd_lengths_of_the_keys(forged: Path, refused: Refused, length: Any) -> None:
    attacker.edit(forged / "samples/key/zarr.json", lambda m: _reshape(m, length))
    attacker.seal(forged)
    refused(forged, "samples/key")


@pytest.mark.parametrize("column", ["key", "id", *COLUMNS])
def test_a_column_that_expands_without_measure(forged: Path, refused: Refused, column: str) -> None:
    data = attacker.bomb(attacker.BOMB, 10, attacker.ITEMSIZES.get(column, 4))
    (forged / f"samples/{column}/c/0").write_bytes(data)
    attacker.seal(forged)
    refused(forged, f"samples/{column}")


def test_millions_of_empty_keys(forged: Path, refused: Refused) -> None:
    """Many samples may have many bytes of keys: a sparse file says that there are many."""
    length = attacker.BOMB
    with (forged / "samples/id/c/0").open("wb") as file:
        file.truncate(2**28)
    (forged / "samples/key/c/0").write_bytes(attacker.bomb(length, 10))
    attacker.edit(forged / "samples/key/zarr.json", lambda m: _reshape(m, length))
    attacker.edit_spec(forged, dataset__num_samples=2**26, block_size=2**16)
    refused(forged, "sample")


@pytest.mark.parametrize("count", [ROWS - 1, ROWS + 1, 2**20, 2**32])
def test_another_number_of_samples(forged: Path, refused: Refused, count: int) -> None:
    attacker.edit_spec(forged, dataset__num_samples=count)
    refused(forged, "forged.zarr")


@pytest.mark.parametrize("column", ["id", *COLUMNS])
def test_columns_that_are_not_those_of_the_digest(
    forged: Path, refused: Refused, column: str
) -> None:
    """Of ids, too: another reader takes them for what the table is sorted by."""
    values = getattr(Cache.open(forged).table, f"{column}_N").copy()
    values[3] += 1
    attacker.put_array(forged, f"samples/{column}", values)
    attacker.seal(forged)
    refused(forged, "sample")


ARRAYS = ["targets/code", "targets/index_delta", "targets/tail", "samples/key", "samples/label"]
LIES: dict[str, Any] = {
    "data_type": "int16",
    "fill_value": 7,
    "shape": [2**40],
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**40]}},
    "codecs": [{"name": "bytes", "configuration": {"endian": "big"}}],
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
    "node_type": "group",
    "zarr_format": 2,
    "storage_transformers": [{"name": "evil", "configuration": {}}],
}


@pytest.mark.parametrize("field", LIES)
@pytest.mark.parametrize("array", ARRAYS)
def test_metadata_that_lie_to_other_readers(
    forged: Path, refused: Refused, array: str, field: str
) -> None:
    attacker.edit(forged / array / "zarr.json", lambda m: m.update({field: LIES[field]}))
    attacker.seal(forged)
    refused(forged, array)


CODECS = ["unknown", "vlen-utf8", "numcodecs.pickle", "gzip", "", 7, None]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("array", ARRAYS)
def test_codecs_that_are_not_of_the_format(
    forged: Path, refused: Refused, array: str, codec: Any
) -> None:
    def change(metadata: Json) -> None:
        metadata["codecs"].insert(1, {"name": codec, "configuration": {}})

    attacker.edit(forged / array / "zarr.json", change)
    attacker.seal(forged)
    assert "codecs" in refused(forged, array)


@pytest.mark.parametrize("group", ["", "targets", "samples"])
def test_consolidated_metadata(forged: Path, refused: Refused, group: str) -> None:
    """Other readers believe it instead of the arrays' own."""
    lie = {"kind": "inline", "must_understand": False, "metadata": {}}
    attacker.edit(forged / group / "zarr.json", lambda m: m.update(consolidated_metadata=lie))
    attacker.seal(forged)
    refused(forged, f"{group}/zarr.json")
