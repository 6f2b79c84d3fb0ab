"""Columns of a table: images, labels and paths, found by type and name or given by option."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_tools.columnar import layout
from cache_tools.data.open import open_images
from cache_tools.errors import DataError, UsageError
from tests.helpers import tables
from tests.helpers.outcome import Outcome
from tests.helpers.tables import NAMES, ROWS

Command = Callable[..., Outcome]


def test_columns_by_name(tmp_path: Path, kdcache: Command) -> None:
    made = tables.table(ROWS, NAMES, "img", "fine").append_column("coarse", pa.array([0] * 24))
    made = made.append_column("thumb", pa.array([b"x"] * 24)).append_column(
        "n", pa.array([*"x" * 24])
    )
    pq.write_table(made, tmp_path / "a.parquet")
    whole = open_images(str(tmp_path / "a.parquet"), "train")
    assert whole.class_names == NAMES
    said = kdcache("shard", tmp_path / "a.parquet", tmp_path / "s", "--columns", "label=coarse")
    assert said.code == 0, said.err
    assert set(open_images(str(tmp_path / "s"), "train").label_N.tolist()) == {0}
    for text, message in (
        ("label=nothing", "has no column 'nothing'. Its columns: "),
        ("image=fine", "int64 in the column 'fine', which cannot be encoded pictures"),
        ("path=fine", "int64 in the column 'fine', which cannot be paths"),
        ("picture=img", "expected NAME=COLUMN with image, label, path"),
        ("image=img,image=thumb", "each of image, label, path is named once at most"),
    ):
        said = kdcache("shard", tmp_path / "a.parquet", tmp_path / "x", "--columns", text)
        assert (said.code, message in said.err) == (2, True), said.err


def test_columns_that_can_be_meant_in_two_ways(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"]}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"a": [[1, 2]], "label": [3]}), tmp_path / "none.parquet")
    for name, message in (
        ("two", r"several columns of encoded pictures .*: a \(binary\), b \(binary\)"),
        ("none", r"no column of encoded pictures .* --columns image=NAME"),
    ):
        with pytest.raises(UsageError, match=message):
            open_images(str(tmp_path / f"{name}.parquet"), "train")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "values", [[b"x", b"y"], [1, 2], [["a"], ["b"]], [{"a": 1}, {"a": 2}], [None, None]],
    ids=["bytes", "numbers", "lists", "structs", "nulls"],
)  # fmt: skip
def test_paths_in_pictures_that_are_no_text(
    values: list[Any], suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")
    paths = pa.array(values)
    pictures = pa.StructArray.from_arrays([pa.array([b"0", b"1"]), paths], ["bytes", "path"])
    made = pa.table({"image": pictures, "label": [1, 0]})
    source = tmp_path / f"a.{suffix}"
    pq.write_table(made, source) if suffix == "parquet" else tables.arrow(source, made)
    found = open_images(str(source), "train")
    assert (list(found.names), found.label_N.tolist()) == (["00000000", "00000001"], [1, 0])
    assert [found.read(i) for i in range(2)] == [b"0", b"1"]
    said = re.findall(r"image\.path is (.*), which is not read: paths are text", caplog.text)
    assert [text.split("<")[0] for text in said] == (
        [] if values[0] is None else [str(paths.type).split("<")[0]]
    )
    named = made.append_column("file_name", pa.array(["b.jpg", "a.jpg"]))
    pq.write_table(named, source) if suffix == "parquet" else tables.arrow(source, named)
    expected = ["b", "a"] if values[0] is not None else ["00000000", "00000001"]
    assert list(open_images(str(source), "train").names) == expected


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ["image", "label", "path"])
def test_two_columns_of_a_name(name: str, suffix: str, tmp_path: Path) -> None:
    columns = {"image": [b"0", b"1"], "label": ["a", "b"], "path": ["x.jpg", "y.jpg"]}
    names = [name, *columns]
    made = pa.Table.from_arrays([pa.array(v) for v in ([1, 2], *columns.values())], names=names)
    source = tmp_path / f"a.{suffix}"
    pq.write_table(made, source) if suffix == "parquet" else tables.arrow(source, made)
    with pytest.raises(DataError, match=f"a.{suffix} has several columns called '{name}'"):
        open_images(str(source), "train")


@pytest.mark.parametrize("name", ["bytes", "label"])
def test_a_name_that_is_not_utf_8(name: str, tmp_path: Path) -> None:
    made = pa.table({"image": [{"bytes": b"0", "path": "a"}], "label": ["x"]})
    tables.arrow(source := tmp_path / "a.arrow", made)
    source.write_bytes(source.read_bytes().replace(name.encode(), b"\xff" + name[1:].encode()))
    with pytest.raises(DataError, match=r"a\.arrow has a column whose name is not UTF-8"):
        open_images(str(source), "train")


def test_a_description_that_cannot_be_read() -> None:
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    for text in (b"{", b"[]", b'{"info": {"features": 3}}'):
        with pytest.raises(DataError, match="description of its columns"):
            layout.of_schema(schema.with_metadata({b"huggingface": text}), layout.Columns(), "x")
    for names in (["a", "a"], ["a\n"], "ab", [1]):
        metadata = tables.described(names)  # type: ignore[arg-type]
        if names == "ab":
            metadata = {b"huggingface": metadata[b"huggingface"].replace(b'["a", "b"]', b'"ab"')}
        with pytest.raises(DataError, match="class"):
            layout.of_schema(schema.with_metadata(metadata), layout.Columns(), "x")
