"""Teachers in any container, and how they are run."""

import argparse
import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from cache_tools.errors import KdcacheError, TeacherError, UsageError
from cache_tools.spec import cache as specs
from cache_tools.spec.targets import TargetSpec
from cache_tools.store.cache import Cache
from pipeline import recipe as recipes
from pipeline.run import run
from pipeline.teacher import create
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward
from pipeline.teacher.logits import Execution, Logits
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
CPU = torch.device("cpu")
ALL = TargetSpec(k_max=10, k_min=10, tau=0.0, temperatures=(1.0, 4.0))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return create.create(str(folder))[1].state_dict()


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


@pytest.mark.parametrize("num_classes", [0, 1])
def test_a_network_without_classes_teaches_nothing(
    kdcache: Command, digits: Path, tmp_path: Path, num_classes: int
) -> None:
    model = timm.create_model("test_resnet", num_classes=num_classes)
    save_for_hf(model, str(tmp_path / "t"), safe_serialization=True)
    words = ("digits", "--data", digits, "--teacher", tmp_path / "t", "--out", tmp_path / "c.zarr")
    outcome = kdcache("cache", *words)
    assert outcome.code == 2
    assert f"has {num_classes} classes, expected two or more" in outcome.err
    assert not (tmp_path / "c.zarr").exists()


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
    with pytest.raises(TeacherError, match=r"does not fit the network test_resnet.*--architecture"):
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


def test_numbers_of_numpy_beside_the_weights_are_data(teacher: Path, tmp_path: Path) -> None:
    expected = teachers.load(str(teacher), 32, "fp32").spec.weights_sha256
    best = {"best": np.float64(81.5), "steps": np.int64(7), "ok": np.bool_(True)}
    content = {"model": weights_of(teacher), **best, "curve": np.arange(5, dtype="f4")}
    for name in ("new.PTH", "new.pkl"):
        torch.save(content, tmp_path / name)
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pth").read_bytes().replace(b"cnumpy._core.", b"cnumpy.core.")
    (tmp_path / "old.pth").write_bytes(data)  # as numpy 1 has the names
    for name in ("new.PTH", "new.pkl", "old.pth"):
        loaded = teachers.load(str(tmp_path / name), 32, "fp32", architecture="test_resnet")
        assert loaded.spec.weights_sha256 == expected, name


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "folder"])
def test_a_git_lfs_pointer_is_named(teacher: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    file = path / "model.safetensors" if name == "folder" else path
    file.parent.mkdir(exist_ok=True)
    (file.parent / "config.json").write_bytes((teacher / "config.json").read_bytes())
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(TeacherError, match="git lfs pull"):
        teachers.load(str(path), 32, "fp32")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("test_resnet", {"in_chans": 1}, "1 channels"),
        ("test_vit", {"in_chans": 4}, "4 channels"),
        ("vit_tiny_patch16_224", {"img_size": (64, 96), "depth": 1}, "64 × 96"),
    ],
)
def test_teachers_of_other_pictures_are_refused(
    tmp_path: Path, name: str, arguments: dict[str, object], message: str
) -> None:
    model = timm.create_model(name, num_classes=5, **arguments)
    save_for_hf(model, str(tmp_path / "t"), model_args=arguments, safe_serialization=True)
    with pytest.raises(UsageError, match=f"{message}.*square and RGB"):
        create.create(str(tmp_path / "t"))


