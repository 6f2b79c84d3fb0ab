import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache_tools.numerics import exact


def value(function, x: float) -> float:
    return float(function(np.array([x]))[0])


@given(st.floats(1e-300, 1e300))
def test_log(x: float) -> None:
    assert math.isclose(value(exact.log, x), math.log(x), rel_tol=1e-15, abs_tol=1e-16)


@given(st.floats(-600, 600))
def test_exp(x: float) -> None:
    assert math.isclose(value(exact.exp, x), math.exp(x), rel_tol=1e-15)


@given(st.floats(-2, 2))
def test_turns(x: float) -> None:
    assert math.isclose(value(exact.cos_turns, x), math.cos(2 * math.pi * x), abs_tol=3e-15)
    assert math.isclose(value(exact.sin_turns, x), math.sin(2 * math.pi * x), abs_tol=3e-15)


def test_quarter_turns_are_exact() -> None:
    quarters = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    assert exact.cos_turns(quarters).tolist() == [1, 0, -1, 0, 1]


def test_the_bits_are_those_of_the_format() -> None:
    """Golden values: another build of numpy must not change a bit."""
    assert value(exact.log, 0.7).hex() == "-0x1.6d3c324e13f4fp-2"
    assert value(exact.exp, -1.3).hex() == "0x1.17129308ce281p-2"
    assert value(exact.cos_turns, 0.1).hex() == "0x1.9e3779b97f4a8p-1"
