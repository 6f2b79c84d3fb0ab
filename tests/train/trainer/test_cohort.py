"""Students that share every batch are, bit for bit, those that train alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache_tools.errors import NonFinite, UsageError
from cache_tools.runtime.signals import StopRequest
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import dense
from tests.helpers.training import train_together
from train import recipe as recipes
from train import run_dir
from train.data.inputs import Inputs
from train.data.loader import Loader
from train.loss import losses, targets
from train.loss.targets import SoftTargets
from train.recipe import TrainRecipe
from train.trainer import loop, plan

CPU = torch.device("cpu")
FAST = ["epochs=2", "views_per_epoch=1", "batch_size=20"]
STUDENTS = {
    "vit": ["student=test_vit", "drop=0.2", "drop_path=0.3", "opt=lamb", "model_ema_decay=0.0"],
    "efficientnet": ["drop=0.3", "temperature=2.0", "clip_grad=1.0"],
    "seeded": ["seed=5", "order_seed=0", "top_k=3", "loss=dkd", "drop=0.1"],
    "labels": ["mode=labels", "precision=bf16", "student=test_vit", "crop_pct=0.9"],
    "short": ["epochs=1", "tail=bucket", "drop_path=0.2"],
}


def recipe_of(name: str) -> TrainRecipe:
    return recipes.load("digits", [*FAST, *STUDENTS[name]])


def cohort(
    names: Sequence[str], inputs: Inputs, folder: Path, **more: TrainRecipe
) -> list[dict[str, Any] | NonFinite]:
    runs = [(folder / name, more.get(name) or recipe_of(name)) for name in names]
    return train_together(runs, inputs)


@pytest.fixture(scope="module")
def alone(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every student by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for name in STUDENTS:
        loop_alone(name, inputs, folder)
    return folder


def loop_alone(name: str, inputs: Inputs, folder: Path) -> None:
    run_dir.init_run(folder / name, recipe_of(name), inputs, fresh=False)
    loop.train(recipe_of(name), inputs, folder / name, CPU)


def differences(a: Path, b: Path) -> list[str]:
    """Files of two runs that are not equal: every network, and the rows but for their clocks."""
    found = []
    for path in sorted(b.glob("model*/model.safetensors")):
        mine, theirs = load_file(a / path.relative_to(b)), load_file(path)
        if any(not torch.equal(mine[key], theirs[key]) for key in theirs):
            found.append(path.parent.name)
    rows = [
        [
            {
                k: v
                for k, v in json.loads(line).items()
                if k not in ("images_per_second", "data_wait")
            }
            for name in ("log.jsonl", "steps.jsonl")
            for line in (folder / name).read_text().splitlines()
        ]
        for folder in (a, b)
    ]
    return found if rows[0] == rows[1] else [*found, "rows"]


def test_each_student_of_a_cohort_is_the_one_that_trains_alone(
    inputs: Inputs, alone: Path, tmp_path: Path
) -> None:
    results = cohort([*STUDENTS], inputs, tmp_path)
    for name, result in zip(STUDENTS, results, strict=True):
        assert differences(tmp_path / name, alone / name) == []
        assert not isinstance(result, NonFinite)
        other = json.loads((alone / name / "result.json").read_text())
        clocks = ("images_per_second", "data_wait", "seconds", "cost_seconds")
        assert {k: v for k, v in result.items() if k not in clocks} == {
            k: v for k, v in other.items() if k not in clocks
        }
    long = [r for r, name in zip(results, STUDENTS, strict=True) if name != "short"]
    walls = {r["seconds"] for r in long if not isinstance(r, NonFinite)}
    assert len(walls) == 1  # they went together ...
    total = sum(r["cost_seconds"] for r in results if not isinstance(r, NonFinite))
    assert total == pytest.approx(max(walls), abs=0.1)  # ... and share the cost


def test_a_cohort_that_is_stopped_after_every_step_and_whose_students_are_apart(
    inputs: Inputs, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First two students, later three: each goes on from where it is."""
    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
    names, stops = ["vit", "efficientnet"], 0
    while stops < 6:
        with pytest.raises(KeyboardInterrupt):
            cohort(names, inputs, tmp_path)
        stops += 1
    monkeypatch.setattr(StopRequest, "requested", False)
    names += ["short", "seeded"]
    cohort(names, inputs, tmp_path)
    for name in names:
        assert differences(tmp_path / name, alone / name) == []


