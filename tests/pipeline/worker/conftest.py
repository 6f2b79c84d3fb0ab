"""1,100 small pictures, and caches of them without parts."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_tools.data.open import open_images
from pipeline import recipe as recipes
from pipeline.teacher import teacher as teachers
from pipeline.teacher.teacher import Teacher
from pipeline.worker import open_cache, stage1
from tests.helpers.workbench import COUNT, Bench, Opener


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,100 small labelled pictures: a window of 1,024 and one of 76."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    with tarfile.open(folder / "photos-train-0000.tar", "w") as tar:
        for i in range(COUNT):
            noise = random.integers(0, 256, (4, 5, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noise).resize((40, 32)).save(buffer, "JPEG")
            for name, data in ((f"{i}.jpg", buffer.getvalue()), (f"{i}.cls", b"%d" % (i % 10))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="session")
def network(teacher: Path) -> Teacher:
    return teachers.load(str(teacher), 32, "fp32")


@pytest.fixture
def opened(photos: Path, network: Teacher, tmp_path: Path) -> Opener:
    def open_(overrides: list[str]) -> Bench:
        recipe = recipes.load("digits", overrides)
        images = open_images(str(photos), "train")
        return Bench(
            *open_cache.open_or_create(recipe, images, network.spec, tmp_path / "c"), network
        )

    return open_


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage1, "PAUSE_SECONDS", 0.0)
