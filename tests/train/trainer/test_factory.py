"""Parameter groups of the optimizer against the authors' of TinyViT."""

import pytest
import timm
import torch
from timm.models.tiny_vit import TinyVit

from cache_tools.errors import UsageError
from train import recipe as recipes
from train.trainer import factory


def test_layers_decay_as_in_tinyvit() -> None:
    """Its `set_layer_lr_decay`: blocks are layers, a downsampling belongs to the one before."""
    recipe = recipes.load("tinyvit-1k", ["init="])
    with torch.device("meta"):
        student = factory.create_student(recipe, 1000)
        groups = factory.create_optimizer(recipe, student).param_groups
    assert isinstance(student, TinyVit)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(student.parameters()))
    expected, depth = {"patch_embed": 0.8**11, "head": 1.0}, 0
    for i, stage in enumerate(student.stages):
        expected[f"stages.{i}.downsample"] = 0.8 ** (12 - depth)
        for j in range(len(stage.blocks)):
            expected[f"stages.{i}.blocks.{j}"] = 0.8 ** (11 - depth)
            depth += 1
    for name, parameter in student.named_parameters():
        found = [value for start, value in expected.items() if name.startswith(f"{start}.")]
        assert scale[id(parameter)] == pytest.approx(found[0]), name
        free = parameter.ndim == 1 or "attention_biases" in name
        assert decay[id(parameter)] == (0.0 if free else 1e-8), name


def test_blocks_of_other_networks() -> None:
    for name, blocks in {"vit_tiny_patch16_224": 12, "resnet50": 16, "convnextv2_tiny": 18}.items():
        recipe = recipes.load("tinyvit-1k", ["init=", f"student={name}", "drop_path=0.0"])
        with torch.device("meta"):
            student = timm.create_model(name)
        groups = factory.create_optimizer(recipe, student).param_groups
        assert len({group["lr_scale"] for group in groups}) == blocks
    plain = recipes.load("tinyvit-1k", ["init=", "student=vgg11", "drop_path=0.0"])
    with torch.device("meta"):
        student = timm.create_model("vgg11")
    with pytest.raises(UsageError, match="has no blocks"):
        factory.create_optimizer(plain, student)
