"""An ImageFolder of three synsets, and ILSVRC's tars of the same images."""

from pathlib import Path

import pytest

from tests.helpers.synsets import SYNSETS, jpeg, tar_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An ImageFolder of 3 classes and 25 images."""
    for number in range(25):
        synset = SYNSETS[1 + number % 3]
        path = tmp_path / "images" / synset / f"{synset}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return tmp_path / "images"


@pytest.fixture
def ilsvrc(photos: Path, tmp_path: Path) -> Path:
    """ILSVRC's train and val tars, small, in ILSVRC's own order of classes."""
    inner = {
        f"{synset}.tar": tar_of(
            {p.name: p.read_bytes() for p in sorted((photos / synset).iterdir())}
        )
        for synset in SYNSETS.values()
    }
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in range(1, 7)}
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
    return tmp_path
