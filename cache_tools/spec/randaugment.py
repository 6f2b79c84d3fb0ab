"""RandAugment in timm's grammar: `rand-m9-n2-mstd0.5-inc1` → a parsed configuration.

Grammar, sets of operations and weights are timm's (`timm.data.auto_augment`): m magnitude, n
layers, p probability of a layer, mstd deviation of the magnitude (over 100: uniform), mmax its
bound, inc1 operations that grow with the magnitude, t a set (`tweights`, `t3a`, `t3aw`). One set
is not timm's: `ttorchvision` has the operations of torchvision's RandAugment, of which m3 is
magnitude 9 of 30 and p1 applies every layer. Drawing is in `views.randaugment`. FORMAT.md, 3.3.
"""

import re
from dataclasses import dataclass

LEVELS = 10.0
"""Magnitude at which an operation has its full strength."""


@dataclass(frozen=True)
class RandAugment:
    """Parsed configuration."""

    magnitude: float
    layers: int
    """Operations of a view, L."""
    probability: float
    """Probability that a layer is applied."""
    deviation: float
    """Standard deviation of the magnitude; infinite = uniform in [0, magnitude]."""
    bound: float
    """Largest magnitude."""
    operations: tuple[str, ...]
    weights: tuple[int, ...]
    """Relative weights, integers; operations are then drawn without repetition. Empty = equal."""


def parse(text: str) -> RandAugment:
    """Parse timm's string; the text of a ValueError contains the wrong section."""
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
    bound = values["mmax"] or LEVELS
    return RandAugment(values["m"], layers, values["p"], deviation, bound, operations, weights)


def _choices(name: str, increasing: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if name in _WEIGHTED:
        return tuple(_WEIGHTED[name]), tuple(_WEIGHTED[name].values())
    if name == "torchvision":
        return _TORCHVISION, ()
    if name == "3a":
        return ("solarize_inc", "desaturate", "blur"), ()
    if name:
        raise ValueError(
            f"auto_augment has the sets weights, 3a, 3aw and torchvision, not {name!r}"
        )
    if not increasing:
        return _STANDARD, ()
    return tuple(f"{n}_inc" if n in _INCREASING else n for n in _STANDARD), ()


_STANDARD = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add",
    "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x",
    "translate_y",
)  # fmt: skip
_TORCHVISION = (
    "identity", "shear_x", "shear_y", "translate_x_tv", "translate_y_tv", "rotate",
    "brightness_inc", "color_inc", "contrast_inc", "sharpness_inc", "posterize_tv", "solarize_tv",
    "autocontrast", "equalize",
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
