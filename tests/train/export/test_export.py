"""A student leaves: timm opens the folder and says the same; the card says where it comes from."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from cache_tools.data.open import open_images
from cache_tools.render import decode
from cache_tools.storage import seal
from tests.helpers.outcome import Outcome
from train import recipe as recipes
from train import run_dir
from train.data.inputs import open_inputs
from train.export import export
from train.trainer import loop

FAST = ["epochs=2", "views_per_epoch=2", "batch_size=40"]
Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def finished(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    recipe, inputs = recipes.load("digits", FAST), open_inputs(digits_cache, None)
    run_dir.init_run(out, recipe, inputs, fresh=False)
    loop.train(recipe, inputs, out, torch.device("cpu"))
    return out


def opened(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "model/config.json", "log.jsonl", "steps.jsonl"]
)
def test_the_command_of_a_finished_run_names_a_damaged_file(
    finished: Path, digits_cache: Path, kdcache: Command, tmp_path: Path, name: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    arguments = ("train", "digits", "--cache", digits_cache, "--out", run, *FAST)
    assert "is finished; --fresh" in kdcache(*arguments).err
    flip(run / name)
    again = kdcache(*arguments)
    assert (again.code, f"{run / name} is damaged" in again.err, "--fresh" in again.err) == (
        1,
        *[True] * 2,
    )
    (run / name).unlink()
    again = kdcache(*arguments)
    assert (again.code, f"{run / name} cannot be read" in again.err) == (1, True)


def test_a_log_that_changed_reaches_no_card_and_no_report(
    finished: Path, kdcache: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    text = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(text.replace('"loss": ', '"loss": 1'))
    for arguments in (("export", run, "--out", tmp_path / "e"), ("report", run, "--views", 0)):
        said = kdcache(
            *arguments, *(("--out", tmp_path / "r.html") if arguments[0] == "report" else ())
        )
        assert (said.code, f"{run / 'log.jsonl'} is damaged" in said.err) == (1, True)


def test_eval_names_the_network_that_a_finished_run_lacks(
    finished: Path, kdcache: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "model/model.safetensors").unlink()
    said = kdcache("eval", run, "--views", 0)
    assert (said.code, "model/model.safetensors cannot be read" in said.err) == (1, True)


@pytest.mark.parametrize("name", ["train", "eval", "export", "report"])
def test_a_finished_run_without_its_result_is_damaged(
    finished: Path, digits_cache: Path, kdcache: Command, tmp_path: Path, name: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "result.json").unlink()
    arguments: dict[str, tuple[object, ...]] = {
        "train": ("digits", "--cache", digits_cache, "--out", run, *FAST),
        "eval": (run, "--views", 0),
        "export": (run, "--out", tmp_path / "student"),
        "report": (run, "--views", 0, "--out", tmp_path / "r.html"),
    }
    said = kdcache(name, *arguments[name])
    assert (said.code, f"{run}/result.json cannot be read" in said.err) == (1, True), said.err
    assert "--fresh" in said.err


def test_a_student_of_broken_weights_is_not_exported(
    finished: Path, kdcache: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    weights = load_file(run / "model/model.safetensors")
    next(value for value in weights.values() if value.is_floating_point())[0] = float("nan")
    save_file(weights, run / "model/model.safetensors")
    (run / "digests.json").unlink()
    exported = kdcache("export", run, "--out", tmp_path / "student")
    assert (exported.code, "weights that are NaN or Inf" in exported.err) == (1, True)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("name", ["model/model.safetensors", "config.json", "result.json"])
def test_a_run_with_a_flipped_bit_is_refused(
    finished: Path, kdcache: Command, tmp_path: Path, name: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    flip(run / name)
    exported = kdcache("export", run, "--out", tmp_path / "student")
    assert (exported.code, f"{run / name} is damaged" in exported.err) == (1, True), exported.err
    assert not (tmp_path / "student").exists()
    if name != "result.json":
        evaluated = kdcache("eval", run, "--views", "0")
        assert (evaluated.code, f"{name} is damaged" in evaluated.err) == (1, True), evaluated.err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "null", "is no file that kdcache writes"),
        ("result.json", "{}", "the key 'student' is missing"),
        ("log.jsonl", "7\n", "is no log of a run"),
        ("log.jsonl", '{"top1": 1.0, "top5": "x"}\n', "is no log of a run"),
    ],
)
def test_other_files_in_a_run_are_refused(
    finished: Path, kdcache: Command, tmp_path: Path, name: str, text: str, message: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / seal.NAME).unlink()
    (run / name).write_text(text)
    outcome = kdcache("export", run, "--out", tmp_path / "student")
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


@pytest.mark.parametrize(
    ("option", "name", "key"),
    [
        (None, "model", "top1"),
        ("--ema", "model-ema", "top1_ema"),
        ("--best", "model-best", "top1_best"),
    ],
)
def test_timm_opens_it_and_its_outputs_are_the_same(
    finished: Path, kdcache: Command, tmp_path: Path, option: str | None, name: str, key: str
) -> None:
    out = tmp_path / "student"
    outcome = kdcache("export", finished, "--out", out, *([option] if option else []))
    assert outcome.code == 0, outcome.err
    assert f"local-dir:{out}" in outcome.out
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(opened(out)(x), opened(finished / name)(x))
    config, result = (
        json.loads(p.read_text()) for p in (out / "config.json", finished / "result.json")
    )
    assert config["kdcache"]["top1"] == result[key]
    assert config["kdcache"]["weights"] == name
    assert config["kdcache"]["cache_fingerprint"] == result["cache_fingerprint"]
    assert config["kdcache"]["teacher"]["architecture"] == "test_resnet"
    assert f"{result[key]:.2f}" in (out / "README.md").read_text()


def test_timms_own_transform_gives_the_accuracy_of_the_run(
    finished: Path, kdcache: Command, digits: Path, tmp_path: Path
) -> None:
    kdcache("export", finished, "--out", tmp_path / "student")
    model = opened(tmp_path / "student")
    config = timm.data.resolve_data_config(model=model)
    assert config["input_size"] == (3, 32, 32)
    assert config["crop_pct"] == 1.0
    transform = timm.data.create_transform(**config)
    images = open_images(str(digits), "validation")
    pictures = [decode.decode(images.read(i), images.names[i]) for i in range(len(images))]
    x = torch.stack([transform(Image.fromarray(p)) for p in pictures])
    with torch.inference_mode():
        answer = torch.cat([model(part).argmax(dim=1) for part in x.split(64)]).numpy()
    top1 = 100 * float(np.mean(answer == images.label_N))
    assert top1 == pytest.approx(
        json.loads((finished / "result.json").read_text())["top1"], abs=0.3
    )


def test_the_card_describes_the_student(finished: Path, kdcache: Command, tmp_path: Path) -> None:
    out = tmp_path / "student"
    assert "license: unknown" in kdcache("export", finished, "--out", out).err
    assert "license: unknown\n" in (out / "README.md").read_text()
    assert kdcache("export", finished, "--out", out, "--license", "mit", "--fresh").code == 0
    card = (out / "README.md").read_text()
    front = card.split("---\n")[1]
    assert "license: mit\n" in front
    assert "library_name: timm\n" in front
    assert "- knowledge-distillation\n" in front
    assert "distilled from `local:test_resnet`" in card
    assert "temperature: 4.0" in card
    assert "797 validation images" in card
    assert str(tmp_path) not in card + (out / "config.json").read_text()  # nothing of this machine
    assert kdcache("export", finished, "--out", out, "--license", "a: b", "--fresh").code == 2


def test_nothing_is_overwritten_without_a_word(
    finished: Path, digits_cache: Path, kdcache: Command, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    assert kdcache("export", finished, "--out", out).code == 0
    refused = kdcache("export", finished, "--out", out, "--ema")
    assert refused.code == 2
    assert "--fresh" in refused.err
    assert json.loads((out / "config.json").read_text())["kdcache"]["weights"] == "model"
    assert kdcache("export", finished, "--out", out, "--ema", "--fresh").code == 0
    assert json.loads((out / "config.json").read_text())["kdcache"]["weights"] == "model-ema"
    left = [tmp_path / "other.0123456789ab.partial", finished / "x.0123456789ab.partial"]
    for path in left:
        path.touch()
        os.utime(path, (0, 0))
    assert kdcache("export", finished, "--out", out, "--fresh").code == 0
    assert list(tmp_path.iterdir()) == [out]
    run_dir.init_run(
        finished, recipes.load("digits", FAST), open_inputs(digits_cache, None), fresh=False
    )
    assert not left[1].exists()
    for precious in (finished, finished / "model"):
        refused = kdcache("export", finished, "--out", precious, "--fresh")
        assert refused.code == 2
        assert "is no exported student" in refused.err
        assert (finished / "result.json").exists()


def test_an_export_into_a_folder_that_was_killed_is_made_again(
    finished: Path, kdcache: Command, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    killed = out / "student.0123456789ab.partial"
    killed.mkdir(parents=True)
    assert kdcache("export", finished, "--out", out).code == 0
    whole = {path.name for path in out.iterdir()}
    assert killed.name not in whole
    killed.mkdir()
    (out / "config.json").unlink()  # as between two of its renames
    assert kdcache("export", finished, "--out", out).code == 0
    assert {path.name for path in out.iterdir()} == whole
    killed.mkdir()
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert kdcache("export", finished, "--out", out).code == 0  # it is whole
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert "--fresh" in kdcache("export", finished, "--out", out, "--license", "mit").err
    (out / "notes.txt").touch()
    (out / "config.json").unlink()
    assert "is no exported student" in kdcache("export", finished, "--out", out, "--fresh").err


def test_a_student_is_saved_without_a_folder_for_temporary_files(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, inputs = tmp_path / "run", open_inputs(digits_cache, None)
    recipe = recipes.load("digits", ["epochs=1", "views_per_epoch=1", "batch_size=40"])
    run_dir.init_run(run, recipe, inputs, fresh=False)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
        loop.train(recipe, inputs, run, torch.device("cpu"))
    assert (run / "result.json").is_file()
    assert not list(run.glob("*.partial"))


def test_what_cannot_be_exported(finished: Path, kdcache: Command, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "student")
    half = shutil.copytree(finished, tmp_path / "runs" / "half")
    (half / "result.json").rename(half / "checkpoint.pt")
    refused = kdcache("export", half, *out)
    assert refused.code == 1
    assert "is not finished. Run its command again" in refused.err
    shutil.copytree(finished, tmp_path / "runs" / "kd-seed0")
    refused = kdcache("export", tmp_path / "runs", *out)
    assert refused.code == 2
    assert "(kd-seed0, half). Pass one of them" in refused.err
    shutil.rmtree(tmp_path / "runs/kd-seed0/model-ema")
    refused = kdcache("export", tmp_path / "runs/kd-seed0", *out, "--ema")
    assert refused.code == 2
    assert "has: model, model-best" in refused.err
    assert kdcache("export", finished, *out, "--ema", "--best").code == 2
    assert kdcache("export", finished, *out, "--private").code == 2
    assert not (tmp_path / "student").exists()


def test_a_run_of_an_earlier_version_gets_a_next_step(
    finished: Path, digits_cache: Path, kdcache: Command, tmp_path: Path
) -> None:
    old = shutil.copytree(finished, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    run_dir.write_json(old / "config.json", {k: v for k, v in config.items() if k != "teacher"})
    refused = kdcache("export", old, "--out", tmp_path / "student")
    assert refused.code == 1
    assert "it trains nothing and adds them" in refused.err
    assert (
        "is finished"
        in kdcache("train", "digits", "--cache", digits_cache, "--out", old, *FAST).err
    )
    assert kdcache("export", old, "--out", tmp_path / "student").code == 0


def test_offline_the_hub_is_a_message_and_the_folder_is_there(
    finished: Path, kdcache: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    out = tmp_path / "student"
    refused = kdcache("export", finished, "--out", out, "--push-to-hub", "somebody/student")
    assert refused.code == 1
    assert "the upload of somebody/student to the Hub failed" in refused.err
    assert "Traceback" not in refused.err
    assert opened(out).num_classes == 10


def test_what_is_pushed_is_what_is_written(
    finished: Path, kdcache: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's own function with the Hub's client replaced: the upload lands in a folder."""
    there = tmp_path / "hub"

    class Hub:
        def __init__(self, **_: object) -> None: ...

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> object:
            assert private
            return type("Url", (), {"repo_id": repo_id})

        def file_exists(self, **_: object) -> bool:
            return False

        def upload_folder(self, folder_path: str, **_: object) -> None:
            shutil.copytree(folder_path, there)

    monkeypatch.setattr("timm.models._hub.HfApi", Hub)
    out = tmp_path / "student"
    push = ("--push-to-hub", "somebody/student", "--private", "--license", "mit", "--json")
    outcome = kdcache("export", finished, "--out", out, *push)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["opens"] == "hf-hub:somebody/student"
    for name in ("config.json", "model.safetensors"):
        assert (there / name).read_bytes() == (out / name).read_bytes()
    assert 'create_model("hf-hub:somebody/student"' in (there / "README.md").read_text()


