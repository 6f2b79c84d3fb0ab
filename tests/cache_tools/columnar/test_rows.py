"""Parquet and Arrow tables of images give the shards of the same images in folders."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from cache_tools.columnar import layout, parquet, rows
from cache_tools.columnar.thrift import Compact
from cache_tools.data import unpacked
from cache_tools.data.open import open_images
from cache_tools.errors import DataError, KdcacheError, UsageError
from cache_tools.storage import fsspec_client
from tests.helpers import hub_server, tables
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
NAMES = ("crane", "kit fox", "tench")
"""Classes of the pictures, in an order that is that of folders, too."""


def picture(number: int) -> bytes:
    values = np.random.Philox(key=number).random_raw(8 * 8 * 3).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(np.repeat(values.reshape(8, 8, 3), 3, axis=0)))


ROWS: list[tables.Row] = [(picture(i), f"img_{i}.JPEG", i % 3) for i in range(24)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The pictures of ROWS as an ImageFolder."""
    for data, name, label in ROWS:
        path = tmp_path / "images" / NAMES[label] / str(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data or b"")
    return tmp_path / "images"


def shards(folder: Path, named: bool = True) -> list[list[tuple[str, bytes]]]:
    """Members of each shard, with names below their folders or only their extensions."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [(m.name.rpartition("/")[2], tar.extractfile(m)) for m in tar]
            found.append([(n if named else n.split(".")[1], f.read()) for n, f in members if f])
    return found


def classes(folder: Path) -> list[str]:
    names: list[str] = json.loads((folder / "_info.json").read_text()).get("class_names", [])
    return names


def plain(content: Sequence[tables.Row], kind: Any = None) -> Any:
    """A table without structs and without a description."""
    return pa.table({
        "file_name": [row[1] for row in content],
        "image": pa.array([row[0] for row in content], kind or pa.binary()),
        "label": [row[2] for row in content],
    })  # fmt: skip


def _hub(at: Path) -> Path:
    tables.parquet(at / "data", "train", ROWS, NAMES, 3)
    return at


def _nested(at: Path) -> Path:
    tables.parquet(at / "default" / "train", "0000", ROWS, NAMES, 1)[0].rename(
        at / "default/train/0000.parquet"
    )
    return at


def _saved(at: Path) -> Path:
    tables.saved(at, ROWS, NAMES)
    tables.arrow(at / "cache-1234.arrow", pa.table({"x": [1]}))
    return at


def _dictionary(at: Path) -> Path:
    tables.saved(at / "train", ROWS, NAMES)
    (at / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return at


def _arrow_file(at: Path) -> Path:
    return tables.arrow(at / "x.arrow", tables.table(ROWS, NAMES), stream=False)


def _plain(at: Path) -> Path:
    at.mkdir()
    pq.write_table(plain(ROWS), at / "photos.parquet")
    return at / "photos.parquet"


def _large(at: Path) -> Path:
    at.mkdir()
    pq.write_table(plain(ROWS, pa.large_binary()), at / "a.parquet", compression="zstd")
    return at


def _text(at: Path) -> Path:
    at.mkdir()
    content = [(data, name, NAMES[label]) for data, name, label in ROWS]
    pq.write_table(plain(content), at / "a.parquet", use_dictionary=False, version="1.0")
    return at


def _dictionary_text(at: Path) -> Path:
    made = plain([(data, f"/home/me/{name}", NAMES[label]) for data, name, label in ROWS])
    made = made.set_column(2, "label", made["label"].dictionary_encode())
    return tables.arrow(at / "a.arrow", made)


@pytest.mark.parametrize(
    "write",
    [_hub, _nested, _saved, _dictionary, _arrow_file, _plain, _large, _text, _dictionary_text],
)
def test_a_table_gives_the_shards_of_its_folder(
    write: Callable[[Path], Path], folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    source = write(tmp_path / "source")
    for name, data in (("a", source), ("b", source), ("c", folder)):
        said = kdcache("shard", data, tmp_path / name, "--shard-size", 10)
        assert said.code == 0, said.err
    assert shards(tmp_path / "a") == shards(tmp_path / "c")
    expected = [] if write in (_plain, _large) else [*NAMES]  # their numbers have no names
    assert classes(tmp_path / "a") == expected
    for path in (tmp_path / "a").glob("train*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_splits_by_the_names_of_files(tmp_path: Path, kdcache: Command) -> None:
    source = tmp_path / "source"
    tables.parquet(source / "data", "train", ROWS[:12], NAMES, 2)
    tables.parquet(source / "data", "validation", ROWS[12:20], NAMES, 1)
    tables.parquet(source / "data", "test", [(d, p, -1) for d, p, _ in ROWS[20:]], NAMES, 1)
    facts = json.loads(kdcache("shard", source, tmp_path / "a", "--json").out)
    assert {name: found["samples"] for name, found in facts.items()} == {
        "train": 12, "validation": 8
    }  # fmt: skip
    test = kdcache(
        "shard", source / "data/test-*.parquet", tmp_path / "t", "--split", "validation", "--json"
    )
    assert "not every image has a label" in test.err
    made = open_images(str(tmp_path / "t"), "validation")
    assert (len(made), set(made.label_N.tolist())) == (4, {-1})
    said = kdcache("shard", source / "data/*.parquet", tmp_path / "x")
    assert said.code == 2
    assert "several splits: test, train, validation" in said.err


def splits(where: Path, kind: str, training: bool = True) -> str:
    """Two splits of rows, of which the second has two of the three classes."""
    rows_of = {"train": ROWS[:12], "validation": [row for row in ROWS[12:] if row[2] > 0]}
    where.mkdir()
    for split, content in rows_of.items():
        path = where / f"{split}-00000-of-00001.parquet"
        if kind == "text":
            pq.write_table(plain([(d, p, NAMES[c]) for d, p, c in content]), path)
        else:
            fewer = split == "validation"
            shifted = [(d, p, c - fewer) for d, p, c in content]
            pq.write_table(tables.table(shifted, NAMES[fewer:]), path)
    if not training:
        (where / "train-00000-of-00001.parquet").unlink()
    return str(where)


@pytest.mark.parametrize("kind", ["text", "named numbers"])
@pytest.mark.parametrize("remote", [False, True])
def test_classes_of_a_validation_split_are_those_of_the_training_split(
    kind: str, remote: bool, tmp_path: Path, kdcache: Command
) -> None:
    source = splits(tmp_path / "source", kind)
    memory = fsspec.filesystem("memory")
    if remote:
        memory.put(source, f"/{kind}", recursive=True)
    try:
        said = kdcache("shard", f"memory://{kind}" if remote else source, tmp_path / "a",
                       "--split", "validation")  # fmt: skip
    finally:
        memory.rm(f"/{kind}", recursive=True) if remote else None
    assert said.code == 0, said.err
    made = open_images(str(tmp_path / "a"), "validation")
    assert made.class_names == NAMES
    found = {n.rpartition("/")[2]: int(c) for n, c in zip(made.names, made.label_N, strict=True)}
    assert found == {f"img_{i}": i % 3 for i in range(12, 24) if i % 3}
    assert "in this split alone" not in said.err


def test_classes_of_a_split_without_a_training_split(tmp_path: Path, kdcache: Command) -> None:
    source = splits(tmp_path / "source", "text", training=False)
    said = kdcache("shard", f"{source}/*.parquet", tmp_path / "a", "--split", "validation")
    assert said.code == 0, said.err
    assert "2 classes numbered as in this split alone" in said.err
    made = open_images(str(tmp_path / "a"), "validation")
    assert (made.class_names, {*made.label_N.tolist()}) == (NAMES[1:], {0, 1})


def test_rows_without_a_path_of_their_own_are_called_by_their_number(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")
    content = [*ROWS[:11], (ROWS[11][0], "img_3.png", 2), *ROWS[12:]]
    tables.parquet(tmp_path / "a", "train", content, NAMES, 3)
    found = open_images(str(tmp_path / "a"), "train")
    assert found.names == [f"{row:08d}" for row in range(24)]
    assert [found.read(i) for i in range(24)] == [row[0] for row in ROWS]
    assert "2 of 24 have no path that is theirs alone and fits a key (first: row 3, 'img_3')" in (
        caplog.text
    )
    tables.parquet(tmp_path / "b", "train", content, NAMES, 2)  # the number of files is no matter
    assert open_images(str(tmp_path / "b"), "train").names == found.names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.JPEG", "a"), ("train/n01/a.jpg", "train/n01/a"), ("./x//a.png", "x/a"), ("a", "a"),
        ("/home/me/a.png", "a"), ("C:\\x\\a.png", "a"), ("https://host/x/a.png", "a"),
        ("../x/a.png", "a"), ("a.b.png", ""), ("", ""), ("..", ""), ("x/\n.png", ""),
        ("y" * 5000, ""),
    ],
)  # fmt: skip
def test_names_of_paths(path: str, name: str) -> None:
    assert rows._name(path) == name


def test_labels_that_are_missing(tmp_path: Path) -> None:
    content = [*ROWS[:4], (ROWS[4][0], "x.png", None), (ROWS[5][0], "y.png", -1)]
    tables.parquet(tmp_path / "a", "train", content, NAMES, 1)
    assert open_images(str(tmp_path / "a"), "train").label_N.tolist() == [0, 1, 2, 0, -1, -1]
    (tmp_path / "b").mkdir()
    labels = [None if row[2] is None else f"/.{row[2]}=" for row in content]
    pq.write_table(
        plain([(d, p, t) for (d, p, _), t in zip(content, labels, strict=True)]),
        tmp_path / "b/x.parquet",
    )
    found = open_images(str(tmp_path / "b"), "train")
    assert found.class_names == ("/.0=", "/.1=", "/.2=", "/.-1=")  # timm's order
    assert found.label_N.tolist() == [0, 1, 2, 0, -1, 3]


def test_columns_by_name(tmp_path: Path, kdcache: Command) -> None:
    made = tables.table(ROWS, NAMES, "img", "fine").append_column("coarse", pa.array([0] * 24))
    made = made.append_column("thumb", pa.array([b"x"] * 24)).append_column(
        "n", pa.array([*"x" * 24])
    )
    pq.write_table(made, tmp_path / "a.parquet")
    whole = open_images(str(tmp_path / "a.parquet"), "train")
    assert whole.class_names == NAMES
    said = kdcache("shard", tmp_path / "a.parquet", tmp_path / "s", "--columns", "label=coarse")
    assert said.code == 0, said.err
    assert set(open_images(str(tmp_path / "s"), "train").label_N.tolist()) == {0}
    for text, message in (
        ("label=nothing", "no column 'nothing', which cannot be classes"),
        ("image=fine", "int64 in the column 'fine', which cannot be encoded pictures"),
        ("path=fine", "int64 in the column 'fine', which cannot be paths"),
        ("picture=img", "expected NAME=COLUMN with image, label, path"),
        ("image=img,image=thumb", "each of image, label, path is named once at most"),
    ):
        said = kdcache("shard", tmp_path / "a.parquet", tmp_path / "x", "--columns", text)
        assert (said.code, message in said.err) == (2, True), said.err


def test_columns_that_can_be_meant_in_two_ways(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"]}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"a": [[1, 2]], "label": [3]}), tmp_path / "none.parquet")
    for name, message in (
        ("two", r"several columns of encoded pictures .*: a \(binary\), b \(binary\)"),
        ("none", r"no column of encoded pictures .* --columns image=NAME"),
    ):
        with pytest.raises(UsageError, match=message):
            open_images(str(tmp_path / f"{name}.parquet"), "train")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "values", [[b"x", b"y"], [1, 2], [["a"], ["b"]], [{"a": 1}, {"a": 2}], [None, None]],
    ids=["bytes", "numbers", "lists", "structs", "nulls"],
)  # fmt: skip
def test_paths_in_pictures_that_are_no_text(
    values: list[Any], suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")
    paths = pa.array(values)
    pictures = pa.StructArray.from_arrays([pa.array([b"0", b"1"]), paths], ["bytes", "path"])
    made = pa.table({"image": pictures, "label": [1, 0]})
    source = tmp_path / f"a.{suffix}"
    pq.write_table(made, source) if suffix == "parquet" else tables.arrow(source, made)
    found = open_images(str(source), "train")
    assert (list(found.names), found.label_N.tolist()) == (["00000000", "00000001"], [1, 0])
    assert [found.read(i) for i in range(2)] == [b"0", b"1"]
    said = re.findall(r"image\.path is (.*), which is not read: paths are text", caplog.text)
    assert [text.split("<")[0] for text in said] == (
        [] if values[0] is None else [str(paths.type).split("<")[0]]
    )
    named = made.append_column("file_name", pa.array(["b.jpg", "a.jpg"]))
    pq.write_table(named, source) if suffix == "parquet" else tables.arrow(source, named)
    expected = ["b", "a"] if values[0] is not None else ["00000000", "00000001"]
    assert list(open_images(str(source), "train").names) == expected


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ["image", "label", "path"])
def test_two_columns_of_a_name(name: str, suffix: str, tmp_path: Path) -> None:
    columns = {"image": [b"0", b"1"], "label": ["a", "b"], "path": ["x.jpg", "y.jpg"]}
    names = [name, *columns]
    made = pa.Table.from_arrays([pa.array(v) for v in ([1, 2], *columns.values())], names=names)
    source = tmp_path / f"a.{suffix}"
    pq.write_table(made, source) if suffix == "parquet" else tables.arrow(source, made)
    with pytest.raises(DataError, match=f"a.{suffix} has several columns called '{name}'"):
        open_images(str(source), "train")


def test_a_run_that_was_interrupted_goes_on(
    folder: Path, tmp_path: Path, kdcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.parquet(tmp_path / "source", "train", ROWS, NAMES, 3)
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    unpack, made = rows.tar, []

    def stopped(path: Path, *args: Any) -> Any:
        for number, piece in enumerate(unpack(path, *args)):
            if path.name.startswith("train-00001") and number == 5:
                raise KeyboardInterrupt
            yield piece
        made.append(path.name)

    monkeypatch.setattr(rows, "tar", stopped)
    assert kdcache("shard", tmp_path / "source", tmp_path / "a", "--shard-size", 10).code == 130
    assert made == ["train-00000-of-00003.parquet"]
    monkeypatch.setattr(rows, "tar", lambda *args: made.append(args[0].name) or unpack(*args))
    said = kdcache("shard", tmp_path / "source", tmp_path / "a", "--shard-size", 10)
    assert said.code == 0, said.err
    assert [name[:11] for name in made] == ["train-00000", "train-00001", "train-00002"]
    assert kdcache("shard", folder, tmp_path / "c", "--shard-size", 10).code == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "c")


def test_a_damaged_copy_is_unpacked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.parquet(tmp_path / "source", "train", ROWS, NAMES, 1)
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    images = open_images(str(tmp_path / "source"), "train")
    copy = images.paths[0]
    data = bytearray(copy.read_bytes())
    data[int(images.offset_N[3]) + 9] ^= 1
    copy.write_bytes(data)
    with pytest.raises(DataError, match="is damaged and was removed"):
        open_images(str(tmp_path / "source"), "train").read(3)
    assert open_images(str(tmp_path / "source"), "train").read(3) == ROWS[3][0]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_tables_behind_a_url(suffix: str, folder: Path, tmp_path: Path, kdcache: Command) -> None:
    write = {"parquet": _hub, "arrow": _dictionary}[suffix]
    memory = fsspec.filesystem("memory")
    memory.put(str(write(tmp_path / "source")), f"/{suffix}", recursive=True)
    try:
        for source in (f"memory://{suffix}", f"memory://{suffix}/*/*.{suffix}"):
            said = kdcache("shard", source, tmp_path / f"a{len(source)}", "--shard-size", 10)
            assert said.code == 0, said.err
    finally:
        memory.rm(f"/{suffix}", recursive=True)
    assert kdcache("shard", folder, tmp_path / "c", "--shard-size", 10).code == 0
    assert shards(tmp_path / f"a{len(f'memory://{suffix}')}") == shards(tmp_path / "c")


def _cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _other_classes(source: Path) -> None:
    for path in tables.parquet(source / "b", "train", ROWS, (*NAMES, "new"), 2)[1:]:
        path.rename(source / "data" / "train-00001-of-00003.parquet")
    (source / "b" / "train-00000-of-00002.parquet").unlink()


def _flip(path: Path) -> None:
    pq.write_table(tables.table(ROWS, NAMES), path, write_page_checksum=True, compression=None)
    data = bytearray(path.read_bytes())
    data[data.index(ROWS[5][0] or b"") + 40] ^= 1
    path.write_bytes(data)


def _rewrite(content: Sequence[tables.Row], **options: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(tables.table(content, NAMES), path, **options)


FIRST = "data/train-00000-of-00003.parquet"


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda s: _cut(s / FIRST), 1, "it has no footer, so it is cut short or no Parquet file"),
        (lambda s: (s / FIRST).write_bytes(b""), 1, "it has no footer"),
        (lambda s: (s / FIRST).write_text("version https://git-lfs.github.com/spec/v1\n"), 1,
         "it is a git-lfs pointer in place of the file: run git lfs pull"),
        (lambda s: (s / FIRST).unlink(), 2, "2 of the 3 files data/train-…-of-3"),
        (lambda s: _flip(s / FIRST), 1, "could not verify page integrity, CRC checksum"),
        (_other_classes, 1, "other columns or classes than the first file"),
        (lambda s: _rewrite([(d, p, 3) for d, p, _ in ROWS])(s / FIRST), 1,
         "the class 3 in row 0, expected 0 to 2, or -1 of none"),
        (lambda s: _rewrite([(None, p, n) for _, p, n in ROWS])(s / FIRST), 1,
         "has paths of pictures and not their bytes"),
        (lambda s: _rewrite([(None, *ROWS[0][1:]), *ROWS[1:8]])(s / FIRST), 1,
         "1 of 24 images in"),
        (lambda s: tables.parquet(s / "other", "train", ROWS, NAMES, 1), 2,
         "files of rows in several folders: data, other"),
        (lambda s: tables.arrow(s / "data/indices.arrow", pa.table({"i": [1]})), 2,
         "flatten_indices().save_to_disk"),
    ],
    ids=["cut", "empty", "lfs", "missing", "flipped", "other classes", "class", "paths alone",
         "one path alone", "folders", "indices"],
)  # fmt: skip
def test_a_table_that_cannot_be_read(
    damage: Callable[[Path], None], code: int, message: str, tmp_path: Path, kdcache: Command
) -> None:
    source = _hub(tmp_path / "source")
    damage(source)
    said = kdcache("shard", source, tmp_path / "a", "--shard-size", 4)
    assert (said.code, message in said.err) == (code, True), said.err
    assert "Traceback" not in said.err


def test_images_beside_a_table(tmp_path: Path) -> None:
    """A table of images is an error beside images, another table is passed over as any file."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").write_bytes(picture(1))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "metadata.parquet")
    assert open_images(str(tmp_path), "train").class_names == ("x",)
    pq.write_table(tables.table(ROWS, NAMES), tmp_path / "images.parquet")
    with pytest.raises(UsageError, match=r"1 tables \(images.parquet\) and images"):
        open_images(str(tmp_path), "train")


