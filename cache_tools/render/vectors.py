"""Inner loops of `resample` and `affine` in vectors, written in LLVM's own language.

numba adds and multiplies in 64 bits, and LLVM neither multiplies 16-bit values as such nor
transposes, where loops do not show it that it can. Here each step is a vector operation of LLVM
that every processor has in some form; multiply-and-add instructions of 16 bits are found by LLVM,
as numba leaves no bits above them. Processors store the low byte first.

Of `average_rows` and `average_columns` a lane is a row of the result. Arguments are integers and
addresses, of which nothing is checked.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
COLUMNS = 4
"""Columns whose means `average_columns` computes: twelve channels fill three words of a row."""
ONE = 16_384
"""Weights are in 1/2^14, from 0 to ONE."""
_FRACTION, _MIDDLE = 8, 32_768
"""Bits of fraction of a row's mean, and what is taken from it to make it a signed 16-bit value."""
_BYTE, _HALF, _WORD, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _HALVES, _WORDS = (ir.VectorType(kind, LANES) for kind in (_BYTE, _HALF, _WORD))
_CHANNELS = 3
_COLUMN = 2 * LANES * _CHANNELS  # bytes of a column of means of rows


def _same(value: int) -> Any:
    """Make a vector of one constant, the low 32 bits of `value`."""
    return ir.Constant(_WORDS, [ir.Constant(_WORD, int(np.int64(value).astype(np.int32)))] * LANES)


def _load(builder: Any, address: Any, kind: Any, offset: int = 0) -> Any:
    place = builder.add(address, _LONG(offset))
    value = builder.load(builder.inttoptr(place, kind.as_pointer()))
    value.align = 1
    return value


def _store(builder: Any, value: Any, address: Any, offset: int = 0) -> None:
    place = builder.add(address, _LONG(offset))
    builder.store(value, builder.inttoptr(place, value.type.as_pointer())).align = 1


def _weight(builder: Any, address: Any, offset: int) -> Any:
    """Load a weight into all lanes, with its range as metadata."""
    value, undefined = _load(builder, address, _WORD, offset), ir.Constant(_WORDS, ir.Undefined)
    value.set_metadata("range", builder.module.add_metadata([_WORD(0), _WORD(ONE + 1)]))
    first = builder.insert_element(undefined, value, _WORD(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_WORDS, [0] * LANES))


def _sums(builder: Any, start: int, taps: Any, terms: Callable[[Any], list[Any]]) -> list[Any]:
    """Sum the vectors `terms` of each tap, from a constant; there are two taps or more."""
    sums = [builder.add(_same(start), term) for term in terms(_LONG(0))]
    sums = [builder.add(*pair) for pair in zip(sums, terms(_LONG(1)), strict=True)]
    place_of: Any = cgutils.alloca_once_value
    places = [place_of(builder, value) for value in sums]

    def add(tap: Any) -> None:
        for place, term in zip(places, terms(tap), strict=True):
            builder.store(builder.add(builder.load(place), term), place)

    with builder.if_then(builder.icmp_signed(">", taps, _LONG(2))):  # most that shrink have three
        add(_LONG(2))
    with cgutils.for_range(builder, taps, _LONG(3)) as loop:
        add(loop.index)
    return [builder.load(place) for place in places]


def _joined(builder: Any, values: list[Any], shift: int, bits: int) -> Any:
    """Put `bits` bits of several vectors, from bit `shift` on, into the words of one, low first."""
    words = []
    for k, value in enumerate(values):
        move = k * bits - shift
        moved = builder.lshr(value, _same(-move)) if move < 0 else builder.shl(value, _same(move))
        words.append(builder.and_(moved, _same(((1 << bits) - 1) << k * bits)))
    while len(words) > 1:
        words.append(builder.or_(words.pop(0), words.pop(0)))
    return words[0]


def _clipped(builder: Any, value: Any) -> Any:
    """Clip words to 0…255 and make bytes of them."""
    for least, sign in ((0, "<"), (255, ">")):
        limit = ir.Constant(value.type, [_WORD(least)] * value.type.count)
        value = builder.select(builder.icmp_signed(sign, value, limit), limit, value)
    return builder.trunc(value, ir.VectorType(_BYTE, value.type.count))


def _interleaved(builder: Any, vectors: list[Any]) -> list[Any]:
    """Transpose n vectors, n a power of two: the first lanes of all, the second ones, and so on."""
    half = len(vectors) // 2
    riffle = [lane for pair in zip(range(LANES), range(LANES, 2 * LANES), strict=True)
              for lane in pair]  # fmt: skip
    low, high = (ir.Constant(_WORDS, riffle[k:][:LANES]) for k in (0, LANES))
    for _ in range(half.bit_length()):
        vectors = [
            builder.shuffle_vector(vectors[k], vectors[half + k], lanes)
            for k in range(half)
            for lanes in (low, high)
        ]
    return vectors


