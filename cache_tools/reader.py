"""Read a cache by keys or rows: targets, dense rows, pixels of views.

Shapes: N samples, B views, K kept classes, C classes, T temperatures, S pixels a side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.data import match
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import UsageError
from cache_tools.numerics.array_types import F4, I8
from cache_tools.runtime.text import counted
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.targets import TargetSpec
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.store.open import open_cache
from cache_tools.targets import codec, dense
from cache_tools.targets.codec import DecodedTargets, EncodedTargets
from cache_tools.verify import probes

Rows = slice | int | str | Sequence[int] | Sequence[str] | NDArray[np.integer] | NDArray[np.bool_]
"""Samples: a slice, numbers or a mask of rows of the sample table, or keys."""


@dataclass(frozen=True)
class SparseTargets:
    """Stored targets of B views of one number, each of K slots for kept classes.

    K is `spec.k_max`. A view that keeps fewer classes has its empty slots at the end, with index
    -1 and probability 0. `dense` makes [B, C] distributions of all this.

    Example:
        >>> t = kdcache.open("digits-cache.zarr").targets(view=3, rows=slice(0, 8))
        >>> t.index.shape, t.tail.shape, t.dense(temperature=2.0).sum(1).round(3).max()
        ((8, 10), (8,), np.float32(1.0))

    Attributes:
        index: [B, K] int32 class ids of the kept classes, ascending by id, not by probability;
            -1 in empty slots.
        probability: [B, K] fp32 teacher's probabilities of these classes at T = 1; 0 in empty
            slots. With `tail` a row adds up to 1.
        tail: [B] fp32 probability of all classes not kept, together, at T = 1.
        decoded: All that is stored: `tail_BT` at each declared temperature, `true_BP` of the true
            classes, `square_BQ` with Σp² of the rest.
        spec: Storage of the targets, with the declared temperatures.
        num_classes: Number of classes, C.
    """

    index: NDArray[np.int32]
    probability: F4
    tail: F4
    decoded: DecodedTargets
    spec: TargetSpec
    num_classes: int

    def __len__(self) -> int:
        """Count the views."""
        return len(self.index)

    def dense(self, temperature: float = 1.0) -> F4:
        """Restore [B, C] distributions at a temperature; rows add up to 1.

        The classes that are not kept share their mass evenly.

        Raises:
            UsageError: The temperature is not positive.
        """
        if not temperature > 0:
            raise UsageError(f"temperature={temperature} must be positive.")
        rows = dense.densify(self.decoded, self.spec, self.num_classes, float(temperature))
        return rows.astype(np.float32)


class CacheReader:
    """An opened cache: samples, targets and pixels.

    Attributes:
        store: The cache as the commands see it.

    Example:
        >>> cache = kdcache.open("digits-cache.zarr")
        >>> cache.targets(view=3, rows=[cache.keys[12]]).dense().shape
        (1, 10)
        >>> cache.images("digits")[cache.keys[12], 3].shape
        (32, 32, 3)
    """

    def __init__(self, store: Cache) -> None:
        self.store = store
        self._part: tuple[Part, EncodedTargets] | None = None

    @property
    def keys(self) -> Sequence[str]:
        """Names of the N samples, in the order of rows."""
        return self.store.table.keys

    @property
    def labels(self) -> NDArray[np.int32]:
        """[N] classes of the samples; -1 where there is none."""
        return self.store.table.label_N

    @property
    def num_views(self) -> int:
        """Views of each sample."""
        return self.store.num_views

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return self.store.spec.teacher.num_classes

    @property
    def spec(self) -> CacheSpec:
        """Data set, teacher, views and targets."""
        return self.store.spec

    @property
    def fingerprint(self) -> str:
        """Identity of data set, teacher, views and storage: SHA-256 of the spec."""
        return self.store.spec.fingerprint

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.store.table)

    def __repr__(self) -> str:
        """Describe the cache in a line."""
        size = f"{counted(len(self), 'sample')}, {counted(self.num_views, 'view')}"
        return f"<Cache {self.store.name}: {size}>"

    def rows(self, rows: Rows = slice(None)) -> I8:
        """Look up rows of the sample table: [B] numbers of a slice, of an array, or of keys.

        Raises:
            UsageError: There is no such row or key; a mask is not of N samples.
        """
        if isinstance(rows, slice):
            return np.arange(len(self))[rows]
        found = self._numbers(rows)
        if found.dtype == bool and found.shape == (len(self),):
            return np.flatnonzero(found)
        if found.dtype == bool:
            raise UsageError(
                f"a mask of the shape {found.shape} selects no rows: {self.store.name} has "
                f"{len(self):,} samples. Pass a value for each, or the numbers of rows."
            )
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise UsageError(f"rows={rows!r} must be numbers of rows, keys, a mask or a slice.")
        wrong = found[(found < -len(self)) | (found >= len(self))]
        if len(wrong):
            raise UsageError(f"{self.store.name} has {len(self):,} rows, none is {wrong[0]}.")
        return found.astype(np.int64) % len(self)

    def _numbers(self, rows: Any) -> NDArray[Any]:
        """Convert numbers, keys or a mask to an array; it may be of any shape and kind."""
        if hasattr(rows, "__array__") and np.asarray(rows).dtype.kind not in "OTU":
            return np.atleast_1d(np.asarray(rows))
        one = isinstance(rows, str) or not isinstance(rows, Iterable)
        wanted = [rows] if one else list(rows)
        if unknown := [k for k in wanted if isinstance(k, str) and k not in self._row_of]:
            raise UsageError(f"{self.store.name} has no sample {unknown[0]!r}. See cache.keys.")
        numbers = [self._row_of[k] if isinstance(k, str) else k for k in wanted]
        mixed = len({isinstance(k, bool | np.bool_) for k in numbers}) > 1
        try:
            return np.array(numbers, dtype=object if mixed else None)
        except (ValueError, TypeError):  # lists of unequal length
            return np.array([None])

    def targets(self, view: int, rows: Rows = slice(None)) -> SparseTargets:
        """Read the targets of one view number of some samples, checked against their digests.

        Raises:
            UsageError: There is no such view or row.
            CacheIncomplete, CacheDamaged: A part is missing, or differs from its record.
        """
        self._check_view(view)
        row_B = self.rows(rows)
        spec, block_B = self.spec.targets, row_B // self.spec.block_size
        blocks = np.unique(block_B).tolist() or [0]
        groups = [np.flatnonzero(block_B == block) for block in blocks]
        parts = [
            codec.decode(self._read(Part(view, block)), spec, row_B[at] % self.spec.block_size)
            for block, at in zip(blocks, groups, strict=True)
        ]
        found = codec.gather(parts, groups)
        index = np.where(found.probability_BK > 0, found.index_BK, -1)
        tail = found.tail_BT[:, 0]
        return SparseTargets(index, found.probability_BK, tail, found, spec, self.num_classes)

    def images(self, data: str | Path | None = None) -> "ViewImages":
        """Open the images that the cache was made of; None: where it was made from.

        Raises:
            UsageError: Their location is unknown, or the views cannot be drawn again.
            CacheMismatch: They are not the cache's.
        """
        probes.check_replayable(self.store)
        source = str(data) if data is not None else self.store.source
        if not source:
            raise UsageError(f"where are the images of {self.store.name}? Pass their folder.")
        images, _ = match.open_aligned(self.store.table, self.spec.dataset, source)
        return ViewImages(self, ViewRenderer(images, self.spec.views, self.store.table))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def _check_view(self, view: int) -> None:
        if not isinstance(view, int | np.integer) or not 0 <= view < self.num_views:
            raise UsageError(
                f"{self.store.name} has the views 0 to {self.num_views - 1} of each sample, none "
                f"is {view}."
            )

    def _read(self, part: Part) -> EncodedTargets:
        """Read a part, or take the last one again."""
        if self._part is None or self._part[0] != part:
            self._part = part, self.store.read(part)[0]
        return self._part[1]


class ViewImages:
    """Pixels of views before mixing, exactly as the teacher's stage drew them."""

    def __init__(self, cache: CacheReader, renderer: ViewRenderer) -> None:
        self._cache, self._renderer = cache, renderer

    def __getitem__(self, sample: tuple[str | int, int]) -> NDArray[np.uint8]:
        """Render `images[key, view]`, the key or the row of a sample: [S, S, 3] uint8 RGB.

        Raises:
            UsageError: There is no such sample or view.
            CacheMismatch, DataError: The image is not the cache's, or cannot be read.
        """
        key, view = sample
        self._cache._check_view(view)
        row = self._cache.rows(key)
        if len(row) != 1:
            raise UsageError(f"{key!r} names {len(row)} samples. Pass the key or row of one.")
        params = view_params.parameters(self._cache.store, view, row)
        return self._renderer.render_one(int(row[0]), params)


def open_reader(where: str | Path) -> CacheReader:
    """Open a cache to read it: a folder, a zip or a URL.

        >>> cache = kdcache.open("digits-cache.zarr")
        >>> len(cache), cache.num_views, cache.num_classes
        (100, 4, 10)

    Raises:
        CacheNotFound, CacheMismatch, CacheDamaged: There is no cache that can be read.
    """
    return CacheReader(open_cache(where))
