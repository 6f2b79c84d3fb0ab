"""How hard the augmentation of each view was, from its parameters: no image is read.

Shapes: B views, S pixels a side.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cache_tools.spec.dataset import NO_LABEL
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.views import draw, ops

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]


@dataclass(frozen=True)
class Strength:
    """Numbers of B views."""

    label_B: I8
    """Label with the larger share of the view; NO_LABEL where there is none."""
    share_B: F8
    """That share, 0.5..1."""
    area_B: F8
    """Share of the picture that the crop takes, 0..1."""
    erased_B: F8
    """Share of the view that was erased, 0..1; boxes that overlap count twice."""
    turn_B: F8
    """Degrees by which the view was turned, either way."""
    operations_B: I8
    """Bit n: operation n of `ops` was carried out."""


def measure(store: Cache, part: Part, row_B: I8) -> Strength:
    """Numbers of neighbouring views of a part; those of unknown views say nothing but labels."""
    table, spec = store.table, store.spec.views
    label_B, one_B = table.label_N[row_B].astype(np.int64), np.ones(len(row_B))
    if not store.spec.replayable:
        return Strength(label_B, one_B, one_B, 0 * one_B, 0 * one_B, np.zeros(len(row_B), np.int64))
    sides = table.height_N[row_B], table.width_N[row_B]
    drawn = view_params.parameters(store, part.view, row_B)
    if spec.mixes:
        mix = view_params.mixing_of(store, part.view, row_B)
        one_B = mix.lam_B / draw.LAMBDA_SCALE
        label_B = np.where(one_B < 0.5, table.label_N[mix.partner_B], label_B)
    box_B4, erase_BE = drawn.box_B4.astype(np.float64), drawn.erase_BE8.astype(np.float64)
    return Strength(
        label_B,
        np.maximum(one_B, 1 - one_B),
        box_B4[:, 2] * box_B4[:, 3] / (sides[0].astype(np.float64) * sides[1]),
        (erase_BE[:, :, 2] * erase_BE[:, :, 3]).sum(axis=1) / spec.size**2,
        _turn(drawn.arguments_BL6[:, 0]) if spec.degrees else 0 * one_B,
        _operations(drawn.codes_BL),
    )


def concatenate(parts: list[Strength]) -> Strength:
    """Numbers of several pieces as one."""
    columns = [[getattr(part, f.name) for part in parts] for f in fields(Strength)]
    return Strength(*(np.concatenate(column) for column in columns))


def names(operations_B: I8) -> dict[str, NDArray[np.bool_]]:
    """Which views had an operation, by the names of those that occur; both affines are one."""
    found: dict[str, NDArray[np.bool_]] = {}
    for code, name in enumerate(ops.NAMES):
        had_B = (operations_B >> code & 1).astype(bool)
        if code != ops.NOTHING and had_B.any():
            found[name] = found.get(name, False) | had_B
    return found


def known(strength: Strength) -> NDArray[np.bool_]:
    """Which views have a label."""
    return np.asarray(strength.label_B != NO_LABEL)


def _turn(matrix_B6: NDArray[np.int32]) -> F8:
    return np.asarray(np.abs(np.degrees(np.arctan2(matrix_B6[:, 1], matrix_B6[:, 0]))))


def _operations(codes_BL: NDArray[np.int8]) -> I8:
    bits = np.zeros(len(codes_BL), dtype=np.int64)
    for codes_B in codes_BL.T:
        bits |= np.int64(1) << codes_B.astype(np.int64)
    return bits
