"""Probe views are rendered as training does, too: with the library that decodes crops."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import CacheMismatch
from cache_tools.render import turbojpeg
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.verify import probes
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers.jpegs import PHOTO, saved

_FAST_DCT = 10
"""TurboJPEG's parameter."""
Setter = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)


@pytest.fixture(scope="module")
def photos(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, ImageDataset]:
    """A cache of JPEGs, with its images."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "data/c").mkdir(parents=True)
    for i in range(8):
        picture = PHOTO[9 * i : 9 * i + 160, 5 * i : 5 * i + 150 + 3 * i]
        (folder / f"data/c/p{i}.jpg").write_bytes(saved(picture, quality=95))
    recipe = recipes.load("photos", ["views.size=48", "num_views=2"])
    store = run(recipe, f"{folder}/data", str(teacher), folder / "c.zarr", "cpu")
    opened = open_images(f"{folder}/data", "train")
    return store, match.match(store.table, store.spec.dataset, opened)


def test_images_are_read_once_for_both_renderings(
    photos: tuple[Cache, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = list[int](), ImageDataset.read

    def spy(images: ImageDataset, number: int) -> bytes:
        read.append(number)
        return real(images, number)

    monkeypatch.setattr(ImageDataset, "read", spy)
    store, images = photos
    assert probes.check_probes(store, images, Part(1, 0)) == 4
    assert sorted(read) == [0, 2, 4, 7]


def test_a_library_of_other_pixels_of_crops_is_refused_by_name(
    photos: tuple[Cache, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_F = turbojpeg.functions()
    if not calls_F.size:
        pytest.skip("needs the extra [turbo]")
    at = turbojpeg._SET
    real = Setter(int(calls_F[at]))

    @Setter
    def fast(handle: int, parameter: int, value: int) -> int:
        """Set the parameter, and the fast DCT."""
        real(handle, _FAST_DCT, 1)
        return int(real(handle, parameter, value))

    other_F = calls_F.copy()
    other_F[at] = ctypes.cast(fast, ctypes.c_void_p).value
    monkeypatch.setattr(turbojpeg, "functions", lambda: other_F)
    store, images = photos
    with pytest.raises(CacheMismatch, match=r"view 1 of 'p\d' .*TurboJPEG 3.*pip (un)?install"):
        probes.check_probes(store, images, Part(1, 0))
    without = np.empty(0, np.int64)
    monkeypatch.setattr(turbojpeg, "functions", lambda: without)
    assert probes.check_probes(store, images, Part(1, 0)) == 4
