"""`kdcache shard`: what it writes is what timm, WebDataset and we read, whatever it was made of."""

import gc
import gzip
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from scipy.io import savemat
from timm.data import create_dataset

from cache_tools.data import scan, shard_writer, tar_index
from cache_tools.data.beton import Beton
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import DataError, UsageError
from cache_tools.render import decode
from cache_tools.runtime.text import counted
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
# kit fox is ILSVRC's first class and the 279th synset; here: the last of three
SYNSETS = {1: "n02119789", 2: "n02100735", 3: "n01440764"}


def jpeg(number: int, height: int = 60, width: int = 80) -> bytes:
    key = np.random.Philox(key=number)
    coarse = key.random_raw(6 * 8 * 3).astype(np.uint8).reshape(6, 8, 3)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 95))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ImageFolder of 3 classes and 25 images."""
    for number in range(25):
        synset = SYNSETS[1 + number % 3]
        path = tmp_path / "images" / synset / f"{synset}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return tmp_path / "images"


def tar_of(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def contents(images: ImageDataset) -> dict[str, tuple[bytes, int]]:
    return {name: (images.read(i), int(images.label_N[i])) for i, name in enumerate(images.names)}


def everything(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith("_")}


def test_a_folder_becomes_shards_that_hold_the_same(
    folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "shards"
    said = kdcache("shard", folder, out, "--shard-size", 10)
    assert said.code == 0, said.err
    assert "25 train images in 3 shards" in said.out
    whole, made = open_images(str(folder), "train"), open_images(str(out), "train")
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
    folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "shards"
    assert kdcache("shard", folder, out, "--split", "validation").code == 0
    (out / "_info.json").rename(out / "info.json")
    assert kdcache("shard", folder, out).code == 0
    for split in ("train", "validation"):
        assert len(open_images(str(out), split)) == 25


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
def test_timms_own_reader_takes_them(folder: Path, tmp_path: Path, kdcache: Command) -> None:
    out = tmp_path / "shards"
    for split in ("train", "validation"):
        assert kdcache("shard", folder, out, "--shard-size", 10, "--split", split).code == 0
    whole = open_images(str(folder), "train")
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
    folder: Path, tmp_path: Path, kdcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--shard-size", 7, "--short-side", 32)
    assert kdcache("shard", folder, tmp_path / "a", *small).code == 0
    monkeypatch.setattr("cache_tools.runtime.threads.cpu_count", lambda: 5)
    moved = folder.rename(tmp_path / "moved")
    assert kdcache("shard", moved, tmp_path / "b", *small).code == 0
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    # and shards of the shards, in another split of sizes and back
    assert kdcache("shard", moved, tmp_path / "c", "--shard-size", 7).code == 0
    assert kdcache("shard", tmp_path / "c", tmp_path / "d", "--shard-size", 4).code == 0
    assert kdcache("shard", tmp_path / "d", tmp_path / "e", "--shard-size", 7).code == 0
    assert everything(tmp_path / "c") == everything(tmp_path / "e")


def test_images_are_shrunk_and_never_enlarged(
    folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    large, small = folder / "n01440764" / "large.jpg", folder / "n01440764" / "small.jpg"
    large.write_bytes(jpeg(1, 90, 200))
    small.write_bytes(jpeg(2, 20, 300))
    said = kdcache("shard", folder, tmp_path / "s", "--short-side", 45, "--quality", 80)
    assert said.code == 0, said.err
    made = contents(open_images(str(tmp_path / "s"), "train"))
    assert made["n01440764/small"][0] == small.read_bytes()
    assert decode.size(made["n01440764/large"][0], "") == (45, 100)
    assert decode.size(made["n02119789/n02119789_0"][0], "") == (45, 60)
    whole = decode.decode(large.read_bytes(), "")
    shrunk = decode.decode(made["n01440764/large"][0], "").astype(int)
    mean = whole.reshape(45, 2, 100, 2, 3).mean((1, 3))
    assert np.abs(shrunk - mean).mean() < 6  # JPEG, not another picture


KILLED = """
import os, signal, sys
from cache_tools.cli import main as cli
from cache_tools.storage import atomic as files

kind, left, write = sys.argv.pop(1), 3, files.write

def killed(path, data):
    global left
    left -= path.suffix == kind
    if left:
        return write(path, data)
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # before it has its name
    write(path, data)