def test_class_names_come_along(
    digits: Path, teacher: Path, kdcache: Command, tmp_path: Path
) -> None:
    """An ImageFolder names its classes; where they are ImageNet's, timm describes them."""
    images = open_images(str(digits), "train")
    names = [f"n{1440764 + i:08d}" for i in range(10)]
    for i in range(len(images)):
        path = tmp_path / "photos" / names[int(images.label_N[i])] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.read(i))
    cache, out = tmp_path / "c.zarr", tmp_path / "run"
    data = ("--data", tmp_path / "photos")
    made = kdcache("cache", "digits", *data, "--teacher", teacher, "--out", cache, "num_views=1")
    assert made.code == 0, made.err
    fast = ["epochs=1", "views_per_epoch=1", "batch_size=50", "model_ema_decay=0.0"]
    assert kdcache("train", "digits", "--cache", cache, "--out", out, *fast).code == 0
    assert kdcache("export", out, "--out", tmp_path / "student").code == 0
    model = opened(tmp_path / "student")
    assert list(model.pretrained_cfg["label_names"]) == names
    card = (tmp_path / "student/README.md").read_text()
    assert "nothing was measured" in card
    assert "10: tench (n01440764), " in card
    synsets = ["n01440764", "n01443537"]
    known = export._class_names({"class_names": synsets}, 2)
    assert known["label_descriptions"]["n01440764"] == "tench, Tinca tinca"


