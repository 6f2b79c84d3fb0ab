"""Names of data sets: folders whose names have characters of patterns, and patterns below them."""

import json
import logging
import tarfile
from pathlib import Path

import pytest

from cache_tools import shards
from cache_tools.data import info_json, shard_writer, sources
from cache_tools.data.open import has_split, open_images
from cache_tools.errors import KdcacheError, UsageError


@pytest.mark.parametrize("name", ["set [1]", "set {v2}", "what?", "a{b,c}", "*"])
def test_a_folder_with_characters_of_patterns(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    files = [str(tmp_path / name / f"train-{i}.tar") for i in range(3)]
    for file in files:
        Path(file).touch()
    for pattern in ("", "/train-{0..2}.tar", "/train-*.tar", "/train-[0-2].tar"):
        found = sources.find_local(f"{tmp_path / name}{pattern}", "train")
        assert found is not None
        assert list(found.names) == files


def test_a_pattern_longer_than_the_name_of_a_file(tmp_path: Path) -> None:
    names = [f"shard-{i:05d}" for i in range(60)]
    pattern = f"{tmp_path}/{{{','.join(names)}}}.tar"
    for name in names:
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            shard_writer.add(tar, "a.jpg", b"x")
    assert not has_split(pattern, "validation")
    assert len(open_images(pattern, "train", shard_keys=True)) == 60


def train(filenames: object, **more: object) -> str:
    return json.dumps({"splits": {"train": {"filenames": filenames, **more}}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"splits":' + "[" * 100_000, "deep"),
        ('{"splits":{"train":{"filenames":["a.tar"],"shard_lengths":[Infinity]}}}', "finite"),
        (train(["a" * 5000]), "5,000 characters"),
        (train(["a" * 300]), "longer than the name of any file"),
        (train(["{" * 2000 + "a" + "}" * 2000]), "brace"),
        (train(["{" * 3000 + "a" + "}" * 3000]), "6,001 characters"),
        (train(["{0..999999}.tar"] * 60), "more than 1,000,000 names"),
        (train("{0..9}" * 400), "more than 1,000,000 names"),
        (train("{0..99999999\n}.tar"), "printable"),
        (train("{0..999999}/" + "x/" * 1000), "names of 268,435,456 characters"),
        (train("{²..³}{٠..٩٩٩٩٩٩٩}"), "more than 1,000,000 names"),
        (train(["a.tar", "{a,b}.tar"]), "a shard twice"),
        (train(["a.tar"], shard_lengths=[-1]), "shard_lengths"),
        (train(["a.tar"], shard_lengths=["1"]), "shard_lengths"),
        (train({"a.tar": 1}), "filenames is no list of names"),
        (train([["a.tar"]]), "filenames is no list of names"),
        (train(["a.tar"])[:-1] + ',"class_names":"abc"}', "class_names is no list"),
        (train(["a.tar"])[:-1] + ',"class_names":["\\ud800"]}', "surrogates"),
        (train(["../a.tar"]), "not below the folder"),
        (
            '{"splits":{"\\u001b[31mtr\\u0007":{"filenames":["a.tar"]}}}',
            "no train split, .* Rename",
        ),
        ('{"splits":{}}', "only an empty list. Rename the split there to train, name its shards"),
        ('{"split":{}}', "it has no 'splits'"),
        ("[]", "not a WebDataset description"),
        ("\udcff" * 3_000_000, "not a WebDataset description"),
        ("1" * (2**24 + 1), "16,777,216 are the most"),
    ],
    ids=range(25),
)
def test_a_description_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "_info.json").write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(KdcacheError, match=message) as raised:
        sources.find_local(str(tmp_path), "train")
    shown = str(raised.value)
    assert f"{tmp_path}/_info.json" in shown
    assert shown.isprintable()
    assert len(shown) < 1000


@pytest.mark.parametrize(
    "pattern", ["x-{0..9999999}.tar", "{" * 9999, "x{" + "a" * 300 + ",b}.tar"]
)
def test_a_pattern_on_the_command_line_that_cannot_be(pattern: str) -> None:
    with pytest.raises(UsageError):
        info_json.expand(pattern)


@pytest.mark.parametrize("name", ["aaa.tar", "ILSVRC2012_img_val.tar", "bbb.tar.gz"])
def test_the_archive_of_the_folders_beside_it_is_passed_over(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("aaa", "bbb"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.ppm").write_bytes(b"P6 1 1 255\n123")
    (tmp_path / name).touch()
    caplog.set_level(logging.INFO, "kdcache")
    assert shards.open_images(str(tmp_path), "train").num_classes == 2
    assert (
        f"passed over: 1 tars that its folders are the contents of (first: {name})" in caplog.text
    )
    (tmp_path / "other.tar").touch()
    with pytest.raises(UsageError, match=r"has 1 tars \(other\.tar\) and images"):
        shards.open_images(str(tmp_path), "train")