@pytest.mark.parametrize("stream", [True, False])
def test_an_arrow_file_that_is_cut_or_compressed(tmp_path: Path, stream: bool) -> None:
    path = tables.arrow(tmp_path / "x.arrow", tables.table(ROWS, NAMES), stream)
    whole = path.read_bytes()
    ends = {0, 4, 100, len(whole) // 3, len(whole) // 2}
    for end in ends if not stream else ends | {len(whole) - 8, len(whole) - 1}:
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="cannot read"):
            open_images(str(path), "train")
    tables.arrow(path, tables.table(ROWS, NAMES), stream, compression="zstd")
    with pytest.raises(DataError, match="its buffers are compressed"):
        open_images(str(path), "train")


def bomb(path: Path, codec: str) -> None:
    """A page of 96 MiB of zeros in a few KB."""
    content = plain([(bytes(96 * 2**20), "a.jpg", 0)])
    pq.write_table(content, path, compression=codec, use_dictionary=False)


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_a_page_of_zeros_is_not_unpacked(codec: str, tmp_path: Path) -> None:
    bomb(tmp_path / "a.parquet", codec)
    with pytest.raises(DataError, match=r"bytes that unpack to 100,663,3.*at most 67,108,864"):
        open_images(str(tmp_path / "a.parquet"), "train")


