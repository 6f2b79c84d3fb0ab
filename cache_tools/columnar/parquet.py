"""Parquet files: the footer by a range of bytes, and rows one at a time, within the bytes at hand.

What a page states is checked before pyarrow decompresses it. A row is decoded alone: a dictionary
or a delta encoding can repeat a picture a million times in a few bytes, and only the rows that
are held at once take memory.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cache_tools.columnar.layout import Layout
from cache_tools.columnar.thrift import Compact

MAGIC = b"PAR1"
MAX_FOOTER, MAX_STRUCTS = 2**24, 2**18
"""Bytes of the largest footer, and the most structures in one, of which pyarrow takes a KB each."""
FREE_PAGE, DENSEST_PAGE, MAX_VALUES = 2**26, 8, 2**24
"""Bytes that any page may unpack to; times its stored bytes that a larger one may; most values."""
_HEAD, _LONGEST_HEAD, _BUFFER = 2**9, 2**16, 2**20
"""Bytes of the usual and of the longest header of a page, which has statistics; bytes that are
read at once."""
_UNPACKED, _PACKED, _DICTIONARY, _HEADERS, _VALUES = 2, 3, 7, (5, 7, 8), 1
"""Numbers of fields of a page's header: bytes, headers of its kinds and the values in these."""
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
                if (column := group.column(index)).path_in_schema in layout.leaves:
                    _check_pages(raw, column)
            yield from file.iter_batches(1, [number], layout.leaves, use_threads=False)


def _open(source: Any) -> Any:
    """Open a file whose footer was checked."""
    import pyarrow.parquet as pq

    limits = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": MAX_STRUCTS}
    return pq.ParquetFile(
        source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True, **limits
    )


def _check_footer(footer: bytes) -> None:
    """Raise ValueError for a footer of more structures than its reader has memory for."""
    metadata = Compact(footer)
    metadata.struct()
    if metadata.structs > MAX_STRUCTS:
        raise ValueError(f"its footer has {metadata.structs:,} parts, {MAX_STRUCTS:,} are the most")


def _check_pages(file: BinaryIO, column: Any) -> None:
    """Raise ValueError if a page of a column in a row group states what its bytes cannot be."""
    at = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)
    end, left = at + column.total_compressed_size, column.num_values
    while at < end and left > 0:
        file.seek(at)
        header = Compact(file.read(_HEAD))
        try:
            page = header.struct()
        except ValueError:
            file.seek(at)
            header = Compact(file.read(_LONGEST_HEAD))
            page = header.struct()
        kinds = [page[n] for n in _HEADERS if isinstance(page.get(n), dict)]
        numbers = [page.get(_UNPACKED), page.get(_PACKED), *(kind.get(_VALUES) for kind in kinds)]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"a page of {column.path_in_schema} at byte {at:,} has no sizes")
        unpacked, packed, *counts = numbers
        values, most = sum(counts), max(FREE_PAGE, DENSEST_PAGE * packed)
        if unpacked > most or values > MAX_VALUES:
            raise ValueError(
                f"a page of {column.path_in_schema} at byte {at:,} has {values:,} values and "
                f"{packed:,} bytes that unpack to {unpacked:,}, at most {most:,} of {MAX_VALUES:,} "
                "are read"
            )
        left -= 0 if page.get(_DICTIONARY) else values
        at += header.at + packed