def test_the_config_rebuilds_a_student_with_arguments(
    digits_cache: Path, kdcache: Command, tmp_path: Path
) -> None:
    words = ["student=test_vit", "student_kwargs={img_size = 32, patch_size = 8, drop_rate = 0.1}"]
    words += ["grad_checkpointing=true", "opt_kwargs.betas=[0.9, 0.95]", "model_ema_warmup=true"]
    run, out = tmp_path / "run", tmp_path / "student"
    where = ["--cache", digits_cache, "--out", run]
    done = kdcache("train", "digits", *where, *FAST, *words, "epochs=1")
    assert done.code == 0, done.err
    assert kdcache("export", run, "--out", out).code == 0
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(opened(out)(x), opened(run / "model")(x))
    config = json.loads((out / "config.json").read_text())
    assert config["model_args"]["patch_size"] == 8
    assert "drop_rate" not in config["model_args"]
    assert config["kdcache"]["recipe"]["opt_kwargs"] == {"betas": [0.9, 0.95]}
    assert "opt_kwargs" in (out / "README.md").read_text()
    assert kdcache("eval", run, "--views", 0).code == 0
    refused = kdcache("train", "digits", *where, *FAST, *words, "epochs=1", "opt_kwargs.eps=1e-6")
    assert refused.code == 2
    assert "opt_kwargs.eps: None against 1e-06" in refused.err
