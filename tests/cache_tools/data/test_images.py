import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cache_tools.data import match, scan
from cache_tools.data.images import ImageDataset
from cache_tools.data.info_json import SPLITS
from cache_tools.data.open import open_images
from cache_tools.errors import CacheMismatch, DataError, UsageError
from cache_tools.spec import sample_table
from cache_tools.spec.dataset import NO_LABEL, DatasetSpec


def unpack(tar: Path, root: Path) -> None:
    """A shard as an ImageFolder."""
    with tarfile.open(tar) as shard:
        content = {m.name: shard.extractfile(m).read() for m in shard if m.isfile()}
    for name, data in content.items():
        if name.endswith(".png"):
            folder = root / f"class{content[name[:-3] + 'cls'].decode()}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def table(images: ImageDataset) -> tuple[DatasetSpec, sample_table.SampleTable]:
    kind, keys, ordered = scan.in_table_order(images, None)
    made = scan.scan(keys, ordered, True, 2, lambda _: None)
    return DatasetSpec(len(made), 10, True, kind, made.sha256), made


def test_splits_of_the_description(digits: Path) -> None:
    sizes = {s: len(open_images(str(digits), s)) for s in SPLITS}
    assert sizes == {"train": 100, "teacher": 1000, "validation": 797}
    info = json.loads((digits / "_info.json").read_text())
    assert info["splits"]["teacher"]["shard_lengths"] == [500, 500]


def test_shards_and_folders_of_the_same_images_are_one_data_set(
    digits: Path, tmp_path: Path
) -> None:
    unpack(digits / "digits-train-0000.tar", tmp_path / "data")
    of_shards, of_folder = (
        table(open_images(str(source), "train")) for source in (digits, tmp_path / "data")
    )
    assert of_shards[1].sha256 == of_folder[1].sha256
    assert of_shards[1].keys == of_folder[1].keys
    assert (np.diff(of_shards[1].id_N.astype(object)) > 0).all()


@pytest.mark.parametrize("pattern", ["digits-teacher-*.tar", "digits-teacher-{0000..0001}.tar"])
def test_patterns(digits: Path, pattern: str) -> None:
    images = open_images(str(digits / pattern), "train")
    assert len(images) == 1000
    assert images.num_classes == 10


def test_a_sample_reads_the_same_from_every_source(digits: Path, tmp_path: Path) -> None:
    unpack(digits / "digits-train-0000.tar", tmp_path)
    by_name = {}
    for source in (digits, tmp_path):
        images = open_images(str(source), "train")
        for i in range(0, 100, 9):
            data = images.read(i)
            assert by_name.setdefault(images.names[i].rpartition("/")[2], data) == data


def test_equal_stems_are_distinguished_by_their_path(tmp_path: Path, digits: Path) -> None:
    unpack(digits / "digits-train-0000.tar", tmp_path)
    first = next((tmp_path / "class3").iterdir())
    shutil.copy(first, tmp_path / "class4" / first.name)
    images = open_images(str(tmp_path), "train")
    kind, keys = images.keys()
    assert kind == "path"
    assert len(set(keys)) == 101


def test_images_without_classes(tmp_path: Path, digits: Path) -> None:
    unpack(digits / "digits-train-0000.tar", tmp_path / "a")
    for file in (tmp_path / "a").rglob("*.png"):
        shutil.move(file, tmp_path / file.name)
    shutil.rmtree(tmp_path / "a")
    images = open_images(str(tmp_path), "train")
    assert images.num_classes == 0
    assert set(images.label_N.tolist()) == {NO_LABEL}


def test_what_cannot_be_opened_is_explained(tmp_path: Path, digits: Path) -> None:
    with pytest.raises(UsageError, match="no data set at"):
        open_images(str(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="no image in"):
        open_images(str(tmp_path), "train")
    broken = tmp_path / "x.tar"
    broken.write_bytes((digits / "digits-train-0000.tar").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cannot read the shard|no image|shorter|bytes"):
        images = open_images(str(broken), "train")
        [images.read(i) for i in range(len(images))]


def test_another_data_set_is_refused_with_the_first_difference(digits: Path) -> None:
    dataset, made = table(open_images(str(digits), "train"))
    other = open_images(str(digits), "validation")
    with pytest.raises(CacheMismatch, match=r"from 100 samples, .* has 797, of which 0 are shared"):
        match.match(made, dataset, other)


def test_a_changed_label_or_size_is_refused(digits: Path) -> None:
    dataset, made = table(open_images(str(digits), "train"))
    images = open_images(str(digits), "train")
    images.label_N[5] = (images.label_N[5] + 1) % 10
    with pytest.raises(CacheMismatch, match=f"1 of 100 labels .*{images.names[5]}"):
        match.match(made, dataset, images)
    images = open_images(str(digits), "train")
    images.length_N[7] += 1
    with pytest.raises(CacheMismatch, match=f"1 of 100 images .*{images.names[7]}"):
        match.match(made, dataset, images)


def test_a_changed_image_of_the_same_size_is_refused(digits: Path) -> None:
    _, made = table(open_images(str(digits), "train"))
    images = open_images(str(digits), "train")
    _, _, ordered = scan.in_table_order(images, None)
    data = bytearray(ordered.read(4))
    sample_table.check_digest(made, 4, bytes(data))
    data[40] ^= 1
    with pytest.raises(CacheMismatch, match=made.keys[4]):
        sample_table.check_digest(made, 4, bytes(data))


@pytest.mark.parametrize(
    ("folders", "labels", "names"),
    [
        (["0", "9", "10", "2"], [0, 10, 2, 9], ()),  # in the order of the file names
        (["3", "7"], [3, 7], ()),
        (["1", "2", "10", *"3456789"], [0, 9, *range(1, 9)], tuple(map(str, range(1, 11)))),
        (["b", "10", "9"], [1, 0, 2], ("9", "10", "b")),
        (["00", "01"], [0, 1], ("00", "01")),
    ],
)
def test_folders_that_are_numbers_are_classes(
    tmp_path: Path, folders: list[str], labels: list[int], names: tuple[str, ...]
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpeg").write_bytes(b"x")
    images = open_images(str(tmp_path), "validation")
    assert images.label_N.tolist() == labels
    assert images.class_names == names