@intrinsic
def _average_rows(
    _: Any, source: Any, begin: Any, step: Any, weights: Any, taps: Any, to: Any
) -> Any:
    """Average rows of bytes: 16 values of each of 16 results.

    Args:
        source: Address of the first of the 16 values in the row at 0.
        begin: Address of [16] offsets: where the row of each result's first tap is.
        step: Bytes from a tap to the next.
        weights: Address of [taps, 16] 32-bit weights.
        taps: Number of taps, at least 2.
        to: Address of [16 values, 16 results], written: signed 16-bit means less _MIDDLE, with
            _FRACTION bits of fraction.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, begin, step, weights, taps, to = arguments
        starts = [_load(builder, begin, _LONG, 8 * lane) for lane in range(LANES)]

        def terms(tap: Any) -> list[Any]:
            down = builder.add(source, builder.mul(tap, step))
            weight = builder.add(weights, builder.mul(tap, _LONG(4 * LANES)))
            pixels = [_load(builder, builder.add(start, down), _BYTES) for start in starts]
            return [
                builder.mul(builder.zext(row, _WORDS), _weight(builder, weight, 4 * lane))
                for lane, row in enumerate(pixels)
            ]

        cut = 14 - _FRACTION
        sums = _sums(builder, (1 << cut - 1) - (_MIDDLE << cut), taps, terms)
        pairs = zip(sums[::2], sums[1::2], strict=True)
        words = [_joined(builder, [*pair], cut, 16) for pair in pairs]
        for k, word in enumerate(_interleaved(builder, words)):
            _store(builder, word, to, 4 * LANES * k)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 6), generate


@intrinsic
def _average_columns(_: Any, means: Any, first: Any, weights: Any, taps: Any, to: Any) -> Any:
    """Average columns of what `average_rows` wrote: COLUMNS results in all rows.

    Args:
        means: Address of [columns, 3 channels, 16 rows].
        first: Address of [COLUMNS] 32-bit numbers: the column of each result's first tap.
        weights: Address of [taps, COLUMNS] 32-bit weights.
        taps: Number of taps, at least 2.
        to: Address of [3, 16 rows] words, written: those of a row are the bytes of its pixels.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        means, first, weights, taps, to = arguments
        columns = [_load(builder, first, _WORD, 4 * k) for k in range(COLUMNS)]
        longs = [builder.mul(builder.sext(at, _LONG), _LONG(_COLUMN)) for at in columns]
        starts = [builder.add(means, at) for at in longs]

        def terms(tap: Any) -> list[Any]:
            right = builder.mul(tap, _LONG(_COLUMN))
            weight = builder.add(weights, builder.mul(tap, _LONG(4 * COLUMNS)))
            found = []
            for k, start in enumerate(starts):
                place, factor = builder.add(start, right), _weight(builder, weight, 4 * k)
                for channel in range(_CHANNELS):
                    rows = _load(builder, place, _HALVES, 2 * LANES * channel)
                    found.append(builder.mul(builder.sext(rows, _WORDS), factor))
            return found

        cut = 14 + _FRACTION
        sums = _sums(builder, (1 << cut - 1) + (_MIDDLE << 14), taps, terms)
        for k in range(_CHANNELS):
            word = _joined(builder, sums[COLUMNS * k :][:COLUMNS], cut, 8)
            _store(builder, word, to, 4 * LANES * k)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 5), generate


