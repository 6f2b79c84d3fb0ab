"""Parquet files that were made to take more memory than they have bytes are refused by name."""

import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_tools.columnar import parquet
from cache_tools.columnar.thrift import Compact
from cache_tools.data.open import open_images
from cache_tools.errors import DataError

I16, I32, I64, BINARY, LIST, STRUCT = 4, 5, 6, 8, 9, 12
Field = tuple[int, int, object]
"""Number, kind and value of a field of a struct."""
HUGE = 2**31 - 1


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def struct(fields: Sequence[Field]) -> bytes:
    """Thrift's compact protocol, each number of a field in its long form."""
    out = b""
    for number, kind, value in fields:
        out += bytes([kind]) + varint(2 * number)
        if isinstance(value, int):
            out += varint(2 * value)
        elif isinstance(value, bytes):
            out += varint(len(value)) + value
        else:
            assert isinstance(value, list)
            out += struct(value)
    return out + b"\0"


def sizes(unpacked: int = 414, packed: int = 414) -> list[Field]:
    return [(2, I32, unpacked), (3, I32, packed)]


def values(count: int) -> list[Field]:
    return [(1, I32, count), (2, I32, 0), (3, I32, 3), (4, I32, 3)]


FIRST: dict[str, tuple[list[Field], str]] = {
    "index page": ([(1, I32, 1), *sizes(), (5, STRUCT, values(8))], "is of the type 1"),
    "dictionary page with the header of data": (
        [(1, I32, 2), *sizes(), (5, STRUCT, values(8))], r"is of the type 2 .* headers \[5\]"),
    "data page with two headers": (
        [(1, I32, 0), *sizes(), (5, STRUCT, values(0)), (7, STRUCT, values(8))], r"\[5, 7\]"),
    "data page of another version": (
        [(1, I32, 0), *sizes(), (8, STRUCT, values(8))], r"type 0 .* \[8\]"),
    "no type": ([*sizes(), (5, STRUCT, values(8))], "type None"),
    "unknown type": ([(1, I32, 7), *sizes(), (5, STRUCT, values(8))], "type 7"),
    "type that is a list": ([(1, STRUCT, []), *sizes(), (5, STRUCT, values(8))], "type {}"),
    "size twice": (
        [(1, I32, 0), (2, I32, HUGE), (2, I64, 10), (3, I32, 414), (5, STRUCT, values(2))],
        "the field 2 twice"),
    "size as i64": (
        [(1, I32, 0), (2, I64, 10), (3, I32, 414), (5, STRUCT, values(2))], "has no sizes"),
    "number of 16 bits is 2": (
        [(1, I32, 0), *sizes(), (2**16 + 2, I32, HUGE), (5, STRUCT, values(2))], "16 bits"),
    "stored size of more bits": (
        [(1, I32, 0), *sizes(HUGE, 2**32 + 414), (5, STRUCT, values(2))], "32 bits"),
    "values as i64": (
        [(1, I32, 0), *sizes(), (5, STRUCT, [(1, I64, 2), *values(2)[1:]])], "has no sizes"),
}  # fmt: skip
"""Headers of a first page that hide the second one from a check that believes them."""
SECOND = [(1, I32, 0), *sizes(HUGE), (5, STRUCT, values(2))]
TOO_LARGE = r"a page of image at byte .* unpack to 2,147,483,647"


class File:
    """A file of one column, in four pages of two values and 414 bytes behind each header."""

    def __init__(self, path: Path) -> None:
        pictures = [bytes([i]) * 200 for i in range(8)]
        pq.write_table(pa.table({"image": pictures}), path, use_dictionary=False, compression=None,
                       data_page_size=400, write_batch_size=2)  # fmt: skip
        self.path, self.data = path, bytearray(path.read_bytes())
        column = pq.ParquetFile(path).metadata.row_group(0).column(0)
        at, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
        self.places: list[tuple[int, int]] = []
        """Begin and length of each page's header."""
        while at < end:
            header = Compact(bytes(self.data[at:]))
            assert header.struct()[3] == 414
            self.places.append((at, header.at))
            at += header.at + 414
        assert len(self.places) == 4

    def put(self, page: int, header: list[Field]) -> None:
        """Put another header in a page; a field that no reader has fills its bytes."""
        at, length = self.places[page]
        bare = len(struct([*header, (20, BINARY, b"")]))
        made = struct([*header, (20, BINARY, bytes(length - bare - 1))])
        assert len(made) == length
        self.data[at : at + length] = made

    def lengths(self) -> list[int]:
        """Bytes of each image, by our reader."""
        self.path.write_bytes(self.data)
        return open_images(str(self.path), "train").length_N.tolist()


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", FIRST)
def test_every_page_that_pyarrow_reads_is_checked(name: str, file: File) -> None:
    header, message = FIRST[name]
    file.put(0, header)
    file.put(1, SECOND)
    with pytest.raises(DataError, match=rf"cannot read .*a\.parquet: .*{message}"):
        file.lengths()