def test_a_teacher_that_ends_in_a_softmax_is_refused(teacher: Path, pixels: np.ndarray) -> None:
    loaded = teachers.load(str(teacher), 32, "fp32")
    for last, fine in ((nn.Softmax(1), False), (nn.LogSoftmax(1), True)):
        model = replace(loaded, model=nn.Sequential(loaded.model, last))
        forward = Forward(model, ALL, CPU)
        if fine:
            forward(pixels, None, None)
        else:
            with pytest.raises(TeacherError, match=r"ends in a softmax.*Remove its last layer"):
                forward(pixels, None, None)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_file_that_is_cut_short_is_explained(teacher: Path, tmp_path: Path, name: str) -> None:
    whole = tmp_path / ("whole" + Path(name).suffix)
    (torch.save if whole.suffix == ".pth" else save_file)(weights_of(teacher), whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(TeacherError, match=r"cannot be read as weights: .* Fetch it again"):
        teachers.load(str(tmp_path / name), 32, "fp32", architecture="test_resnet")


@pytest.mark.parametrize("data", [b"root:x:0:0:root\n" * 100, b"\x80\x02RRRR.", b"\x80\x02((("])
def test_a_pickle_that_is_none_is_refused_by_name(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.pth").write_bytes(data)
    with pytest.raises(TeacherError, match=r"t\.pth"):
        teachers.load(str(tmp_path / "t.pth"), 32, "fp32", architecture="test_resnet")


def test_a_text_in_place_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.pth").write_text("root:x:0:0:root\n")
    with pytest.raises(TeacherError, match=r"no file of torch.save, it begins with b'root:x:0'"):
        teachers.load(str(tmp_path / "t.pth"), 32, "fp32", architecture="test_resnet")


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "test_resnet", "num_classes": 2**24},
        {"architecture": "vit_giant_patch14_224", "num_classes": 10},
        {"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"embed_dim": 2**14}},
    ],
)
def test_a_network_larger_than_its_weights_is_not_made(
    teacher: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = shutil.copytree(teacher, tmp_path / "t")
    (folder / "config.json").write_text(json.dumps(config))
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(KdcacheError, match=r"model.safetensors has .* which cannot be its"):
            teachers.load(str(path), 32, "fp32")


def test_an_architecture_that_is_no_name_is_refused(teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teacher, tmp_path / "t")
    (folder / "config.json").write_text('{"architecture": 5, "num_classes": 10}')
    with pytest.raises(TeacherError, match="its architecture is 5"):
        teachers.load(str(folder), 32, "fp32")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_pct", "x"), ("crop_pct", 0), ("test_crop_pct", True), ("mean", "x"),
        ("mean", []), ("std", [1, 1, 0]), ("std", [1, "a", 1]), ("input_size", [3, 32]),
        ("test_input_size", [3, -1, 32]), ("interpolation", 7), ("interpolation", "nosuch"),
        ("crop_mode", []), ("fixed_input_size", "x"),
    ],
)  # fmt: skip
def test_preprocessing_of_a_wrong_type_is_named(
    teacher: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(TeacherError, match=rf"config.json: pretrained_cfg.{key} is .* Correct"):
            teachers.load(str(path), 32, "fp32")


@pytest.mark.parametrize("wrong", [{"model_args": [1]}, {"pretrained_cfg": []}])
def test_lists_in_place_of_tables_are_refused(
    teacher: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    folder = shutil.copytree(teacher, tmp_path / "t")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **wrong}))
    with pytest.raises(TeacherError, match="does not contain a network as saved by timm"):
        teachers.load(str(folder), 32, "fp32")


def test_a_file_of_weights_needs_an_architecture(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(weights_of(teacher), path)
    with pytest.raises(UsageError, match=r"--architecture NAME"):
        teachers.load(str(path), 32, "fp32")
    with pytest.raises(UsageError, match=r"no network 'resnet_51'. Did you mean resnet51q"):
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
    assert "the teacher was trained at 160 px and is shown views of 32 px" in caplog.text


def test_choices_are_logged_with_their_reason(
    teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdcache")
    loaded = teachers.load(str(teacher), 32, "bf16")
    how = Forward(loaded, ALL, CPU).how
    assert how == "bf16, channels_last, not compiled"
    assert "bf16 (recipe: precision), channels_last (the fastest layout" in caplog.text
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


def test_the_commit_record_states_how_the_teacher_ran(
    digits: Path, teacher: Path, tmp_path: Path
) -> None:
    recipe = recipes.load("digits", ["num_views=1", 'memory_format="contiguous"'])
    store = run(recipe, str(digits), str(teacher), tmp_path / "c", "cpu")
    versions = store.record(next(iter(store.parts())))["versions"]
    assert versions["forward"] == "fp32, contiguous, not compiled"
    assert store.spec.teacher.interpolation == "bilinear"


def test_manifests_of_teachers_without_new_fields_stay_the_same(digits_cache: Path) -> None:
    """Fields that were added are there only when they say something."""
    spec = Cache.open(digits_cache).spec
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


def test_a_teacher_in_half_precision(teacher: Path, pixels: np.ndarray) -> None:
    """As VanillaKD's and TinyViT's run: nearer to single precision than bf16."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    exact, *lower = (
        Logits(teachers.load(str(teacher), 32, precision), CPU)(x).double().log_softmax(1)
        for precision in ("fp32", "fp16", "bf16")
    )  # in double precision, as a divergence near 0 is below the rounding of single precision
    fp16, bf16 = ((exact.exp() * (exact - other)).sum(1).mean().item() for other in lower)
    assert 0 <= fp16 < 1e-4
    assert fp16 < bf16


@pytest.mark.parametrize(
    "change", [{"std": [0, 0, 0]}, {"mean": ["a"] * 3}, {"mean": [0.5]}, {"std": [1e39, -1, 1]}]
)
def test_a_normalisation_that_cannot_be_is_refused(
    change: dict[str, list[object]], teacher: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(teacher, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TeacherError, match=f"config.*{next(iter(change))}"):
        teachers.load(str(folder), 32, "fp32")
