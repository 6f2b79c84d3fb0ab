"""Re-run the teacher on sampled views: compare with the stored targets, or return its logits.

Offered to `kdcache verify --recompute N` and `kdcache advise --recompute N` by the entry points
`recompute` and `logits` of `kdcache.checks`. Two runs of a network differ in the last bits, and the
codec rounds: a stored view and a fresh one go through the same codec and may then differ by a small
L1 distance, which another network, other weights or another augmentation exceed by far.

Shapes: B views, C classes, S pixels a side.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheMismatch, KdcacheError
from cache_tools.numerics.array_types import F4, F8, I8, U1
from cache_tools.runtime import progress, threads
from cache_tools.runtime.device import select
from cache_tools.store import sampling, view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec, dense
from cache_tools.views.draw import LAMBDA_SCALE, MixParams
from pipeline.teacher import reload
from pipeline.teacher.forward import Forward

TOLERANCE = {"fp32": 0.05, "bf16": 0.25, "fp16": 0.1}
"""Largest L1 distance (0..2) of a view, by the precision of the cache's forward passes."""
_BATCH = 32


class _Teacher:
    """The teacher of a cache, loaded again, and the pictures that it gets."""

    def __init__(
        self,
        store: Cache,
        images: ImageDataset,
        names: Sequence[str],
        device: str | None,
        class_maps: Sequence[str],
    ) -> None:
        spec, seen = store.spec, store.spec.views.for_teacher()
        teacher = reload.load(spec.teacher, seen.size, names, class_maps)
        target = select(torch, device)
        if target.type == "cpu":
            torch.set_num_threads(threads.for_torch(seen.size)[0])
        self.forward = Forward(teacher, spec.targets, target)
        images = match.match(store.table, spec.dataset, images)
        self._store, self._renderer = store, ViewRenderer(images, seen, store.table)

    def pictures(self, view: int, row: int) -> tuple[U1, U1 | None, MixParams | None]:
        """Render a view, [1, S, S, 3], its partner and their mixing."""
        store, seen, row_1 = self._store, self._renderer.spec, np.array([row])
        own = self._renderer.render_one(row, view_params.parameters(store, view, row_1, spec=seen))[
            None
        ]
        if not seen.mixes:
            return own, None, None
        mix = view_params.mixing_of(store, view, row_1, seen)
        has_own = view_params.has_partner_params(store)
        of_row = row_1 if has_own else mix.partner_B
        params = view_params.parameters(store, view, of_row, partner=has_own, spec=seen)
        return own, self._renderer.render_one(int(mix.partner_B[0]), params)[None], mix


def recompute(
    store: Cache,
    images: ImageDataset,
    teacher_names: Sequence[str],
    device: str | None,
    count: int,
    class_maps: Sequence[str] = (),
) -> list[KdcacheError]:
    """Run the teacher on `count` views spread over the cache; the differences, as errors.

    The cache is complete, its images in any order. No teacher names take those in the cache;
    `class_maps` are the files of those teachers that have one.
    """
    spec, precision = store.spec, store.spec.teacher.precision
    try:
        teacher = _Teacher(store, images, teacher_names, device, class_maps)
    except CacheMismatch as mismatch:
        return [mismatch]
    total = spec.dataset.num_samples * store.num_views
    problems: list[KdcacheError] = []
    with progress.bar("recompute", count, "views") as advance:
        for i in range(count):
            view, row = divmod(i * total // count, spec.dataset.num_samples)
            distance, allowed = _distance(store, teacher, view, row), TOLERANCE[precision]
            if not distance <= allowed:
                problems.append(
                    CacheMismatch(
                        f"view {view} of {store.table.keys[row]!r}: teacher and cache differ "
                        f"by {distance:.3f} (L1; {allowed} is allowed in {precision}). The cache "
                        "is of another teacher or other pixels."
                    )
                )
            advance(1)
    return problems


def logits(
    store: Cache,
    images: ImageDataset,
    teacher_names: Sequence[str],
    device: str | None,
    count: int,
    class_maps: Sequence[str] = (),
) -> tuple[F4, I8, I8, F8]:
    """Run the teacher on `count` views whose samples are spread over the cache, for all classes.

    No part of the cache need be there; arguments as of `recompute`.

    Returns:
        Logits [B, C], rows of the sample table [B], labels of each view and of its partner [B, 2],
        and the own share of each view [B], 0..1.

    Raises:
        CacheMismatch: It is another teacher, or these are other images.
        UsageError: The teacher cannot run again.
    """
    teacher = _Teacher(store, images, teacher_names, device, class_maps)
    view_B, row_B = sampling.spread(store.num_views, store.spec.dataset.num_samples, count)
    rendered, found = [], []
    partner_B, lam_B = row_B.copy(), np.ones(len(row_B))
    with progress.bar("recompute", len(row_B), "views") as advance:
        for i, (view, row) in enumerate(zip(view_B.tolist(), row_B.tolist(), strict=True)):
            rendered.append(teacher.pictures(view, row))
            if (mix := rendered[-1][2]) is not None:
                partner_B[i], lam_B[i] = mix.partner_B[0], mix.lam_B[0] / LAMBDA_SCALE
            if len(rendered) == _BATCH or i == len(row_B) - 1:
                own, other, mixes = zip(*rendered, strict=True)
                partner = mixed = None
                if mix is not None:
                    names = ("partner_B", "lam_B", "cut_B4")
                    columns = (np.concatenate([getattr(m, n) for m in mixes]) for n in names)
                    partner, mixed = np.concatenate(other), MixParams(*columns)
                found.append(teacher.forward.logits(np.concatenate(own), partner, mixed).cpu())
                advance(len(rendered))
                rendered = []
    label_N = store.table.label_N.astype(np.int64)
    label_B2 = np.stack([label_N[row_B], label_N[partner_B]], axis=1)
    return torch.cat(found).numpy(), row_B, label_B2, lam_B


def _distance(store: Cache, teacher: _Teacher, view: int, row: int) -> float:
    """L1 distance of a view's stored targets from new ones through the same codec."""
    spec, outputs = store.spec, teacher.forward(*teacher.pictures(view, row))
    again = codec.SparseTargets(*(t.cpu().numpy() for t in outputs))
    fresh = codec.encode(again, spec.targets, spec.teacher.num_classes)
    block, at = divmod(row, spec.block_size)
    stored = store.read(Part(view, block))[0]
    sides = codec.decode(fresh, spec.targets), codec.decode(stored, spec.targets, np.array([at]))
    p, q = (dense.densify(side, spec.targets, spec.teacher.num_classes) for side in sides)
    return float(np.abs(p - q).sum())
