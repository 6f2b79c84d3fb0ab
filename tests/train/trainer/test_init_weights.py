"""Where a student starts: its own weights, or those of another network of the same name."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from cache_tools.errors import UsageError
from tests.helpers.outcome import Outcome
from train import recipe as recipes
from train.recipe import TrainRecipe
from train.trainer import factory

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of twelve classes, as timm saves it."""
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    torch.manual_seed(7)
    model = timm.create_model("test_efficientnet", num_classes=12)
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def recipe(init: object, *overrides: str) -> TrainRecipe:
    return recipes.load("digits", [f"init={init}", *overrides])


def created(init: object, classes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return factory.create_student(recipe(init), classes).state_dict()


@pytest.mark.parametrize("form", ["local-dir:{}", "{}", "{}/model.safetensors"])
def test_a_student_of_as_many_classes_starts_from_all_of_the_weights(
    pretrained: Path, form: str
) -> None:
    there = load_file(pretrained / "model.safetensors")
    state = created(form.format(pretrained), 12)
    assert all(torch.equal(state[key], there[key]) for key in state)


def test_a_head_of_other_classes_starts_at_random_and_by_the_seed(
    pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = load_file(pretrained / "model.safetensors")
    with caplog.at_level(logging.INFO, "kdcache"):
        state = created(pretrained, 10)
    assert "its head, classifier.weight, classifier.bias for 10 classes, starts at" in caplog.text
    body = [key for key in state if not key.startswith("classifier.")]
    assert all(torch.equal(state[key], there[key]) for key in body)
    assert state["classifier.weight"].shape[0] == 10
    assert torch.equal(state["classifier.weight"], created("", 10)["classifier.weight"])
    assert not torch.equal(
        state["classifier.weight"], created(pretrained, 10, seed=1)["classifier.weight"]
    )


def test_weights_of_timm_by_name(monkeypatch: pytest.MonkeyPatch, pretrained: Path) -> None:
    """The hub is played by the folder: what is asked of timm is the network of that name."""
    create, asked = timm.create_model, []

    def from_hub(name: str, pretrained_: bool = False, **options: object) -> torch.nn.Module:
        asked.append((name, options.pop("pretrained", False)))
        torch.rand(3)  # whatever is drawn here must not change the student's own start
        return create(f"local-dir:{pretrained}", pretrained=True)

    torch.manual_seed(0)
    student = factory.create_student(recipe(""), 10)
    monkeypatch.setattr("train.trainer.init_weights.timm.create_model", from_hub)
    from train.trainer.init_weights import apply_init

    before = torch.get_rng_state()
    apply_init(student, "test_efficientnet", "test_efficientnet.r160_in1k")
    assert asked == [("test_efficientnet.r160_in1k", True)]
    assert torch.equal(torch.get_rng_state(), before)
    there = load_file(pretrained / "model.safetensors")
    assert torch.equal(student.state_dict()["conv_stem.weight"], there["conv_stem.weight"])


def test_what_cannot_be_started_from_is_explained(pretrained: Path, tmp_path: Path) -> None:
    def refused(init: object, *overrides: str) -> str:
        with pytest.raises(UsageError) as error:
            factory.create_student(recipe(init, *overrides), 12)
        return str(error.value)

    other = refused(pretrained, "student=test_resnet")
    assert "holds the weights of another network than test_resnet" in other
    assert "is a pickle" in refused(tmp_path / "weights.pth")
    assert "a run of kdcache train keeps its student in RUN/model" in refused(
        f"local-dir:{tmp_path}"
    ).replace("A run", "a run")
    (tmp_path / "broken.safetensors").write_bytes(b"not at all")
    assert "cannot be read" in refused(tmp_path / "broken.safetensors")
    assert "Did you mean" in refused("tiny_vit_21m_225.dist_in22k")
    few = load_file(pretrained / "model.safetensors")
    few.pop("conv_stem.weight")
    save_file(few, tmp_path / "few.safetensors")
    assert "1 of its" in refused(tmp_path / "few.safetensors")
    assert "conv_stem.weight" in refused(tmp_path / "few.safetensors")


def test_a_run_starts_from_the_student_of_another(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    small = ["epochs=1", "views_per_epoch=1", "batch_size=50", "model_ema_decay=0.0"]
    arguments = ("train", "digits", "--cache", digits_cache, *small, "--json")
    first = kdcache(*arguments, "--out", tmp_path / "first")
    assert first.code == 0, first.err
    init = f"init=local-dir:{tmp_path}/first/model"
    second = kdcache(*arguments, "--out", tmp_path / "second", init, "lr=1e-12")
    assert second.code == 0, second.err
    assert "starts from the weights of" in second.err
    states = [load_file(tmp_path / run / "model/model.safetensors") for run in ("first", "second")]
    assert torch.allclose(states[0]["conv_stem.weight"], states[1]["conv_stem.weight"], atol=1e-9)
    config = json.loads((tmp_path / "second/config.json").read_text())
    assert config["recipe"]["init"] == init.removeprefix("init=")
    other = kdcache(*arguments, "--out", tmp_path / "first", init)
    assert other.code == 2  # another start is another run
    assert "recipe.init" in other.err
