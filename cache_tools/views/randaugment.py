"""RandAugment in timm's grammar: `rand-m9-n2-mstd0.5-inc1` → operations and magnitudes.

Grammar, sets of operations, weights and level functions are timm's (`timm.data.auto_augment`), so
that a recipe's string means here what it means there: m magnitude, n layers, p probability of a
layer, mstd deviation of the magnitude (over 100: uniform), mmax its bound, inc1 operations that
grow with the magnitude, t a set (`tweights`, `t3a`, `t3aw`). FORMAT.md, section 3.3.

Shapes: B views, L layers, 6 arguments.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics import exact, rng
from cache_tools.views import ops

F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
U8 = NDArray[np.uint64]

ONE = 65_536
_DRAWS = 8  # per layer: choice, apply, two of the magnitude, sign, interpolation, two spare
_LEVELS = 10.0


@dataclass(frozen=True)
class RandAugment:
    """A parsed configuration."""

    magnitude: float
    layers: int
    probability: float
    deviation: float
    """Standard deviation of the magnitude; infinite = uniform in [0, magnitude]."""
    bound: float
    """Largest magnitude."""
    operations: tuple[str, ...]
    weights: tuple[int, ...]
    """Relative weights, integers; operations are then drawn without repetition. Empty = equal."""


def parse(text: str) -> RandAugment:
    """Parse timm's string; ValueError names the section that is wrong."""
    name, *sections = text.split("-")
    if name != "rand":
        raise ValueError(f"auto_augment {text!r} does not begin with 'rand'")
    values = {"m": 10.0, "n": 2.0, "p": 0.5, "mstd": 0.0, "mmax": 0.0, "inc": 0.0}
    chosen = ""
    for section in sections:
        if section.startswith("t"):
            chosen = section[1:]
            continue
        match = re.fullmatch(r"([a-z]+)([0-9.]+|inf)", section)
        if not match or match[1] not in values:
            raise ValueError(f"auto_augment {text!r}: {section!r} is not of timm's grammar")
        values[match[1]] = float(match[2])
        if values[match[1]] == float("inf") and match[1] != "mstd":
            raise ValueError(f"auto_augment {text!r}: only mstd can be infinite")
    operations, weights = _choices(chosen, bool(values["inc"]))
    layers = int(values["n"])
    if not 1 <= layers <= (len(operations) if weights else 8) or not 0 <= values["p"] <= 1:
        raise ValueError(f"auto_augment {text!r}: n or p is out of range")
    deviation = float("inf") if values["mstd"] > 100 else values["mstd"]
    bound = values["mmax"] or _LEVELS
    return RandAugment(values["m"], layers, values["p"], deviation, bound, operations, weights)


def draw(
    config: RandAugment, seed: int, ids_B: U8, view: int, size: int, interpolation: str
) -> tuple[NDArray[np.int8], I4]:
    """Draw the layers of B views.

    Args:
        config: What to draw from.
        seed: The cache's seed.
        ids_B: Sample ids.
        view: View number.
        size: Height and width of the views in pixels.
        interpolation: "bilinear", "bicubic" or "random", of the geometric operations.

    Returns:
        codes_BL and arguments_BL6, as `ops` numbers them; NOTHING where a layer is left out.
    """
    count, layers = len(ids_B), config.layers
    bits = rng.bits(seed, ids_B, view, rng.STREAM_RANDAUGMENT, layers * _DRAWS)
    u = rng.uniform(bits).reshape(count, layers, _DRAWS)
    chosen = _choose(config, u[..., 0])
    applied = u[..., 1] < config.probability
    level = _magnitude(config, u[..., 2], u[..., 3]) / _LEVELS
    sign = np.where(u[..., 4] > 0.5, -1.0, 1.0)
    share_of_cubic = {"bilinear": 0.0, "random": 0.5, "bicubic": 1.0}[interpolation]
    cubic = u[..., 5] < share_of_cubic
    codes = np.zeros((count, layers), dtype=np.int8)
    arguments = np.zeros((count, layers, 6), dtype=np.int32)
    for number, name in enumerate(config.operations):
        here = applied & (chosen == number)
        code, values = _OPERATIONS[name](level[here], sign[here], size)
        if code == ops.AFFINE_BILINEAR:
            codes[here] = np.where(cubic[here], ops.AFFINE_BICUBIC, ops.AFFINE_BILINEAR)
            arguments[here] = np.rint(values * ONE)
        else:
            codes[here] = code
            arguments[here, 0] = values
    return codes, arguments


def rotation(turns: F8, size: int) -> F8:
    """Matrices [..., 6] that rotate about the centre of a square picture, anticlockwise."""
    cosine, sine = exact.cos_turns(turns), exact.sin_turns(turns)
    middle = (size - 1) / 2.0
    x0 = middle - cosine * middle + sine * middle
    y0 = middle - sine * middle - cosine * middle
    return np.stack([cosine, -sine, x0, sine, cosine, y0], axis=-1)


def _choose(config: RandAugment, u_BL: F8) -> I8:
    """Which operation each layer takes."""
    count = len(config.operations)
    if not config.weights:
        return np.asarray(np.floor(u_BL * count), dtype=np.int64)
    chosen = np.zeros(u_BL.shape, dtype=np.int64)
    weights = np.tile(np.array(config.weights, dtype=np.int64), (len(u_BL), 1))
    for layer in range(u_BL.shape[1]):
        cumulative = np.cumsum(weights, axis=1)
        ticket = np.floor(u_BL[:, layer] * cumulative[:, -1]).astype(np.int64)
        chosen[:, layer] = (ticket[:, None] >= cumulative).sum(axis=1)
        weights[np.arange(len(weights)), chosen[:, layer]] = 0
    return chosen


