"""Strength of the augmentation of each view, from its parameters: no image is read.

Shapes: B views, S pixels a side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics.array_types import F8, I8
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.views import draw, ops


@dataclass(frozen=True)
class AugmentStats:
    """Augmentation strengths of B views."""

    label_B: I8
    """Label with the larger share of the view; NO_LABEL if unlabelled."""
    share_B: F8
    """That share, 0.5..1."""
    area_B: F8
    """Share of the image inside the crop, 0..1."""
    erased_B: F8
    """Share of the view that is erased, 0..1; overlapping boxes count twice."""
    turn_B: F8
    """Absolute rotation in degrees."""
    operations_B: I8
    """Bit n: operation n of `ops` was applied."""


def measure(store: Cache, part: Part, row_B: I8) -> AugmentStats:
    """Compute strengths of rows of a part; unknown views have labels only."""
    table, spec = store.table, store.spec.views
    label_B, one_B = table.label_N[row_B].astype(np.int64), np.ones(len(row_B))
    if not store.spec.replayable:
        no_operation_B = np.zeros(len(row_B), np.int64)
        return AugmentStats(label_B, one_B, one_B, 0 * one_B, 0 * one_B, no_operation_B)
    sides = table.height_N[row_B], table.width_N[row_B]
    drawn = view_params.parameters(store, part.view, row_B)
    if spec.mixes:
        mix = view_params.mixing_of(store, part.view, row_B)
        one_B = mix.lam_B / draw.LAMBDA_SCALE
        label_B = np.where(one_B < 0.5, table.label_N[mix.partner_B], label_B)
    box_B4, erase_BE = drawn.box_B4.astype(np.float64), drawn.erase_BE8.astype(np.float64)
    turn_B = 0 * one_B
    if spec.degrees:
        matrix_B6 = drawn.arguments_BL6[:, 0]
        turn_B = np.abs(np.degrees(np.arctan2(matrix_B6[:, 1], matrix_B6[:, 0])))
    bit_BL = np.int64(1) << drawn.codes_BL.astype(np.int64)
    return AugmentStats(
        label_B,
        np.maximum(one_B, 1 - one_B),
        box_B4[:, 2] * box_B4[:, 3] / (sides[0].astype(np.float64) * sides[1]),
        (erase_BE[:, :, 2] * erase_BE[:, :, 3]).sum(axis=1) / spec.size**2,
        turn_B,
        np.bitwise_or.reduce(bit_BL, axis=1),
    )


def names(operations_B: I8) -> dict[str, NDArray[np.bool_]]:
    """Return a mask of views by name of operation; both affines count as one."""
    found: dict[str, NDArray[np.bool_]] = {}
    for code, name in enumerate(ops.NAMES):
        had_B = (operations_B >> code & 1).astype(bool)
        if code != ops.NOTHING and had_B.any():
            found[name] = found.get(name, False) | had_B
    return found
