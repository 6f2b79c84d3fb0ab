"""Codec of sparse targets: the kept classes, a byte for each, and the mass of the rest.

A view's target keeps the classes whose probability exceeds tau (at least k_min, at most k_max),
sorted by class. Stored per view: their number (u2); per kept class the difference of its id
to the one before (u2, u4 beyond 65,534 classes) and its probability on a companded scale
q = round(levels · p^¼) (u1); per view and declared temperature the mass of all other classes as a
log-odds code (u1). Optionally a byte for the probability of the true class where it is not kept
(of both labels when views are mixed), and a byte for the sum of squares of the classes not kept.

Targets are packed: the entries of all views of a part follow each other without gaps, so that the
size of a view depends on the classes it keeps, not on k_max. FORMAT.md, section 4, is the
specification; why these numbers: the error of a sparse target is its dropped tail, hardly the
precision of the kept values.

Shapes: B views, K slots, C classes, T temperatures, E entries of B views, P labels of a view.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics import exact, field_arrays
from cache_tools.numerics.array_types import F4, F8, I4, I8, U1, U2
from cache_tools.spec.targets import TargetSpec

FILL_COUNT = 65_535
FILL_CODE = 255
NARROW_CLASSES = 65_534
"""Most classes whose differences fit u2: 0 is no difference, 65535 no legal value."""
_CODES = 254  # codes 1..254 of a one-byte scale; 0 is special, 255 the fill value
_ROOM = 1.02
"""Room for the entries of parts that are still to come, for each that they will have."""
_TAIL = (-11.0, 7.0)  # log-odds of the mass of the classes not kept
_TRUE = (-20.0, 0.0)  # log-odds of a true class that is not kept: at most one half
_SQUARE = (-16.0, 0.0)  # logarithm of Σp² / (Σp)² over the classes not kept


@dataclass(frozen=True)
class SparseTargets:
    """Sparse teacher targets of B views, before rounding to codes."""

    index_BK: I8
    """Class ids in any order; -1 in slots that are not used."""
    probability_BK: NDArray[np.floating]
    """Their probabilities at T = 1; 0 in slots that are not used."""
    tail_BT: NDArray[np.floating]
    """Mass of the classes not kept, at each declared temperature."""
    true_BP: NDArray[np.floating]
    """Probability of the true classes where they are not kept, else 0; P = 0: not stored."""
    square_BQ: NDArray[np.floating]
    """Σp² over the classes not kept; Q = 0: not stored."""


@dataclass(frozen=True)
class EncodedTargets:
    """Targets of B views as the arrays contain them."""

    count_B: U2
    """Classes kept of each view, at least 1."""
    index_delta_E: NDArray[np.unsignedinteger]
    """Per view: first class id + 1, then differences of ascending ids."""
    code_E: U1
    """1..levels."""
    tail_TB: U1
    """Log-odds code of the mass of the classes not kept; 0 = there is none."""
    true_PB: U1
    """Log-odds code of the true classes' probabilities; 0 = it is kept, or there is no label."""
    square_QB: U1
    """Logarithmic code of Σp² / (Σp)² over the classes not kept; 0 = there is none."""

    def __len__(self) -> int:
        return len(self.count_B)

    @cached_property
    def begin_B1(self) -> I8:
        """[B + 1] first entry of each view, and the end of the last one."""
        begin_B1 = np.zeros(len(self.count_B) + 1, np.int64)
        np.cumsum(self.count_B, out=begin_B1[1:])
        return begin_B1


@dataclass(frozen=True)
class DecodedTargets:
    """Decoded targets of B views."""

    index_BK: I4
    """Class ids, ascending; 0 in empty slots."""
    probability_BK: F4
    """Probabilities at T = 1; 0 in empty slots. With tail_BT[:, 0] they add up to 1."""
    tail_BT: F4
    """Mass of the classes not kept, at each temperature."""
    true_BP: F4
    """Probability of the true classes where they are not kept, else 0; P = 0: not stored."""
    square_BQ: F4
    """Σp² over the classes not kept; Q = 0: not stored."""


@cache
def levels(count: int) -> F4:
    """[256] fp32: code → probability before the row is scaled to 1 - tail; 0 outside 1..count."""
    table = np.zeros(256)
    square = np.square(np.arange(1, count + 1) / float(count))
    table[1 : count + 1] = square * square
    return _frozen(table)


@cache
def tail_levels() -> F4:
    """[256] fp32: tail code → mass; 0 for code 0 and for the fill value."""
    return _logistic(_TAIL)


@cache
def true_levels() -> F4:
    """[256] fp32: code of a true class that is not kept → probability; 0 for code 0."""
    return _logistic(_TRUE)


@cache
def square_levels() -> F4:
    """[256] fp32: code → Σp² / (Σp)² over the classes not kept; 0 for code 0."""
    return _table(exact.exp(_grid(_SQUARE)))


