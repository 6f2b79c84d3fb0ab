"""Parameters of imported views: as a cache stores them, checked, and as the renderer takes them.

A view that is mixed has two sides, its own and that of its partner: unlike with views that are
drawn, the partner's parameters are not those of one of the partner's own views. FORMAT.md, section
3.6, is the specification.

Shapes: B views (one per sample), P sides (2 when views are mixed, else 1), L operations with 6
arguments, E erased boxes, N samples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import I4, I8, U1, U4
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.views import draw, ops
from cache_tools.views.draw import LAMBDA_SCALE, MixParams, ViewParams

_FACTOR = 64 * 65_536  # the largest that the kernels are made for
_BOUNDS = {
    ops.POSTERIZE: (0, 8),
    ops.SOLARIZE: (0, 256),
    ops.SOLARIZE_ADD: (0, 255),
    ops.COLOR: (0, _FACTOR),
    ops.CONTRAST: (0, _FACTOR),
    ops.BRIGHTNESS: (0, _FACTOR),
    ops.SHARPNESS: (0, _FACTOR),
    ops.BLUR: (0, 16 * 65_536),
    ops.HUE: (0, 255),
}
"""Lowest and highest argument of operations that have one."""
_MATRIX = 2**30  # of an affine: 16,384 pixels


@dataclass(frozen=True)
class ImportedViews:
    """Parameters of one view of each of B samples."""

    box_BP4: I4
    """Crop: top, left, height, width in pixels of the picture (of the partner's, on side 1)."""
    flip_BP: U1
    """1 if the resized crop is flipped horizontally."""
    codes_BPL: U1
    """Operations, numbered as in `ops`."""
    arguments_BPL6: I4
    """Their arguments."""
    erase_BPE4: I4
    """Erased boxes: top, left, height (0 = none), width."""
    partner_B: U4
    """Row of the partner in the sample table, of mixed views; a view that is alone has its own."""
    weight_B: U4
    """Share of the own pixels outside of the cut box in 1/65536."""
    cut_B4: I4
    """Box of the partner's pixels alone: top, left, height (0 = none), width."""
    seed_B: U4
    """The other system's seed of each view."""

    def __len__(self) -> int:
        return len(self.flip_BP)

    def rows(self, row_R: I8) -> "ImportedViews":
        """Select some of the views."""
        return field_arrays.select(self, row_R)

    def equals(self, other: "ImportedViews") -> bool:
        """Check that both are of the same views."""
        return len(self) == len(other) and not self.differ(other).any()

    def differ(self, other: "ImportedViews") -> NDArray[np.bool_]:
        """Compare with `other` view by view: [B], True where they differ."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        unequal = [(a != b).reshape(len(self), -1).any(axis=1) for a, b in pairs]
        return np.asarray(np.any(unequal, axis=0))

    def side(self, side: int, spec: CacheSpec) -> ViewParams:
        """Convert the views (0) or their partners (1) to what the renderer takes."""
        count, boxes = len(self), self.erase_BPE4.shape[2]
        erase = np.zeros((count, boxes, 8), dtype=np.int32)
        erase[..., :4] = self.erase_BPE4[:, side]
        erase[..., 5:] = spec.views.fill
        return ViewParams(
            self.box_BP4[:, side],
            np.full(count, draw.filter_number(spec.views.interpolation), dtype=np.int8),
            self.flip_BP[:, side].astype(np.bool_),
            self.codes_BPL[:, side].astype(np.int8),
            self.arguments_BPL6[:, side],
            erase,
            np.zeros((count, boxes, 2), dtype=np.uint64),
        )

    def mix(self, spec: CacheSpec) -> MixParams:
        """Compute how the views are mixed; partners are rows of the sample table."""
        area = spec.views.size * spec.views.size
        rest = area - self.cut_B4[:, 2].astype(np.int64) * self.cut_B4[:, 3]
        weight = self.weight_B.astype(np.int64)
        lam = (weight * rest * 2 + area) // (2 * area)
        partner, outside = self.partner_B.astype(np.int64), weight.astype(np.int32)
        return MixParams(partner, lam.astype(np.int32), self.cut_B4, outside)


@dataclass(frozen=True)
class Column:
    """One array of the group `views`."""

    name: str
    """Name in the group."""
    attribute: str
    """Attribute of `ImportedViews`."""
    shape: tuple[int, ...]
    """Shape for one view."""
    dtype: str
    stored: bool
    """True if the cache has it."""
    default: int = 0
    """Value where the cache does not have it."""

    @property
    def planes(self) -> int:
        """Values of a view: the axis in front of the array; 0 when it is not stored."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.stored

    @property
    def path(self) -> str:
        """Path in the cache."""
        return f"views/{self.name}"


def columns(spec: CacheSpec) -> tuple[Column, ...]:
    """List the arrays that hold the parameters of a cache's imported views."""
    if (source := spec.imported) is None:
        return ()
    mixed, shown = spec.views.mixes, spec.replayable
    sides, layers, boxes = 1 + mixed, source.operations, source.erased
    return (
        Column("box", "box_BP4", (sides, 4), "int32", shown),
        Column("flip", "flip_BP", (sides,), "uint8", shown),
        Column("operation", "codes_BPL", (sides, layers), "uint8", shown),
        Column("argument", "arguments_BPL6", (sides, layers, 6), "int32", shown),
        Column("erase", "erase_BPE4", (sides, boxes, 4), "int32", shown),
        Column("partner", "partner_B", (), "uint32", mixed),
        Column("weight", "weight_B", (), "uint32", mixed, LAMBDA_SCALE),
        Column("cut", "cut_B4", (4,), "int32", mixed),
        Column("seed", "seed_B", (), "uint32", source.seeds),
    )


def blank(count: int, spec: CacheSpec) -> dict[str, NDArray[Any]]:
    """Allocate every attribute of `ImportedViews` for `count` views without operations."""
    return {c.attribute: np.full((count, *c.shape), c.default, c.dtype) for c in columns(spec)}


def to_arrays(params: ImportedViews, spec: CacheSpec) -> dict[str, NDArray[Any]]:
    """Convert to the arrays that the cache has, path → [planes, B]."""
    found = {}
    for c in columns(spec):
        if c.planes:
            values = np.asarray(getattr(params, c.attribute)).reshape(len(params), c.planes)
            found[c.path] = np.ascontiguousarray(values.T).astype(c.dtype)
    return found


def from_arrays(arrays: Mapping[str, NDArray[Any]], count: int, spec: CacheSpec) -> ImportedViews:
    """Convert the arrays of `to_arrays` back, for `count` views."""
    found = blank(count, spec)
    for c in columns(spec):
        if c.planes:
            found[c.attribute] = arrays[c.path].T.reshape(count, *c.shape)
    return ImportedViews(**found)


def check(params: ImportedViews, spec: CacheSpec, table: SampleTable, rows: range) -> str | None:
    """Check the stored parameters of rows of the table; return the first fault, or None."""
    return next(_complaints(params, spec, table, rows), None)


def _complaints(
    params: ImportedViews, spec: CacheSpec, table: SampleTable, rows: range
) -> Iterator[str]:
    if not spec.replayable:
        return
    own_B = np.arange(rows.start, rows.stop)
    partner_B = params.partner_B.astype(np.int64)
    if spec.views.mixes and partner_B.max() >= len(table):
        yield f"a partner in row {partner_B.max()} of {len(table)}"
    for side in range(params.box_BP4.shape[1]):
        row_B = partner_B if side else own_B
        box_B4 = params.box_BP4[:, side].astype(np.int64)
        outside = _outside(box_B4, table.height_N[row_B], table.width_N[row_B])
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            yield f"a box {box_B4[at].tolist()} that leaves {table.keys[row_B[at]]!r}"
    if (params.flip_BP > 1).any():
        yield "a flip that is neither 0 nor 1"
    codes, first = params.codes_BPL, params.arguments_BPL6[..., 0]
    if (codes >= len(ops.NAMES)).any():
        yield f"an operation {int(codes.max())} that there is not"
    for code, (low, high) in _BOUNDS.items():
        values = first[codes == code]
        if ((values < low) | (values > high)).any():
            yield f"{ops.NAMES[code]} by more than it can be"
    if (np.abs(params.arguments_BPL6.astype(np.int64)) > _MATRIX).any():
        yield "an argument beyond all pictures"
    size = np.full(1, spec.views.size)
    for name, boxes in (("an erased", params.erase_BPE4), ("a cut", params.cut_B4)):
        there = boxes.reshape(-1, 4).astype(np.int64)
        there = there[(there != 0).any(axis=1)]
        if _outside(there, size, size).any():
            yield f"{name} box that leaves the view"
    if (params.weight_B > LAMBDA_SCALE).any():
        yield "a weight above 1"


def _outside(box_B4: I8, height_B: NDArray[Any], width_B: NDArray[Any]) -> NDArray[np.bool_]:
    """Find boxes that are empty or leave their pictures."""
    top, left, height, width = box_B4.T
    empty = (height < 1) | (width < 1) | (top < 0) | (left < 0)
    return np.asarray(empty | (top + height > height_B) | (left + width > width_B))
