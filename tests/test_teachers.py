"""Teachers in any container, several at once, and with heads of other classes."""

import argparse
import json
import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import Outcome
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models import save_for_hf
from torch import nn

from cache_tools import spec as specs
from cache_tools import summary
from cache_tools.canonical import sha256
from cache_tools.errors import CacheMismatch, RecipeError, TeacherError, UsageError
from cache_tools.spec import TargetSpec
from cache_tools.store import Store
from cache_tools.teacher_spec import ENSEMBLE
from pipeline import again, classes, fetch
from pipeline import recipe as recipes
from pipeline import teacher as teachers
from pipeline.forward import Forward
from pipeline.logits import Execution, Logits
from pipeline.online import online
from pipeline.recipe import TeacherSource
from pipeline.run import run

Command = Callable[..., Outcome]
CPU = torch.device("cpu")
ALL = TargetSpec(k_max=10, k_min=10, tau=0.0, temperatures=(1.0, 4.0))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture with another mean: test_efficientnet of 10 classes, in a folder."""
    return saved(tmp_path_factory.mktemp("second") / "model", "test_efficientnet", 10)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of 25 classes."""
    return saved(tmp_path_factory.mktemp("wide") / "model", "test_resnet", 25)


@pytest.mark.parametrize("num_classes", [0, 1])
def test_a_network_without_classes_teaches_nothing(
    kdcache: Command, digits: Path, tmp_path: Path, num_classes: int
) -> None:
    model = timm.create_model("test_resnet", num_classes=num_classes)
    save_for_hf(model, str(tmp_path / "t"), safe_serialization=True)
    words = ("digits", "--data", digits, "--teacher", tmp_path / "t", "--out", tmp_path / "c.zarr")
    outcome = kdcache("cache", *words)
    assert outcome.code == 2
    assert f"knows classes: {num_classes}, and there is nothing to learn" in outcome.err
    assert not (tmp_path / "c.zarr").exists()


def saved(folder: Path, architecture: str, num_classes: int) -> Path:
    torch.manual_seed(5)
    model = timm.create_model(architecture, num_classes=num_classes)
    with torch.no_grad():
        model.get_classifier().weight.mul_(8.0)
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return fetch.create(str(folder))[1].state_dict()


def containers(folder: Path, out: Path) -> dict[str, Path]:
    """The same weights as people keep them."""
    state = weights_of(folder)
    backwards = dict(reversed(state.items()))
    arguments = argparse.Namespace(lr=0.1)
    ddp = {f"module.{k}": v for k, v in state.items()}
    lightning = {f"model.{k}": v for k, v in backwards.items()} | {"loss.weight": torch.ones(3)}
    compiled = {f"_orig_mod.module.{k}": v for k, v in state.items()}
    other = {k: torch.zeros_like(v) for k, v in state.items()}
    held = {
        "plain.pth": state,
        "backwards.pt": backwards,
        "ddp.pth": {"state_dict": ddp, "epoch": 3, "args": arguments},
        "model.bin": {"model": compiled},
        "ema.tar": {"state_dict": other, "model_ema": {"module": state}, "optimizer": {}},
        "lightning.ckpt": {"state_dict": lightning, "pytorch-lightning_version": "2"},
    }
    for name, what in held.items():
        torch.save(what, out / name)
    save_file(backwards, out / "weights.safetensors")
    return {name: out / name for name in (*held, "weights.safetensors")}


def test_the_same_weights_have_one_hash_in_every_container(teacher: Path, tmp_path: Path) -> None:
    expected = teachers.load(str(teacher), 32, "fp32").spec.weights_sha256
    for name, path in containers(teacher, tmp_path).items():
        loaded = teachers.load(str(path), 32, "fp32", architecture="test_resnet.r160_in1k")
        assert loaded.spec.weights_sha256 == expected, name
        assert loaded.spec.name == "local:test_resnet.r160_in1k"
        assert loaded.spec.num_classes == 10
    folder = teachers.load(f"local-dir:{teacher}", 32, "fp32")
    beside = teachers.load(str(teacher / "model.safetensors"), 32, "fp32")
    assert folder.spec == beside.spec


