"""Re-run the teacher on sampled views and compare with the stored targets.

Offered to `kdcache verify --recompute N` by the entry point `recompute` of `kdcache.checks`. Two
runs of a network differ in the last bits, and the codec rounds: a stored view and a fresh one go
through the same codec and may then differ by a small L1 distance, which another network, other
weights or another augmentation exceed by far.

Shapes: B views, C classes, S pixels a side.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheMismatch, KdcacheError
from cache_tools.runtime import progress, threads
from cache_tools.runtime.device import select
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec, dense
from pipeline.teacher import reload
from pipeline.teacher.forward import Forward

TOLERANCE = {"fp32": 0.05, "bf16": 0.25, "fp16": 0.1}
"""Largest L1 distance (0..2) of a view, by the precision of the cache's forward passes."""


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
    spec = store.spec
    seen, precision = spec.views.for_teacher(), spec.teacher.precision
    try:
        teacher = reload.load(spec.teacher, seen.size, teacher_names, class_maps)
    except CacheMismatch as mismatch:
        return [mismatch]
    target = select(torch, device)
    if target.type == "cpu":
        torch.set_num_threads(threads.for_torch(seen.size)[0])
    forward = Forward(teacher, spec.targets, target)
    images = match.match(store.table, spec.dataset, images)
    renderer = ViewRenderer(images, seen, store.table)
    total = spec.dataset.num_samples * store.num_views
    problems: list[KdcacheError] = []
    with progress.bar("recompute", count, "views") as advance:
        for i in range(count):
            view, row = divmod(i * total // count, spec.dataset.num_samples)
            distance, allowed = _distance(store, renderer, forward, view, row), TOLERANCE[precision]
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


def _distance(store: Cache, renderer: ViewRenderer, forward: Forward, view: int, row: int) -> float:
    """L1 distance of a view's stored targets from new ones through the same codec."""
    spec, seen, row_1 = store.spec, renderer.spec, np.array([row])
    own = renderer.render_one(row, view_params.parameters(store, view, row_1, spec=seen))[None]
    partner = mix = None
    if seen.mixes:
        mix = view_params.mixing_of(store, view, row_1, seen)
        has_own = view_params.has_partner_params(store)
        of_row = row_1 if has_own else mix.partner_B
        params = view_params.parameters(store, view, of_row, partner=has_own, spec=seen)
        partner = renderer.render_one(int(mix.partner_B[0]), params)[None]
    again = codec.SparseTargets(*(t.cpu().numpy() for t in forward(own, partner, mix)))
    fresh = codec.encode(again, spec.targets, spec.teacher.num_classes)
    block, at = divmod(row, spec.block_size)
    stored = store.read(Part(view, block))[0]
    sides = codec.decode(fresh, spec.targets), codec.decode(stored, spec.targets, np.array([at]))
    p, q = (dense.densify(side, spec.targets, spec.teacher.num_classes) for side in sides)
    return float(np.abs(p - q).sum())
