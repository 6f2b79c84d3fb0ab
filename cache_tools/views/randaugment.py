"""Draw RandAugment layers: a parsed configuration → operations and magnitudes of each view.

Level functions are timm's (`timm.data.auto_augment`), so that a recipe's string means here what it
means there; `spec.randaugment` parses it. FORMAT.md, section 3.3.

Shapes: B views, L layers, 6 arguments.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics import exact, rng
from cache_tools.numerics.array_types import F8, I4, I8, U8
from cache_tools.spec.randaugment import LEVELS, RandAugment
from cache_tools.views import ops

ONE = 65_536
_DRAWS = 8  # per layer: choice, apply, two of the magnitude, sign, interpolation, two spare


def draw(
    config: RandAugment, seed: int, ids_B: U8, view: int, size: int, interpolation: str
) -> tuple[NDArray[np.int8], I4]:
    """Draw the layers of B views of `size` pixels; `interpolation` is of geometric operations.

    Returns:
        codes_BL and arguments_BL6, as `ops` numbers them; NOTHING where a layer is left out.
    """
    count, layers = len(ids_B), config.layers
    bits = rng.bits(seed, ids_B, view, rng.STREAM_RANDAUGMENT, layers * _DRAWS)
    u = rng.uniform(bits).reshape(count, layers, _DRAWS)
    chosen = _choose(config, u[..., 0])
    applied = u[..., 1] < config.probability
    drawn = np.full((count, layers), config.magnitude)
    if config.deviation == float("inf"):
        drawn = u[..., 2] * config.magnitude
    elif config.deviation > 0:
        drawn = config.magnitude + config.deviation * exact.normal(u[..., 2], u[..., 3])
    level = np.clip(drawn, 0.0, config.bound) / LEVELS
    sign = np.where(u[..., 4] > 0.5, -1.0, 1.0)
    share_of_cubic = {"random": 0.5, "bicubic": 1.0}.get(interpolation, 0.0)
    plain = ops.AFFINE_NEAREST if interpolation == "nearest" else ops.AFFINE_BILINEAR
    affine = np.where(u[..., 5] < share_of_cubic, ops.AFFINE_BICUBIC, plain)
    codes = np.zeros((count, layers), dtype=np.int8)
    arguments = np.zeros((count, layers, 6), dtype=np.int32)
    for number, name in enumerate(config.operations):
        here = applied & (chosen == number)
        code, values = _OPERATIONS[name](level[here], sign[here], size)
        if code == ops.AFFINE_BILINEAR:
            codes[here] = affine[here]
            arguments[here] = np.rint(values * ONE)
        else:
            codes[here] = code
            arguments[here, 0] = values
    return codes, arguments


def rotation(turns: F8, size: int) -> F8:
    """Compute matrices [..., 6] that rotate about the centre of a square, anticlockwise."""
    cosine, sine = exact.cos_turns(turns), exact.sin_turns(turns)
    middle = (size - 1) / 2.0
    x0 = middle - cosine * middle + sine * middle
    y0 = middle - sine * middle - cosine * middle
    return np.stack([cosine, -sine, x0, sine, cosine, y0], axis=-1)


def _choose(config: RandAugment, u_BL: F8) -> I8:
    """Draw the operation of each layer."""
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
    """Make an operation whose magnitude runs from low to high, or 1 - it."""

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


def _translate(horizontal: bool, whole: bool = False) -> Operation:
    """Shift by up to 0.45 of the view; `whole`: by 150/331 of it in whole pixels (torchvision)."""

    def draw(level: F8, sign: F8, size: int) -> Drawn:
        matrix = _identity(len(level))
        pixels = np.floor(level * size * 150.0 / 331.0) if whole else level * 0.45 * size
        matrix[:, 2 if horizontal else 5] = sign * pixels
        return ops.AFFINE_BILINEAR, matrix

    return draw


def _identity(count: int) -> F8:
    return np.tile(np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), (count, 1))


_OPERATIONS: dict[str, Operation] = {
    "autocontrast": _plain(ops.AUTOCONTRAST),
    "equalize": _plain(ops.EQUALIZE),
    "invert": _plain(ops.INVERT),
    "rotate": lambda level, sign, size: (
        ops.AFFINE_BILINEAR, rotation(sign * (level * 30.0) / 360.0, size)
    ),
    "posterize": lambda level, sign, size: (ops.POSTERIZE, _posterize(level)),
    "posterize_inc": lambda level, sign, size: (ops.POSTERIZE, 4.0 - _posterize(level)),
    "solarize": lambda level, sign, size: (ops.SOLARIZE, _solarize(level)),
    "solarize_inc": lambda level, sign, size: (ops.SOLARIZE, 256.0 - _solarize(level)),
    "identity": _plain(ops.NOTHING),
    "posterize_tv": lambda level, sign, size: (ops.POSTERIZE, 8.0 - np.rint(level * 4.0)),
    "solarize_tv": lambda level, sign, size: (  # not below 255 - 255·level
        ops.SOLARIZE, np.ceil(np.rint((255.0 - 255.0 * level) * ONE) / ONE)
    ),
    "translate_x_tv": _translate(horizontal=True, whole=True),
    "translate_y_tv": _translate(horizontal=False, whole=True),
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