def test_a_picture_repeated_without_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary repeats 100 kB for each bit of its indices."""
    monkeypatch.setattr(unpacked, "_SMALL", 2**20)
    pq.write_table(plain([(bytes(100_000), "a.jpg", 0)] * 500), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        open_images(str(tmp_path / "a.parquet"), "train")


def test_a_footer_is_bounded_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def footer(data: bytes, length: int | None = None) -> Callable[[int, int], bytes]:
        file = parquet.MAGIC + data + (length or len(data)).to_bytes(4, "little") + parquet.MAGIC
        return lambda begin, end: file[begin:end]

    out = io.BytesIO()
    pq.write_table(plain(ROWS), out)
    honest = out.getvalue()
    assert parquet.schema(lambda a, b: honest[a:b], len(honest)).names[0] == "file_name"
    many = b"\x49\xfc\xff\xff\x7f" + b"\0" * (parquet.MAX_STRUCTS + 1)  # a list of empty structs
    for data, length, message in (
        (b"", 2**31, "cut short"),
        (b"\x19\xfc\xff\xff\xff\x0f" + b"\0" * 100, None, "cut short"),
        (many, None, "cut short"),
        (b"\x1c" * 100, None, "too deep"),
        (b"\x15" + b"\xff" * 30, None, "64 bits"),
        (b"\x1b", None, "kind 11"),
    ):
        with pytest.raises(ValueError, match=message):
            parquet.schema(footer(data, length), len(data) + 12)
    count = parquet.MAX_STRUCTS + 1
    size = bytes([count & 127 | 128, count >> 7 & 127 | 128, count >> 14])
    data = b"\x19\xfc" + size + b"\0" * (count + 1)
    with pytest.raises(ValueError, match="262,146 parts, 262,144 are the most"):
        parquet.schema(footer(data), len(data) + 12)


def test_thrift_values() -> None:
    # 1: i32 -3; 2: true; 3: binary; 20: struct of an i32 and an i64; 21: list of two structs
    data = bytes([0x15, 5, 0x11, 0x18, 2, 65, 66, 0x0C, 40, 0x15, 0x80, 1, 0x16, 2, 0])
    data += bytes([0x19, 0x2C, 0x15, 14, 0, 0, 0])
    value = Compact(data)
    assert value.struct() == {1: -3, 2: None, 3: None, 20: {1: 64, 2: None}, 21: [{1: 7}, {}]}
    assert (value.at, value.structs) == (len(data), 4)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _hub(tmp_path / "source")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'kdcache\[parquet\]'"):
        open_images(str(source), "train")


def test_a_description_that_cannot_be_read() -> None:
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    for text in (b"{", b"[]", b'{"info": {"features": 3}}'):
        with pytest.raises(DataError, match="description of its columns"):
            layout.of_schema(schema.with_metadata({b"huggingface": text}), layout.Columns(), "x")
    for names in (["a", "a"], ["a\n"], "ab", [1]):
        metadata = tables.described(names)  # type: ignore[arg-type]
        if names == "ab":
            metadata = {b"huggingface": metadata[b"huggingface"].replace(b'["a", "b"]', b'"ab"')}
        with pytest.raises(DataError, match="class"):
            layout.of_schema(schema.with_metadata(metadata), layout.Columns(), "x")


class RepositoryNotFoundError(OSError):
    """As huggingface_hub's."""


