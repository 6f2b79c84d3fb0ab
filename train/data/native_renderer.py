"""The native renderer: pixels of a batch from a pool of threads, in numpy and compiled kernels.

An image is read and decoded once for all its views of the batch. The number of threads changes no
bit.

Shapes: S pixels a side, U views of a batch and their partners, each once.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer, ViewRequest
from cache_tools.numerics.array_types import I8, U1
from cache_tools.runtime import threads
from cache_tools.spec.views import ViewSpec
from cache_tools.store.cache import Cache
from train.data.loader import RenderFn
from train.data.prefetch import View

_IMAGES_PER_TASK = 8
"""Images that a thread renders in a row: handing over each would cost a tenth of its time."""


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
            yield lambda wanted_U2, out: self._render_batch(loaded, wanted_U2, out, pool)
        finally:
            pool.shutdown(cancel_futures=True)

    def _render_batch(
        self, loaded: list[View], wanted_U2: I8, out: list[U1], pool: ThreadPoolExecutor
    ) -> None:
        """Render views: one decode per image, one rendering per view."""
        by_image: dict[int, list[ViewRequest]] = {}
        at_U = np.empty(len(wanted_U2), np.int64)
        for slot in np.unique(wanted_U2[:, 1]).tolist():
            own = wanted_U2[:, 1] == slot
            at_U[own] = loaded[slot % len(loaded)].at(wanted_U2[own, 0])
        places = zip(wanted_U2.tolist(), at_U.tolist(), out, strict=True)
        for (row, slot), at, pixels in places:
            view, image = loaded[slot % len(loaded)], row
            params = view.params
            if slot >= len(loaded):
                assert view.partner is not None and view.partner_N is not None
                params, image = view.partner, int(view.partner_N[at])
            by_image.setdefault(image, []).append((params, at, pixels))
        tasks = [*by_image.items()]

        def render(begin: int) -> None:
            for image, requests in tasks[begin : begin + _IMAGES_PER_TASK]:
                self._views.render(image, requests)

        for _ in pool.map(render, range(0, len(tasks), _IMAGES_PER_TASK)):
            pass
