"""Counter-based random numbers: (seed, sample id, view, stream, draw) → uint64 → uniform.

Philox4x64-10 (Salmon et al., SC'11) in plain numpy. A number depends on its counter alone and on
no earlier draw, so a view can be drawn again alone, in any order and on any machine; one stream per
operation means that a new operation never shifts an old one. numpy's own `Generator` methods are
no part of this: numpy may change their streams. FORMAT.md (section 3.1) prints test vectors.

Shapes: N samples, D draws.
"""

import numpy as np

from cache_tools.numerics.array_types import F8, U8

STREAM_CROP = 1
STREAM_FLIP = 2
STREAM_AFFINE = 3
STREAM_PAIR = 4
STREAM_MIX = 5
STREAM_ORDER = 6  # the student's order of samples; never part of a view
STREAM_RANDAUGMENT = 7
STREAM_THREE = 8
STREAM_JITTER = 9
STREAM_ERASE = 10
STREAM_FILTER = 11
STREAM_CUT = 12
STREAM_VIEWS = 14  # the student's order of views, when it is drawn
STREAM_REPEAT = 13  # which samples an epoch of repeated augmentation shows
STREAM_NOISE = 15  # the logits of an imagined student; never part of a view

_PIECE = 2**15
"""Samples whose numbers are made at once: their words stay in a processor's cache."""
_M0, _M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_W0, _W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_MASK = (1 << 64) - 1
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def _multiply(x: U8, m: int) -> tuple[U8, U8]:
    """High and low 64 bits of the 128-bit product x·m."""
    m_high, m_low = np.uint64(m >> 32), np.uint64(m & 0xFFFFFFFF)
    high, low = x >> _32, x & _LOW
    cross = high * m_low + (low * m_low >> _32)
    middle = low * m_high + (cross & _LOW)
    return high * m_high + (cross >> _32) + (middle >> _32), x * np.uint64(m)


def philox(counter: tuple[U8, U8, U8, U8], key: tuple[int, int]) -> tuple[U8, U8, U8, U8]:
    """Philox4x64-10 of four broadcast counter words under a two-word key."""
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _M0)
        high1, low1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), low1, high0 ^ c3 ^ np.uint64(k1), low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def bits(seed: int, ids_N: U8, view: int, stream: int, draws: int, first: int = 0) -> U8:
    """Generate `draws` numbers of one stream for every sample, from number `first` on.

    Draw d is word d mod 4 of the Philox block with counter (d div 4, view, sample id, stream) and
    key (seed, 0).

    Args:
        seed: The cache's seed, 0 ≤ seed < 2^64.
        ids_N: Sample ids (`spec.sample_table.sample_id`).
        view: View number.
        stream: One of the STREAM constants.
        draws: Numbers per sample, D.
        first: The first of them, a multiple of 4.

    Returns:
        [N, D] uint64.
    """
    assert first % 4 == 0
    blocks = np.arange(first // 4, -(-(first + draws) // 4), dtype=np.uint64)[None, :]
    ids = np.ascontiguousarray(ids_N, dtype=np.uint64)[:, None]
    words = philox((blocks, np.uint64(view), ids, np.uint64(stream)), (seed, 0))  # type: ignore[arg-type]
    return np.stack(words, axis=-1).reshape(len(ids), 4 * blocks.size)[:, :draws]


def first_bits(seed: int, ids_N: U8, view: int, stream: int) -> U8:
    """Generate the first number of one stream for every sample, [N]; arguments as of `bits`.

    It is made piece by piece, so that its memory is that of the result.
    """
    out_N = np.empty(len(ids_N), dtype=np.uint64)
    for begin in range(0, len(ids_N), _PIECE):
        piece = slice(begin, begin + _PIECE)
        out_N[piece] = bits(seed, ids_N[piece], view, stream, 1)[:, 0]
    return out_N


def uniform(bits_: U8) -> F8:
    """Uniforms in [0, 1) on the grid of 2^-53, same shape as the bits."""
    return (bits_ >> np.uint64(11)).astype(np.float64) * 2.0**-53
