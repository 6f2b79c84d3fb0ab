"""A user's own function as a network, and that no file of a stranger makes it run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cache_tools.errors import UsageError
from cache_tools.spec.teacher import TeacherSpec
from pipeline.networks import registry
from pipeline.teacher import create, reload
from pipeline.teacher import teacher as teachers
from tests.helpers.outcome import Outcome

NAME = "python:own_lab.models:build"
CODE = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("imported").touch()

def build(num_classes=10, width=4):
    conv = nn.Conv2d(3, width, 3, stride=2)
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(width, num_classes))
    return net, {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}

def plain():
    return build()[0]

def breaks():
    return 1 / 0

def number():
    return 7

value = 3
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user's; its file `imported` exists once it ran."""
    folder = tmp_path / "code/own_lab"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "models.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder.parent))
    for module in ("own_lab", "own_lab.models"):
        monkeypatch.delitem(__import__("sys").modules, module, raising=False)
    return folder


def test_a_function_is_a_teacher(lab: Path) -> None:
    specs = [teachers.load(NAME, 32, "fp32").spec for _ in range(2)]
    assert specs[0] == specs[1]
    assert (specs[0].name, specs[0].num_classes, specs[0].input_size) == (NAME, 10, 32)
    assert (specs[0].mean, specs[0].std) == ((0.5,) * 3, (0.25,) * 3)
    plain = teachers.load("python:own_lab.models:plain", 32, "fp32").spec
    assert (plain.weights_sha256, plain.input_size) == (specs[0].weights_sha256, 224)
    assert plain.mean == (0.485, 0.456, 0.406)


def test_a_student_has_its_classes_and_options(lab: Path) -> None:
    model = registry.untrained(NAME, 7, {"width": 6})
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert model[0].out_channels == 6  # type: ignore[index]
    assert registry.untrained("python:own_lab.models:plain", 7).num_classes == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_lab.models:breaks", r"fails: ZeroDivisionError.*models\.py, line 17"),
        ("own_lab.models:number", "returns a int, expected a torch.nn.Module"),
        ("own_lab.models:value", r"models\.py\) has no function 'value'"),
        ("own_lab.models:nothing", "has no function 'nothing'"),
        ("own_lab.more:build", "No module named 'own_lab.more'.*PYTHONPATH=FOLDER"),
        ("another_lab:build", "No module named 'another_lab'.*PYTHONPATH=FOLDER"),
        ("own_lab.models", "is no name of a function"),
        ("own_lab/models.py:build", "is no name of a function"),
        ("own_lab.models:build()", "is no name of a function"),
    ],
)
def test_functions_that_cannot_be(lab: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create.create(f"python:{name}")


def test_an_unknown_option_is_refused(lab: Path) -> None:
    with pytest.raises(UsageError, match="has no parameter 'depth'"):
        registry.untrained(NAME, 7, {"depth": 6})


def test_a_cache_runs_no_code(lab: Path) -> None:
    """`verify --recompute` and mode=online load the teacher of a manifest through this."""
    spec = TeacherSpec(NAME, NAME, "sha256:" + "0" * 64, 10, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UsageError, match=rf"runs no code that a file names.*--teacher {NAME}"):
        reload.load(spec, 32)
    ensemble = TeacherSpec.of_members((spec.as_member(0.5),) * 2, 10)
    with pytest.raises(UsageError, match="runs no code"):
        reload.load(ensemble, 32)
    local = TeacherSpec(f"local:{NAME}", NAME, "sha256:" + "0" * 64, 10, (0.5,) * 3, (0.5,) * 3)
    weights = lab / "w.safetensors"
    with pytest.raises(UsageError):
        reload.load(local, 32)
    with pytest.raises(UsageError):
        reload.load(local, 32, [str(weights)])
    assert not (lab / "imported").exists()
    assert reload.load(teachers.load(NAME, 32, "fp32").spec, 32, [NAME]).spec.name == NAME


@pytest.mark.parametrize("command", ["eval", "teacher"])
def test_a_folder_runs_no_code(
    lab: Path, teacher: Path, tmp_path: Path, kdcache: Callable[..., Outcome], command: str
) -> None:
    """A network's folder with such a name, as a student and as a teacher."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((teacher / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "num_classes": 10}))
    data = ("--data", tmp_path)
    arguments = {
        "eval": ("eval", folder, *data, "--views", 0),
        "teacher": ("cache", "digits", "--teacher", folder, *data, "--out", tmp_path / "c.zarr"),
    }
    said = kdcache(*arguments[command])
    assert said.code != 0
    if command == "eval":
        assert f"--architecture {NAME}" in said.err
    with pytest.raises(UsageError, match=rf"--architecture {NAME}, or {NAME}:{folder}"):
        create.create(str(folder))
    assert not (lab / "imported").exists()
