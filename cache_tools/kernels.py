"""The image operations on uint8 pixels, compiled once and used by both stages.

Integer arithmetic only, so that a pixel is the same on every processor; no Python lock is held, so
that a thread pool renders in parallel.

Shapes: H, W, 3 = rows, columns, RGB.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

U1 = NDArray[np.uint8]


@njit(nogil=True, cache=True)
def affine(source: U1, matrix: NDArray[np.int64], fill: U1, out: U1) -> None:  # pragma: no cover
    """Map every output pixel through a 2×3 matrix and sample bilinearly.

    Args:
        source: [H, W, 3] pixels.
        matrix: Output (x, y) to source (x, y), row by row, in 1/65536 pixel.
        fill: Colour outside of the source.
        out: [H, W, 3], written.
    """
    height, width = source.shape[0], source.shape[1]
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            # 8 bits of fraction are left for the weights: four products then fit 32 bits
            sx = (matrix[0] * x + matrix[1] * y + matrix[2] + 128) >> 8
            sy = (matrix[3] * x + matrix[4] * y + matrix[5] + 128) >> 8
            left, top = sx >> 8, sy >> 8
            fx, fy = sx & 255, sy & 255
            for c in range(3):
                total = 32768
                for dy in range(2):
                    weight_y = fy if dy else 256 - fy
                    for dx in range(2):
                        row, column = top + dy, left + dx
                        if 0 <= row < height and 0 <= column < width:
                            value = np.int64(source[row, column, c])
                        else:
                            value = np.int64(fill[c])
                        total += weight_y * (fx if dx else 256 - fx) * value
                out[y, x, c] = total >> 16