class GatedRepoError(RepositoryNotFoundError):
    """As huggingface_hub's."""

    response = type("Response", (), {"status_code": 401})


@pytest.mark.parametrize("token", ["", "hf_secret"])
def test_a_gated_repository(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token or None)
    client = fsspec_client.FsspecClient("hf://datasets/ILSVRC/imagenet-1k@main/data")

    def gated(*_: object, **__: object) -> None:
        raise FileNotFoundError("not found") from GatedRepoError("Cannot access gated repo")

    monkeypatch.setattr(client._fs, "info", gated)
    with pytest.raises(DataError, match="Cannot access gated repo") as raised:
        client.stat("train-00000-of-00294.parquet")
    text = str(raised.value)
    assert "accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k, once" in text
    assert ("No token is set" in text, "hf auth login" in text) == (not token, True)
    assert "hf_secret" not in text


def test_errors_are_ours(tmp_path: Path) -> None:
    """Whatever byte of a table is changed: its rows, or an error of ours.

    Pages have checksums; a changed footer may call the columns of paths and labels otherwise.
    """
    path = tmp_path / "a.parquet"
    pq.write_table(plain(ROWS[:3]), path, write_page_checksum=True)
    whole, outcomes = path.read_bytes(), Counter[str]()
    for at in range(0, len(whole), 17):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            found = open_images(str(path), "train")
        except KdcacheError as error:
            assert "a.parquet" in str(error)
            outcomes["error"] += 1
            continue
        assert [found.read(i) for i in range(len(found))] == [row[0] for row in ROWS[:3]]
        assert list(found.names) in (
            ["img_0", "img_1", "img_2"],
            ["00000000", "00000001", "00000002"],
        )
        assert found.label_N.tolist() in ([0, 1, 2], [-1, -1, -1])
        outcomes["rows"] += 1
    assert min(outcomes["error"], outcomes["rows"]) > 50


