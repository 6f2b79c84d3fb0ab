"""Teachers and students of other libraries through every command."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import get_model

from cache_tools.store.cache import Cache
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
CODE = """
from torch import nn

def build(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(256, num_classes)), {"input_size": (3, 32, 32)}
"""
TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 16,
}
LIBRARIES = [
    "python",
    pytest.param("torchvision", marks=pytest.mark.slow),
    pytest.param("transformers", marks=pytest.mark.slow),
]
FAST = ["epochs=2", "batch_size=50", "model_ema_decay=0.9", "views_per_epoch=2"]


@pytest.fixture(scope="module", params=LIBRARIES)
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A teacher of ten classes and a student, by their names."""
    folder = tmp_path_factory.mktemp("lab")
    torch.manual_seed(2)
    if request.param == "torchvision":
        model = get_model("shufflenet_v2_x0_5", num_classes=10)
        save_file(model.state_dict(), folder / "w.safetensors")
        name = "torchvision:shufflenet_v2_x0_5"
        yield f"{name}:{folder / 'w.safetensors'}", name
    elif request.param == "python":
        (folder / "lab_of_tests.py").write_text(CODE)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            yield "python:lab_of_tests:build", "python:lab_of_tests:build"
    else:
        import transformers

        config = transformers.ViTConfig(**TINY, num_labels=10)
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        yield f"transformers:{folder}", f"transformers:{folder}"


@pytest.fixture(scope="module")
def made(named: tuple[str, str], digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline import recipe as recipes
    from pipeline.run import run

    out = tmp_path_factory.mktemp("cache") / "c.zarr"
    run(recipes.load("digits", ["num_views=2", f"teacher={named[0]}"]), str(digits), named[0], out)
    return out


def test_the_teacher_runs_again(
    made: Path, named: tuple[str, str], digits: Path, teacher: Path, kdcache: Command
) -> None:
    arguments = ("verify", made, "--data", digits, "--recompute", 5)
    said = kdcache(*arguments, "--teacher", named[0])
    assert (said.code, "5 views of the teacher" in said.out) == (0, True), said.err
    other = kdcache(*arguments, "--teacher", teacher)
    assert (other.code, "that of the cache" in other.out) == (1, True)
    by_name = kdcache(*arguments)
    message = "runs no code" if named[0].startswith("python:") else "was loaded from a folder"
    assert (by_name.code, message in by_name.err) == (2, True), by_name.err
    card = kdcache("card", made)
    assert (card.code, Cache.open(made).spec.teacher.name in card.out) == (0, True), card.err


@pytest.mark.slow
def test_the_teacher_runs_in_the_loop_and_beside_the_student(
    made: Path, named: tuple[str, str], digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    run = tmp_path / "run"
    values = (*FAST, "mode=online", "epochs=1")
    train = ("train", "digits", "--cache", made, "--out", run, *values)
    said = kdcache(*train, "--teacher", named[0])
    assert said.code == 0, said.err
    said = kdcache("eval", run, "--teacher", named[0], "--force", "--json")
    assert said.code == 0, said.err
    assert {"student", "teacher"} <= set(json.loads(said.out)["data"][0]["networks"])
    alone = kdcache("eval", named[0], "--data", digits, "--views", 0, "--json")
    assert (alone.code, json.loads(alone.out)["view_size"] > 0) == (0, True), alone.err


@pytest.mark.slow
def test_an_ensemble_with_a_teacher_of_timm(
    named: tuple[str, str], teacher: Path, digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    both = ("--teacher", named[0], "--teacher", teacher)
    out = tmp_path / "c.zarr"
    said = kdcache("cache", "digits", "--data", digits, "--out", out, "num_views=1", *both)
    assert said.code == 0, said.err
    said = kdcache("verify", out, "--data", digits, "--recompute", 3, *both)
    assert (said.code, "3 views of the teacher" in said.out) == (0, True), said.err


@pytest.mark.slow
def test_a_student_is_trained_resumed_measured_and_exported(
    made: Path, named: tuple[str, str], tmp_path: Path, kdcache: Command
) -> None:
    from train import api
    from train import recipe as recipes

    run, whole, student = tmp_path / "run", tmp_path / "whole", named[1]
    recipe = recipes.load("digits", [*FAST, f"student={student}"])

    def stop(row: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.fit(recipe, cache=made, out=run, device="cpu", on_epoch=stop)
    for folder in (run, whole):
        api.fit(recipe, cache=made, out=folder, device="cpu")
    states = [load_file(folder / "model/model.safetensors") for folder in (run, whole)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    config = json.loads((run / "model/config.json").read_text())
    prefix, _, rest = student.partition(":")
    architecture = "transformers:vit" if prefix == "transformers" else student
    assert (config["architecture"], config["num_classes"]) == (architecture, 10)
    assert str(Path(rest).parent) not in json.dumps(config) or prefix != "transformers"

    word = ("--architecture", student) if prefix == "python" else ()
    if word:  # the folder alone runs no code
        for command in (("eval", run), ("export", run, "--out", tmp_path / "no")):
            refused = kdcache(*command)
            assert (refused.code, f"--architecture {student}" in refused.err) == (2, True)
    measured = kdcache("eval", run, "--json", *word)
    assert measured.code == 0, measured.err
    top1 = json.loads((run / "result.json").read_text())["top1"]
    assert json.loads(measured.out)["top1"] == pytest.approx(top1, abs=2.0)
    exported = kdcache("export", run, "--out", tmp_path / "out", "--license", "mit", *word)
    assert exported.code == 0, exported.err
    card = (tmp_path / "out/README.md").read_text()
    assert f"library_name: {'pytorch' if prefix == 'python' else prefix}" in card
    assert opened_by_the_card(card, tmp_path / "out").keys() == states[1].keys()
    again = kdcache("eval", tmp_path / "out", "--data", made, "--views", 0, *word)
    assert "Traceback" not in again.err
    init = f"init={tmp_path / 'out'}"
    api.fit(
        recipes.load("digits", ["epochs=1", "views_per_epoch=1", f"student={student}", init]),
        cache=made,
        out=tmp_path / "second",
        device="cpu",
    )


def opened_by_the_card(card: str, folder: Path) -> dict[str, Any]:
    """Run the card's program up to the picture; the state of its network."""
    program = re.findall(r"```python\n(.*?)```", card, flags=re.S)[0]
    program = program.replace("FOLDER", str(folder)).partition("with torch.inference_mode")[0]
    names: dict[str, Any] = {}
    exec(program.replace("model = build", "model, _ = build"), names)
    expected = load_file(folder / "model.safetensors")
    state: dict[str, Any] = names["model"].state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    return state
