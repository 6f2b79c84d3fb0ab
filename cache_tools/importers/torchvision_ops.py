"""Operations of torchvision's RandAugment, by number and magnitude, as ours.

torchvision's operations and ours are equal up to rounding; a test compares each with torchvision's
on tensors. Geometric operations take the nearest pixel, the default of torchvision's RandAugment,
which ml-dr keeps.
"""

import math

import numpy as np

from cache_tools.views import ops, randaugment

ONE = 65_536
NAMES = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
    "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""torchvision's operations as ml-dr numbers them."""
_PLAIN = {"Identity": ops.NOTHING, "AutoContrast": ops.AUTOCONTRAST, "Equalize": ops.EQUALIZE}
_FACTORS = {
    "Brightness": ops.BRIGHTNESS,
    "Color": ops.COLOR,
    "Contrast": ops.CONTRAST,
    "Sharpness": ops.SHARPNESS,
}
_MOST = 1e4


def operation(number: int, magnitude: float, size: int) -> tuple[int, tuple[int, ...]]:
    """Return code and six arguments of operation `number` of `NAMES`, in a view of `size` pixels.

    Raises:
        ValueError: There is no such operation, or none of this magnitude.
    """
    if not 0 <= number < len(NAMES) or not abs(magnitude) <= _MOST:
        raise ValueError(f"no operation {number} of magnitude {magnitude}")
    name = NAMES[number]
    if name in _PLAIN:
        return _PLAIN[name], _first(0)
    if name in _FACTORS:
        return _FACTORS[name], _first(_within(1.0 + magnitude, 0.0, 64.0, ONE))
    if name == "Posterize":
        return ops.POSTERIZE, _first(_within(int(magnitude), 0, 8))
    if name == "Solarize":  # torchvision inverts what is not below the magnitude
        return ops.SOLARIZE, _first(_within(math.ceil(magnitude), 0, 256))
    return ops.AFFINE_NEAREST, _matrix(name, magnitude, size)


def _matrix(name: str, magnitude: float, size: int) -> tuple[int, ...]:
    """Return the map from target to source pixels, in 1/65536; shears are about the corner."""
    matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    match name:
        case "ShearX":
            matrix[1], matrix[2] = magnitude, 0.5 * magnitude
        case "ShearY":
            matrix[3], matrix[5] = magnitude, 0.5 * magnitude
        case "TranslateX":
            matrix[2] = -float(int(magnitude))
        case "TranslateY":
            matrix[5] = -float(int(magnitude))
        case "Rotate":
            matrix = randaugment.rotation(np.array([magnitude / 360.0]), size)[0].tolist()
    return tuple(round(value * ONE) for value in matrix)


def _within(value: float, low: float, high: float, scale: int = 1) -> int:
    if not low <= value <= high:
        raise ValueError(f"{value} is not in {low}..{high}")
    return round(value * scale)


def _first(value: int) -> tuple[int, ...]:
    return value, 0, 0, 0, 0, 0
