"""Probe views: the fingerprints of pixels that every part stores, compared with pixels made here.

A student that replays a cache renders them before it trains, so that another version of a library
that decodes or resizes differently is refused. Each is rendered twice: of the whole picture, by the
libraries that the cache names, and as in training, where another library may decode crops.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheMismatch, UsageError
from cache_tools.render import turbojpeg
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
    numbers, pixels = (list(column) for column in zip(*known, strict=True))
    params = view_params.parameters(store, part.view, np.array(numbers))
    read: Any = _ReadOnce(images)
    for at, (number, expected) in enumerate(known):
        if fingerprint(store, read, number, params, at) != int(expected):
            raise CacheMismatch(
                f"view {part.view} of {store.table.keys[number]!r} has other pixels here than the "
                f"teacher's input. The cache was made with {store.record(part)['versions']}, here "
                f"are {render.versions()}. Install the versions the cache was made with."
            )
    for number, expected, view in zip(
        numbers, pixels, _replayed(store, read, numbers, params), strict=True
    ):
        if render.fingerprint(view) != int(expected):
            raise CacheMismatch(
                f"view {part.view} of {store.table.keys[number]!r} has other pixels as training "
                f"decodes it, its crop alone, than of the whole picture. {_region_decoder()}"
            )
    return len(known)


def _replayed(
    store: Cache, images: ImageDataset, numbers: list[int], params: ViewParams
) -> NDArray[np.uint8]:
    """Render views of some samples as training does: [B, S, S, 3]."""
    renderer = ViewRenderer(
        images, store.spec.views, store.table, stored_pixels=True, decoded_before=True
    )
    count, side = len(numbers), store.spec.views.size
    views = np.empty((count, side, side, 3), np.uint8)
    address_B = views.ctypes.data + np.arange(count) * views.strides[0]
    first = np.arange(count + 1)
    renderer.render_many(np.array(numbers), first, params, list(views), address_B)
    return views


def _region_decoder() -> str:
    """Name the library that decodes crops, and how to do without it."""
    if not turbojpeg.functions().size:
        return (
            "No library but simplejpeg decodes here: install the version the cache was made with."
        )
    try:
        wheel = version("pylibjxl")
    except PackageNotFoundError:
        return (
            "Crops are decoded by the system's TurboJPEG 3, whose pixels are not those of "
            "simplejpeg. Install the one that is used instead: pip install 'kdcache[turbo]'."
        )
    return (
        f"Crops are decoded by the TurboJPEG 3 of pylibjxl {wheel}, whose pixels are not those of "
        "simplejpeg. Install another version of it, or train without it: pip uninstall pylibjxl."
    )


class _ReadOnce:
    """A data set of which each image is read once, over a network perhaps, to be rendered twice."""

    def __init__(self, images: ImageDataset) -> None:
        self._images = images
        self._data: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)

    def read(self, number: int) -> bytes:
        """Read the encoded bytes of one sample; raises as those of the data set."""
        if number not in self._data:
            self._data[number] = self._images.read(number)
        return self._data[number]


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