def test_a_second_page_is_checked(file: File) -> None:
    assert file.lengths() == [200] * 8
    file.put(0, [(1, I32, 0), *sizes(), (5, STRUCT, values(2))])
    assert file.lengths() == [200] * 8
    file.put(1, SECOND)
    with pytest.raises(DataError, match=TOO_LARGE):
        file.lengths()


def test_pages_of_a_column_that_a_row_group_calls_otherwise_are_checked(file: File) -> None:
    """pyarrow reads columns by their place in the schema; a row group repeats their names."""
    file.put(0, SECOND)
    behind = sum(file.places[-1]) + 414
    at = file.data.index(b"image", file.data.index(b"image", behind) + 5)  # schema, column
    file.data[at : at + 5] = b"other"
    with pytest.raises(DataError, match=TOO_LARGE):
        file.lengths()
    assert pq.ParquetFile(file.path).metadata.row_group(0).column(0).path_in_schema == "other"


def column(pages: bytes, count: int) -> SimpleNamespace:
    """Metadata of a column without a dictionary, of `count` values."""
    return SimpleNamespace(data_page_offset=0, dictionary_page_offset=None, num_values=count,
                           total_compressed_size=len(pages))  # fmt: skip


def test_pages_from_the_byte_that_pyarrow_begins_at() -> None:
    page, huge = struct([(1, I32, 0), *sizes(0, 0), (5, STRUCT, values(9))]), struct(SECOND)
    stated = column(page, 9)
    parquet._check_pages(io.BytesIO(page + huge), stated, "x")
    stated.dictionary_page_offset = len(huge)  # behind the data: none
    with pytest.raises(ValueError, match="unpack to"):
        parquet._check_pages(io.BytesIO(huge + page), stated, "x")
    stated.dictionary_page_offset, stated.data_page_offset = len(page), len(page + huge)
    with pytest.raises(ValueError, match="unpack to"):
        parquet._check_pages(io.BytesIO(page + huge + page), stated, "x")


def test_a_column_of_fewer_values_than_stated() -> None:
    """Parquet C++ reads up to 100 bytes behind the pages of an old writer, for the values left."""
    page = struct([(1, I32, 0), *sizes(0, 0), (5, STRUCT, values(9))])
    with pytest.raises(ValueError, match="the pages of x have 1 value less than stated"):
        parquet._check_pages(io.BytesIO(page + struct(SECOND)), column(page, 10), "x")


def nested(levels: int) -> bytes:
    """A file without rows, of one column within `levels` others."""
    elements = [struct([(3, I32, 1), (4, BINARY, b"a"), (5, I32, 1)])] * (levels + 1)
    elements += [struct([(1, I32, 6), (3, I32, 1), (4, BINARY, b"b")])]
    schema = bytes([0x19, 0xFC]) + varint(len(elements)) + b"".join(elements)  # field 2, structs
    footer = bytes([0x15, 2]) + schema + bytes([0x16, 0, 0x19, 0x0C, 0])
    return parquet.MAGIC + footer + len(footer).to_bytes(4, "little") + parquet.MAGIC


@pytest.mark.parametrize("levels", [0, 3, 63, 64, 100_000])
def test_levels_of_a_schema(levels: int) -> None:
    """Parquet C++ reads a schema by recursion, once without a bound."""
    data = nested(levels)
    if levels < 64:
        kind = parquet.schema(lambda a, b: data[a:b], len(data)).field(0).type
        assert str(kind).count("struct<") == levels
        return
    with pytest.raises(ValueError, match="its columns have more than 64 levels"):
        parquet.schema(lambda a, b: data[a:b], len(data))


def test_levels_are_counted_behind_other_columns(tmp_path: Path) -> None:
    """Many columns beside each other are no levels, and end those before them."""
    columns = {f"c{i}": pa.array([{"a": {"b": 1}, "c": [2]}]) for i in range(200)}
    pq.write_table(pa.table({"image": [b"x"], **columns}), tmp_path / "a.parquet")
    assert len(open_images(str(tmp_path / "a.parquet"), "train")) == 1


BOOLEANS = b"\x11" * 2**14 + b"\0"
"""A struct of 16,384 fields, a byte each."""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x29\xfc" + varint(2**16) + b"\0" * (2**16 + 1), "more than 16,384 structures"),
        (b"\x29\xf5" + varint(2**17) + b"\x7f" * 2**17, "cut short"),
        (b"\x29\xfc" + varint(2**5) + BOOLEANS * 2**5, "cut short"),
    ],
    ids=["structs", "numbers", "fields"],
)
def test_a_footer_takes_little_memory_to_be_refused(data: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            Compact(data, 2**14).struct()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**21  # with lists and dictionaries of all values, 5 to 35 MB
