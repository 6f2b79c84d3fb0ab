"""DistillKit's compressed log-probabilities: a fitted curve or bins of residuals, packed in bits.

Facts: arcee-ai/DistillKit (README, config and losses); the order of a record's parts and the bins
are those of allenai/open-instruct's adaptation of it. `benchmarks.peers` has the other layouts and
the rules for all: the fit is solved in float64, and parquet costs nothing.

Shapes: B views, K kept classes, C classes, N bytes of a record.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.peers import F2, F4, F8, I8, U1, Stored, dense, log_softmax, top

MISSING = 1e-6
"""Least mass DistillKit's loss gives to all classes it did not keep."""


@dataclass(frozen=True)
class Bin:
    """Residuals of consecutive ranks on one float16 scale."""

    bits: int
    count: int


@dataclass(frozen=True)
class DistillKit:
    """Log-probabilities by rank: a few as they are, the others as a fitted curve or in bins.

    The record is exact values, coefficients, per bin its scale and its packed residuals, then the
    class ids in ceil(log2 C) bits each, most significant first. The curve is a least-squares fit
    over the ranks 0, 1, … that follow the exact ones; powers up to 4 of ranks up to 111 are at the
    end of float32, in which its own code solves, so float64 shows the format at its best. Rows lie
    in parquet, whose own cost is not counted.

    "uniform" is what its documentation calls matching the teacher's uncertainty: at T = 1 the kept
    values are taken as they are, even where they sum to more than 1, and the other classes get at
    least `MISSING` together. "zero", the default of its loss, renormalises the kept ones.
    """

    label: str
    top_k: int
    exact_k: int
    """How many of the most probable are stored as they are."""
    exact: Literal["bfloat16", "float32"] = "float32"
    terms: tuple[int | Literal["sqrt"], ...] = ()
    """Powers of the rank in the curve; none: no curve."""
    bins: tuple[Bin, ...] = ()
    """What is left after the curve, by rank."""
    delta: bool = False
    """Store the difference to the log-probability of the rank before."""
    missing: Literal["uniform", "zero"] = "uniform"

    @property
    def name(self) -> str:
        return f"DistillKit {self.label}{' zero' if self.missing == 'zero' else ''}"

    def record_bytes(self, classes: int) -> int:
        exact = self.exact_k * (2 if self.exact == "bfloat16" else 4)
        bins = sum(2 + _bytes_of(b.bits * b.count) for b in self.bins)
        return exact + 4 * len(self.terms) + bins + _bytes_of(self.top_k * _index_bits(classes))

    def encode(self, logits_BC: ArrayLike) -> Stored:
        log_BC = log_softmax(logits_BC)
        index_BK = top(log_BC, self.top_k)
        log_BK = np.take_along_axis(log_BC, index_BK, 1)
        if self.delta:
            log_BK = np.diff(log_BK, axis=1, prepend=0.0)
        files = {
            "compressed_logprobs": np.hstack(list(self._parts(log_BK))).tobytes(),
            "bytepacked_indices": _pack(index_BK, _index_bits(log_BC.shape[1])).tobytes(),
        }
        return Stored(files, *log_BC.shape)

    def _parts(self, log_BK: F8) -> Iterator[U1]:
        """The parts of the records in their order, each [B, N]."""
        exact_BK, rest_BK = np.split(log_BK, [self.exact_k], axis=1)
        is_short = self.exact == "bfloat16"
        yield _bytes(_bfloat16(exact_BK) if is_short else exact_BK.astype(np.float32))
        if self.terms:
            coefficients = (rest_BK @ np.linalg.pinv(self._curve()).T).astype(np.float32)
            yield _bytes(coefficients)
            rest_BK = rest_BK - self._evaluate(coefficients)
        start = 0
        for bin_ in self.bins:
            scale_B1, code_BK = _quantise(rest_BK[:, start : start + bin_.count], bin_.bits)
            yield _bytes(scale_B1)
            yield _pack(code_BK, bin_.bits)
            start += bin_.count

    def restore(self, stored: Stored) -> F8:
        packed = np.frombuffer(stored.files["bytepacked_indices"], np.uint8)
        bits = _index_bits(stored.classes)
        index_BK = _unpack(packed.reshape(stored.views, -1), bits, self.top_k)
        row = np.frombuffer(stored.files["compressed_logprobs"], np.uint8)
        p_BK = np.exp(self._log_probabilities(row.reshape(stored.views, -1)).astype(np.float64))
        sum_B1 = p_BK.sum(1, keepdims=True)
        if self.missing == "zero":
            return dense(index_BK, p_BK / sum_B1, 0.0, stored.classes)
        rest_B1 = np.maximum(1 - sum_B1, MISSING) / (stored.classes - self.top_k)
        return dense(index_BK, p_BK, rest_B1, stored.classes)

    def _log_probabilities(self, row_BN: U1) -> F4:
        """Log-probabilities [B, K] in float32 from the records."""
        take = _Cutter(row_BN)
        exact_BK = take("<u2" if self.exact == "bfloat16" else "<f4", self.exact_k)
        if self.exact == "bfloat16":
            exact_BK = (exact_BK.astype(np.uint32) << 16).view(np.float32)
        rest_BK = np.zeros((len(row_BN), self.top_k - self.exact_k), np.float32)
        if self.terms:
            rest_BK += self._evaluate(take("<f4", len(self.terms)))
        start = 0
        for bin_ in self.bins:
            scale_B1 = take("<f2", 1).astype(np.float32)
            code_BK = _unpack(take("u1", _bytes_of(bin_.bits * bin_.count)), bin_.bits, bin_.count)
            rest_BK[:, start : start + bin_.count] += (code_BK - 2 ** (bin_.bits - 1)) * scale_B1
            start += bin_.count
        log_BK = np.hstack([exact_BK, rest_BK])
        return np.cumsum(log_BK, axis=1, dtype=np.float32) if self.delta else log_BK

    def _curve(self) -> F8:
        """The terms at every fitted rank, [K - exact_k, terms]."""
        rank = np.arange(self.top_k - self.exact_k, dtype=np.float64)
        return np.stack([np.sqrt(rank) if t == "sqrt" else rank**t for t in self.terms], axis=1)

    def _evaluate(self, coefficients: F4) -> F4:
        value: F4 = (coefficients[:, None, :] * self._curve().astype(np.float32)).sum(-1)
        return value


