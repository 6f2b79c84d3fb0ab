"""Folders of images: classes as timm has them, splits, and what is passed over."""

import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from cache_tools.data.open import has_split, open_images
from cache_tools.data.shard_writer import add
from cache_tools.errors import CacheMismatch, DataError, KdcacheError, UsageError
from cache_tools.render import decode
from cache_tools.report import contact_sheet
from cache_tools.spec.dataset import NO_LABEL
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


def touch(root: Path, files: Iterable[str]) -> str:
    """Files that look like images by their names, below a folder."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    return str(root)


def tar(path: Path, names: Iterable[str]) -> None:
    import tarfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name in names:
            add(shard, name, b"x")


def labels(source: str, split: str = "train") -> dict[str, int]:
    images = open_images(source, split)
    return dict(zip(images.names, images.label_N.tolist(), strict=True))


@pytest.mark.parametrize(
    "folders",
    [
        [f"class_{i}" for i in range(1, 13)],
        ["american_bulldog", "Bengal", "Abyssinian", "beagle", "Ragdoll"],
        ["animals/cat", "animals/Dog", "things/10", "things/9", "things/deep/car"],
        ["1", "2", "5", "10"],
        ["0", "1", "2"],
        ["n01440764", "n01443537", "n00000001"],
        ["a1b10", "a1b9", "A01b9x", "é2", "É10"],
    ],
)
def test_classes_have_the_numbers_that_timm_gives_them(tmp_path: Path, folders: list[str]) -> None:
    source = touch(tmp_path, [f"{folder}/{i}.jpg" for i, folder in enumerate(folders)])
    timms = ReaderImageFolder(source)
    expected = {
        os.path.relpath(path, source).removesuffix(".jpg"): label for path, label in timms.samples
    }
    assert labels(source) == expected


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        ([*map(str, range(1, 8))], ["1", "2", "4", "6", "7"], [0, 1, 3, 5, 6]),
        ([f"c{i}" for i in range(1, 12)], ["c2", "c10"], [9, 1]),
        (["a", "b", "c"], ["c"], [2]),
        (["0", "1", "2"], ["2"], [2]),
    ],
)
def test_the_classes_of_the_training_split_rule_the_others(
    tmp_path: Path, kdcache: Command, train: list[str], validation: list[str], expected: list[int]
) -> None:
    for split, folders in (("train", train), ("val", validation)):
        for folder in folders:
            (tmp_path / split / folder).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / folder / f"{split}{folder}.png")
    assert [*labels(str(tmp_path), "validation").values()] == expected
    out = kdcache("shard", tmp_path, tmp_path / "out")
    assert out.code == 0, out.err
    made = labels(str(tmp_path / "out"), "validation")
    assert sorted(made.values()) == sorted(expected)


def test_a_class_that_the_training_split_lacks_is_refused(tmp_path: Path) -> None:
    source = touch(tmp_path, ["train/a/1.jpg", "train/b/2.jpg", "val/c/3.jpg"])
    with pytest.raises(CacheMismatch, match="'c'"):
        open_images(source, "validation")


def test_stray_images_have_no_class_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    source = touch(tmp_path, ["a/1.jpg", "b/2.jpg", "over view.jpg"])
    assert labels(source) == {"a/1": 0, "b/2": 1, "over view": NO_LABEL}
    assert "over view.jpg" in caplog.text


def test_what_is_no_sample_is_passed_over_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    caplog.set_level(logging.INFO)
    files = ["a/1.jpg", "b/2.jpg", ".git/3.jpg", "a/._1.jpg", "@eaDir/4.jpg", "a/5.gif", "a/6.gif"]
    files += ["b/7.jfif", "b/8", "cache/zarr.json", "cache/9.jpg", "a/x.jpg.partial"]
    source = touch(tmp_path, files)
    contact_sheet.save(Image.new("RGB", (9, 9)), tmp_path / "sheet.png")
    contact_sheet.save(Image.new("RGB", (9, 9)), tmp_path / "sheet.jpg")
    assert labels(source) == {"a/1": 0, "b/2": 1}
    for words in ("3 hidden", "2 .gif", "1 .jfif", "1 without extension", "4 of kdcache itself"):
        assert words in caplog.text


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    source = touch(tmp_path / "data", ["a/1.jpg", "b/2.jpg"])
    touch(tmp_path / "elsewhere", ["3.jpg"])
    for link, target in (("a/loop", tmp_path / "data"), ("0", tmp_path / "data/b")):
        (tmp_path / "data" / link).symlink_to(target)
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere")
    assert labels(source) == {"a/1": 0, "b/2": 1, "c/3": 2}


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, scandir = touch(tmp_path, ["a/1.jpg", "b/2.jpg"]), os.scandir

    def stale(path: Path) -> object:
        if Path(path).name == "b":
            raise OSError(116, "Stale file handle")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(DataError, match=r"/b: Stale file handle"):
        open_images(source, "train")


def test_links_to_nowhere_and_names_that_are_no_text_are_named(
    tmp_path: Path, kdcache: Command
) -> None:
    (tmp_path / "d/a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "d/a/1.png")
    (tmp_path / "d/a/gone.jpg").symlink_to("/nowhere/x.jpg")
    out = kdcache("shard", tmp_path / "d", tmp_path / "s")
    assert (out.code, "a/gone" in out.err, "Traceback" in out.err) == (1, True, False)
    assert kdcache("shard", tmp_path / "d", tmp_path / "s", "--skip-broken").code == 0
    assert labels(str(tmp_path / "s")) == {"a/1": 0}
    (tmp_path / "d/a/gone.jpg").unlink()
    (tmp_path / os.fsdecode(b"d/a/caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"caf\\xe9"):
        open_images(str(tmp_path / "d"), "train")


def test_tars_beside_images_are_an_error_that_names_both(tmp_path: Path) -> None:
    source = touch(tmp_path, ["train/a/1.jpg", "train/b/2.jpg"])
    tar(tmp_path / "train/left.tar", ["x.jpg"])
    with pytest.raises(UsageError, match=r"left\.tar.*/[12]\.jpg"):
        open_images(source, "train")
    assert len(open_images(f"{source}/train/*.tar", "train")) == 1


SPLIT_TREES = [
    ({"train": "Train", "validation": "Val"}, True),
    ({"train": "training", "validation": "valid", None: "test"}, True),
    ({"train": "train2017", "validation": "val2017"}, True),
    ({"train": "train_images", "validation": "val_images"}, True),
    ({"train": "imagenet-train-0000.tar", "validation": "imagenet-val-0000.tar"}, False),
    ({"train": "TRAIN_1.tar", "validation": "Validation_1.tar"}, False),
    ({"train": "my-test-train-0.tar", "validation": "my-test-val-0.tar"}, False),
]


@pytest.mark.parametrize(("names", "folders"), SPLIT_TREES)
@pytest.mark.parametrize("url", [False, True])
def test_splits_are_known_by_words_whatever_the_case(
    tmp_path: Path, names: dict[str | None, str], folders: bool, url: bool
) -> None:
    for split, name in names.items():
        if folders and not url:
            touch(tmp_path / name, [f"a/{split}.jpg", f"b/{split}2.jpg"])
        else:
            path = tmp_path / name / "0.tar" if folders else tmp_path / name
            tar(path, [f"{split}.jpg"])
    if url and folders and any(not n.rstrip("0123456789").isalpha() for n in names.values()):
        return
    source = f"file://{tmp_path}" if url else str(tmp_path)
    for split in ("train", "validation"):
        assert has_split(source, split)
        assert {n.rpartition("/")[2].rstrip("2") for n in open_images(source, split).names} == {
            split
        }
    assert not has_split(source, "teacher")
    with pytest.raises(UsageError, match="no teacher split"):
        open_images(source, "teacher")


def test_words_for_splits_in_names_of_classes(tmp_path: Path) -> None:
    source = touch(tmp_path, ["test_tube/a/1.jpg", "train_station/b/2.jpg", "x/c/3.jpg"])
    assert len(open_images(source, "train")) == 3


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["val/a/1.jpg", "val/b/2.jpg"], "no train split, only val"),
        (["train/a/1.jpg", "Train/b/2.jpg", "training/c/3.jpg"], "several train splits"),
        (["train/1.jpg", "bus/2.jpg", "car/3.jpg"], "are all of them classes"),
        ([f"x/Data/CLS-LOC/{s}/1.jpg" for s in ("train", "val", "test")], "x/Data/CLS-LOC"),
        (["images/train/a/1.jpg"], "the splits train in its folder images"),
        (["val-0.tar"], "no train split, only val"),
        (["val-0.tar", "train-0.tar", "extra.tar"], "extra.tar"),
    ],
)
def test_an_unclear_split_is_a_question(tmp_path: Path, files: list[str], words: str) -> None:
    source = touch(tmp_path, files)
    with pytest.raises(UsageError, match=words):
        open_images(source, "train")


def test_classes_with_a_word_for_a_split_stay_classes(tmp_path: Path) -> None:
    source = touch(tmp_path, ["bullet_train/1.jpg", "cat/2.jpg", "vehicles/train/3.jpg"])
    assert labels(source) == {"bullet_train/1": 0, "cat/2": 1, "vehicles/train/3": 2}


def test_ilsvrcs_folder_of_splits(tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC/Data/CLS-LOC"
    touch(root, ["train/n02/1.JPEG", "train/n01/2.JPEG", "val/3.JPEG", "test/4.JPEG"])
    assert labels(str(root)) == {"n01/2": 0, "n02/1": 1}
    assert labels(str(root), "validation") == {"3": NO_LABEL}


def test_timms_second_name_for_its_description(tmp_path: Path) -> None:
    for name in ("x0.tar", "x1.tar"):
        tar(tmp_path / name, [name.replace("tar", "jpg")])
    described = {"train": {"filenames": ["x0.tar"]}, "Validation": {"filenames": ["x1.tar"]}}
    (tmp_path / "info.json").write_text(json.dumps({"splits": described}))
    for source in (str(tmp_path), f"file://{tmp_path}"):
        assert open_images(source, "train").names == ["x0"]
        assert open_images(source, "validation").names == ["x1"]
    (tmp_path / "info.json").write_text('{"splits": {"train": 5}}')  # of another tool
    assert len(open_images(str(tmp_path), "train")) == 2


def test_each_folder_of_a_split_may_have_its_own_description(tmp_path: Path) -> None:
    """Shards beside those that it names are not read."""
    for name in ("train/x0.tar", "train/old.tar", "val/x1.tar", "val/old.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar(tmp_path / name, [name[-6:].replace("tar", "jpg")])
    for folder, split, shard in (("train", "train", "x0.tar"), ("val", "validation", "x1.tar")):
        described = {"splits": {split: {"filenames": [shard]}}}
        (tmp_path / folder / "_info.json").write_text(json.dumps(described))
    for source in (str(tmp_path), f"file://{tmp_path}"):
        assert open_images(source, "train").names == ["x0"]
        assert open_images(source, "validation").names == ["x1"]
    (tmp_path / "val/x1.tar").unlink()
    with pytest.raises(KdcacheError, match=r"val/_info\.json: not one of the 1 names"):
        open_images(str(tmp_path), "validation")


def test_folders_beside_those_of_splits_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = touch(tmp_path, ["train/a/1.jpg", "val/a/2.jpg", "notes/3.txt", "extra/4.jpg"])
    with caplog.at_level("INFO", "kdcache"):
        assert labels(source) == {"a/1": 0}
    assert "folders that are no splits, passed over: 2 (first: extra)" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("val/val_annotations.txt", "v0.jpg\tb\t0\t0\t6\t6\nv1.jpg\ta\t0\t0\t6\t6\n", [1, 0]),
        ("val.txt", "v0.jpg 1\nval/v1.jpg 0\n", [1, 0]),
        ("val.txt", "v0.jpg b\nv1.jpg a\n", [1, 0]),
        ("val.txt", "v0 1\nv1 2\n", [NO_LABEL] * 2),  # it numbers its lines
        ("val.txt", "v0.jpg 1\n", [NO_LABEL] * 2),
        ("val.txt", "v0.jpg\nv1.jpg\n", [NO_LABEL] * 2),
    ],
)
def test_files_of_labels_beside_images_without_class_folders(
    tmp_path: Path, name: str, content: str, expected: list[int]
) -> None:
    files = ["train/a/images/1.jpg", "train/b/images/2.jpg", "val/images/v0.jpg"]
    source = touch(tmp_path, [*files, "val/images/v1.jpg"])
    (tmp_path / name).write_text(content)
    assert labels(source) == {"a/images/1": 0, "b/images/2": 1}
    try:
        found = [*labels(source, "validation").values()]
    except (
        KdcacheError
    ) as error:  # no labels: the folder `images` is no class of the training split
        assert "'images'" in str(error)
        found = [NO_LABEL] * 2
    assert found == expected


def test_avif_is_read_as_webp_is(tmp_path: Path, kdcache: Command) -> None:
    (tmp_path / "d/a").mkdir(parents=True)
    pixels = np.full((16, 24, 3), (200, 30, 90), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "d/a/1.avif", quality=95)
    images = open_images(str(tmp_path / "d"), "train")
    assert np.abs(decode.decode(images.read(0), "1").astype(int) - pixels).max() < 8
    assert kdcache("shard", tmp_path / "d", tmp_path / "s").code == 0
    assert labels(str(tmp_path / "s")) == {"a/1": 0}


def test_a_file_too_large_for_a_picture_is_not_read(tmp_path: Path) -> None:
    source = touch(tmp_path, ["a/x.jpg", "b/y.jpg"])
    with (tmp_path / "a/x.jpg").open("wb") as file:
        file.truncate(3 * 2**30)
    images = open_images(source, "train")
    with pytest.raises(DataError, match=r"'a/x' .* has 3,221,225,472 bytes, 536,870,912 are"):
        images.read(0)
    with (tmp_path / "b/y.jpg").open("wb") as file:  # grown since it was listed
        file.truncate(3 * 2**30)
    with pytest.raises(DataError, match="has 3221225472 bytes, 1 were there"):
        images.read(1)
