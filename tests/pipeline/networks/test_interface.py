"""Networks of other libraries behind timm's interface: outputs, sizes, preprocessing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from cache_tools.errors import UsageError
from pipeline.networks import interface
from pipeline.teacher import create
from pipeline.teacher.teacher import weights_sha256

SMALL = {"input_size": (3, 8, 8)}


class Net(nn.Module):
    """Three classes from the mean colour, returned in some form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.fc, self.form = nn.Linear(3, 3), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.fc(x.mean((2, 3))))


def adapted(form: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    return interface.measure(interface.adapt(Net(form), "python:lab:net", {**SMALL, **config}, {}))


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: logits,
        lambda logits: (logits,),
        lambda logits: {"logits": logits, "loss": None},
        lambda logits: SimpleNamespace(logits=logits, hidden_states=None),
        lambda logits: (logits - 1.0, logits + 1.0),  # two heads: the mean, as DeiT's authors
    ],
)
def test_logits_are_found_in_outputs(form: Any) -> None:
    model = adapted(form)
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model(x), model.fc(x.mean((2, 3))))
    assert (model.num_classes, model.pretrained_cfg["classifier"]) == (3, "fc")
    assert weights_sha256(model) == weights_sha256(adapted(lambda logits: logits))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda logits: logits[:, :, None, None], r"a tensor \[2, 3, 1, 1\]"),
        (lambda logits: (logits, logits[:, :1]), r"a tuple of a tensor \[2, 3\], a tensor \[2, 1"),
        (lambda logits: [], "a list of nothing"),
        (lambda logits: "cat", "a str"),
        (lambda logits: logits[:1], r"a tensor \[1, 3\]"),
    ],
)
def test_other_outputs_are_refused_by_name(form: Any, said: str) -> None:
    with pytest.raises(UsageError, match=rf"python:lab:net returns {said}.*expected logits"):
        adapted(form)


def test_a_network_of_one_size_is_found() -> None:
    def form(logits: Tensor) -> Tensor:
        return logits

    fixed = interface.adapt(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "python:lab:flat", SMALL, {}
    )
    config: Any = interface.measure(fixed).pretrained_cfg
    assert config["fixed_input_size"] is True
    assert "fixed_input_size" not in adapted(form).pretrained_cfg
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(UsageError, match=r"224 × 224 px in fp32 \(RuntimeError: .*input_size"):
        interface.measure(interface.adapt(other, "python:lab:flat", {}, {}))


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": 32},
        {"input_size": (3, 32)},
        {"mean": (0.5,)},
        {"std": 0.5},
        {"mean": "abc"},
        {"crop_pct": "all"},
    ],
)
def test_preprocessing_that_cannot_be_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"preprocessing of python:lab:net is invalid"):
        adapted(lambda logits: logits, **config)


def test_timms_two_heads_are_their_mean(tmp_path: Path) -> None:
    """DeiT with its distillation token, as its authors evaluate it."""
    arguments = {"img_size": 32, "depth": 1, "embed_dim": 12, "num_heads": 2, "num_classes": 5}
    torch.manual_seed(0)
    model: Any = timm.create_model("deit_tiny_distilled_patch16_224", **arguments).eval()
    save_for_hf(model, str(tmp_path), model_args=arguments, safe_serialization=True)
    x = torch.rand(2, 3, 32, 32)
    tokens = model.forward_features(x)
    expected = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    assert torch.allclose(create.create(str(tmp_path))[1].eval()(x), expected, atol=1e-6)
