"""Thrift's compact protocol, as far as sizes in Parquet files are to be checked before pyarrow.

pyarrow takes the memory that a page states, up to 2 GiB, whatever its bytes are, and has no way to
show the page's header beforehand.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from typing import Any

_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY = 1, 2, 3, (4, 5, 6), 7, 8
_LISTS, _STRUCT = (9, 10), 12
_DEEPEST, _MOST_BITS = 16, 63


class Compact:
    """Values that follow each other in some bytes; ValueError for what cannot be one."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.structs = data, 0, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct: integers and structs by the number of their field, None for the others."""
        self.structs += 1
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            found[number] = self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int, inside: bool = False) -> Any:
        if depth > _DEEPEST:
            raise ValueError("its metadata are nested too deep")
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_TRUE, _FALSE):
            return self._skip(int(inside))  # of a field, the kind is the value
        if kind in (_BYTE, _DOUBLE, _BINARY):
            return self._skip({_BYTE: 1, _DOUBLE: 8}.get(kind) or self._varint())
        if kind in _LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            for _ in range(count):
                self._value(head & 15, depth + 1, inside=True)
            return None
        raise ValueError(f"its metadata have a value of the kind {kind}")  # maps: Parquet has none

    def _byte(self) -> int:
        self._skip(1)
        return self.data[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise ValueError("its metadata are cut short")

    def _varint(self) -> int:
        value = shift = 0
        while shift < _MOST_BITS + 7:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("its metadata have a number of more than 64 bits")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
