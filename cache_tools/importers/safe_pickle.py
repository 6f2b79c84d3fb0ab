"""Reader of pickles that builds data and nothing else.

A pickle is a program. Python's own reader runs whatever it names, even a restricted one allocates
memory for a number in the file, and torch's reader of weights refuses the opcodes of ml-dr's files.
This one builds numbers, text, bytes, lists, tuples, dictionaries and numpy arrays: the names in
`_KNOWN` are keywords here, no function of theirs is ever called, and any other name or opcode ends
the reading. Memory is bounded by the limits below whatever a file contains.
"""

import math
import reprlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from cache_tools.errors import DataError

MAX_BYTES = 2**26
"""Of a pickle, and of everything that its arrays and byte strings expand to."""
_MAX_STEPS = 2**20
"""Opcodes of one pickle; an image with 400 mixed views has 50,000."""
_MAX_LONG = 16
_ENCODE, _NDARRAY, _DTYPE, _RECONSTRUCT, _SCALAR = "encode", "ndarray", "dtype", "array", "scalar"
_KNOWN = {
    ("_codecs", "encode"): _ENCODE,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
}
_TENSORS = {
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("collections", "OrderedDict"): "ordered",
    **{
        ("torch", f"{name}Storage"): code
        for name, code in {
            "Bool": "?", "Byte": "u1", "Int": "<i4", "Long": "<i8", "Half": "<f2", "Float": "<f4",
            "Double": "<f8",
        }.items()
    },
}  # fmt: skip
"""Names of tensors, known only where their storages can be read."""
_TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxother = 3, 60


def brief(value: Any) -> str:
    """Shorten the `repr` of a file's value for messages: it may have no end.

    Lists that hold one another twice, forty times over, are a file of a few hundred bytes.
    """
    return _BRIEF.repr(value)[:80]


@dataclass(frozen=True)
class _Name:
    """A name that the pickle mentions."""

    word: str


@dataclass
class _Unbuilt:
    """A dtype or array still without its BUILD; `places` of the memo hold it."""

    code: str
    places: list[int] = field(default_factory=list)


class _Refused(Exception):
    """Content that is not data, or beyond a limit."""


def loads(
    data: bytes, name: str, begin: int = 0, storages: Callable[[str], bytes] | None = None
) -> tuple[Any, int]:
    """Read the value of the pickle at `begin` of a file called `name`, and the position of its end.

    With `storages`, which reads the bytes of one by its key, tensors are read as numpy arrays.

    Raises:
        DataError: It contains anything but data, is cut short, or exceeds a limit.
    """
    try:
        if len(data) > MAX_BYTES:
            _refuse(f"{len(data):,} bytes are more than the {MAX_BYTES:,} that are read")
        reader = _Reader(data, begin, storages)
        return reader.run(), reader.at
    except _Refused as error:
        raise DataError(f"{name} is refused: {error}. Nothing in it was run.") from None
    except (IndexError, struct.error, TypeError, ValueError, KeyError) as error:
        raise DataError(f"{name} is no whole pickle of data ({error}).") from None


