"""The native renderer: pixels of a batch from a pool of threads, in numpy and compiled kernels.

An image is read and decoded once for all its views of the batch. The number of threads changes no
bit.

Shapes: S pixels a side, U views of a batch and their partners, each once.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import I8, U1
from cache_tools.runtime import threads
from cache_tools.spec.views import ViewSpec
from cache_tools.store.cache import Cache
from cache_tools.views.draw import ViewParams
from train.data.loader import RenderFn
from train.data.prefetch import View

_IMAGES_PER_TASK = 32
"""Most images that a thread renders in one call: each call has its cost in the interpreter."""


class NativeRenderer:
    """Views of a data set, rendered by threads of this process."""

    workers = 3
    """Batches that are made at once."""
    takes_shares = True

    def __init__(
        self,
        cache: Cache,
        images: ImageDataset,
        num_threads: int = 0,
        spec: ViewSpec | None = None,
    ) -> None:
        """Render views of `cache` with `num_threads` threads (0 = one per core).

        The images are in the order of the cache's sample table; `spec` has the views at another
        size than the cache's (None).
        """
        self.images = images
        """The data set."""
        self._threads = num_threads or threads.cpu_count()
        self._views = ViewRenderer(
            images,
            spec or cache.spec.views,
            cache.table,
            stored_pixels=True,
            decoded_before=True,
        )

    @contextmanager
    def epoch(self, loaded: list[View], requests: Iterator[I8]) -> Iterator[RenderFn]:
        """Start the threads for one epoch; see `loader.Renderer`."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="render")
        try:
            yield partial(self._render_batch, loaded, pool)
        finally:
            pool.shutdown(cancel_futures=True)

    def _render_batch(
        self,
        loaded: list[View],
        pool: ThreadPoolExecutor,
        wanted_U2: I8,
        out: list[U1],
        address_U: I8,
    ) -> None:
        """Render views: one decode per image, one rendering per view."""
        params, image_U = _parameters(loaded, *wanted_U2.T)
        order = np.argsort(image_U, kind="stable")
        if (order[1:] < order[:-1]).any():  # partners of their own
            params, image_U = field_arrays.select(params, order), image_U[order]
            out, address_U = [out[i] for i in order.tolist()], address_U[order]
        first = np.append(0, np.flatnonzero(image_U[1:] != image_U[:-1]) + 1)
        end_P = np.append(first[1:], len(image_U))
        # of all batches in the making, two tasks for each thread
        step = -(-self.workers * len(first) // (2 * self._threads))
        step = max(min(step, _IMAGES_PER_TASK), 1)

        def render(begin: int) -> None:
            part = slice(begin, begin + step)
            views = slice(int(first[begin]), int(end_P[part][-1]))
            first_P = np.append(first[part], views.stop) - views.start
            own = field_arrays.part(params, views)
            rows = image_U[first[part]]
            self._views.render_many(rows, first_P, own, out[views], address_U[views])

        for _ in pool.map(render, range(0, len(first), step)):
            pass


def _parameters(loaded: list[View], row_U: I8, slot_U: I8) -> tuple[ViewParams, I8]:
    """Parameters of views and partners, and the image that each shows."""
    if (slot_U == slot_U[0]).all():
        return _of_slot(loaded, int(slot_U[0]), row_U)
    places = [np.flatnonzero(slot_U == slot) for slot in np.unique(slot_U).tolist()]
    parts = [_of_slot(loaded, int(slot_U[own[0]]), row_U[own]) for own in places]
    order = np.argsort(np.concatenate(places))
    params = field_arrays.concatenate([params for params, _ in parts])
    return field_arrays.select(params, order), np.concatenate([image for _, image in parts])[order]


def _of_slot(loaded: list[View], slot: int, row_R: I8) -> tuple[ViewParams, I8]:
    """Parameters of some rows of one slot, and the image that each shows."""
    view = loaded[slot % len(loaded)]
    at = view.at(row_R)
    if slot < len(loaded):
        return field_arrays.select(view.params, at), row_R
    assert view.partner is not None and view.partner_N is not None
    return field_arrays.select(view.partner, at), view.partner_N[at]
