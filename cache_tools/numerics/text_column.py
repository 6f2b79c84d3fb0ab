"""Strings in one array of bytes, in place of as many objects of Python.

The keys of fourteen million samples take 1.1 GB as strings of Python, in every process. As bytes
they take a quarter of that, and all processes of a machine can map one file of them. Bytes are
UTF-8; those of file names that are none are kept as they are (`surrogateescape`).

Shapes: N strings of L bytes together.
"""

from collections.abc import Iterator, Sequence
from typing import Self, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics.array_types import I8, U1

_ROWS = 2**16
"""Strings that are made of bytes at once."""
_LINE, _FOLDER = ord("\n"), ord("/")


class TextColumn(Sequence[str]):
    """N strings, like a tuple of them; each is decoded on access."""

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __init__(self, bytes_L: U1, begin_N: I8, end_N: I8) -> None:
        self.bytes_L = bytes_L
        """[L] bytes, in which strings may overlap and gaps may be."""
        self.begin_N = begin_N
        """[N] first byte of each string."""
        self.end_N = end_N
        """[N] end of each string."""

    @classmethod
    def of(cls, strings: Sequence[str]) -> Self:
        """Encode strings."""
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        return cls._of_lengths(
            b"\n".join(encoded), np.fromiter(map(len, encoded), np.int64, len(encoded))
        )

    @classmethod
    def of_lines(cls, lines: bytes | U1) -> Self:
        """Take lines, the last one without a line break: one string more than there are breaks."""
        bytes_L = np.frombuffer(lines, np.uint8) if isinstance(lines, bytes) else lines
        breaks = np.flatnonzero(bytes_L == _LINE)
        begin = np.concatenate([[0], breaks + 1])
        return cls(bytes_L, begin, np.append(breaks, len(bytes_L)))

    @classmethod
    def concatenate(cls, columns: Sequence["TextColumn"]) -> Self:
        """Concatenate columns."""
        lengths = [column.length_N for column in columns]
        return cls._of_lengths(
            b"\n".join(column.joined for column in columns if len(column)),
            np.concatenate(lengths) if lengths else np.zeros(0, np.int64),
        )

    @classmethod
    def _of_lengths(cls, lines: bytes, length_N: I8) -> Self:
        end_N = np.cumsum(length_N + 1) - 1
        return cls(np.frombuffer(lines, np.uint8), end_N - length_N, end_N)

    @property
    def length_N(self) -> I8:
        """[N] bytes of each string."""
        return self.end_N - self.begin_N

    @property
    def joined(self) -> bytes:
        r"""All strings with "\n" between each two, as bytes."""
        begin, end = self.begin_N, self.end_N
        if not len(self):
            return b""
        if np.array_equal(begin[1:], end[:-1] + 1) and (self.bytes_L[end[:-1]] == _LINE).all():
            return self.bytes_L[begin[0] : end[-1]].tobytes()
        return b"\n".join(b"\n".join(piece) for piece in self._pieces())

    def compact(self) -> Self:
        """Copy the strings, so that there are no gaps between them."""
        return self._of_lengths(self.joined, self.length_N)

    def take(self, row_R: NDArray[np.integer]) -> Self:
        """Select strings in any order; their bytes are not copied."""
        return type(self)(self.bytes_L, self.begin_N[row_R], self.end_N[row_R])

    def stems(self) -> Self:
        """Return what is behind the last slash of each string; the bytes are not copied."""
        slash_S = np.flatnonzero(self.bytes_L == _FOLDER)
        if not len(slash_S):
            return self
        last = np.searchsorted(slash_S, self.end_N) - 1  # the last one in front of the end
        begin_N = np.where(last < 0, 0, slash_S[last] + 1)
        return type(self)(self.bytes_L, np.maximum(begin_N, self.begin_N), self.end_N)

    def holds(self, byte: int) -> NDArray[np.bool_]:
        """[N] True for strings with this byte in them."""
        at = np.flatnonzero(self.bytes_L == byte)
        found = np.searchsorted(at, self.end_N) != np.searchsorted(at, self.begin_N)
        return np.asarray(found)

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each string."""
        for piece in self._pieces():
            yield from piece

    def _pieces(self) -> Iterator[list[bytes]]:
        """Yield the bytes of some strings after the others."""
        for first in range(0, len(self), _ROWS):
            begin, end = (x[first : first + _ROWS] for x in (self.begin_N, self.end_N))
            low, high = int(begin.min()), int(end.max())
            if high - low > 64 * int((end - begin).sum()) + _ROWS:  # far apart: not copied at once
                data, low = self.bytes_L.data, 0
            else:
                data = memoryview(self.bytes_L[low:high].tobytes())
            pairs = zip((begin - low).tolist(), (end - low).tolist(), strict=True)
            yield [bytes(data[b:e]) for b, e in pairs]

    def __len__(self) -> int:
        return len(self.begin_N)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            column = type(self)(self.bytes_L, self.begin_N[index], self.end_N[index])
            return tuple(column)
        data = self.bytes_L[self.begin_N[index] : self.end_N[index]].tobytes()
        return data.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for data in self.encoded():
            yield data.decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TextColumn):
            same = np.array_equal(self.length_N, other.length_N)
            return same and self.joined == other.joined
        if isinstance(other, tuple | list):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + ", …" * (len(self) > 3)
        return f"<{len(self):,} strings: {shown}>"


def of(strings: Sequence[str]) -> TextColumn:
    """Return a column of these strings, which may be one already."""
    return strings if isinstance(strings, TextColumn) else TextColumn.of(strings)


def joined(strings: Sequence[str]) -> bytes:
    r"""Encode strings with "\n" between each two; UnicodeEncodeError if one is no UTF-8."""
    return strings.joined if isinstance(strings, TextColumn) else "\n".join(strings).encode()


def take(strings: Sequence[str], row_R: NDArray[np.integer]) -> Sequence[str]:
    """Select strings in any order."""
    if isinstance(strings, TextColumn):
        return strings.take(row_R)
    return [strings[i] for i in row_R.tolist()]