files.write = killed
sys.argv[0] = "kdcache"
cli.main()
"""
"""`kdcache shard` that dies while it writes its third file of a kind."""


def test_a_killed_run_goes_on_and_its_shards_are_whole(
    folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    for number in range(25, 400):
        (folder / "n01440764" / f"more_{number}.jpg").write_bytes(jpeg(number, 200, 300))
    args = (str(folder), str(tmp_path / "killed"), "--shard-size", "20", "--short-side", "64")
    command = [sys.executable, "-c", KILLED]
    for written in (".tar", ".kdx", ".tar", ".kdx"):
        killed = subprocess.run([*command, written, "shard", *args], capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        for path in tmp_path.glob("killed/*.tar"):
            with path.open("rb") as file:
                assert len(tar_index.scan(file, "", checksums=False).names) == 20
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("killed/*.kdx")}
    assert 3 < len(before) < 20
    assert kdcache("shard", *args).code == 0
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    undisturbed = tmp_path / "undisturbed"
    assert kdcache("shard", folder, undisturbed, *args[2:]).code == 0
    killed = {n: d for n, d in everything(tmp_path / "killed").items() if ".partial" not in n}
    assert killed == everything(undisturbed)


def test_beside_shards_a_container_for_ffcv(folder: Path, tmp_path: Path, kdcache: Command) -> None:
    out = tmp_path / "s"
    small = ("shard", folder, out, "--short-side", 40, "--split", "train", "--beton", "--json")
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
    said = kdcache("shard", folder, out, "--raw")
    assert (said.code, "--beton" in said.err) == (2, True)


@pytest.mark.parametrize("what", ["image", "label", "header", "padding", "index"])
def test_a_shard_that_has_changed_is_written_again(
    folder: Path, tmp_path: Path, kdcache: Command, what: str
) -> None:
    out = tmp_path / "s"
    kdcache("shard", folder, out, "--shard-size", 10)
    before = everything(out)
    index = tar_index.unpack((out / "train-0001.tar.kdx").read_bytes(), "")
    assert index is not None
    begin, end = int(index.offset_N[3]), int(index.offset_N[3] + index.length_N[3])
    at = {"image": begin + 9, "label": begin - 1024, "header": begin - 400, "padding": end}
    path = out / ("train-0001.tar.kdx" if what == "index" else "train-0001.tar")
    data = bytearray(path.read_bytes())
    data[at.get(what, 99)] ^= 1
    path.write_bytes(data)
    assert kdcache("shard", folder, out, "--shard-size", 10).code == 0
    assert everything(out) == before


def test_a_finished_folder_is_left_alone_and_another_is_refused(
    folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "s"
    first = kdcache("shard", folder, out, "--shard-size", 10)
    times = {p: p.stat().st_mtime_ns for p in out.glob("train*")}
    assert kdcache("shard", folder, out, "--shard-size", 10).out == first.out
    assert times == {p: p.stat().st_mtime_ns for p in out.glob("train*")}
    said = kdcache("shard", folder, out, "--shard-size", 9)
    assert (said.code, "shard_size 10, not 9" in said.err) == (2, True)
    (folder / "n01440764" / "new.jpg").write_bytes(jpeg(99))
    said = kdcache("shard", folder, out, "--shard-size", 10)
    assert (said.code, "samples 25, not 26" in said.err) == (2, True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "train-0000.tar").write_bytes(b"mine")
    assert kdcache("shard", folder, foreign).code == 2
    assert [p.name for p in foreign.iterdir()] == ["train-0000.tar"]


def test_splits_share_a_description_and_their_classes(
    folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    (tmp_path / "data").mkdir()
    folder.rename(tmp_path / "data" / "train")
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


def test_broken_images_are_named(folder: Path, tmp_path: Path, kdcache: Command) -> None:
    bad = folder / "n01440764" / "n01440764_2.JPEG"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    (folder / "n02100735" / "text.jpg").write_text("no image")
    said = kdcache("shard", folder, tmp_path / "s", "--shard-size", 4)
    assert said.code == 1
    assert "2 of 26 images" in said.err
    assert "'n01440764/n01440764_2'" in said.err
    assert "'n02100735/text'" in said.err
    assert 4 <= len(list((tmp_path / "s").glob("*.tar"))) < 7
    assert not (tmp_path / "s" / "_info.json").exists()
    said = kdcache("shard", folder, tmp_path / "s", "--shard-size", 4, "--skip-broken", "--json")
    facts = json.loads(said.out)["train"]
    assert facts["left_out"] == ["n01440764/n01440764_2", "n02100735/text"]
    assert len(open_images(str(tmp_path / "s"), "train")) == facts["samples"] == 24
    # repaired: only shards that lack it are written again
    bad.write_bytes(whole)
    (folder / "n02100735" / "text.jpg").write_bytes(jpeg(77))
    assert kdcache("shard", folder, tmp_path / "s", "--shard-size", 4).code == 0
    made = open_images(str(tmp_path / "s"), "train")
    assert contents(made) == contents(open_images(str(folder), "train"))


@pytest.mark.parametrize("options", [(), ("--short-side", 32)])
def test_pictures_that_are_repaired_or_replaced_are_written_again(
    options: tuple[object, ...], folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    out, bad = tmp_path / "s", folder / "n01440764" / "n01440764_2.JPEG"
    bad.write_bytes(bad.read_bytes()[:100])
    command = ("--shard-size", 4, *options, "--skip-broken", "--json")

    def changed() -> tuple[list[str], list[str]]:
        """Pictures left out, and shards that are written, by one run."""
        before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        said = kdcache("shard", folder, out, *command)
        assert said.code == 0, said.err
        after = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        rewritten = [path.name for path in sorted(after) if after[path] != before.get(path)]
        return json.loads(said.out)["train"]["left_out"], rewritten

    def as_anew() -> bool:
        fresh = tmp_path / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        assert kdcache("shard", folder, fresh, *command).code == 0
        return everything(fresh) == everything(out)

    assert changed() == (["n01440764/n01440764_2"], [f"train-{i:04d}.tar" for i in range(7)])
    assert changed() == (["n01440764/n01440764_2"], [])
    bad.write_bytes(jpeg(2))
    left_out, repaired = changed()
    assert (left_out, len(repaired)) == ([], 1)
    assert as_anew()
    bad.write_bytes(jpeg(777))
    assert changed() == ([], repaired)
    assert as_anew()
    bad.write_bytes(of_equal_size(bad.read_bytes()))
    assert changed() == ([], repaired)
    assert as_anew()
    assert changed() == ([], [])


def of_equal_size(data: bytes) -> bytes:
    """Return another JPEG of as many bytes, of the same pixels."""
    begin = data.index(b"JFIF\0") + 7
    return data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :]


@pytest.mark.parametrize("kind", ["folder", "tar", "copy"])
def test_pictures_of_equal_size_are_noticed_in_every_source(
    kind: str, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    out, name = tmp_path / "s", "n01440764/n01440764_2"
    pictures = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.JPEG"))}
    source = {"folder": folder, "tar": tmp_path / "a.tar", "copy": tmp_path / "a.tar.gz"}[kind]

    def shard() -> bytes:
        if kind == "folder":
            (folder / f"{name}.JPEG").write_bytes(pictures[f"{name}.JPEG"])
        else:
            data = tar_of(pictures)
            source.write_bytes(gzip.compress(data) if kind == "copy" else data)
        options = ("--no-check", "--beton", "--shard-size", 25)
        assert kdcache("shard", source, out, *options).code == 0
        in_tar, in_container = (
            contents(open_images(str(out), "train", containers=c))[name][0] for c in (False, True)
        )
        assert in_tar == in_container
        return in_tar

    first = shard()
    pictures[f"{name}.JPEG"] = of_equal_size(pictures[f"{name}.JPEG"])
    assert shard() == pictures[f"{name}.JPEG"] != first


def test_a_name_that_webdataset_would_cut_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "n01440764" / "a.b.jpg").write_bytes(jpeg(5))
    images = open_images(str(folder), "train")
    with pytest.raises(DataError, match=r"'n01440764/a\.b' has a dot"):
        shard_writer.write(images, tmp_path / "s", shard_writer.Options())


@pytest.fixture
def ilsvrc(folder: Path, tmp_path: Path) -> Path:
    """ILSVRC's train and val tars, small, in ILSVRC's own order of classes."""
    inner = {
        f"{synset}.tar": tar_of(
            {p.name: p.read_bytes() for p in sorted((folder / synset).iterdir())}
        )
        for synset in SYNSETS.values()
    }
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in range(1, 7)}
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
    return tmp_path


GROUND_TRUTH = [3, 1, 2, 2, 1, 3]
INDEX = {"n01440764": 0, "n02100735": 1, "n02119789": 2}


def devkit(folder: Path) -> None:
    rows = [(i, name, 0) for i, name in SYNSETS.items()] + [(4, "n00001740", 3)]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "".join(f"{i}\n" for i in GROUND_TRUTH)
    )


def test_ilsvrcs_train_tar_is_its_image_folder(
    ilsvrc: Path, folder: Path, kdcache: Command
) -> None:
    said = kdcache("shard", ilsvrc / "ILSVRC2012_img_train.tar", ilsvrc / "a", "--shard-size", 10)
    assert said.code == 0, said.err
    assert kdcache("shard", folder, ilsvrc / "b", "--shard-size", 10).code == 0
    assert everything(ilsvrc / "a") == everything(ilsvrc / "b")
    with pytest.raises(UsageError, match="kdcache shard"):
        open_images(str(ilsvrc / "ILSVRC2012_img_train.tar"), "train")


LISTS = Path(str(files("timm.data"))) / "_info"
"""Lists of classes of networks that were trained on parts of ImageNet-21k."""


@pytest.mark.parametrize(
    ("name", "count"),
    [("imagenet21k_miil_w21", 10_450), ("imagenet12k", 11_821), ("imagenet22k", 21_841),
     ("imagenet21k_goog", 21_843)],
)  # fmt: skip
def test_imagenet_21k_by_a_list_of_classes(
    name: str, count: int, tmp_path: Path, kdcache: Command
) -> None:
    path = LISTS / f"{name}_synsets.txt"
    listed = path.read_text().split()
    assert len(listed) == count
    data, out = tmp_path / "imagenet21k", tmp_path / "s"
    chosen = [listed[0], listed[77], listed[-1]]
    for split, synsets in (("train", [*chosen, "n99999999"]), ("val", chosen)):
        for number, synset in enumerate(synsets):
            image = data / f"imagenet21k_{split}" / synset / f"{synset}_{split}{number}.JPEG"
            image.parent.mkdir(parents=True)
            image.write_bytes(jpeg(number))
    small = data / "imagenet21k_small_classes" / "n00000001" / "n00000001_1.JPEG"
    small.parent.mkdir(parents=True)
    small.write_bytes(jpeg(9))
    said = kdcache("shard", data, out, "--labels", path, "--json")
    assert said.code == 0, said.err
    assert f"1 image left out, of 1 class folder that {path} does not name" in said.err
    assert "folders that are no splits, passed over: 1" in said.err
    assert json.loads(said.out)["train"]["samples"] == 3
    for split in ("train", "validation"):
        made = open_images(str(out), split)
        assert (made.num_classes, made.class_names) == (count, tuple(listed))
        found = {
            n.partition("_")[0]: listed[c] for n, c in zip(made.names, made.label_N, strict=True)
        }
        assert {name.rpartition("/")[2]: synset for name, synset in found.items()} == {
            synset: synset for synset in chosen
        }


@pytest.mark.parametrize("names", [1, 2])
def test_labels_beyond_the_names_of_a_description(
    names: int, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    """Of three classes; the first label without a name, and one further than that."""
    source, listed = tmp_path / "s", tmp_path / "list.txt"
    assert kdcache("shard", folder, source).code == 0
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
    folder: Path, ilsvrc: Path, tmp_path: Path, kdcache: Command
) -> None:
    assert kdcache("shard", folder, tmp_path / "s", "--beton").code == 0
    columns, key = ("--columns", "label=coarse"), ("--key", "shard/key")
    whole = ilsvrc / "ILSVRC2012_img_train.tar"
    container = tmp_path / "s" / "train.beton"
    for source, options, message in (
        (folder, columns, f"--columns is of tables, and {folder} is a folder of images"),
        (folder, key, f"--key shard/key is of tars, and {folder} is a folder of images"),
        (tmp_path / "s/train-0000.tar", columns, "--columns is of tables, and "),
        (container, columns, f"--columns is of tables, and {container} is a .beton"),
        (container, key, f"--key shard/key is of tars, and {container} is a .beton"),
        (whole, columns, f"--columns is of tables, and {whole} is a tar of tars"),
        (whole, key, f"--key shard/key is of tars of images, and {whole} is a tar of tars"),
        (folder, ("--quality", 80), "--quality is of images that --short-side shrinks"),
    ):
        said = kdcache("shard", source, tmp_path / "x", *options)
        assert (said.code, message in said.err) == (2, True), said.err
        assert not (tmp_path / "x").exists()


def test_a_tar_of_the_tars_of_winter_21(ilsvrc: Path, kdcache: Command) -> None:
    path = ilsvrc / "list.txt"
    path.write_text("n00000001\nn02119789 kit fox, Vulpes macrotis\nn01440764 tench\n")
    source = (ilsvrc / "ILSVRC2012_img_train.tar").rename(ilsvrc / "winter21_whole.tar")
    said = kdcache("shard", source, ilsvrc / "s", "--labels", path)
    assert said.code == 0, said.err
    made = open_images(str(ilsvrc / "s"), "train")
    assert made.class_names == ("n00000001", "n02119789", "n01440764")
    assert {n.partition("/")[0]: int(c) for n, c in zip(made.names, made.label_N, strict=True)} == {
        "n02119789": 1, "n01440764": 2
    }  # fmt: skip


@pytest.mark.parametrize("labels", ["truth", "devkit", "synsets", "named"])
def test_ilsvrcs_validation_labels_are_sorted_synsets(
    ilsvrc: Path, kdcache: Command, labels: str
) -> None:
    devkit(ilsvrc)
    truth = ilsvrc / "ILSVRC2012_validation_ground_truth.txt"
    path = truth if labels == "truth" else ilsvrc / "labels"
    if labels == "devkit":
        with tarfile.open(path, "w:gz") as tar:
            for file in (truth, ilsvrc / "meta.mat"):
                tar.add(file, f"ILSVRC2012_devkit_t12/data/{file.name}")
    elif labels == "synsets":
        path.write_text("\n".join(SYNSETS[i] for i in GROUND_TRUTH))
    elif labels == "named":
        lines = [
            f"ILSVRC2012_val_{i:08d},{SYNSETS[c]} 1 2 3 4" for i, c in enumerate(GROUND_TRUTH, 1)
        ]
        path.write_text("ImageId,PredictionString\n" + "\n".join(reversed(lines)))
    val, out = ilsvrc / "ILSVRC2012_img_val.tar", ilsvrc / "s"
    said = kdcache("shard", val, out, "--split", "validation", "--labels", path)
    assert said.code == 0, said.err
    made = open_images(str(out), "validation")
    said_N = {int(n[-8:]): int(c) for n, c in zip(made.names, made.label_N, strict=True)}
    assert said_N == {i: INDEX[SYNSETS[c]] for i, c in enumerate(GROUND_TRUTH, 1)}
    assert made.class_names == tuple(INDEX)


def test_ilsvrcs_own_numbers_are_never_taken_for_classes(ilsvrc: Path, kdcache: Command) -> None:
    devkit(ilsvrc)
    (ilsvrc / "meta.mat").unlink()
    truth = ilsvrc / "ILSVRC2012_validation_ground_truth.txt"
    val, out = ilsvrc / "ILSVRC2012_img_val.tar", ilsvrc / "s"
    arguments = ("shard", val, out, "--split", "validation", "--labels")
    said = kdcache(*arguments, truth)
    assert (said.code, "devkit" in said.err, out.exists()) == (2, True, False)
    truth.write_text("1\n2\n")
    assert "labels 2 images, there are 6" in kdcache(*arguments, truth).err
    # classes of the training split: a label of none of them
    assert kdcache("shard", ilsvrc / "ILSVRC2012_img_train.tar", out).code == 0
    truth.write_text("n99999999\n" * 6)
    assert "n99999999" in kdcache(*arguments, truth).err
    # a subset of the classes among the labels still has the training split's numbers
    truth.write_text("n02119789\n" * 6)
    assert kdcache(*arguments, truth).code == 0
    assert set(open_images(str(out), "validation").label_N.tolist()) == {2}


def test_an_index_is_read_back_and_a_damaged_one_is_not(folder: Path, tmp_path: Path) -> None:
    images = open_images(str(folder), "train")
    shard_writer.write(images, tmp_path / "s", shard_writer.Options())
    path = tmp_path / "s" / "train-0000.tar.kdx"
    index = tar_index.unpack(path.read_bytes(), "x")
    assert index.pack() == path.read_bytes()
    for i in range(0, len(path.read_bytes()), 37):
        data = bytearray(path.read_bytes())
        data[i] ^= 4
        with pytest.raises(DataError, match=re.escape("no index of a shard")):
            tar_index.unpack(bytes(data), "x")
