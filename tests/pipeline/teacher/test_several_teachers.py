"""Several teachers in one pass: recorded, verified, asked in the loop."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_tools.errors import RecipeError, UsageError
from cache_tools.spec import cache as specs
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import ENSEMBLE
from cache_tools.store.cache import Cache
from pipeline import recipe as recipes
from pipeline.recipe import TeacherSource
from pipeline.run import run
from pipeline.teacher import create, reload
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward
from pipeline.teacher.logits import Logits
from pipeline.teacher.online import online
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


CPU = torch.device("cpu")


ALL = TargetSpec(k_max=10, k_min=10, tau=0.0, temperatures=(1.0, 4.0))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


def test_several_are_the_mean_of_probabilities(
    teacher: Path, second_teacher: Path, pixels: np.ndarray
) -> None:
    loaded = [teachers.load(str(folder), 32, "fp32") for folder in (teacher, second_teacher)]
    both = teachers.ensemble(loaded, [7.0, 3.0])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    p = 0.0
    for one, share in zip(loaded, (0.7, 0.3), strict=True):
        mean, std = (torch.tensor(v).double()[:, None, None] for v in (one.spec.mean, one.spec.std))
        alone = one.model(((x / 255 - mean) / std).float())
        p = p + share * alone.double().softmax(1)
    assert loaded[0].spec.mean != loaded[1].spec.mean
    said = Logits(both, CPU)(x.float()).softmax(1)
    torch.testing.assert_close(said.double(), p, atol=1e-6, rtol=1e-4)
    k4 = replace(ALL, k_max=4, k_min=4)
    index, kept, tail, _, _ = Forward(both, k4, CPU)(pixels, None, None)
    torch.testing.assert_close(kept.double(), p.gather(1, index), atol=1e-6, rtol=1e-4)
    tempered = p**0.25 / (p**0.25).sum(1, keepdim=True)
    for t, dense in enumerate((p, tempered)):
        expected = 1 - dense.gather(1, index).sum(1)
        torch.testing.assert_close(tail[:, t].double(), expected, atol=1e-5, rtol=1e-3)


def test_an_overflow_in_one_of_several_is_seen(teacher: Path, second_teacher: Path) -> None:
    loaded = [teachers.load(str(folder), 32, "fp32") for folder in (teacher, second_teacher)]
    loaded[1].model.get_classifier().bias.data[3] = float("inf")
    tail = Forward(teachers.ensemble(loaded, [1, 1]), ALL, CPU)(
        np.zeros((2, 32, 32, 3), "u1"), None, None
    )[2]
    assert not torch.isfinite(tail).any()


def test_several_are_recorded_with_their_shares(teacher: Path, second_teacher: Path) -> None:
    sources = [TeacherSource(str(teacher), 7.0), TeacherSource(str(second_teacher), 3.0)]
    spec = teachers.load_all(sources, 32, "fp32").spec
    assert spec == teachers.load_all(sources[::-1], 32, "fp32").spec
    assert spec.architecture == ENSEMBLE
    alone = {s.name: teachers.load(s.name, 32, "fp32").spec for s in sources}
    shares = {m.architecture: m.weight for m in spec.members}
    assert shares == {"test_resnet": 0.7, "test_efficientnet": 0.3}
    assert {m.weights_sha256 for m in spec.members} == {s.weights_sha256 for s in alone.values()}
    assert {m.mean for m in spec.members} == {s.mean for s in alone.values()}
    assert {m.cache for m in spec.members} == {""}
    equal = teachers.load_all([replace(s, weight=1.0) for s in sources], 32, "fp32").spec
    assert equal.weights_sha256 != spec.weights_sha256


def test_several_that_cannot_be_are_refused(
    teacher: Path, second_teacher: Path, wide_teacher: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.pth"
    torch.save(create.create(str(teacher))[1].state_dict(), copy)
    same = [TeacherSource(str(teacher)), TeacherSource(str(copy), architecture="test_resnet")]
    with pytest.raises(UsageError, match="are the same network"):
        teachers.load_all(same, 32, "fp32")
    with pytest.raises(UsageError, match=r"10 and 25 classes|25 and 10 classes.*--class-map"):
        teachers.load_all(
            [TeacherSource(str(teacher)), TeacherSource(str(wide_teacher))], 32, "fp32"
        )
    recipe = recipes.load("digits")
    for names, weights, words in (
        ([], [], "no teacher is named"),
        (["a", "b"], [1.0], "2 teachers and 1 weights"),
        (["a", "b"], [1.0, 0.0], "weight must be above 0"),
    ):
        with pytest.raises(UsageError, match=words):
            recipes.sources(recipe, names, weights)
    with pytest.raises(UsageError, match="--class-map is given 2 times"):
        recipes.sources(recipe, ["a", "b", "c"], class_maps=["x", "y"])
    with pytest.raises(RecipeError, match="weight must be above 0"):
        recipes.load("digits", ['teachers=[{name="a", weight=-1.0}]'])


def test_the_recipe_and_the_command_agree() -> None:
    recipe = recipes.load("digits", ['teachers=[{name="a", weight=0.7}, {name="b", weight=0.3}]'])
    assert recipes.sources(recipe) == recipes.sources(
        recipes.load("digits"), ["a", "b"], [0.7, 0.3]
    )
    both = recipes.sources(recipe, architectures=["x"], class_maps=["", "m.json"])
    assert [s.architecture for s in both] == ["x", "x"]
    assert [s.class_map for s in both] == ["", "m.json"]
    assert [s.weight for s in both] == [0.7, 0.3]


@pytest.fixture(scope="module")
def together(
    digits: Path, teacher: Path, second_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache of two teachers in one pass, mixed views."""
    out = tmp_path_factory.mktemp("together") / "cache.zarr"
    sources = [TeacherSource(str(teacher), 0.7), TeacherSource(str(second_teacher), 0.3)]
    run(
        recipes.load("digits", ["num_views=2", "views.mixup=0.5"]), str(digits), sources, out, "cpu"
    )
    return out


