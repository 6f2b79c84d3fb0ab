"""Heads of other classes: chosen or summed by a map, known by what it means."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from cache_tools.errors import CacheMismatch, UsageError
from cache_tools.spec.canonical import sha256
from cache_tools.spec.targets import TargetSpec
from cache_tools.store import info
from cache_tools.store.cache import Cache
from pipeline.teacher import class_map, create, reload
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward
from pipeline.teacher.logits import Logits
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


CPU = torch.device("cpu")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_one_source_each_is_a_softmax_over_the_chosen(
    wide_teacher: Path, tmp_path: Path, pixels: np.ndarray
) -> None:
    chosen = [3, 1, 24, 7, 0, 9, 11, 12, 20, 5]
    path = written(tmp_path, "map.txt", "".join(f"{c}\n" for c in chosen))
    loaded = teachers.load(str(wide_teacher), 32, "fp32", class_map=path)
    assert loaded.spec.num_classes == 10
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    plain = Logits(teachers.load(str(wide_teacher), 32, "fp32"), CPU)(x)
    assert torch.equal(Logits(loaded, CPU)(x), plain[:, chosen])


def test_several_sources_are_summed_at_every_temperature(
    wide_teacher: Path, tmp_path: Path, pixels: np.ndarray
) -> None:
    groups = [[0], [1, 2, 3], [4, 9], [24, 23, 22, 21, 20]]
    path = written(tmp_path, "map.json", json.dumps([0, *groups[1:]]))
    loaded = teachers.load(str(wide_teacher), 32, "fp32", class_map=path)
    plain = teachers.load(str(wide_teacher), 32, "fp32")
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    p_BH = Logits(plain, CPU)(x).double().softmax(1)
    p = torch.stack([p_BH[:, group].sum(1) for group in groups], 1)
    p = p / p.sum(1, keepdim=True)
    k1 = TargetSpec(k_max=1, k_min=1, tau=0.0, temperatures=(1.0, 4.0))
    index, kept, tail, _, _ = Forward(loaded, k1, CPU)(pixels, None, None)
    torch.testing.assert_close(kept.double(), p.gather(1, index), atol=1e-6, rtol=1e-4)
    for t, dense in enumerate((p, p**0.25 / (p**0.25).sum(1, keepdim=True))):
        expected = 1 - dense.gather(1, index)[:, 0]
        torch.testing.assert_close(tail[:, t].double(), expected, atol=1e-5, rtol=1e-3)


def test_a_map_is_known_by_what_it_means(wide_teacher: Path, tmp_path: Path) -> None:
    model = create.create(str(wide_teacher))[1]
    files = (
        written(tmp_path, "a.json", "[3, [5, 4], 0]"),
        written(tmp_path, "b.txt", "3\n4 5\n0\n"),
        written(tmp_path, "c.csv", "3\n5,4\n0"),
    )
    digests = {class_map.load(path, model).sha256 for path in files}
    assert digests == {sha256(b"[[3],[4,5],[0]]")}
    with_map = teachers.load(str(wide_teacher), 32, "fp32", class_map=files[0]).spec
    assert with_map.class_map_sha256 in digests
    plain = teachers.load(str(wide_teacher), 32, "fp32").spec
    assert plain.weights_sha256 == with_map.weights_sha256
    assert plain.class_map_sha256 == ""


def test_synsets_are_found_in_the_head() -> None:
    model = timm.create_model("test_resnet", num_classes=21841)
    names = ImageNetInfo("imagenet-22k").label_names()  # type: ignore[no-untyped-call]
    assert class_map._names(model)["n01440764"] == [names.index("n01440764")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["crane", "kite"]', "class 0 .* names 'crane': .* [(]1, 3[)]. Give its number."),
        ('["2", "kite"]', "class 0 .* names '2': .* [(]2, 4[)]. Give its number in a JSON list"),
        (f'["{"9" * 5000}", "kite"]', "class 0 .* none of the teacher's 6 classes"),
        ('["kite", 1, 3, 2, "5"]', ((0,), (1,), (3,), (2,), (5,))),
    ],
)  # fmt: skip
def test_names_that_mean_several_classes(
    text: str, expected: str | tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    """timm's own names of ImageNet's classes have "crane" twice, the bird and the machine."""
    own = ["kite", "crane", "tench", "crane", "2", "5"]
    model: Any = SimpleNamespace(num_classes=6, pretrained_cfg={"label_names": own})
    path = written(tmp_path, "map.json", text)
    if isinstance(expected, tuple):
        assert class_map.load(path, model).sources == expected
        return
    with pytest.raises(UsageError, match=expected):
        class_map.load(path, model)


def test_a_name_that_is_the_number_of_no_class_is_a_name(tmp_path: Path) -> None:
    """Of ten classes that are named "1" to "10", class 9 alone can be meant by "10"."""
    own = [str(number) for number in range(1, 11)]
    model: Any = SimpleNamespace(num_classes=10, pretrained_cfg={"label_names": own})
    for name, text in (("map.txt", "10\n10\n"), ("map.json", '["10", "10"]')):
        assert class_map.load(written(tmp_path, name, text), model).sources == ((9,), (9,))
    with pytest.raises(UsageError, match=r"names '9': .* \(8, 9\)"):
        class_map.load(written(tmp_path, "map.txt", "10\n9\n"), model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 25]", "class 1 .* names 25: .* 0 to 24"),
        ("[1, -1]", "names -1"),
        ("[1, []]", "class 1 .* is empty"),
        ("[1, [2, 2]]", "twice"),
        ('[1, "n01440764"]', "names 'n01440764': .* 25 classes, which have no names"),
        ("[1, true]", "names True"),
        ("[1]", "has 1 classes, expected 2"),
        ('{"a": 1}', "JSON dict, expected a list"),
        ("[1,", "cannot read the class map .* Correct it: a list"),
    ],
)
def test_impossible_maps_are_refused(
    wide_teacher: Path, tmp_path: Path, text: str, words: str
) -> None:
    path = written(tmp_path, "map.json", text)
    with pytest.raises(UsageError, match=words):
        class_map.load(path, create.create(str(wide_teacher))[1])
    with pytest.raises(UsageError, match=r"class 1 .* is empty"):
        class_map.load(written(tmp_path, "m.txt", "1\n\n2\n"), create.create(str(wide_teacher))[1])


def test_a_cache_through_a_class_map(
    digits: Path, wide_teacher: Path, teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    """A head of 25 classes serves data of 10; beside it a teacher that needs no map."""
    pair = [[c, c + 10] for c in range(10)]
    path = written(tmp_path, "map.json", json.dumps(pair))
    out = tmp_path / "c"
    make = ("cache", "digits", "--data", digits, "--out", out, "num_views=1")
    refused = kdcache(*make, "--teacher", wide_teacher)
    assert refused.code == 1
    assert "10 classes, the teacher predicts 25" in refused.err
    assert "--class-map FILE" in refused.err
    both = ("--teacher", wide_teacher, "--teacher", teacher, "--class-map", path, "--class-map", "")
    made = kdcache(*make, *both, "--teacher-weight", 1, "--teacher-weight", 3)
    assert made.code == 0, made
    members = info.info(Cache.open(out))["teacher"]["members"]
    mapped = [m for m in members if "class_map_sha256" in m]
    assert [m["weight"] for m in mapped] == [0.25]
    verify = ("verify", out, "--data", digits, "--recompute", 3, *both[:4])
    assert kdcache(*verify, "--class-map", path).code == 0
    without = kdcache(*verify)
    assert without.code == 1
    assert "Pass --class-map with the original file" in without.out
    with pytest.raises(CacheMismatch, match="another is given"):
        wrong = written(tmp_path, "wrong.json", json.dumps(list(range(10))))
        reload.load(Cache.open(out).spec.teacher, 32, [str(wide_teacher), str(teacher)], [wrong])


@pytest.mark.parametrize(("head", "data_set"), [
    (21_843, "imagenet21k_miil_w21"), (21_841, "imagenet21k_miil_w21"), (21_843, "imagenet12k"),
    (21_841, "imagenet12k"), (11_821, "imagenet"),
])  # fmt: skip
def test_a_list_of_synsets_is_the_map_of_a_larger_head(head: int, data_set: str) -> None:
    """The lists of timm are such maps: folders of winter 21 by a head of all of ImageNet-21k."""
    path = Path(str(files("timm.data"))) / "_info" / f"{data_set}_synsets.txt"
    model = timm.create_model("test_vit", num_classes=head)
    listed = path.read_text().split()
    names: list[str] = ImageNetInfo(infer_imagenet_subset({"num_classes": head})).label_names()
    if absent := {*listed} - {*names}:
        with pytest.raises(UsageError, match="none of the teacher's"):
            class_map.load(str(path), model)
        assert len(absent) == 7
        return
    sources = class_map.load(str(path), model).sources
    assert [names[one] for (one,) in sources] == listed