class _Reader:
    def __init__(
        self, data: bytes, begin: int, storages: Callable[[str], bytes] | None = None
    ) -> None:
        self.at = begin
        self._storages, self._known = storages, _KNOWN | (_TENSORS if storages else {})
        self._data = data
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._budget = MAX_BYTES

    def run(self) -> Any:  # noqa: PLR0912 - a branch per opcode
        """Carry out opcodes up to STOP.

        The opcodes of files of many numbers are inlined: a call for each would take four times as
        long. The rest is in `_ACTIONS`.
        """
        data, stack, memo, marks = self._data, self._stack, self._memo, self._marks
        push, pop, at = stack.append, stack.pop, self.at
        for _ in range(_MAX_STEPS):
            opcode = data[at]
            at += 1
            if opcode == _GET:
                push(memo[data[at]])
                at += 1
            elif opcode == _BYTE:
                push(data[at])
                at += 1
            elif opcode == _MEMOIZE:
                value = stack[-1]
                if type(value) is _Unbuilt:
                    value.places.append(len(memo))
                memo[len(memo)] = value
            elif opcode == _FLOAT:
                push(_double(data, at)[0])
                at += 8
            elif opcode == _TWO_BYTES:
                push(data[at] | data[at + 1] << 8)
                at += 2
            elif opcode == _LONG_GET:
                push(memo[_word(data, at)[0]])
                at += 4
            elif opcode == _PAIR:
                last = pop()
                stack[-1] = (stack[-1], last)
            elif opcode == _MARK:
                marks.append(len(stack))
            elif opcode == _TUPLE:
                begin = marks.pop()
                stack[begin:] = [tuple(stack[begin:])]
            elif opcode == _APPENDS:
                self.append(self.group())
            elif opcode == _LIST:
                push([])
            elif opcode == _STOP:
                break
            else:
                if (action := _ACTIONS.get(opcode)) is None:
                    _refuse(f"it has the opcode {opcode:#04x}, which no data needs")
                self.at = at
                action(self)
                at = self.at
        else:
            _refuse(f"it has more than {_MAX_STEPS:,} opcodes")
        self.at = at
        value = pop()
        if stack or marks or isinstance(value, (_Name, _Unbuilt)):
            _refuse("it ends in the middle of a value")
        return value

    def take(self, count: int) -> bytes:
        """Read the next bytes of the file."""
        end = self.at + count
        if count < 0 or end > len(self._data):
            _refuse("it is cut short")
        piece = self._data[self.at : end]
        self.at = end
        return piece

    def number(self, form: str) -> Any:
        """Read a number in a format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Read a line of the file."""
        end = self._data.index(b"\n", self.at, self.at + 256)
        text = self.take(end - self.at).decode()
        self.at += 1
        return text

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def group(self) -> list[Any]:
        """Take the values since the last mark off the stack."""
        begin = self._marks.pop()
        values = self._stack[begin:]
        del self._stack[begin:]
        return values

    def tuple_of(self, count: int) -> None:
        """Make the last values a tuple."""
        if len(self._stack) < count:
            _refuse("a tuple has too few values")
        values = tuple(self._stack[-count:])
        self._stack[-count:] = [values]

    def append(self, values: list[Any]) -> None:
        """Add to the list on the stack."""
        target = self._stack[-1]
        if type(target) is not list:
            _refuse(f"it appends to a {type(target).__name__}")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Add to the dictionary on the stack."""
        target = self._stack[-1]
        keys = values[::2]
        if type(target) is not dict or len(values) % 2:
            _refuse("it sets items of what is no dictionary")
        if not all(type(key) in (str, int) for key in keys):
            _refuse("a key of a dictionary is neither text nor a number")
        target.update(zip(keys, values[1::2], strict=True))

    def one(self) -> Any:
        """Take the last value off the stack."""
        return self._stack.pop()

    def put(self, place: int) -> None:
        """Remember the last value."""
        value = self._stack[-1]
        self._memo[place] = value
        if isinstance(value, _Unbuilt):
            value.places.append(place)

    def name(self, module: str, name: str) -> None:
        """Push a name of `_KNOWN`."""
        if (word := self._known.get((module, name))) is None:
            _refuse(f"it names {module[:80]}.{name[:80]}, which is no data")
        self.push(_Name(word))

    def reduce(self) -> None:
        """Build the data of a pickle's call of a known name."""
        arguments, called = self.one(), self.one()
        if not isinstance(called, _Name) or type(arguments) is not tuple:
            _refuse("it calls what is no name")
        match called.word, arguments:
            case "encode", (str() as text, "latin1" | "latin-1"):
                self._spend(len(text))
                self.push(text.encode("latin-1"))
            case "dtype", (str() as code, *_) if code in _TYPES:
                self.push(_Unbuilt(code))
            case "array", (_Name(word="ndarray"), (0,), _):
                self.push(_Unbuilt("array"))
            case "scalar", (np.dtype() as kind, bytes() as value) if len(value) == kind.itemsize:
                self.push(np.frombuffer(value, kind)[0].item())
            case "ordered", ():
                self.push({})
            case "tensor", (np.ndarray() as values, int(), tuple(), tuple(), *_):
                self.push(self._tensor(values, *arguments[1:4]))
            case word, _:
                _refuse(f"it has invalid arguments of a {word}")

    def storage(self) -> None:
        """Read the storage of a tensor, by its type, key and number of values."""
        match self.one():
            case ("storage", _Name(word=kind), str() as key, str(), int() as count) if (
                self._storages is not None and kind in _TENSORS.values() and key.isdecimal()
            ):
                data = self._storages(key)
                self._spend(len(data))
                if kind in ("tensor", "ordered") or len(data) != count * np.dtype(kind).itemsize:
                    _refuse(f"a storage of {count} values has {len(data):,} bytes")
                self.push(np.frombuffer(data, kind))
            case other:
                _refuse(f"it refers to {brief(other)}, which is no storage")

    def _tensor(
        self, values: Any, begin: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
    ) -> Any:
        """Build an array of values in a storage, which must be inside of it."""
        numbers = (begin, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            _refuse(f"a tensor has the shape {str(shape)[:80]}")
        last = begin + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        count = math.prod(shape)
        if count and not last < len(values):
            _refuse(f"a tensor of {str(shape)[:80]} leaves its storage of {len(values)} values")
        self._spend(count * values.itemsize)
        steps = tuple(s * values.itemsize for s in strides)
        inside = values[begin:] if count else values[:0]
        return np.lib.stride_tricks.as_strided(inside, shape, steps).copy()

    def build(self) -> None:
        """Complete a dtype or an array."""
        state, unbuilt = self.one(), self.one()
        if not isinstance(unbuilt, _Unbuilt):
            _refuse(f"it changes the state of a {type(unbuilt).__name__}")
        built: Any
        match unbuilt.code, state:
            case "array", (1, tuple() as shape, np.dtype() as kind, bool() as order, bytes() as b):
                built = self._array(shape, kind, order, b)
            case code, (3 | 4, "<" | ">" | "|" | "=" as order, None, None, None, *_):
                built = np.dtype(f"{order}{code}")
            case code, _:
                _refuse(f"it has an invalid state of a {code}")
        for place in unbuilt.places:
            self._memo[place] = built
        self.push(built)

    def _array(
        self, shape: tuple[Any, ...], kind: np.dtype[Any], fortran: bool, data: bytes
    ) -> Any:
        """Build an array over the bytes read; its declared size must equal theirs."""
        if len(shape) > 4 or not all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape):
            _refuse(f"an array has the shape {str(shape)[:80]}")
        expected = kind.itemsize
        for length in shape:
            expected *= length
        if expected != len(data):
            _refuse(f"an array of {shape} {kind} has {len(data):,} bytes, not {expected:,}")
        self._spend(expected)
        return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")

    def _spend(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            _refuse(f"it expands to more than {MAX_BYTES:,} bytes")


def _long(reader: _Reader) -> None:
    length = reader.number("<B")
    if length > _MAX_LONG:
        _refuse(f"it has an integer of {length} bytes")
    reader.push(int.from_bytes(reader.take(length), "little", signed=True))


def _named_on_stack(reader: _Reader) -> None:
    name, module = reader.one(), reader.one()
    if type(name) is not str or type(module) is not str:
        _refuse("it names something that is no text")
    reader.name(module, name)


def _proto(reader: _Reader) -> None:
    if (version := reader.number("<B")) > 5:
        _refuse(f"its protocol is {version}")


def _refuse(why: str) -> NoReturn:
    raise _Refused(why)


_STOP, _MARK, _TUPLE, _LIST, _APPENDS = b".(t]e"
_GET, _LONG_GET, _BYTE, _TWO_BYTES, _FLOAT = b"hjKMG"
_PAIR, _MEMOIZE = 0x86, 0x94
_double, _word = struct.Struct(">d").unpack_from, struct.Struct("<I").unpack_from
_ACTIONS: dict[int, Callable[[_Reader], None]] = {
    0x80: _proto,
    0x95: lambda r: _ignore(r.take(8)),  # the length of a frame
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("J"): lambda r: r.push(r.number("<i")),
    0x8A: _long,
    ord("X"): lambda r: r.push(r.take(r.number("<I")).decode("utf-8", "surrogatepass")),
    0x8C: lambda r: r.push(r.take(r.number("<B")).decode("utf-8", "surrogatepass")),
    0x8D: lambda r: r.push(r.take(r.number("<Q")).decode("utf-8", "surrogatepass")),
    ord("B"): lambda r: r.push(r.take(r.number("<I"))),
    ord("C"): lambda r: r.push(r.take(r.number("<B"))),
    0x8E: lambda r: r.push(r.take(r.number("<Q"))),
    ord("a"): lambda r: r.append([r.one()]),
    ord(")"): lambda r: r.push(()),
    0x85: lambda r: r.tuple_of(1),
    0x87: lambda r: r.tuple_of(3),
    ord("}"): lambda r: r.push({}),
    ord("s"): lambda r: r.set_items([r.one(), r.one()][::-1]),
    ord("u"): lambda r: r.set_items(r.group()),
    ord("q"): lambda r: r.put(r.number("<B")),
    ord("r"): lambda r: r.put(r.number("<I")),
    ord("c"): lambda r: r.name(r.line(), r.line()),
    0x93: _named_on_stack,
    ord("R"): lambda r: r.reduce(),
    ord("b"): lambda r: r.build(),
    ord("Q"): lambda r: r.storage(),
}
"""Other opcodes → actions; those that create instances or reach outside are missing."""


def _ignore(value: object) -> None:
    """Evaluate to nothing."""
