"""Specification of a cache: data set, teacher, views and targets, and the fingerprint of all four.

The manifest contains the `CacheSpec` as canonical JSON; its SHA-256 is the cache's fingerprint, the
name that a paper can print and a student's `result.json` repeats. The number of views is not part
of it: a cache that grows by ten views is still the same cache, with more parts.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from cache_tools import config
from cache_tools.config import check
from cache_tools.errors import CacheDamaged, RecipeError
from cache_tools.numerics.array_types import I8, Rows
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.spec.dataset import DatasetSpec
from cache_tools.spec.imported import ImportedSpec
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import UNKNOWN_VIEWS, ViewSpec

FORMAT_VERSION = "1.2"
"""Newest version; a cache records the oldest one that has all its features."""
MAX_BLOCKS = 2**20
Renderer = Literal["kernels-2", "kernels-1", "none"]


@dataclass(frozen=True)
class CacheSpec:
    """All that makes two caches the same or different."""

    dataset: DatasetSpec
    teacher: TeacherSpec
    views: ViewSpec
    targets: TargetSpec
    block_size: int
    """Rows of the sample table per part, B."""
    window: int = 1024
    """Rows of the sample table within which mixup pairs are drawn."""
    renderer: Renderer = "kernels-2"
    """Decoder and image operations: FORMAT.md, section 3.4. "kernels-1" is that of caches of
    formats 1.0 and 1.1, "none" is for unknown views."""
    cut_from: str = ""
    """Origin of a cache that keeps fewer classes than its source: SHA-256 over the canonical
    JSON of the source's `targets` and `cut_from` (FORMAT.md, section 6.3); else ""."""
    imported: ImportedSpec | None = None
    """Views that another system drew (FORMAT.md, section 3.6): their parameters are stored, and
    `views` sets only size, interpolation, fill and scaled_decode. Absent for drawn views."""

    def __post_init__(self) -> None:
        check(1 <= self.block_size <= 2**20, "block_size must be in 1..2^20 rows")
        check(1 <= self.window <= 2**16, "window must be in 1..65536 rows")
        aligned = self.block_size % self.window == 0
        check(aligned or self.num_blocks == 1, "block_size must be a multiple of window")
        check(self.targets.k_max <= self.teacher.num_classes, "k_max exceeds the classes")
        check(self.num_blocks <= MAX_BLOCKS, f"there can be at most {MAX_BLOCKS} blocks")
        labelled = self.dataset.labels or not self.targets.true_class
        check(labelled, "targets.true_class requires labels")
        known = self.renderer != "none" or self.views == UNKNOWN_VIEWS
        check(known, 'renderer "none" requires unknown views')
        plain = self.imported is None or not self.replayable or self.views == self._undrawn_views()
        check(
            plain, "imported views are not drawn: views may set size, interpolation and fill only"
        )
        size = self.part_bytes / 2**20
        check(size <= 512, f"a part of {size:.0f} MiB is too large for memory (512 MiB)")

    @property
    def part_bytes(self) -> int:
        """Largest size of a part's class ids in memory, in bytes."""
        return 4 * self.block_size * self.targets.k_max

    @property
    def replayable(self) -> bool:
        """True if the views can be drawn again; False for imported logits."""
        return self.renderer != "none"

    @property
    def format_version(self) -> str:
        """Oldest version of the format that has all features of this cache."""
        if self.renderer == "kernels-2":
            return FORMAT_VERSION
        return "1.1" if self.imported else "1.0"

    def continuing(self, begun: "CacheSpec") -> "CacheSpec":
        """Return this spec with the renderer of a cache that an older kdcache began."""
        drawn = self.replayable and begun.replayable
        return replace(self, renderer=begun.renderer) if drawn else self

    @property
    def num_labels(self) -> int:
        """Labels of a view with a stored probability, P: two when views are mixed."""
        return (1 + self.views.mixes) * self.targets.true_class

    @property
    def num_blocks(self) -> int:
        """Blocks of the sample table; each view number has this many parts."""
        return -(-self.dataset.num_samples // self.block_size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, as `sha256:<hex>`."""
        return sha256(canonical_json(self.mapping))

    @property
    def mapping(self) -> dict[str, Any]:
        """Plain values as in a manifest: unknown views are null, unset optional fields left out."""
        mapping = asdict(self) | {"teacher": self.teacher.mapping}
        for name in ("cut_from", "imported"):
            if not mapping[name]:
                del mapping[name]
        return mapping if self.replayable else mapping | {"views": None}

    def _undrawn_views(self) -> ViewSpec:
        """Return `views` with all drawing off; mixup and cutmix are 1 where views are mixed."""
        seen, mixed = self.views, 1.0 if self.views.mixes else 0.0
        return ViewSpec(
            size=seen.size,
            interpolation="area" if seen.interpolation == "random" else seen.interpolation,
            scaled_decode=seen.scaled_decode,
            hflip=0.0,
            fill=seen.fill,
            mixup=mixed,
            cutmix=mixed,
        )

    def rows(self, block: int) -> range:
        """Return the rows of the sample table in `block`."""
        return range(
            block * self.block_size, min((block + 1) * self.block_size, self.dataset.num_samples)
        )

    def rows_within(self, block: int, row_R: Rows) -> I8:
        """Select those of ascending rows of the table that are in a block, as positions in it."""
        rows = self.rows(block)
        edges = np.array([rows.start, rows.stop], row_R.dtype)
        first, last = np.searchsorted(row_R, edges).tolist()
        return row_R[first:last].astype(np.int64) - rows.start


def from_mapping(mapping: Mapping[str, Any], context: str) -> CacheSpec:
    """Build the CacheSpec of a manifest; CacheDamaged, beginning with `context`, if impossible."""
    if mapping.get("renderer") == "none":
        if mapping.get("views", "") is not None:
            raise CacheDamaged(f'{context}: renderer "none" requires views null.')
        mapping = {**mapping, "views": asdict(UNKNOWN_VIEWS)}
    try:
        return config.build(CacheSpec, mapping, context)
    except RecipeError as error:
        raise CacheDamaged(
            f"{error} The manifest was changed, or written by a newer kdcache."
        ) from None