def test_a_student_that_diverges_leaves_and_the_others_go_on(
    inputs: Inputs, alone: Path, tmp_path: Path
) -> None:
    explodes = recipes.load("digits", [*FAST, "opt=sgd", "lr=1e6"])
    names = ["vit", "explodes", "efficientnet"]
    results = cohort(names, inputs, tmp_path, explodes=explodes)
    assert isinstance(results[1], NonFinite)
    assert "its views begin with digit_" in str(results[1])
    assert not (tmp_path / "explodes/result.json").exists()
    for name in ("vit", "efficientnet"):
        assert differences(tmp_path / name, alone / name) == []


def test_a_batch_is_made_once_for_all(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, batch = [], Loader._batch

    def counted(self: Loader, *arguments: Any) -> Any:
        made.append(1)
        return batch(self, *arguments)

    monkeypatch.setattr(Loader, "_batch", counted)
    cohort(["vit", "short"], inputs, tmp_path)
    assert len(made) == 10


def test_a_stream_has_all_that_decides_what_is_seen(inputs: Inputs) -> None:
    base = recipes.load("digits", FAST)
    other = {
        "batch_size": 20,
        "num_views": 3,
        "seed": 1,
        "view_order": "shuffle",
        "grad_accum_steps": 2,
    }
    assert len({replace(base, **{key: value}).stream for key, value in other.items()}) == 5
    same = {"temperature": 1.0, "lr": 1e-4, "student": "test_vit", "epochs": 7, "precision": "bf16"}
    assert {replace(base, **{key: value}).stream for key, value in same.items()} == {base.stream}


def soft(kept: int, logits: np.ndarray, labels: np.ndarray) -> SoftTargets:
    """Targets at the precision of fp64 of a cache that keeps `kept` classes."""
    spec = TargetSpec(
        k_max=kept, k_min=kept, tau=0.0, temperatures=(1.0, 4.0), true_class=True, tail_square=True
    )
    sparse = dense.sparsify(logits, spec, labels)
    found = [torch.from_numpy(np.ascontiguousarray(v)) for v in (
        sparse.index_BK, sparse.probability_BK, sparse.tail_BT, sparse.true_BP
    )]  # fmt: skip
    label = torch.from_numpy(labels[:, 0])
    return SoftTargets(
        index=found[0],
        probability=found[1],
        tail=found[2],
        temperatures=(1.0, 4.0),
        num_classes=logits.shape[1],
        label=label,
        partner_label=label,
        lam=torch.ones(len(label)),
        true=found[3],
        square=torch.from_numpy(sparse.square_BQ[:, 0]),
    )


def test_fewer_classes_at_replay_are_fewer_classes_in_the_cache() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (50, 10))
    labels = generator.integers(0, 10, (50, 1))
    whole, few = soft(8, logits, labels), soft(3, logits, labels)
    found = targets.most_probable(whole, 3)
    assert targets.most_probable(whole, 8) is whole
    student = torch.from_numpy(generator.normal(0, 1, (50, 10)))
    for name in ("tail", "true", "square"):
        assert torch.allclose(getattr(found, name), getattr(few, name)), name
    for temperature in (1.0, 2.0, 4.0):
        for loss in (losses.kd, losses.dist):
            assert loss(student, found, temperature) == pytest.approx(
                loss(student, few, temperature).item()
            )
        assert losses.dkd(student, found, temperature) == pytest.approx(
            losses.dkd(student, few, temperature).item()
        )


def test_fewer_views_than_the_cache_has(inputs: Inputs) -> None:
    with pytest.raises(UsageError, match="num_views=5 cannot be shown: the cache has 4 views"):
        plan.check(recipes.load("digits", ["num_views=5"]), 4)
    assert inputs.num_views(recipes.load("digits", ["num_views=3"])) == 3
    assert inputs.num_views(recipes.load("digits")) == 4