@intrinsic
def _transpose(_: Any, words: Any, to: Any, pitch: Any) -> Any:
    """Transpose [16, 16] words at `words` to rows at `to`, `pitch` bytes apart."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, to, pitch = arguments
        columns = [_load(builder, words, _WORDS, 4 * LANES * k) for k in range(LANES)]
        for k, row in enumerate(_interleaved(builder, columns)):
            _store(builder, row, builder.add(to, builder.mul(pitch, _LONG(k))))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 3), generate


@intrinsic
def _prefetch(_: Any, address: Any, count: Any) -> Any:
    """Bring `count` bytes from an address on into the cache, to be written; any address will do."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, count = arguments
        pointer, write, near, data = _BYTE.as_pointer(), _WORD(1), _WORD(3), _WORD(1)
        kind = ir.FunctionType(ir.VoidType(), [pointer, _WORD, _WORD, _WORD])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        with cgutils.for_range_slice(builder, _LONG(0), count, _LONG(64), _LONG) as (at, _):
            place = builder.inttoptr(builder.add(address, at), pointer)
            builder.call(fetch, [place, write, near, data])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def _average_four(
    _: Any, source: Any, step: Any, weights: Any, apart: Any, ahead: Any, count: Any, to: Any
) -> Any:
    """Average four bytes for each of some values, round down and clip to 0…255.

    All is read and written in sixteens, beyond the last value, too.

    Args:
        source: Address of the first of the first value's bytes; those of the next values follow.
        step: Bytes from there to the second, third and fourth of them.
        weights: Address of [16] 32-bit weights in 1/2^20 of the first bytes of the first 16 values.
        apart: Bytes from there to the weights of the second, third and fourth.
        ahead: Bytes from the weights of 16 values to those of the next 16.
        count: Number of values.
        to: Address of [count] bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, step, weights, apart, ahead, count, to = arguments
        blocks = builder.lshr(builder.add(count, _LONG(LANES - 1)), _LONG(4))
        with cgutils.for_range(builder, blocks) as loop:
            first = builder.mul(loop.index, _LONG(LANES))
            pixels = builder.add(source, first)
            by = builder.add(weights, builder.mul(loop.index, ahead))
            total = _same(0)
            for _ in range(4):
                values = builder.zext(_load(builder, pixels, _BYTES), _WORDS)
                total = builder.add(total, builder.mul(values, _load(builder, by, _WORDS)))
                pixels, by = builder.add(pixels, step), builder.add(by, apart)
            value = _clipped(builder, builder.ashr(total, _same(20)))
            _store(builder, value, builder.add(to, first))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 7), generate


@intrinsic
def _sample_bicubic(
    _: Any, pixels: Any, pitch: Any, at: Any, across: Any, down: Any, weights: Any, count: Any,
    to: Any,
) -> Any:  # fmt: skip
    """Sample points, each from 4×4 pixels: columns first, rounded to 6 bits of fraction.

    Args:
        pixels: Address of words, each a pixel: its bytes are three channels and one that is not
            used.
        pitch: Bytes from a row of pixels to the next.
        at: Address of [count] 32-bit numbers: the upper left of each point's pixels.
        across: Address of [count] 32-bit numbers: its distance from the second column, in 1/2^16.
        down: As `across`, from the second row.
        weights: Address of [1025, 4] 16-bit weights in 1/2^14, by the distance in 1/1024.
        count: Number of points.
        to: Address of [3 * count + 1] bytes, written; the last is undefined.
    """
    four, bytes_16 = ir.VectorType(_WORD, 4), ir.VectorType(_BYTE, 16)
    halves_4, halves_16 = (ir.VectorType(_HALF, count) for count in (4, 16))

    def same(value: int) -> Any:
        return ir.Constant(four, [_WORD(value)] * 4)

    def pick(builder: Any, vector: Any, lanes: list[int]) -> Any:
        undefined = ir.Constant(vector.type, ir.Undefined)
        mask = ir.Constant(ir.VectorType(_WORD, len(lanes)), [_WORD(lane) for lane in lanes])
        return builder.shuffle_vector(vector, undefined, mask)

    def weights_of(builder: Any, weights: Any, distance: Any, k: Any) -> Any:
        """Load four weights: the first two in turns, four times, and so the others."""
        place = builder.add(distance, builder.mul(k, _LONG(4)))
        part = builder.zext(_load(builder, place, _WORD), _LONG)
        row = builder.lshr(builder.add(part, _LONG(32)), _LONG(6))
        four = _load(builder, builder.add(weights, builder.mul(row, _LONG(8))), halves_4)
        return pick(builder, four, [0, 1] * 4 + [2, 3] * 4)

    def weighted(builder: Any, values: Any, by: Any) -> Any:
        """Multiply 16 values of 16 bits: sums of lanes 0, 1, 8 and 9, of 2, 3, 10 and 11, …."""
        products = builder.mul(builder.sext(values, _WORDS), builder.sext(by, _WORDS))
        pairs = builder.add(*(pick(builder, products, [*range(k, 16, 2)]) for k in (0, 1)))
        return builder.add(*(pick(builder, pairs, [*range(k, k + 4)]) for k in (0, 4)))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixels, pitch, at, across, down, weights, count, to = arguments
        # lanes of two pixels side by side: r r g g b b
        side_by_side = [first + c + k for first in (0, 8) for c in range(4) for k in (0, 4)]
        with cgutils.for_range(builder, count) as loop:
            index = _load(builder, builder.add(at, builder.mul(loop.index, _LONG(4))), _WORD)
            place = builder.add(pixels, builder.mul(builder.zext(index, _LONG), _LONG(4)))
            by = weights_of(builder, weights, across, loop.index)
            rows = []
            for _ in range(4):
                line = pick(builder, _load(builder, place, bytes_16), side_by_side)
                sums = weighted(builder, builder.zext(line, halves_16), by)
                rows.append(builder.ashr(builder.add(sums, same(128)), same(8)))
                place = builder.add(place, pitch)
            pairs = [
                builder.or_(builder.and_(rows[k], same(65_535)), builder.shl(rows[k + 1], same(16)))
                for k in (0, 2)
            ]
            eight = ir.Constant(ir.VectorType(_WORD, 8), [*range(8)])
            column = builder.bitcast(builder.shuffle_vector(*pairs, eight), halves_16)
            value = weighted(builder, column, weights_of(builder, weights, down, loop.index))
            value = _clipped(builder, builder.ashr(value, same(20)))
            word = builder.bitcast(value, _WORD)
            _store(builder, word, builder.add(to, builder.mul(loop.index, _LONG(3))))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 8), generate


average_rows: Any = _average_rows
average_columns: Any = _average_columns
transpose: Any = _transpose
prefetch: Any = _prefetch
average_four: Any = _average_four
sample_bicubic: Any = _sample_bicubic
