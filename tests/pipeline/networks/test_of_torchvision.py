"""torchvision's networks: names, weights by their enum, preprocessing, files of weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import WeightsEnum, get_model

from cache_tools.errors import TeacherError, UsageError
from pipeline.networks import registry
from pipeline.teacher import create
from pipeline.teacher import teacher as teachers

NAME = "torchvision:shufflenet_v2_x0_5"


def network(classes: int = 1000) -> torch.nn.Module:
    torch.manual_seed(1)
    model: torch.nn.Module = get_model("shufflenet_v2_x0_5", num_classes=classes)
    return model.eval()


def test_weights_by_their_enum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, identity and preprocessing are torchvision's; DEFAULT is stored by its own name."""
    expected = network()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: expected.state_dict())
    for tag in ("IMAGENET1K_V1", "DEFAULT"):
        spec = teachers.load(f"{NAME}:{tag}", 224, "fp32").spec
        assert spec.name == f"{NAME}:IMAGENET1K_V1"
        assert spec.weights_sha256 == teachers.weights_sha256(expected)
        assert (spec.architecture, spec.num_classes) == (NAME, 1000)
        assert (spec.input_size, spec.interpolation) == (224, "bilinear")
        assert spec.mean == (0.485, 0.456, 0.406)


def test_a_file_of_weights_with_its_number_of_classes(tmp_path: Path) -> None:
    expected, path = network(10), tmp_path / "w.safetensors"
    save_file(expected.state_dict(), path)
    x = torch.rand(2, 3, 32, 32)
    for name, architecture in ((f"{NAME}:{path}", ""), (str(path), NAME)):
        stored, model = create.create(name, architecture=architecture)
        assert (stored, model.num_classes) == (f"local:{NAME}", 10)
        assert torch.equal(model(x), expected(x))
        assert teachers.weights_sha256(model) == teachers.weights_sha256(expected)
    with pytest.raises(TeacherError, match=r"does not fit the network torchvision:resnet18"):
        create.create(f"torchvision:resnet18:{path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet5O", "no network 'resnet5O'. Did you mean resnet50"),
        ("torchvision:maskrcnn_resnet50_fpn", "no network 'maskrcnn_resnet50_fpn'"),
        ("torchvision:resnet50", "names no weights.*resnet50:IMAGENET1K_V2.*--random-weights"),
        ("torchvision:resnet50:IMAGENET1K_V3", "no weights 'IMAGENET1K_V3'.*you mean IMAGENET1K_V"),
        ("torchvision:resnet50:w.safetensors", "there is no file w.safetensors"),
        ("torchvision:", "no network ''"),
    ],
)
def test_names_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create.create(name)


def test_random_weights_are_the_same_every_time() -> None:
    specs = [teachers.load(NAME, 64, "fp32", random_weights=True).spec for _ in range(2)]
    assert specs[0] == specs[1]


@pytest.mark.slow
def test_a_transformer_takes_one_size() -> None:
    model = registry.untrained("torchvision:vit_b_32", 5, {"image_size": 32})
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)  # type: ignore[index]


def test_options_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="resnet18 cannot be made with image_size=32"):
        registry.untrained("torchvision:resnet18", 5, {"image_size": 32})
    with pytest.raises(UsageError, match="takes no weights here"):
        registry.untrained("torchvision:resnet18", 5, {"weights": "IMAGENET1K_V1"})


def test_students_have_one_head() -> None:
    model = registry.untrained("torchvision:googlenet", 5).train()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
