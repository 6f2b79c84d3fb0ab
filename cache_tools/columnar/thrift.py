"""Thrift's compact protocol, as far as sizes in Parquet files are to be checked before pyarrow.

pyarrow takes the memory that a page states, up to 2 GiB, whatever its bytes are, and has no way to
show the page's header beforehand.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from typing import Any

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY = 1, 2, 3, 4, 5, 6, 7, 8
_LISTS, _STRUCT = (9, 10), 12
_DEEPEST, _MOST_BITS = 16, 63
_BITS = {_I16: 16, _I32: 32, _I64: 64}


class Compact:
    """Values that follow each other in some bytes; ValueError for what cannot be one.

    Where the reader of pyarrow would take one of two values, or cut a number to its bits, the bytes
    are refused: what is checked here has to be what it reads.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.structs = data, 0, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct by the numbers of its fields: i32, structs and lists; None for the others.

        Parquet has its sizes and counts as i32; a reader passes over a number of another kind.
        """
        self.structs += 1
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer(_I16)
            if number in found or not 0 < number < 2**15:
                raise ValueError(f"its metadata have the field {number} twice, or as none can be")
            found[number] = self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int, inside: bool = False) -> Any:
        if depth > _DEEPEST:
            raise ValueError("its metadata are nested too deep")
        if kind in _BITS:
            value = self._integer(kind)
            return value if kind == _I32 else None
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_TRUE, _FALSE):
            return self._skip(int(inside))  # of a field, the kind is the value
        if kind in (_BYTE, _DOUBLE, _BINARY):
            return self._skip({_BYTE: 1, _DOUBLE: 8}.get(kind) or self._varint())
        if kind in _LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            values = (self._value(head & 15, depth + 1, inside=True) for _ in range(count))
            return [value for value in values if not depth]  # of the others, the size is enough
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

    def _integer(self, kind: int) -> int:
        value = self._varint()
        if value >= 1 << _BITS[kind]:
            raise ValueError(f"its metadata have a number of more than {_BITS[kind]} bits")
        return (value >> 1) ^ -(value & 1)
