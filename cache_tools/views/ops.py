"""Image operations by number: what `randaugment` draws and `kernels` carries out.

Argument 0 holds the magnitude: a factor, radius or angle in 1/65536, or bits, a threshold, a shift.
The affines use all six: a 2×3 matrix from output to source pixels, in 1/65536.
"""

NOTHING = 0
AUTOCONTRAST = 1
EQUALIZE = 2
INVERT = 3
POSTERIZE = 4
SOLARIZE = 5
SOLARIZE_ADD = 6
COLOR = 7
CONTRAST = 8
BRIGHTNESS = 9
SHARPNESS = 10
AFFINE_BILINEAR = 11
AFFINE_BICUBIC = 12
GRAYSCALE = 13
BLUR = 14
HUE = 15
AFFINE_NEAREST = 16

NAMES = (
    "nothing", "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add",
    "color", "contrast", "brightness", "sharpness", "affine", "affine", "grayscale", "blur", "hue",
    "affine",
)  # fmt: skip
"""Names for people, by number."""
