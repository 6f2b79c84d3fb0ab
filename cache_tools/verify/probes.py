"""Probe views: the fingerprints of pixels that every part stores, compared with pixels made here.

A student that replays a cache renders them before it trains, so that another version of a library
that decodes or resizes differently is refused.
"""

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheMismatch, UsageError
from cache_tools.render import view as render
from cache_tools.store import view_params
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.commits import Part
from cache_tools.views.draw import ViewParams


def check_replayable(store: Cache) -> None:
    """Raise UsageError when the pixels of a cache cannot be drawn again."""
    if not store.spec.replayable:
        raise UsageError(
            f"{store.name} was imported from logits without their pixels, so "
            "there is nothing to render. It can be verified without --data, compared and read."
        )


def check_probes(
    store: Cache, images: ImageDataset, part: Part, present_N: NDArray[np.bool_] | None = None
) -> int:
    """Render the probe views of one part and compare their pixels; return their number.

    A part that was cut by samples may lack some fingerprints, or all.

    `present_N`: samples that the data set has; None: all.

    Raises:
        CacheMismatch: Pixels differ from those of the teacher; names both sides' libraries.
    """
    _, fingerprints = store.read(part)
    numbers = probe_numbers(store.spec.rows(part.block))
    known = [pair for pair in zip(numbers, fingerprints, strict=True) if pair[1]]
    if present_N is not None:
        known = [pair for pair in known if present_N[pair[0]]]
    if not known:
        return 0
    params = view_params.parameters(store, part.view, np.array([number for number, _ in known]))
    for at, (number, expected) in enumerate(known):
        if fingerprint(store, images, number, params, at) != int(expected):
            raise CacheMismatch(
                f"view {part.view} of {store.table.keys[number]!r} has other pixels here than the "
                f"teacher's input. The cache was made with {store.record(part)['versions']}, here "
                f"are {render.versions()}. Install the versions the cache was made with."
            )
    return len(known)


def probe(store: Cache, images: ImageDataset, number: int, view: int) -> int:
    """Render one view here and now and return the fingerprint of its pixels."""
    params = view_params.parameters(store, view, np.array([number]))
    return fingerprint(store, images, number, params, 0)


def fingerprint(
    store: Cache, images: ImageDataset, number: int, params: ViewParams, at: int
) -> int:
    """Render one view with known parameters and return the fingerprint of its pixels."""
    renderer = ViewRenderer(images, store.spec.views, store.table, stored_pixels=True)
    return render.fingerprint(renderer.render_one(number, params, at))