def index_dtype(num_classes: int) -> type[np.uint16] | type[np.uint32]:
    """Return the type of `index_delta`."""
    return np.uint16 if num_classes <= NARROW_CLASSES else np.uint32


def encode(sparse: SparseTargets, spec: TargetSpec, num_classes: int) -> EncodedTargets:
    """Round and pack sparse targets; a view that keeps all C classes has no tail."""
    from cache_tools.targets import packing

    index_BK = np.ascontiguousarray(sparse.index_BK, dtype=np.int64)
    count_B = (index_BK >= 0).sum(axis=1)
    delta_E = np.empty(int(count_B.sum()), dtype=index_dtype(num_classes))
    code_E = np.empty(len(delta_E), dtype=np.uint8)
    p_BK = np.ascontiguousarray(sparse.probability_BK)
    packing.pack(index_BK, p_BK, spec.levels, delta_E, code_E)
    rest = encode_rest(sparse.tail_BT, sparse.true_BP, sparse.square_BQ, count_B == num_classes)
    return EncodedTargets(count_B.astype(np.uint16), delta_E, code_E, *rest)


def encode_rest(
    tail_BT: NDArray[np.floating],
    true_BP: NDArray[np.floating],
    square_BQ: NDArray[np.floating],
    all_kept_B: NDArray[np.bool_],
) -> tuple[U1, U1, U1]:
    """Encode all fields but the kept classes: tail_TB, true_PB and square_QB."""
    tail = np.where(all_kept_B, 0, _code(_log_odds(tail_BT.T), _TAIL))
    true = np.where(true_BP.T > 0, _code(_log_odds(true_BP.T), _TRUE), 0)
    mass = np.maximum(tail_BT[:, :1].astype(np.float64), 1e-150)
    ratio = np.clip(square_BQ / (mass * mass), 1e-30, 1.0).T
    square = np.where(all_kept_B, 0, _code(exact.log(ratio), _SQUARE))
    return tail.astype(np.uint8), true.astype(np.uint8), square.astype(np.uint8)


def decode(stored: EncodedTargets, spec: TargetSpec, row_B: I8 | None = None) -> DecodedTargets:
    """Unpack checked targets; the inverse of `encode` up to the rounding of the codes.

    Rows are decoded in the order of `row_B`; None: all. K is the `k_max` of `spec`.
    """
    from cache_tools.targets import packing

    rows = np.arange(len(stored)) if row_B is None else row_B.astype(np.int64, copy=False)
    shape = len(rows), spec.k_max
    index, p = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float32)
    tail_BT = _values(stored.tail_TB, rows, tail_levels())
    begin, table = stored.begin_B1, levels(spec.levels)
    entries = stored.index_delta_E, stored.code_E
    packing.unpack(rows, begin, *entries, table, tail_BT[:, 0], index, p)
    true_BP = _values(stored.true_PB, rows, true_levels())
    square_BQ = _values(stored.square_QB, rows, square_levels())
    square_BQ *= np.square(tail_BT[:, :1])
    return DecodedTargets(index, p, tail_BT, true_BP, square_BQ)


def _values(code_XN: U1, row_B: I8, scale: F4) -> F4:
    """Look up the values of the codes of some views, [B, X]."""
    from cache_tools.targets import packing

    value_BX = np.empty((len(row_B), len(code_XN)), dtype=np.float32)
    packing.look_up(row_B, code_XN, scale, value_BX)
    return value_BX


def gather(parts: Sequence[DecodedTargets], groups: Sequence[I8]) -> DecodedTargets:
    """Concatenate decoded targets in the order in which `groups` number their views."""
    back_B = np.argsort(np.concatenate(groups))
    return field_arrays.select(field_arrays.concatenate(parts), back_B)


def concatenate(parts: Sequence[EncodedTargets]) -> EncodedTargets:
    """Concatenate the targets of several parts."""
    names = ("count_B", "index_delta_E", "code_E", "tail_TB", "true_PB", "square_QB")
    columns: list[Any] = [[getattr(part, name) for part in parts] for name in names]
    return EncodedTargets(*(np.concatenate(column, axis=-1) for column in columns))