class _Cutter:
    """Takes typed columns off the front of rows of bytes."""

    def __init__(self, row_BN: U1) -> None:
        self.row_BN, self.at = row_BN, 0

    def __call__(self, dtype: str, count: int) -> NDArray[Any]:
        width = count * np.dtype(dtype).itemsize
        part = np.ascontiguousarray(self.row_BN[:, self.at : self.at + width])
        self.at += width
        return part.view(dtype)


def _quantise(value_BK: F8, bits: int) -> tuple[F2, I8]:
    """Scale [B, 1] and codes 0..2^bits - 1 of signed residuals; full scale is -max |v|."""
    half = 2 ** (bits - 1)
    largest_B1 = np.abs(value_BK).max(axis=1, keepdims=True)
    scale_B1 = np.where(largest_B1 == 0, 1.0, largest_B1 / half).astype(np.float16)
    code_BK = np.clip(np.round(value_BK / scale_B1), -half, half - 1) + half
    return scale_B1, code_BK.astype(np.int64)


def _bfloat16(value: F8) -> NDArray[np.uint16]:
    """The upper half of float32, rounded to the nearest, ties to even."""
    bits = value.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _pack(value_BK: I8, bits: int) -> U1:
    """Integers below 2^bits to bytes, rows padded at their end, most significant bit first."""
    flat = np.unpackbits(value_BK.astype(">u4").view(np.uint8), axis=1)
    flat = flat.reshape(*value_BK.shape, 32)[:, :, 32 - bits :]
    return np.packbits(flat.reshape(len(value_BK), -1), axis=1)


def _unpack(packed_BN: U1, bits: int, count: int) -> I8:
    flat = np.unpackbits(packed_BN, axis=1, count=bits * count).reshape(-1, count, bits)
    return flat.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def _bytes(value_BK: NDArray[Any]) -> U1:
    return np.ascontiguousarray(value_BK).view(np.uint8)


def _bytes_of(bits: int) -> int:
    return -(-bits // 8)


def _index_bits(classes: int) -> int:
    return (classes - 1).bit_length()


RECOMMENDED = DistillKit("rec k128", 128, 16, "bfloat16", (0, 1, 2, 3, 4, "sqrt"))
"""Its README's "recommended configuration"."""
BUDGET = DistillKit("budget k50", 50, 1, "bfloat16", (0, 1, "sqrt"))
"""Its README's "budget pick"."""
BINS = DistillKit("k20 bins", 20, 1, bins=(Bin(8, 19),), delta=True)
"""No curve: differences in one bin of 8 bits; documented options, in a combination of our own."""
