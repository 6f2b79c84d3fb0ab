"""Measured duration of stage 1: render a few real batches and run the teacher on them.

Images are drawn over the whole data set (the sample table's order is that of hashes) and rendered
as stage 1 does it: each decoded once for its group of views, by all cores. The teacher is timed
from pixels in memory to encoded targets. Rendering and teacher run at the same time in stage 1, so
on a GPU the slower one binds; on a CPU both share the same cores and their times add up. Images
come from the page cache here: a slow disk or network does not count.

Shapes: G views of a group, M images.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from cache_tools.data import scan
from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.numerics.array_types import U1
from cache_tools.runtime import progress, threads
from cache_tools.targets import codec
from cache_tools.views import draw
from pipeline.recipe import CacheRecipe
from pipeline.teacher.forward import Forward
from pipeline.teacher.teacher import Teacher

SECONDS = 4.0
"""Shortest time of each of the two measurements."""
_IMAGES = 256


class Sample:
    """A few images of a data set, and their views."""

    def __init__(self, recipe: CacheRecipe, images: ImageDataset) -> None:
        """Read up to `_IMAGES` images."""
        _, keys, images = scan.in_table_order(images, None)
        count = min(_IMAGES, len(keys))
        images, seen = images.subset(np.arange(count)), recipe.views.for_teacher()
        self._table = scan.scan(keys[:count], images, False, threads.cpu_count(), lambda _: None)
        self._renderer = ViewRenderer(images, seen, self._table)
        self._group = min(recipe.views_per_decode, recipe.num_views)
        self._num_views = recipe.num_views

    def pixels(self, pool: ThreadPoolExecutor, turn: int) -> U1:
        """Render a group of views of all images, [G, M, S, S, 3]; other views in each turn."""
        spec, table = self._renderer.spec, self._table
        numbers = [(turn * self._group + g) % self._num_views for g in range(self._group)]
        sizes = table.height_N, table.width_N
        drawn = [draw.draw(spec, table.id_N, *sizes, view) for view in numbers]
        out = np.empty((self._group, len(table), spec.size, spec.size, 3), dtype=np.uint8)

        def one(row: int) -> None:
            self._renderer.render(row, [(p, row, out[g, row]) for g, p in enumerate(drawn)])

        for _ in pool.map(one, range(len(table))):
            pass
        return out

    def mix(self, count: int) -> draw.MixParams | None:
        """Mixing parameters of the first `count` images with each other in view 0."""
        spec = self._renderer.spec
        return draw.mix(spec, self._table.id_N[:count], 0) if spec.mixes else None


def measure(
    recipe: CacheRecipe, images: ImageDataset, teacher: Teacher, forward: Forward, batch: int
) -> dict[str, Any]:
    """Measure views per second of rendering, teacher and both, and the classes kept per view.

    `forward` is the teacher on its device, with `batch` views per forward pass.

    Returns:
        `render_views_per_s`, `teacher_views_per_s`, `views_per_s`, `bound_by`, `per` and
        `kept_classes`.

    Raises:
        DataError: An image cannot be read.
    """
    sample = Sample(recipe, images)
    rendered: list[U1] = []
    kept: list[float] = []

    def render(turn: int) -> int:
        rendered[:] = [sample.pixels(pool, turn)]
        group, count = rendered[0].shape[:2]
        return int(group * count)

    def predict(turn: int) -> int:
        own = rendered[0][turn % len(rendered[0]), :size]
        other = None if mix is None else own[mix.partner_B]
        sparse = codec.SparseTargets(*(t.cpu().numpy() for t in forward(own, other, mix, None)))
        stored = codec.encode(sparse, forward.targets, teacher.spec.num_classes)
        kept.append(len(stored.code_E) / size)
        return size

    with progress.bar("measure", round(2 * SECONDS), "seconds", even=False) as advance:
        with ThreadPoolExecutor(threads.cpu_count()) as pool:
            render_rate = _timed(render, advance)
        size = min(batch, int(rendered[0].shape[1]))
        mix = sample.mix(size)
        teacher_rate = _timed(predict, advance)
    on_gpu = forward.device.type == "cuda"
    both = min(render_rate, teacher_rate)
    if not on_gpu:
        both = 1.0 / (1.0 / render_rate + 1.0 / teacher_rate)
    return {
        "render_views_per_s": round(render_rate, 1),
        "teacher_views_per_s": round(teacher_rate, 1),
        "views_per_s": round(both, 1),
        "bound_by": "teacher" if teacher_rate < render_rate else "rendering",
        "per": torch.cuda.get_device_name(forward.device)
        if on_gpu
        else f"CPU of {threads.cpu_count()} cores",
        "kept_classes": round(float(np.mean(kept)), 2),
    }


def _timed(work: Callable[[int], int], advance: Callable[[int], None]) -> float:
    """Measure views per second of `work(turn)`, which returns their number; turn 0 is untimed."""
    work(0)
    begin, done, turn, shown = time.perf_counter(), 0, 0, 0
    while (passed := time.perf_counter() - begin) < SECONDS or turn < 2:
        turn += 1
        done += work(turn)
        if shown < int(passed) <= SECONDS:
            advance(int(passed) - shown)
            shown = int(passed)
    advance(round(SECONDS) - shown)
    return done / (time.perf_counter() - begin)
