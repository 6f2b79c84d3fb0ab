from dataclasses import asdict, replace

import pytest

from cache_tools import recipe, spec
from cache_tools.errors import CacheDamaged, RecipeError
from cache_tools.spec import CacheSpec, DatasetSpec, TargetSpec, TeacherSpec, ViewSpec
from pipeline import plan
from pipeline import recipe as caching
from train import recipe as training

SPEC = CacheSpec(
    DatasetSpec(100, 10, True, "stem", "sha256:1"),
    TeacherSpec("resnet18", "resnet18", "sha256:2", 10, (0.5,) * 3, (0.5,) * 3),
    ViewSpec(size=32),
    TargetSpec(k_max=10),
    block_size=100,
)


@pytest.mark.parametrize("name", recipe.names("pipeline"))
def test_every_cache_recipe_plans(name: str) -> None:
    loaded = caching.load(name)
    facts = plan.plan(loaded, loaded.dataset.num_samples or 500, 0)
    assert facts["forwards"] == facts["samples"] * loaded.num_views
    assert facts["bytes"] > 0


@pytest.mark.parametrize("name", recipe.names("train"))
def test_every_recipe_of_stage_1_has_its_stage_2(name: str) -> None:
    assert training.load(name).epochs > 0
    assert name in recipe.names("pipeline")


def test_the_imagenet_plan_is_the_arithmetic_of_the_paper() -> None:
    facts = plan.plan(caching.load("vanillakd-a2"), 0, 0)
    assert facts["samples"] == 1_281_167
    assert facts["parts"] == 20 * 300
    assert facts["forwards"] == 384_350_100
    assert facts["bytes"] < 9.5e9  # the project's bar for this cache
    assert facts["files"] < 100_000  # the Hub's advice


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("views.scael=1", "unknown key 'scael'. Did you mean 'scale'"),
        ("num_viewz=3", "Did you mean 'num_views'"),
        ("num_views=many", "expected int, found 'many'"),
        ("views.scale=[0.5]", "expected 2 values, found 1"),
        ("views.size=0", "size must be in 1..4096"),
        ("targets.temperatures=[2.0]", "must begin with 1.0"),
        ("precision=fp8", "'fp8' is not one of 'fp32', 'bf16', 'fp16'"),
        ("views=3", "expected a table"),
        ("nonsense", "not of the form key=value"),
    ],
)
def test_a_wrong_key_or_value_is_explained(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe 'digits'|nonsense") as error:
        caching.load("digits", [override])
    assert message in str(error.value)


def test_overrides_win_and_bare_words_are_strings() -> None:
    loaded = training.load("digits", ["student=resnet18", "lr=0.5", "epochs=2"])
    assert (loaded.student, loaded.lr, loaded.epochs) == ("resnet18", 0.5, 2)


def test_unknown_recipes_name_the_known() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'digits'"):
        caching.load("digit")


def test_the_spec_survives_its_json() -> None:
    assert spec.from_mapping(asdict(SPEC), "here") == SPEC


def test_the_fingerprint_is_that_of_the_format() -> None:
    """Golden: the canonical JSON must never change for the same spec."""
    assert SPEC.fingerprint == FINGERPRINT


FINGERPRINT = "sha256:89f9dbf3873199ff0dac6d59b506d3adf7fce078a6b8204dc7df013b9c98d9be"


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, views=ViewSpec(size=32, seed=1)),
        replace(SPEC, teacher=replace(SPEC.teacher, weights_sha256="sha256:3")),
        replace(SPEC, dataset=replace(SPEC.dataset, table_sha256="sha256:9")),
        replace(SPEC, targets=TargetSpec(k_max=9)),
    ],
)
def test_whatever_changes_the_content_changes_the_fingerprint(other: CacheSpec) -> None:
    assert other.fingerprint != SPEC.fingerprint
    assert spec.difference(asdict(SPEC), asdict(other)) is not None


def test_a_part_that_would_exhaust_memory_is_refused() -> None:
    mapping = asdict(SPEC)
    mapping["dataset"]["num_samples"] = mapping["block_size"] = 2**20
    mapping["teacher"]["num_classes"] = mapping["targets"]["k_max"] = 60_000
    with pytest.raises(CacheDamaged, match="too large for memory"):
        spec.from_mapping(mapping, "manifest")
