"""Arrow files as `datasets` saves them: IPC streams, and IPC files, which contain one.

They are mapped, not read: a picture takes memory when its row is copied. Buffers compressed within
a message, which `datasets` does not write, could unpack to anything and are refused.
https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache_tools.columnar.layout import Layout
from cache_tools.columnar.parquet import Part

MAX_SCHEMA = 2**26
"""Bytes of the largest schema, which has the names of the classes."""
_FILE, _CONTINUED, _PREFIX = b"ARROW1\0\0", b"\xff\xff\xff\xff", 8
_COMPRESSION = {"record batch": (2, 3), "dictionary": (2, 1, 3)}
"""Fields from a message to its compression: header, data of a dictionary, compression."""


def schema(part: Part, size: int) -> Any:
    """Read the schema of a file by ranges: its first message.

    Raises:
        ValueError, OSError: There is none, or it is damaged.
    """
    import pyarrow as pa

    begin = len(_FILE) if part(0, min(len(_FILE), size)) == _FILE else 0
    length = _message_bytes(part(begin, min(begin + _PREFIX, size)), size - begin - _PREFIX)
    if length > MAX_SCHEMA:
        raise ValueError(f"its schema has {length:,} bytes, {MAX_SCHEMA:,} are the most")
    return pa.ipc.read_schema(pa.py_buffer(part(begin, begin + _PREFIX + length)))


def batches(path: Path, layout: Layout) -> Iterator[Any]:
    """Yield record batches with columns in the mapped file; raises as `schema`."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        begin = len(_FILE) if file.read(len(_FILE)) == _FILE else 0
        file.seek(begin)
        _check_messages(file)
        file.seek(begin)
        names = pa.ipc.open_stream(file).schema.names
        chosen = [names.index(name) for name in (layout.image, layout.path, layout.label) if name]
        file.seek(begin)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(chosen), use_threads=False)
        for batch in pa.ipc.open_stream(file, options=options):
            batch.validate(full=True)  # offsets beyond a buffer would be followed
            yield batch


def _check_messages(file: Any) -> None:
    """Raise ValueError unless a stream ends with its end marker and none of it is compressed."""
    import pyarrow as pa

    while True:
        at = file.tell()
        length = _message_bytes(file.read(_PREFIX), file.size() - at - _PREFIX)
        if length == 0:
            return
        file.seek(at)
        message = pa.ipc.read_message(file)
        data = message.metadata.to_pybytes()
        table = int.from_bytes(data[:4], "little")
        for number in (path := _COMPRESSION.get(message.type, ())):
            if (place := _field(data, table, number)) == 0:
                break
            table = place + int.from_bytes(data[place : place + 4], "little")
        else:
            if path:
                raise ValueError("its buffers are compressed. Write it without compression")


def _message_bytes(prefix: bytes, left: int) -> int:
    """Length of the metadata of a message by the 8 bytes before it; 0 at the end marker."""
    length = int.from_bytes(prefix[4:], "little", signed=True)
    if len(prefix) < _PREFIX or prefix[:4] != _CONTINUED or not 0 <= length <= left:
        raise ValueError("it is cut short, or no Arrow stream")
    return length


def _field(data: bytes, table: int, number: int) -> int:
    """Position of a field in a table of Flatbuffers; 0 where it is unset."""

    def value(at: int, size: int, signed: bool = False) -> int:
        return int.from_bytes(data[at : at + size], "little", signed=signed)

    slots = table - value(table, 4, signed=True)
    slot = 4 + 2 * number
    offset = value(slots + slot, 2) if slot < value(slots, 2) else 0
    return table + offset if offset else 0
