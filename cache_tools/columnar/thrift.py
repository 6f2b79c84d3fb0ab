"""Thrift's compact protocol, as far as sizes in Parquet files are to be checked before pyarrow.

pyarrow takes the memory that a page states, up to 2 GiB, whatever its bytes are, and has no way to
show the page's header beforehand.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from typing import Any

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY = 1, 2, 3, 4, 5, 6, 7, 8
_LISTS, _STRUCT = (9, 10), 12
_DEEPEST, _MOST_BITS, _FIELDS = 16, 63, 32
"""Levels of structs and lists; bits of a number's bytes but the last; numbers of Parquet's fields
are below this one, and values of others are not kept."""
MAX_STRUCTS = 2**18
"""The most structures in a footer, of which pyarrow takes a KB each."""
_BITS = {_I16: 16, _I32: 32, _I64: 64}


class Compact:
    """Values that follow each other in some bytes; ValueError for what cannot be one.

    Where the reader of pyarrow would take one of two values, or cut a number to its bits, the bytes
    are refused: what is checked here has to be what it reads.
    """

    def __init__(self, data: bytes, most: int = MAX_STRUCTS) -> None:
        """Read `data`, in which there are `most` structs at most."""
        self.data, self.at, self.structs, self._most = data, 0, 0, most

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct by the numbers of its fields: i32, structs and lists of structs; else None.

        Parquet has its sizes and counts as i32; a reader passes over a number of another kind.
        """
        self.structs += 1
        if self.structs > self._most:
            raise ValueError(f"its metadata have more than {self._most:,} structures")
        found: dict[int, Any] = {}
        seen: set[int] = set()
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer(_I16)
            if number in seen or not 0 < number < 2**15:
                raise ValueError(f"its metadata have the field {number} twice, or as none can be")
            seen.add(number)
            value = self._value(head & 15, depth)
            if number < _FIELDS:
                found[number] = value
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
            kept = not depth and head & 15 == _STRUCT  # of the others, the size is enough
            values = (self._value(head & 15, depth + 1, inside=True) for _ in range(count))
            return [value for value in values if kept]
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