def _magnitude(config: RandAugment, u_BL: F8, v_BL: F8) -> F8:
    if config.deviation == float("inf"):
        drawn = u_BL * config.magnitude
    elif config.deviation > 0:
        drawn = config.magnitude + config.deviation * exact.normal(u_BL, v_BL)
    else:
        drawn = np.full(u_BL.shape, config.magnitude)
    return np.clip(drawn, 0.0, config.bound)


def _choices(name: str, increasing: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if name in _WEIGHTED:
        return tuple(_WEIGHTED[name]), tuple(_WEIGHTED[name].values())
    if name == "3a":
        return ("solarize_inc", "desaturate", "blur"), ()
    if name:
        raise ValueError(f"auto_augment knows the sets weights, 3a and 3aw, not {name!r}")
    if not increasing:
        return _STANDARD, ()
    return tuple(f"{n}_inc" if n in _INCREASING else n for n in _STANDARD), ()


_STANDARD = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add",
    "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x",
    "translate_y",
)  # fmt: skip
_INCREASING = {"posterize", "solarize", "color", "contrast", "brightness", "sharpness"}
_WEIGHTED = {
    "weights": {  # timm's, times 20
        "rotate": 60, "shear_x": 40, "shear_y": 40, "translate_x": 20, "translate_y": 20,
        "color_inc": 5, "sharpness_inc": 5, "autocontrast": 5, "solarize_inc": 1,
        "solarize_add": 1, "contrast_inc": 1, "brightness_inc": 1, "equalize": 1,
        "posterize_inc": 1, "invert": 1,
    },
    "3aw": {
        "solarize_inc": 6, "desaturate": 6, "blur": 6, "rotate": 3, "shear_x": 2, "shear_y": 2,
        "posterize_inc": 1, "autocontrast": 1, "color_inc": 1, "sharpness_inc": 1,
        "contrast_inc": 1, "brightness_inc": 1, "equalize": 1, "invert": 1,
    },
}  # fmt: skip

Drawn = tuple[int, F8]
Operation = Callable[[F8, F8, int], Drawn]


def _plain(code: int) -> Operation:
    return lambda level, sign, size: (code, np.zeros_like(level))


def _enhance(code: int) -> Operation:
    return lambda level, sign, size: (code, np.rint((level * 1.8 + 0.1) * ONE))


def _enhance_increasing(code: int) -> Operation:
    return lambda level, sign, size: (
        code, np.rint(np.maximum(0.1, 1.0 + sign * (level * 0.9)) * ONE)
    )  # fmt: skip


def _posterize(level: F8) -> F8:
    return np.asarray(np.floor(level * 4.0))


def _solarize(level: F8) -> F8:
    return np.minimum(256.0, np.floor(level * 256.0))


def _between(code: int, low: float, high: float, flip: bool) -> Operation:
    """A magnitude that runs from low to high, or 1 - it."""

    def draw(level: F8, sign: F8, size: int) -> Drawn:
        value = np.clip(low + (high - low) * level, low, high)
        return code, np.rint((1.0 - value if flip else value) * ONE)

    return draw


def _shear(horizontal: bool) -> Operation:
    def draw(level: F8, sign: F8, size: int) -> Drawn:
        factor = sign * (level * 0.3)
        matrix = _identity(len(level))
        matrix[:, 1 if horizontal else 3] = factor
        matrix[:, 2 if horizontal else 5] = 0.5 * factor
        return ops.AFFINE_BILINEAR, matrix

    return draw


def _translate(horizontal: bool) -> Operation:
    def draw(level: F8, sign: F8, size: int) -> Drawn:
        matrix = _identity(len(level))
        matrix[:, 2 if horizontal else 5] = sign * (level * 0.45) * size
        return ops.AFFINE_BILINEAR, matrix

    return draw


def _rotate(level: F8, sign: F8, size: int) -> Drawn:
    return ops.AFFINE_BILINEAR, rotation(sign * (level * 30.0) / 360.0, size)


def _identity(count: int) -> F8:
    return np.tile(np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), (count, 1))


_OPERATIONS: dict[str, Operation] = {
    "autocontrast": _plain(ops.AUTOCONTRAST),
    "equalize": _plain(ops.EQUALIZE),
    "invert": _plain(ops.INVERT),
    "rotate": _rotate,
    "posterize": lambda level, sign, size: (ops.POSTERIZE, _posterize(level)),
    "posterize_inc": lambda level, sign, size: (ops.POSTERIZE, 4.0 - _posterize(level)),
    "solarize": lambda level, sign, size: (ops.SOLARIZE, _solarize(level)),
    "solarize_inc": lambda level, sign, size: (ops.SOLARIZE, 256.0 - _solarize(level)),
    "solarize_add": lambda level, sign, size: (
        ops.SOLARIZE_ADD, np.minimum(128.0, np.floor(level * 110.0))
    ),
    "color": _enhance(ops.COLOR),
    "contrast": _enhance(ops.CONTRAST),
    "brightness": _enhance(ops.BRIGHTNESS),
    "sharpness": _enhance(ops.SHARPNESS),
    "color_inc": _enhance_increasing(ops.COLOR),
    "contrast_inc": _enhance_increasing(ops.CONTRAST),
    "brightness_inc": _enhance_increasing(ops.BRIGHTNESS),
    "sharpness_inc": _enhance_increasing(ops.SHARPNESS),
    "shear_x": _shear(horizontal=True),
    "shear_y": _shear(horizontal=False),
    "translate_x": _translate(horizontal=True),
    "translate_y": _translate(horizontal=False),
    "desaturate": _between(ops.COLOR, 0.5, 1.0, flip=True),
    "blur": _between(ops.BLUR, 0.1, 2.0, flip=False),
}  # fmt: skip