def collect(parts: Iterable[EncodedTargets], count: int) -> EncodedTargets:
    """Concatenate the targets of parts of `count` views together, as they come.

    Memory is that of the result and of the part in hand.
    """
    columns: list[NDArray[Any]] = []
    entries: list[NDArray[Any]] = [np.empty(0, np.uint16), np.empty(0, np.uint8)]
    views = used = 0
    for part in parts:
        of_part = part.count_B[None], part.tail_TB, part.true_PB, part.square_QB
        if not columns:
            columns = [np.empty((len(own), count), own.dtype) for own in of_part]
        for column, own in zip(columns, of_part, strict=True):
            column[:, views : views + len(part)] = own
        views, need = views + len(part), used + len(part.code_E)
        if need > len(entries[1]):
            room = max(need, int(_ROOM * need / views * count))
            for i, own in enumerate((part.index_delta_E, part.code_E)):
                if used:  # grows where it is, or where the kernel moves its pages
                    entries[i].resize(room, refcheck=False)
                else:
                    entries[i] = np.empty(room, own.dtype)
        for whole, own in zip(entries, (part.index_delta_E, part.code_E), strict=True):
            whole[used:need] = own
        used = need
    for whole in entries:
        whole.resize(used, refcheck=False)
    count_1B, *rest = columns
    return EncodedTargets(count_1B[0], *entries, *rest)


def select_rows(stored: EncodedTargets, row_B: I8) -> EncodedTargets:
    """Select some of the targets, in any order, code by code."""
    count_B, begin_B = stored.count_B[row_B].astype(np.int64), stored.begin_B1[row_B]
    within_E = np.arange(int(count_B.sum())) - np.repeat(np.cumsum(count_B) - count_B, count_B)
    entry_E = np.repeat(begin_B, count_B) + within_E
    entries = stored.index_delta_E[entry_E], stored.code_E[entry_E]
    rest = (x[:, row_B] for x in (stored.tail_TB, stored.true_PB, stored.square_QB))
    return EncodedTargets(stored.count_B[row_B], *entries, *rest)


def check(stored: EncodedTargets, spec: TargetSpec, num_classes: int) -> str | None:
    """Check every value; describe the first impossible one, or return None."""
    return next(_violations(stored, spec, num_classes), None)


def expected_bytes(num_classes: int, kept: float, spec: TargetSpec) -> float:
    """Estimate bytes per view: ids at 93 % of a random set's entropy, codes, counts and tails.

    Fitted to the Zarr codecs on distinct photographs (`benchmarks.codec`).
    """
    n, k = float(num_classes), min(float(kept), float(num_classes) - 1e-9)
    share = k / n
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    code_bits = 6.55 - 0.35 * np.log(k) + np.log2(spec.levels / 127.0)
    extras = len(spec.temperatures) + 0.3 * spec.true_class + 0.8 * spec.tail_square
    return float((0.93 * n * entropy + code_bits * k) / 8 + 0.7 + extras)


def _violations(stored: EncodedTargets, spec: TargetSpec, num_classes: int) -> Iterator[str]:
    """Yield impossible values; a check may rely on those before it."""
    count = stored.count_B
    if len(count) and not spec.k_min <= int(count.min()) <= int(count.max()) <= spec.k_max:
        yield f"a view that keeps {int(count.min())} or {int(count.max())} classes"
    if int(count.sum(dtype=np.int64)) != len(stored.code_E):
        yield f"{len(stored.code_E)} entries for {int(count.sum(dtype=np.int64))} kept classes"
    if len(stored.code_E) and not 1 <= stored.code_E.min() <= stored.code_E.max() <= spec.levels:
        yield f"a code outside 1..{spec.levels}"
    if len(stored.code_E) and not stored.index_delta_E.all():
        yield "a class that is named twice"
    sum_E1 = np.concatenate([[0], np.cumsum(stored.index_delta_E, dtype=np.int64)])
    if (np.diff(sum_E1[stored.begin_B1]) > num_classes).any():  # the highest id is the sum - 1
        yield f"a class id beyond {num_classes - 1}"
    bytes_ = (stored.tail_TB, stored.true_PB, stored.square_QB)
    if any((codes == FILL_CODE).any() for codes in bytes_):
        yield "a tail, true-class or square code that is the fill value"
    if ((stored.tail_TB == 0) != (count == num_classes)).any():
        yield "a view without a tail that does not keep all classes, or the reverse"


def _log_odds(mass: NDArray[np.floating]) -> F8:
    clipped = np.clip(mass.astype(np.float64), 1e-30, 1.0 - 1e-9)
    return exact.log(clipped / (1.0 - clipped))


def _code(value: F8, bounds: tuple[float, float]) -> F8:
    """Round to the nearest step of an even grid, 1..254."""
    low, high = bounds
    step = (high - low) / (_CODES - 1)
    return np.asarray(1.0 + np.rint((np.clip(value, low, high) - low) / step))


def _grid(bounds: tuple[float, float]) -> F8:
    low, high = bounds
    return low + (high - low) / (_CODES - 1) * np.arange(float(_CODES))


def _logistic(bounds: tuple[float, float]) -> F4:
    return _table(1.0 / (1.0 + exact.exp(-_grid(bounds))))


def _table(values: F8) -> F4:
    table = np.zeros(256)
    table[1 : 1 + _CODES] = values
    return _frozen(table)


def _frozen(table: F8) -> F4:
    single = table.astype(np.float32)
    single.flags.writeable = False
    return single
