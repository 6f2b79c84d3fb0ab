"""Students and optimizers of a recipe against timm's own, and the authors' of TinyViT."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.tiny_vit import TinyVit
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from cache_tools.errors import CacheDamaged, CacheIncomplete, UsageError
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.end_to_end.attacks import attacker
from train import recipe as recipes
from train.loss.task import CachedDistillationTask
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


@pytest.mark.parametrize(
    ("opt", "kwargs"),
    [
        ("adamw", {"betas": [0.8, 0.95], "eps": 1e-6}),
        ("sgd", {"momentum": 0.5, "nesterov": False}),
        ("lamb", {"trust_clip": True, "grad_averaging": False}),
        ("lookahead_adamw", {"eps": 1e-5}),
        ("muon", {"fallback_list": ["head*"], "ns_steps": 3}),
    ],
)
def test_arguments_of_the_optimizer_are_timms(opt: str, kwargs: dict[str, Any]) -> None:
    words = [f"opt_kwargs.{name}={str(value).lower()}" for name, value in kwargs.items()]
    words = [word.replace("'", '"') for word in words]
    recipe = recipes.load("digits", [f"opt={opt}", *words])
    assert recipe.opt_kwargs == kwargs
    weights, made = [], (None, create_optimizer_v2)
    for timms in made:
        torch.manual_seed(0)
        student = factory.create_student(recipe, 10)
        rates = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        optimizer = (
            timms(student, opt, **rates, **kwargs)
            if timms
            else factory.create_optimizer(recipe, student)
        )
        for _ in range(2):
            student(torch.ones(2, 3, 32, 32)).square().sum().backward()
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["opt_kwargs.beta=[0.9, 0.95]"], "opt=adamw takes no 'beta'. Did you mean 'betas'"),
        (["opt_kwargs.momentum=0.9"], "opt=adamw takes no 'momentum'"),
        (["opt=sgd", "opt_kwargs.eps=1e-8"], "opt=sgd takes no 'eps'"),
        (["opt_kwargs.lr=0.1"], "opt_kwargs.lr: it is a key of the recipe itself"),
        (["opt_kwargs.betas=[0.9]"], "betas of opt=adamw is a list of 2 numbers, found [0.9]"),
        (["opt_kwargs.eps=tiny"], "eps of opt=adamw is a number, found 'tiny'"),
        (["opt_kwargs.amsgrad=1"], "amsgrad of opt=adamw is true or false, found 1"),
        (["opt_kwargs.betas=[0.9, 1.5]"], "Invalid beta parameter at index 1: 1.5"),
        (["opt_kwargs.layer_decay_min_scale=0.1"], "takes no 'layer_decay_min_scale'"),
        (["opt=muon", "opt_kwargs.algo=fast"], "opt=muon"),
        (["student_kwargs.nonsense=1"], "unexpected keyword argument 'nonsense'"),
        (["student=test_resnet", "student_kwargs.img_size=32"], "argument 'img_size'"),
        (["student=test_vit", "student_kwargs.img_size=big"], "cannot be made with img_size=big"),
        (["student_kwargs.num_classes=7"], "student_kwargs.num_classes cannot be set"),
        (["student_kwargs.checkpoint_path=a.pth"], "student_kwargs.checkpoint_path cannot be set"),
        (["drop=0.1", "student_kwargs.drop_rate=0.2"], "drop and student_kwargs.drop_rate are one"),
    ],
)
def test_arguments_that_timm_refuses_are_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        factory.check(recipes.load("digits", words), 10, 32)
    assert message in str(error.value)


def test_arguments_of_the_student_are_timms() -> None:
    words = ["student_kwargs.img_size=32", "student_kwargs.patch_size=8", "drop_path=0.1"]
    recipe = recipes.load("digits", ["student=test_vit", *words])
    torch.manual_seed(0)
    ours = factory.create_student(recipe, 10)
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "drop_path_rate": 0.1}
    timms = timm.create_model("test_vit", num_classes=10, **options)
    theirs = timms.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
    assert ours.state_dict()["pos_embed"].shape[1] == 17


def test_checkpointed_gradients_are_the_same() -> None:
    found, calls = [], []
    for on in ("false", "true"):
        words = ["student=test_vit", "student_kwargs.img_size=32", f"grad_checkpointing={on}"]
        torch.manual_seed(0)
        student: Any = factory.create_student(recipes.load("digits", words), 10)
        student.blocks[0].norm1.register_forward_hook(lambda *_, on=on: calls.append(on))
        student(torch.ones(2, 3, 32, 32)).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    assert calls == ["false", "true", "true"]
    assert torch.equal(*found)


def test_a_student_without_checkpointing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models.efficientnet.EfficientNet, "set_grad_checkpointing")
    with pytest.raises(UsageError, match="test_efficientnet has no grad_checkpointing"):
        factory.create_student(recipes.load("digits", ["grad_checkpointing=true"]), 10)


def test_the_moving_average_warms_up_as_timms() -> None:
    recipe = recipes.load("digits", ["model_ema_decay=0.7", "model_ema_warmup=true"])
    student = torch.nn.Linear(2, 2)
    task = CachedDistillationTask(student, recipe, torch.device("cpu"))
    ours = task.setup_ema(recipe.model_ema_decay, recipe.model_ema_warmup)
    timms = ModelEmaV3(student, decay=0.7, use_warmup=True)
    decays = [ours.get_decay(step) for step in range(1, 9)]
    assert decays == [timms.get_decay(step) for step in range(1, 9)]
    assert decays[:3] == pytest.approx([0.0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3)])
    assert decays[-1] == 0.7


def test_more_classes_than_targets_can_be_of_make_no_head(tmp_path: Path) -> None:
    store = attacker.honest(tmp_path / "c.zarr")
    attacker.edit_spec(store, teacher__num_classes=2**24)
    recipe = recipes.load("digits", ["student=resnet18"])
    with pytest.raises(CacheDamaged, match="16,777,216 classes"):
        factory.check_head(recipe, Cache.open(store))
    attacker.edit_spec(store, teacher__num_classes=70_000)
    factory.check_head(recipe, Cache.open(store))


def test_a_cache_that_is_being_made_has_the_bytes_of_its_parts_so_far(
    mutable_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load("digits", ["student=resnet18"])
    attacker.edit_spec(mutable_cache, teacher__num_classes=70_000)
    store = Cache.open(mutable_cache)
    head = 4 * 513 * (70_000 - 2)
    monkeypatch.setattr(factory, "FREE_HEAD", 2**20)
    monkeypatch.setattr(factory, "HEAD_PER_BYTE", 1.2 * head / store.target_bytes())
    factory.check_head(recipe, store)
    for part in [*store.parts()][1:]:
        for file in (part.record, *store._layout.part_chunks(part.view, part.block)):
            (mutable_cache / file).unlink()
    factory.check_head(recipe, store, growing=True)
    with pytest.raises(CacheIncomplete, match=r"view 1, block 0 of .* is not committed"):
        factory.check_head(recipe, store)
    monkeypatch.setattr(factory, "HEAD_PER_BYTE", 0.5 * factory.HEAD_PER_BYTE)
    with pytest.raises(CacheDamaged, match="70,000 classes"):
        factory.check_head(recipe, store, growing=True)
    (mutable_cache / Part(0, 0).record).unlink()
    factory.check_head(recipe, store, growing=True)
