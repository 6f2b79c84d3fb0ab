"""`kdcache shard`: what it writes is what timm, WebDataset and we read, whatever it was made of."""

import gc
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from timm.data import create_dataset

from cache_tools.data import scan, shard_writer, tar_index
from cache_tools.data.beton.reader import Beton
from cache_tools.data.open import open_images
from cache_tools.errors import DataError
from cache_tools.render import decode
from cache_tools.runtime.text import counted
from tests.helpers.outcome import Outcome
from tests.helpers.synsets import SYNSETS, contents, jpeg, shards

Command = Callable[..., Outcome]


def test_a_folder_becomes_shards_that_hold_the_same(
    photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "shards"
    said = kdcache("shard", photos, out, "--shard-size", 10)
    assert said.code == 0, said.err
    assert "25 train images in 3 shards" in said.out
    whole, made = open_images(str(photos), "train"), open_images(str(out), "train")
    assert contents(made) == contents(whole)
    assert made.class_names == whole.class_names == tuple(sorted(SYNSETS.values()))
    assert made.keys()[0] == whole.keys()[0] == "stem"
    assert sorted(made.keys()[1]) == sorted(whole.keys()[1])
    info = json.loads((out / "_info.json").read_text())
    assert info["splits"]["train"] == {
        "name": "train", "num_samples": 25, "shard_lengths": [10, 10, 5], "index": True,
        "filenames": [f"train-{i:04d}.tar" for i in range(3)],
    }  # fmt: skip
    # stage 1 goes through the shards from front to back
    order = scan.in_table_order(made, None)[2].names
    assert order == made.names


def test_a_split_beside_those_of_timms_second_name(
    photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "shards"
    assert kdcache("shard", photos, out, "--split", "validation").code == 0
    (out / "_info.json").rename(out / "info.json")
    assert kdcache("shard", photos, out).code == 0
    for split in ("train", "validation"):
        assert len(open_images(str(out), split)) == 25


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
def test_timms_own_reader_takes_them(photos: Path, tmp_path: Path, kdcache: Command) -> None:
    out = tmp_path / "shards"
    for split in ("train", "validation"):
        assert kdcache("shard", photos, out, "--shard-size", 10, "--split", split).code == 0
    whole = open_images(str(photos), "train")
    expected = sorted(
        (decode.decode(whole.read(i), "").tobytes(), int(whole.label_N[i])) for i in range(25)
    )
    for split in ("train", "validation"):
        dataset = create_dataset("wds/kd", root=str(out), split=split, is_training=False)
        assert len(dataset) == 25
        assert sorted((np.asarray(x).tobytes(), y) for x, y in dataset) == expected
    del dataset
    gc.collect()


def test_the_same_input_gives_the_same_bytes(
    photos: Path, tmp_path: Path, kdcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--shard-size", 7, "--short-side", 32)
    assert kdcache("shard", photos, tmp_path / "a", *small).code == 0
    monkeypatch.setattr("cache_tools.runtime.threads.cpu_count", lambda: 5)
    moved = photos.rename(tmp_path / "moved")
    assert kdcache("shard", moved, tmp_path / "b", *small).code == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    # and shards of the shards, in another split of sizes and back
    assert kdcache("shard", moved, tmp_path / "c", "--shard-size", 7).code == 0
    assert kdcache("shard", tmp_path / "c", tmp_path / "d", "--shard-size", 4).code == 0
    assert kdcache("shard", tmp_path / "d", tmp_path / "e", "--shard-size", 7).code == 0
    assert shards(tmp_path / "c") == shards(tmp_path / "e")


def test_images_are_shrunk_and_never_enlarged(
    photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    large, small = photos / "n01440764" / "large.jpg", photos / "n01440764" / "small.jpg"
    large.write_bytes(jpeg(1, 90, 200))
    small.write_bytes(jpeg(2, 20, 300))
    said = kdcache("shard", photos, tmp_path / "s", "--short-side", 45, "--quality", 80)
    assert said.code == 0, said.err
    made = contents(open_images(str(tmp_path / "s"), "train"))
    assert made["n01440764/small"][0] == small.read_bytes()
    assert decode.size(made["n01440764/large"][0], "") == (45, 100)
    assert decode.size(made["n02119789/n02119789_0"][0], "") == (45, 60)
    whole = decode.decode(large.read_bytes(), "")
    shrunk = decode.decode(made["n01440764/large"][0], "").astype(int)
    mean = whole.reshape(45, 2, 100, 2, 3).mean((1, 3))
    assert np.abs(shrunk - mean).mean() < 6  # JPEG, not another picture


def test_beside_shards_a_container_for_ffcv(photos: Path, tmp_path: Path, kdcache: Command) -> None:
    out = tmp_path / "s"
    small = ("shard", photos, out, "--short-side", 40, "--split", "train", "--beton", "--json")
    facts = json.loads(kdcache(*small).out)["train"]
    file = out / "train.beton"
    assert facts["beton"] == {
        "file": str(file), "images": 25, "bytes": file.stat().st_size, "as_pixels": 0
    }  # fmt: skip
    there, tars_ = (open_images(str(out), "train", containers=c) for c in (True, False))
    assert isinstance(there, Beton)
    assert not isinstance(tars_, Beton)
    assert contents(there) == contents(tars_)
    assert there.class_names == tars_.class_names == tuple(sorted(SYNSETS.values()))
    before = file.stat()
    assert json.loads(kdcache(*small).out)["train"] == facts
    assert file.stat().st_mtime_ns == before.st_mtime_ns  # it was there already
    as_pixels = json.loads(kdcache(*small, "--raw").out)["train"]["beton"]
    assert as_pixels["as_pixels"] == 25
    said = kdcache("shard", photos, out, "--raw")
    assert (said.code, "--beton" in said.err) == (2, True)


def test_splits_share_a_description_and_their_classes(
    photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    (tmp_path / "data").mkdir()
    photos.rename(tmp_path / "data" / "train")
    copy = tmp_path / "data" / "val" / "n01440764"
    copy.mkdir(parents=True)
    (copy / "v.jpg").write_bytes(jpeg(50))
    strange = copy.parent / "n99999999"
    strange.mkdir()
    (strange / "x.jpg").write_bytes(jpeg(52))
    said = kdcache("shard", tmp_path / "data", tmp_path / "s")
    assert said.code == 1
    assert "n99999999" in said.err
    shutil.rmtree(strange)
    for synset in SYNSETS.values():
        (copy.parent / synset).mkdir(exist_ok=True)
        (copy.parent / synset / f"v{synset}.jpg").write_bytes(jpeg(51))
    said = kdcache("shard", tmp_path / "data", tmp_path / "s", "--json")
    assert json.loads(said.out)["validation"]["samples"] == 4
    assert open_images(str(tmp_path / "s"), "validation").num_classes == 3
    assert len(open_images(str(tmp_path / "s"), "train")) == 25


def test_a_name_that_webdataset_would_cut_is_refused(photos: Path, tmp_path: Path) -> None:
    (photos / "n01440764" / "a.b.jpg").write_bytes(jpeg(5))
    images = open_images(str(photos), "train")
    with pytest.raises(DataError, match=r"'n01440764/a\.b' has a dot"):
        shard_writer.write(images, tmp_path / "s", shard_writer.Options())


@pytest.mark.parametrize("names", [1, 2])
def test_labels_beyond_the_names_of_a_description(
    names: int, photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    """Of three classes; the first label without a name, and one further than that."""
    source, listed = tmp_path / "s", tmp_path / "list.txt"
    assert kdcache("shard", photos, source).code == 0
    info = json.loads((source / "_info.json").read_text())
    assert len(info["class_names"]) == 3
    info["class_names"] = info["class_names"][:names]
    (source / "_info.json").write_text(json.dumps(info))
    listed.write_text(info["class_names"][0] + "\n")
    said = kdcache("shard", source, tmp_path / "out", "--labels", listed)
    assert said.code == 1, said.err
    stated = f"{source} names {counted(names, 'class')} and has the label 2. Correct the class_nam"
    assert stated in said.err
    assert not list((tmp_path / "out").glob("*.tar"))


def test_options_that_a_source_has_no_use_for(
    photos: Path, ilsvrc: Path, tmp_path: Path, kdcache: Command
) -> None:
    assert kdcache("shard", photos, tmp_path / "s", "--beton").code == 0
    columns, key = ("--columns", "label=coarse"), ("--key", "shard/key")
    whole = ilsvrc / "ILSVRC2012_img_train.tar"
    container = tmp_path / "s" / "train.beton"
    for source, options, message in (
        (photos, columns, f"--columns is of tables, and {photos} is a folder of images"),
        (photos, key, f"--key shard/key is of tars, and {photos} is a folder of images"),
        (tmp_path / "s/train-0000.tar", columns, "--columns is of tables, and "),
        (container, columns, f"--columns is of tables, and {container} is a .beton"),
        (container, key, f"--key shard/key is of tars, and {container} is a .beton"),
        (whole, columns, f"--columns is of tables, and {whole} is a tar of tars"),
        (whole, key, f"--key shard/key is of tars of images, and {whole} is a tar of tars"),
        (photos, ("--quality", 80), "--quality is of images that --short-side shrinks"),
    ):
        said = kdcache("shard", source, tmp_path / "x", *options)
        assert (said.code, message in said.err) == (2, True), said.err
        assert not (tmp_path / "x").exists()


def test_an_index_is_read_back_and_a_damaged_one_is_not(photos: Path, tmp_path: Path) -> None:
    images = open_images(str(photos), "train")
    shard_writer.write(images, tmp_path / "s", shard_writer.Options())
    path = tmp_path / "s" / "train-0000.tar.kdx"
    index = tar_index.unpack(path.read_bytes(), "x")
    assert index.pack() == path.read_bytes()
    for i in range(0, len(path.read_bytes()), 37):
        data = bytearray(path.read_bytes())
        data[i] ^= 4
        with pytest.raises(DataError, match=re.escape("no index of a shard")):
            tar_index.unpack(bytes(data), "x")
