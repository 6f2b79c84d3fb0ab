"""ILSVRC 2012 and ImageNet-21k as they are distributed: labels are numbers of sorted synsets."""

import json
import tarfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from cache_tools.data.open import open_images
from cache_tools.errors import UsageError
from tests.helpers.outcome import Outcome
from tests.helpers.synsets import SYNSETS, jpeg, shards

Command = Callable[..., Outcome]
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
    ilsvrc: Path, photos: Path, kdcache: Command
) -> None:
    said = kdcache("shard", ilsvrc / "ILSVRC2012_img_train.tar", ilsvrc / "a", "--shard-size", 10)
    assert said.code == 0, said.err
    assert kdcache("shard", photos, ilsvrc / "b", "--shard-size", 10).code == 0
    assert shards(ilsvrc / "a") == shards(ilsvrc / "b")
    with pytest.raises(UsageError, match="kdcache shard"):
        open_images(str(ilsvrc / "ILSVRC2012_img_train.tar"), "train")


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
