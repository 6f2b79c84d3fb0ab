"""Parquet and Arrow tables of images give the shards of the same images in folders."""

import json
import logging
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from cache_tools.columnar import rows
from cache_tools.data.open import open_images
from cache_tools.errors import DataError, UsageError
from tests.helpers import hub_server, tables
from tests.helpers.outcome import Outcome
from tests.helpers.tables import NAMES, ROWS, picture, plain

Command = Callable[..., Outcome]


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
    [
        pytest.param(tables.hub, id="_hub"),
        _nested,
        _saved,
        _dictionary,
        _arrow_file,
        _plain,
        _large,
        _text,
        _dictionary_text,
    ],
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
    write = {"parquet": tables.hub, "arrow": _dictionary}[suffix]
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


def test_images_beside_a_table(tmp_path: Path) -> None:
    """A table of images is an error beside images, another table is passed over as any file."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").write_bytes(picture(1))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "metadata.parquet")
    assert open_images(str(tmp_path), "train").class_names == ("x",)
    pq.write_table(tables.table(ROWS, NAMES), tmp_path / "images.parquet")
    with pytest.raises(UsageError, match=r"1 tables \(images.parquet\) and images"):
        open_images(str(tmp_path), "train")


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tables.hub(tmp_path / "source")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'kdcache\[parquet\]'"):
        open_images(str(source), "train")


@pytest.mark.parametrize("token", [hub_server.TOKEN, "hf_of_another", ""])
def test_a_repository_of_the_hub(
    token: str, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    command = [Path(sys.executable).parent / "kdcache", "shard", f"hf://datasets/{hub_server.NAME}"]
    command += [tmp_path / "a", "--shard-size", "10"]
    with hub_server.serve(tables.hub(tmp_path / "source"), gated=True) as endpoint:
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