def test_a_cache_of_several_verifies_against_them(
    together: Path,
    digits: Path,
    teacher: Path,
    second_teacher: Path,
    wide_teacher: Path,
    kdcache: Command,
) -> None:
    both = ("--teacher", second_teacher, "--teacher", teacher)  # in any order
    verify = ("verify", together, "--data", digits, "--recompute", 5)
    outcome = kdcache(*verify, *both)
    assert outcome.code == 0, outcome
    assert kdcache("verify", together).code == 0
    other = kdcache(*verify, "--teacher", second_teacher, "--teacher", wide_teacher)
    assert other.code == 1
    assert "Pass --teacher with the original weights" in other.out
    assert "is 2 networks" in kdcache(*verify, "--teacher", second_teacher).err
    info = json.loads(kdcache("info", together, "--json").out)
    assert sorted(m["weight"] for m in info["teacher"]["members"]) == [0.3, 0.7]
    assert "0.7 of local:test_resnet" in kdcache("info", together).out


def test_one_pass_equals_the_mixture_of_two_caches(
    together: Path,
    digits: Path,
    teacher: Path,
    second_teacher: Path,
    tmp_path: Path,
    kdcache: Command,
) -> None:
    few = recipes.load("digits", ["num_views=2", "views.mixup=0.5"])
    for name, folder in (("a", teacher), ("b", second_teacher)):
        run(few, str(digits), str(folder), tmp_path / name, "cpu")
    caches = (tmp_path / "a", tmp_path / "b")
    mixed = kdcache("ensemble", *caches, "--weights", "0.7,0.3", "--out", tmp_path / "m")
    assert mixed.code == 0, mixed
    diff = json.loads(kdcache("diff", together, tmp_path / "m", "--json").out)
    assert diff["l1_mean"] < 0.02, diff
    assert Cache.open(together).spec.fingerprint != Cache.open(tmp_path / "m").spec.fingerprint
    with pytest.raises(UsageError, match="mixed from their caches"):
        reload.load(Cache.open(tmp_path / "m").spec.teacher, 32)


def test_online_runs_all_of_them(together: Path, teacher: Path, second_teacher: Path) -> None:
    store = Cache.open(together)
    ask = online(store, [str(teacher), str(second_teacher)], CPU)
    pixels = np.zeros((2, 32, 32, 3), "u1")
    sources = [TeacherSource(str(teacher), 0.7), TeacherSource(str(second_teacher), 0.3)]
    loaded = teachers.load_all(sources, 32, "fp32")
    expected = Forward(loaded, store.spec.targets, CPU)(pixels, None, None)
    torch.testing.assert_close(ask(pixels, None, None, None)[1], expected[1])  # type: ignore[arg-type]


def test_a_cache_of_several_is_read_back_as_it_was(together: Path) -> None:
    spec = Cache.open(together).spec
    assert specs.from_mapping(json.loads(json.dumps(spec.mapping)), "here") == spec
    assert set(spec.mapping["teacher"]["members"][0]) == {
        "name",
        "architecture",
        "weights_sha256",
        "cache",
        "weight",
        "mean",
        "std",
        "input_size",
        "interpolation",
    }