def test_names_of_a_networks_authors_are_turned_into_timms(tmp_path: Path) -> None:
    """ConvNeXt's authors have other names and shapes than timm, whose own rules are applied."""
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=10)

    def authors(name: str) -> str:
        name = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = name.replace("stem.", "downsample_layers.0.").replace("mlp.fc", "pwconv")
        name = name.replace("conv_dw", "dwconv")
        return name.replace("head.norm", "norm").replace("head.fc", "head")

    state = {authors(k): v for k, v in model.state_dict().items()}
    assert not state.keys() & {"head.fc.weight", "stem.0.weight"}
    path = tmp_path / "weights.pth"
    torch.save({"model": state}, path)
    loaded = teachers.load(str(path), 32, "fp32", architecture="test_convnext")
    assert loaded.spec.weights_sha256 == teachers.weights_sha256(model)
    with pytest.raises(TeacherError, match=r"is not of the network test_resnet.*--architecture"):
        teachers.load(str(path), 32, "fp32", architecture="test_resnet")


def test_a_file_that_could_run_code_is_refused(teacher: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path(tmp_path / "ran").touch, ())

    bad = tmp_path / "bad.pth"
    torch.save({"state_dict": weights_of(teacher), "extra": Bomb()}, bad)
    with pytest.raises(TeacherError, match=r"could run code.*safetensors\.torch\.save_file"):
        teachers.load(str(bad), 32, "fp32", architecture="test_resnet")
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(TeacherError):
        teachers.load(str(plain), 32, "fp32", architecture="test_resnet")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_file_that_is_cut_short_is_explained(teacher: Path, tmp_path: Path, name: str) -> None:
    whole = tmp_path / ("whole" + Path(name).suffix)
    (torch.save if whole.suffix == ".pth" else save_file)(weights_of(teacher), whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(TeacherError, match="cannot be read as weights"):
        teachers.load(str(tmp_path / name), 32, "fp32", architecture="test_resnet")


def test_a_file_does_not_say_of_which_network_it_is(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(weights_of(teacher), path)
    with pytest.raises(UsageError, match=r"--architecture NAME"):
        teachers.load(str(path), 32, "fp32")
    with pytest.raises(UsageError, match=r"makes no network 'resnet_51'"):
        teachers.load(str(path), 32, "fp32", architecture="resnet_51")
    headless = {k: v for k, v in weights_of(teacher).items() if not k.startswith("fc.")}
    torch.save(headless, path)
    with pytest.raises(TeacherError, match=r"lacks 2 of .*fc\.weight.*needs its classifier"):
        teachers.load(str(path), 32, "fp32", architecture="test_resnet")


def test_near_names_and_tags_are_offered() -> None:
    with pytest.raises(UsageError, match=r"no network 'resnet5o\.a1_in1k'.*Did you mean resnet50"):
        teachers.load("resnet5o.a1_in1k", 224, "fp32")
    with pytest.raises(UsageError, match=r"no weights 'a1_in1x' of resnet50.*resnet50\.a1_in1k"):
        teachers.load("resnet50.a1_in1x", 224, "fp32")


def test_what_a_teacher_was_made_for_is_recorded(
    teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")
    spec = teachers.load(str(teacher), 32, "fp32").spec
    assert (spec.input_size, spec.interpolation) == (160, "bilinear")
    assert (spec.mean, spec.std) == ((0.5,) * 3, (0.5,) * 3)
    assert "made for 160 px and sees 32" in caplog.text


def test_choices_are_logged_with_their_reason(
    teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")
    loaded = teachers.load(str(teacher), 32, "bf16")
    how = Forward(loaded, ALL, CPU).how
    assert how == "bf16, channels_last, not compiled"
    assert "bf16 (recipe: precision), channels_last (the layout that" in caplog.text
    vit = teachers.load("test_vit", 160, "fp32", random_weights=True)
    assert Forward(vit, ALL, CPU).how == "fp32, contiguous, not compiled"
    assert Forward(loaded, ALL, CPU, Execution("contiguous")).how.startswith("bf16, contiguous")
    assert "contiguous (recipe: memory_format)" in caplog.text


def test_the_layout_changes_nothing_but_rounding(teacher: Path, pixels: np.ndarray) -> None:
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    said = [
        Logits(teachers.load(str(teacher), 32, "fp32"), CPU, Execution(form))(x)  # type: ignore[arg-type]
        for form in ("channels_last", "contiguous")
    ]
    torch.testing.assert_close(*said)


def test_compiled_by_the_recipe(
    teacher: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe's key reaches torch.compile, here with the backend that makes no kernels."""
    compiled: list[nn.Module] = []
    real = torch.compile

    def eager(model: nn.Module) -> object:
        compiled.append(model)
        return real(model, backend="eager")

    monkeypatch.setattr("torch.compile", eager)
    loaded = teachers.load(str(teacher), 32, "fp32")
    plain = Forward(loaded, ALL, CPU)(pixels, None, None)
    assert not compiled
    forward = Forward(loaded, ALL, CPU, Execution(compile=True))
    assert compiled == [loaded.model]
    assert forward.how == "fp32, channels_last, compiled"
    for a, b in zip(plain, forward(pixels, None, None), strict=True):
        torch.testing.assert_close(a, b)


def test_the_commit_record_says_how_the_teacher_ran(
    digits: Path, teacher: Path, tmp_path: Path
) -> None:
    recipe = recipes.load("digits", ["num_views=1", 'memory_format="contiguous"'])
    store = run(recipe, str(digits), str(teacher), tmp_path / "c", "cpu")
    versions = store.record(next(iter(store.parts())))["versions"]
    assert versions["forward"] == "fp32, contiguous, not compiled"
    assert store.spec.teacher.interpolation == "bilinear"


def test_several_are_the_mean_of_probabilities(
    teacher: Path, second: Path, pixels: np.ndarray
) -> None:
    loaded = [teachers.load(str(folder), 32, "fp32") for folder in (teacher, second)]
    both = teachers.together(loaded, [7.0, 3.0])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    p = 0.0
    for one, share in zip(loaded, (0.7, 0.3), strict=True):
        mean, std = (torch.tensor(v).double()[:, None, None] for v in (one.spec.mean, one.spec.std))
        alone = one.model(((x / 255 - mean) / std).float())
        p = p + share * alone.double().softmax(1)
    assert loaded[0].spec.mean != loaded[1].spec.mean
    said = Logits(both, CPU)(x.float()).softmax(1)
    torch.testing.assert_close(said.double(), p, atol=1e-6, rtol=1e-4)
    k4 = replace(ALL, k_max=4, k_min=4)
    index, kept, tail, _, _ = Forward(both, k4, CPU)(pixels, None, None)
    torch.testing.assert_close(kept.double(), p.gather(1, index), atol=1e-6, rtol=1e-4)
    tempered = p**0.25 / (p**0.25).sum(1, keepdim=True)
    for t, dense in enumerate((p, tempered)):
        expected = 1 - dense.gather(1, index).sum(1)
        torch.testing.assert_close(tail[:, t].double(), expected, atol=1e-5, rtol=1e-3)


def test_an_overflow_in_one_of_several_is_seen(teacher: Path, second: Path) -> None:
    loaded = [teachers.load(str(folder), 32, "fp32") for folder in (teacher, second)]
    loaded[1].model.get_classifier().bias.data[3] = float("inf")
    tail = Forward(teachers.together(loaded, [1, 1]), ALL, CPU)(
        np.zeros((2, 32, 32, 3), "u1"), None, None
    )[2]
    assert not torch.isfinite(tail).any()


def test_several_are_recorded_with_their_shares(teacher: Path, second: Path) -> None:
    sources = [TeacherSource(str(teacher), 7.0), TeacherSource(str(second), 3.0)]
    spec = teachers.load_all(sources, 32, "fp32").spec
    assert spec == teachers.load_all(sources[::-1], 32, "fp32").spec
    assert spec.architecture == ENSEMBLE
    alone = {s.name: teachers.load(s.name, 32, "fp32").spec for s in sources}
    shares = {m.architecture: m.weight for m in spec.members}
    assert shares == {"test_resnet": 0.7, "test_efficientnet": 0.3}
    assert {m.weights_sha256 for m in spec.members} == {s.weights_sha256 for s in alone.values()}
    assert {m.mean for m in spec.members} == {s.mean for s in alone.values()}
    assert {m.cache for m in spec.members} == {""}
    equal = teachers.load_all([replace(s, weight=1.0) for s in sources], 32, "fp32").spec
    assert equal.weights_sha256 != spec.weights_sha256


def test_several_that_cannot_be_are_refused(
    teacher: Path, second: Path, wide: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.pth"
    torch.save(weights_of(teacher), copy)
    same = [TeacherSource(str(teacher)), TeacherSource(str(copy), architecture="test_resnet")]
    with pytest.raises(UsageError, match="are the same network"):
        teachers.load_all(same, 32, "fp32")
    with pytest.raises(UsageError, match=r"10 and 25 classes|25 and 10 classes.*--class-map"):
        teachers.load_all([TeacherSource(str(teacher)), TeacherSource(str(wide))], 32, "fp32")
    recipe = recipes.load("digits")
    for names, weights, words in (
        ([], [], "which teacher"),
        (["a", "b"], [1.0], "2 teachers and 1 weights"),
        (["a", "b"], [1.0, 0.0], "it is positive"),
    ):
        with pytest.raises(UsageError, match=words):
            recipes.sources(recipe, names, weights)
    with pytest.raises(UsageError, match="--class-map stands 2 times"):
        recipes.sources(recipe, ["a", "b", "c"], class_maps=["x", "y"])
    with pytest.raises(RecipeError, match="it is positive"):
        recipes.load("digits", ['teachers=[{name="a", weight=-1.0}]'])


def test_the_recipe_and_the_command_say_the_same() -> None:
    recipe = recipes.load("digits", ['teachers=[{name="a", weight=0.7}, {name="b", weight=0.3}]'])
    assert recipes.sources(recipe) == recipes.sources(
        recipes.load("digits"), ["a", "b"], [0.7, 0.3]
    )
    both = recipes.sources(recipe, architectures=["x"], class_maps=["", "m.json"])
    assert [s.architecture for s in both] == ["x", "x"]
    assert [s.class_map for s in both] == ["", "m.json"]
    assert [s.weight for s in both] == [0.7, 0.3]


@pytest.fixture(scope="module")
def together(
    digits: Path, teacher: Path, second: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache of two teachers in one pass, mixed views."""
    out = tmp_path_factory.mktemp("together") / "cache.zarr"
    sources = [TeacherSource(str(teacher), 0.7), TeacherSource(str(second), 0.3)]
    run(
        recipes.load("digits", ["num_views=2", "views.mixup=0.5"]), str(digits), sources, out, "cpu"
    )
    return out


def test_a_cache_of_several_verifies_against_them(
    together: Path, digits: Path, teacher: Path, second: Path, wide: Path, kdcache: Command
) -> None:
    both = ("--teacher", second, "--teacher", teacher)  # in any order
    verify = ("verify", together, "--data", digits, "--recompute", 5)
    outcome = kdcache(*verify, *both)
    assert outcome.code == 0, outcome
    assert kdcache("verify", together).code == 0
    other = kdcache(*verify, "--teacher", second, "--teacher", wide)
    assert other.code == 1
    assert "Pass --teacher with the original weights" in other.out
    assert "is 2 networks" in kdcache(*verify, "--teacher", second).err
    info = json.loads(kdcache("info", together, "--json").out)
    assert sorted(m["weight"] for m in info["teacher"]["members"]) == [0.3, 0.7]
    assert "0.7 of local:test_resnet" in kdcache("info", together).out


def test_one_pass_says_what_the_mixture_of_two_caches_says(
    together: Path, digits: Path, teacher: Path, second: Path, tmp_path: Path, kdcache: Command
) -> None:
    few = recipes.load("digits", ["num_views=2", "views.mixup=0.5"])
    for name, folder in (("a", teacher), ("b", second)):
        run(few, str(digits), str(folder), tmp_path / name, "cpu")
    caches = (tmp_path / "a", tmp_path / "b")
    mixed = kdcache("ensemble", *caches, "--weights", "0.7,0.3", "--out", tmp_path / "m")
    assert mixed.code == 0, mixed
    diff = json.loads(kdcache("diff", together, tmp_path / "m", "--json").out)
    assert diff["l1_mean"] < 0.02, diff
    assert Store.open(together).spec.fingerprint != Store.open(tmp_path / "m").spec.fingerprint
    with pytest.raises(UsageError, match="mixed from their caches"):
        again.load(Store.open(tmp_path / "m").spec.teacher, 32)


def test_online_asks_all_of_them(together: Path, teacher: Path, second: Path) -> None:
    store = Store.open(together)
    ask = online(store, [str(teacher), str(second)], CPU)
    pixels = np.zeros((2, 32, 32, 3), "u1")
    sources = [TeacherSource(str(teacher), 0.7), TeacherSource(str(second), 0.3)]
    loaded = teachers.load_all(sources, 32, "fp32")
    expected = Forward(loaded, store.spec.targets, CPU)(pixels, None, None)
    torch.testing.assert_close(ask(pixels, None, None, None)[1], expected[1])  # type: ignore[arg-type]


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_one_source_each_is_a_softmax_over_the_chosen(
    wide: Path, tmp_path: Path, pixels: np.ndarray
) -> None:
    chosen = [3, 1, 24, 7, 0, 9, 11, 12, 20, 5]
    path = written(tmp_path, "map.txt", "".join(f"{c}\n" for c in chosen))
    loaded = teachers.load(str(wide), 32, "fp32", class_map=path)
    assert loaded.spec.num_classes == 10
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    plain = Logits(teachers.load(str(wide), 32, "fp32"), CPU)(x)
    assert torch.equal(Logits(loaded, CPU)(x), plain[:, chosen])


def test_several_sources_are_summed_at_every_temperature(
    wide: Path, tmp_path: Path, pixels: np.ndarray
) -> None:
    groups = [[0], [1, 2, 3], [4, 9], [24, 23, 22, 21, 20]]
    path = written(tmp_path, "map.json", json.dumps([0, *groups[1:]]))
    loaded = teachers.load(str(wide), 32, "fp32", class_map=path)
    plain = teachers.load(str(wide), 32, "fp32")
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    p_BH = Logits(plain, CPU)(x).double().softmax(1)
    p = torch.stack([p_BH[:, group].sum(1) for group in groups], 1)
    p = p / p.sum(1, keepdim=True)
    k1 = replace(ALL, k_max=1, k_min=1)
    index, kept, tail, _, _ = Forward(loaded, k1, CPU)(pixels, None, None)
    torch.testing.assert_close(kept.double(), p.gather(1, index), atol=1e-6, rtol=1e-4)
    for t, dense in enumerate((p, p**0.25 / (p**0.25).sum(1, keepdim=True))):
        expected = 1 - dense.gather(1, index)[:, 0]
        torch.testing.assert_close(tail[:, t].double(), expected, atol=1e-5, rtol=1e-3)


def test_a_map_is_known_by_what_it_means(wide: Path, tmp_path: Path) -> None:
    model = fetch.create(str(wide))[1]
    files = (
        written(tmp_path, "a.json", "[3, [5, 4], 0]"),
        written(tmp_path, "b.txt", "3\n4 5\n0\n"),
        written(tmp_path, "c.csv", "3\n5,4\n0"),
    )
    digests = {classes.load(path, model).sha256 for path in files}
    assert digests == {sha256(b"[[3],[4,5],[0]]")}
    with_map = teachers.load(str(wide), 32, "fp32", class_map=files[0]).spec
    assert with_map.class_map_sha256 in digests
    plain = teachers.load(str(wide), 32, "fp32").spec
    assert plain.weights_sha256 == with_map.weights_sha256
    assert plain.class_map_sha256 == ""


def test_synsets_are_found_in_the_head() -> None:
    model = timm.create_model("test_resnet", num_classes=21841)
    names = ImageNetInfo("imagenet-22k").label_names()  # type: ignore[no-untyped-call]
    assert classes._names(model)["n01440764"] == names.index("n01440764")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 25]", "class 1 .* names 25: .* 0 to 24"),
        ("[1, -1]", "names -1"),
        ("[1, []]", "class 1 .* is empty"),
        ("[1, [2, 2]]", "twice"),
        ('[1, "n01440764"]', "names 'n01440764': .* 25 classes, which it has no names for"),
        ("[1, true]", "names True"),
        ("[1]", "is of 1 classes"),
        ('{"a": 1}', "JSON dict, expected a list"),
        ("[1,", "cannot read the class map"),
    ],
)
def test_impossible_maps_are_refused(wide: Path, tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, "map.json", text)
    with pytest.raises(UsageError, match=words):
        classes.load(path, fetch.create(str(wide))[1])
    with pytest.raises(UsageError, match=r"class 1 .* is empty"):
        classes.load(written(tmp_path, "m.txt", "1\n\n2\n"), fetch.create(str(wide))[1])


def test_a_cache_through_a_class_map(
    digits: Path, wide: Path, teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    """A head of 25 classes serves data of 10; beside it a teacher that needs no map."""
    pair = [[c, c + 10] for c in range(10)]
    path = written(tmp_path, "map.json", json.dumps(pair))
    out = tmp_path / "c"
    make = ("cache", "digits", "--data", digits, "--out", out, "num_views=1")
    refused = kdcache(*make, "--teacher", wide)
    assert refused.code == 1
    assert "10 classes, the teacher of 25" in refused.err
    assert "--class-map FILE" in refused.err
    both = ("--teacher", wide, "--teacher", teacher, "--class-map", path, "--class-map", "")
    made = kdcache(*make, *both, "--teacher-weight", 1, "--teacher-weight", 3)
    assert made.code == 0, made
    members = summary.info(Store.open(out))["teacher"]["members"]
    mapped = [m for m in members if "class_map_sha256" in m]
    assert [m["weight"] for m in mapped] == [0.25]
    verify = ("verify", out, "--data", digits, "--recompute", 3, *both[:4])
    assert kdcache(*verify, "--class-map", path).code == 0
    without = kdcache(*verify)
    assert without.code == 1
    assert "Pass --class-map with the original file" in without.out
    with pytest.raises(CacheMismatch, match="another is given"):
        wrong = written(tmp_path, "wrong.json", json.dumps(list(range(10))))
        again.load(Store.open(out).spec.teacher, 32, [str(wide), str(teacher)], [wrong])


def test_manifests_of_teachers_that_say_nothing_new_stay_the_same(made: Path) -> None:
    """Fields that were added are there only when they say something."""
    spec = Store.open(made).spec
    old = replace(spec, teacher=replace(spec.teacher, input_size=0, interpolation=""))
    assert set(old.mapping["teacher"]) == {
        "name",
        "architecture",
        "weights_sha256",
        "num_classes",
        "mean",
        "std",
        "precision",
    }
    assert specs.from_mapping(json.loads(json.dumps(spec.mapping)), "here") == spec


def test_a_cache_of_several_is_read_back_as_it_was(together: Path) -> None:
    spec = Store.open(together).spec
    assert specs.from_mapping(json.loads(json.dumps(spec.mapping)), "here") == spec
    assert set(spec.mapping["teacher"]["members"][0]) == {
        "name",
        "architecture",
        "weights_sha256",
        "cache",
        "weight",
        "mean",
        "std",
        "input_size",
        "interpolation",
    }