@pytest.mark.parametrize("token", [hub_server.TOKEN, "hf_of_another", ""])
def test_a_repository_of_the_hub(
    token: str, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    command = [Path(sys.executable).parent / "kdcache", "shard", f"hf://datasets/{hub_server.NAME}"]
    command += [tmp_path / "a", "--shard-size", "10"]
    with hub_server.serve(_hub(tmp_path / "source"), gated=True) as endpoint:
        where = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        env = os.environ | where | {"HF_TOKEN": token}
        said = subprocess.run(command, env=env, capture_output=True, text=True)
    if token == hub_server.TOKEN:
        assert said.returncode == 0, said.stderr
        assert kdcache("shard", folder, tmp_path / "c", "--shard-size", 10).code == 0
        assert shards(tmp_path / "a") == shards(tmp_path / "c")
    else:
        assert said.returncode == 1, said.stderr
        assert f"accept its terms at {endpoint}/datasets/{hub_server.NAME}" in said.stderr
        assert ("No token is set" in said.stderr) is (not token)


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat", "retina", "immunohistochemistry")


def photographs(count: int) -> list[tables.Row]:
    """Crops of photographs at various sizes and qualities."""
    import skimage.data

    whole = [getattr(skimage.data, name)() for name in PHOTOGRAPHS if hasattr(skimage.data, name)]
    rng = np.random.default_rng(0)
    content: list[tables.Row] = []
    for number in range(count):
        picture = whole[number % len(whole)]
        height, width = rng.integers(40, 300, 2)
        top = rng.integers(picture.shape[0] - height)
        left = rng.integers(picture.shape[1] - width)
        crop = np.ascontiguousarray(picture[top : top + height, left : left + width, :3])
        data = simplejpeg.encode_jpeg(crop, int(rng.integers(40, 96)))
        content.append((bytes(data), f"photo_{number}.JPEG", int(rng.integers(10))))
    return content


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["pyarrow", "datasets", "datasets on disk"])
def test_two_thousand_photographs(writer: str, tmp_path: Path, kdcache: Command) -> None:
    content, names = photographs(2000), [f"class {i}" for i in range(10)]
    source, folder = tmp_path / "source", tmp_path / "folder"
    for data, name, label in content:
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        (folder / names[label] / str(name)).write_bytes(data or b"")
    if writer == "pyarrow":
        tables.parquet(source, "train", content, names, files=5, group=100)
    else:
        datasets = pytest.importorskip("datasets")
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        columns = {
            "image": [{"bytes": data, "path": path} for data, path, _ in content],
            "label": [label for *_, label in content],
        }
        whole = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        if writer == "datasets":
            source.mkdir()
            for i in range(5):
                whole.shard(5, i, contiguous=True).to_parquet(
                    source / f"train-{i:05d}-of-00005.parquet", batch_size=100
                )
        else:
            datasets.DatasetDict(train=whole).save_to_disk(source, num_shards={"train": 5})
    for data_set, out in ((source, "a"), (folder, "b")):
        said = kdcache("shard", data_set, tmp_path / out, "--shard-size", 300)
        assert said.code == 0, said.err
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert classes(tmp_path / "a") == names
