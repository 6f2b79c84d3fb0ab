"""Elementary functions with the same bits on every machine.

`np.exp` and `np.cos` differ in the last bit between processors and numpy builds, and a last bit can
move the edge of a crop by a pixel. Here they are built from +, -, ×, ÷ and square root alone,
which IEEE 754 rounds correctly everywhere; each function is within 2 ulp of the true value.
The order of operations below is part of the format (FORMAT.md, section 3.2).

All functions take and return float64 arrays of any shape.
"""

import numpy as np

from cache_tools.numerics.array_types import F8

_LN2_HIGH = float.fromhex("0x1.62e42fefa0000p-1")  # 40 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = float.fromhex("0x1.cf79abc9e3b39p-40")
_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_HALF_PI = float.fromhex("0x1.921fb54442d18p+0")
_SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")


def log(x: F8) -> F8:
    """Natural logarithm of x > 0, by 2·artanh((m-1)/(m+1)) of the mantissa m."""
    m, e = np.frexp(x)
    small = m < _SQRT_HALF
    m, e = np.where(small, m + m, m), e - small
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / 25.0)
    for k in range(23, 0, -2):
        series = series * square + 1.0 / k
    return e * _LN2 + (s + s) * series


def exp(x: F8) -> F8:
    """Exponential of |x| < 700, by the Taylor series on |r| <= ln(2)/2."""
    n = np.rint(x / _LN2)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    series = np.ones_like(r)
    for k in range(14, 0, -1):
        series = series * r / k + 1.0
    return np.ldexp(series, n.astype(np.int64))


def cos_turns(turns: F8) -> F8:
    """cos(2π·turns): the angle in turns, so that no reduction by π loses bits."""
    quarters = turns * 4.0
    nearest = np.rint(quarters)
    r = (quarters - nearest) * _HALF_PI
    square = r * r
    cosine, sine = np.ones_like(r), np.ones_like(r)
    for k in range(18, 0, -2):
        cosine = 1.0 - cosine * square / (k * (k - 1))
        sine = 1.0 - sine * square / (k * (k + 1))
    sine = sine * r
    quadrant = nearest.astype(np.int64) & 3
    return np.choose(quadrant, [cosine, -sine, -cosine, sine])


def sin_turns(turns: F8) -> F8:
    """sin(2π·turns)."""
    return cos_turns(turns - 0.25)


def normal(u: F8, v: F8) -> F8:
    """Turn two uniforms in [0, 1) into standard normal numbers, by Box and Muller."""
    return np.sqrt(-2.0 * log(1.0 - u)) * cos_turns(v)
