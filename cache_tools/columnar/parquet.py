"""Parquet files: the footer by a range of bytes, and rows one at a time, within the bytes at hand.

What a page states is checked before pyarrow decompresses it. A row is decoded alone: a dictionary
or a delta encoding can repeat a picture a million times in a few bytes, and only the rows that
are held at once take memory.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cache_tools.columnar.layout import Layout
from cache_tools.columnar.thrift import MAX_STRUCTS, Compact
from cache_tools.runtime.text import counted

MAGIC = b"PAR1"
MAX_FOOTER, MAX_LEVELS = 2**24, 64
"""Bytes of the largest footer; the most levels of columns within columns, of which pyarrow takes
some of the stack each."""
FREE_PAGE, DENSEST_PAGE, MAX_VALUES = 2**26, 8, 2**24
"""Bytes that any page may unpack to; times its stored bytes that a larger one may; most values."""
_HEAD, _LONGEST_HEAD, _BUFFER = 2**9, 2**16, 2**20
"""Bytes of the usual and of the longest header of a page, which has statistics; bytes that are
read at once."""
_SCHEMA, _CHILDREN = 2, 5
"""Numbers of the field of a footer's schema, and in it, of that of an element's children."""
_TYPE, _UNPACKED, _PACKED, _VALUES = 1, 2, 3, 1
"""Numbers of fields of a page's header: its type and bytes, and the values in the type's header."""
_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)
_HEADERS = {_DATA: 5, _INDEX: 6, _DICTIONARY: 7, _DATA_V2: 8}
"""Types of pages, and the field of the header of each."""
Part = Callable[[int, int], bytes]


def schema(part: Part, size: int) -> Any:
    """Read the Arrow schema of a file by ranges: the footer alone.

    Raises:
        ValueError, OSError: There is none, or it is damaged.
    """
    import pyarrow as pa

    tail = part(max(size - 8, 0), size)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > size - 12:
        raise ValueError("it has no footer, so it is cut short or no Parquet file")
    if length > MAX_FOOTER:
        raise ValueError(f"its footer has {length:,} bytes, {MAX_FOOTER:,} are the most")
    footer = part(size - 8 - length, size - 8)
    _check_footer(footer)
    with _open(pa.BufferReader(MAGIC + footer + tail)) as file:
        return file.schema_arrow


def batches(path: Path, layout: Layout) -> Iterator[Any]:
    """Yield record batches of one row; raises as `schema`, or errors of pyarrow."""
    with path.open("rb") as raw, _open(path) as file:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            for index in range(group.num_columns):
                name = file.schema.column(index).path  # that of the row group may be another
                if any(f"{name}.".startswith(f"{leaf}.") for leaf in layout.leaves):
                    _check_pages(raw, group.column(index), name)
            yield from file.iter_batches(1, [number], layout.leaves, use_threads=False)


def _open(source: Any) -> Any:
    """Open a file whose footer was checked."""
    import pyarrow.parquet as pq

    limits = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": MAX_STRUCTS}
    return pq.ParquetFile(
        source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True, **limits
    )


def _check_footer(footer: bytes) -> None:
    """Raise ValueError for a footer of more structures or levels than its reader has memory for."""
    elements = Compact(footer).struct().get(_SCHEMA)
    missing: list[int] = []  # children, at each level; a schema is a tree in preorder
    for element in elements if isinstance(elements, list) else ():
        while missing and missing[-1] == 0:
            missing.pop()
        if missing:
            missing[-1] -= 1
        children = element.get(_CHILDREN) if isinstance(element, dict) else None
        if isinstance(children, int) and children > 0:
            missing.append(children)
        if len(missing) > MAX_LEVELS:
            raise ValueError(f"its columns have more than {MAX_LEVELS} levels")


def _check_pages(file: BinaryIO, column: Any, name: str) -> None:
    """Raise ValueError if a page of a column in a row group states what its bytes cannot be.

    The pages are those that Parquet C++ finds: from the same byte on, by their type, until they
    have the values of the column.
    """
    at, dictionary = column.data_page_offset, column.dictionary_page_offset
    at = dictionary if dictionary is not None and 0 < dictionary < at else at
    end, left = at + column.total_compressed_size, column.num_values
    while at < end and left > 0:
        where = f"a page of {name} at byte {at:,}"
        file.seek(at)
        header = Compact(file.read(_HEAD))
        try:
            page = header.struct()
        except ValueError:
            file.seek(at)
            header = Compact(file.read(_LONGEST_HEAD))
            page = header.struct()
        kind = page.get(_TYPE)
        there = [number for number in _HEADERS.values() if number in page]
        if kind not in (_DATA, _DICTIONARY, _DATA_V2) or there != [_HEADERS[kind]]:
            raise ValueError(f"{where} is of the type {kind} and has the headers {there}")
        own = page[there[0]] if isinstance(page[there[0]], dict) else {}
        numbers: list[Any] = [page.get(_UNPACKED), page.get(_PACKED), own.get(_VALUES)]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"{where} has no sizes")
        unpacked, packed, values = numbers
        most = max(FREE_PAGE, DENSEST_PAGE * packed)
        if unpacked > most or values > MAX_VALUES:
            raise ValueError(
                f"{where} has {values:,} values and {packed:,} bytes that unpack to {unpacked:,}, "
                f"at most {most:,} of {MAX_VALUES:,} are read"
            )
        left -= 0 if kind == _DICTIONARY else values
        at += header.at + packed
    if left > 0:
        raise ValueError(f"the pages of {name} have {counted(left, 'value')} less than stated")
