import json
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from cache_tools import config
from cache_tools.errors import CacheDamaged, RecipeError
from cache_tools.spec import cache
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import difference
from cache_tools.spec.dataset import DatasetSpec
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import ViewSpec
from pipeline import recipe as caching
from pipeline.planning import plan
from pipeline.recipe import CacheRecipe
from train import recipe as training
from train import run_dir
from train.recipe import TrainRecipe

SPEC = CacheSpec(
    DatasetSpec(100, 10, True, "stem", "sha256:1"),
    TeacherSpec("resnet18", "resnet18", "sha256:2", 10, (0.5,) * 3, (0.5,) * 3),
    ViewSpec(size=32),
    TargetSpec(k_max=10),
    block_size=100,
)


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
        ("views.size=0", "size must be at least 1 and at most 4,096, found 0; pass such a number."),
        ("views.seed=-1", "found -1; pass such a number."),
        ("views.hflip=1e999", "the number inf is not finite. Pass another."),
        ("targets.temperatures=[2.0]", "must begin with 1.0"),
        ("precision=fp8", "'fp8' is not one of 'fp32', 'bf16', 'fp16'"),
        ("views=3", "expected a table"),
        ("nonsense", "not of the form key=value"),
    ],
)
def test_a_wrong_key_or_value_is_explained(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe 'digits'|nonsense|the value of") as error:
        caching.load("digits", [override])
    assert message in str(error.value)


def test_arguments_of_a_library_are_a_table() -> None:
    words = ["opt_kwargs={betas = [0.9, 0.95]}", "opt_kwargs.eps=1e-6"]
    recipe = training.load("digits", words)
    assert recipe.opt_kwargs == {"betas": [0.9, 0.95], "eps": 1e-6}
    assert hash(recipe) == hash(training.load("digits", words))
    assert recipe != training.load("digits", words[:1])
    saved = json.loads(json.dumps(asdict(recipe)))
    assert saved["opt_kwargs"] == recipe.opt_kwargs
    assert training.build(saved, "config.json") == recipe
    for word, message in {
        "opt_kwargs=3": "opt_kwargs: expected a table, found 3",
        "opt_kwargs.eps=nan": "nan is not finite",
        "opt_kwargs.a={b = 1}": r"opt_kwargs\.a: expected a number, a word or a list of them",
        "bce_target_thresh=0.2": "goes with task_loss=bce only",
        "model_ema_decay=0.0": "model_ema_warmup needs a moving average",
    }.items():
        with pytest.raises(RecipeError, match=message):
            training.load("digits", ["model_ema_warmup=true", word])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mode": "label"}, "mode: 'label' is not one of 'kd', 'labels', 'online'"),
        ({"loss": "kl"}, "loss: 'kl' is not one of"),
        ({"view_order": "shuffel"}, "view_order: 'shuffel' is not one of"),
        ({"batch_size": 12.5}, "batch_size: expected int, found 12.5"),
        ({"compile": "no"}, "compile: expected bool, found 'no'"),
        ({"opt_kwargs": {"eps": object}}, r"opt_kwargs\.eps: expected a number, a word"),
    ],
)
def test_a_recipe_that_is_an_object_is_checked_as_a_file_is(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        training.load(TrainRecipe("resnet18", epochs=90, **keys))


def test_tables_and_lists_of_an_object_are_those_of_a_file() -> None:
    given: Any = {"opt_kwargs": {"eps": 1e-6}, "size": [[0, 128], [0.5, 176]]}
    made = training.load(TrainRecipe("resnet18", epochs=90, **given), ["lr=0.5"])
    assert made == training.load({"student": "resnet18", "epochs": 90, "lr": 0.5, **given})
    assert hash(made)
    wrong: Any = replace(caching.load("digits"), views=replace(ViewSpec(size=32), hflip=True))
    with pytest.raises(RecipeError, match="views: hflip: expected float, found True"):
        caching.load(wrong)
    with pytest.raises(ValueError, match=r"epochs must be at least 1 and at most .*, found '90'"):
        TrainRecipe("resnet18", epochs="90")  # type: ignore[arg-type]


def test_numbers_of_numpy_are_those_of_python() -> None:
    given: dict[str, Any] = {
        "epochs": 90,
        "batch_size": 64,
        "lr": 1e-3,
        "follow": True,
        "size": [[0, 128], [0.5, 176]],
        "opt_kwargs": {"eps": 1e-6, "betas": [0.5, 0.25]},
    }
    array = {
        **{"epochs": np.int64(90), "batch_size": np.int32(64), "lr": np.float64(1e-3)},
        "follow": np.bool_(True),
        "size": [[np.int64(0), np.int64(128)], [np.float64(0.5), np.int16(176)]],
        "opt_kwargs": {"eps": np.float64(1e-6), "betas": list(np.array([0.5, 0.25]))},
    }
    made = training.load({"student": "resnet18", **array})
    assert made == training.load(TrainRecipe("resnet18", **array))  # type: ignore[arg-type]
    assert made == training.load({"student": "resnet18", **given})
    json.dumps(asdict(made))
    assert type(made.batch_size) is int
    assert type(made.opt_kwargs["eps"]) is float
    with pytest.raises(RecipeError, match=r"batch_size: expected int, found 64\.0"):
        training.load({"student": "resnet18", **array, "batch_size": np.float64(64)})
    with pytest.raises(RecipeError, match=r"student_kwargs\.global_pool: .* Leave the key out"):
        kwargs: Any = {"global_pool": None}
        training.load(TrainRecipe("resnet18", epochs=90, student_kwargs=kwargs))


@pytest.mark.parametrize("name", config.names("pipeline"))
def test_a_recipe_of_stage_1_is_itself_when_it_is_loaded_again(name: str) -> None:
    recipe = caching.load(name)
    assert caching.load(recipe) == recipe


@pytest.mark.parametrize("name", config.names("train"))
def test_a_recipe_of_stage_2_is_itself_when_it_is_loaded_again(name: str) -> None:
    recipe = training.load(name)
    assert training.load(recipe) == recipe


def numbers(kind: type) -> list[str]:
    """Fields of a recipe that are numbers, of its tables as well."""
    found = []
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            found += [f"{name}.{inner}" for inner in numbers(hint)]
        elif hint in (int, float):
            found.append(name)
    return found


IMPOSSIBLE = ["nan", "inf", "-inf", "-2", "1e400", "-1e300", "1e300", f"{10**30}", "true", "[1]"]


@pytest.mark.parametrize("name", numbers(TrainRecipe))
def test_no_key_of_a_training_recipe_takes_an_impossible_number(name: str) -> None:
    for value in IMPOSSIBLE:
        with pytest.raises(RecipeError, match=name):
            training.load("digits", [f"{name}={value}"])


@pytest.mark.parametrize("name", numbers(CacheRecipe))
def test_no_key_of_a_cache_recipe_takes_an_impossible_number(name: str) -> None:
    for value in IMPOSSIBLE:
        with pytest.raises(RecipeError, match=name.rpartition(".")[2]):
            caching.load("digits", [f"{name}={value}"])


@pytest.mark.parametrize(
    "override",
    [
        "model_ema_decay=1",
        "drop=1",
        "smoothing=1.0",
        "lr=0",
        "crop_pct=0",
        "temperature_end=1e-9",
        "epochs=0",
        "seed=-1",
        "top_k=-1",
    ],
)
def test_the_ends_of_ranges(override: str) -> None:
    with pytest.raises(RecipeError, match=override.partition("=")[0]):
        training.load("digits", [override])


def test_overrides_win_and_bare_words_are_strings() -> None:
    loaded = training.load("digits", ["student=resnet18", "lr=0.5", "epochs=2"])
    assert (loaded.student, loaded.lr, loaded.epochs) == ("resnet18", 0.5, 2)


def test_unknown_recipes_name_the_known() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'digits'"):
        caching.load("digit")


def test_a_recipe_may_leave_its_targets_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    recipe = "num_views = 1\n[views]\nsize = 64\n"
    (tmp_path / "r.toml").write_text(recipe, encoding="utf-8-sig")
    loaded = caching.load(str(tmp_path / "r.toml"))
    assert (loaded.targets, loaded.views.size) == (TargetSpec(), 64)


def own(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_recipe_lists_what_it_changes_of_its_base(tmp_path: Path) -> None:
    text = 'base = "vanillakd-a2"\nnum_views = 7\n[views]\nmixup = 0.8\n'
    loaded, base = caching.load(own(tmp_path, "mine.toml", text)), caching.load("vanillakd-a2")
    assert loaded == replace(base, num_views=7, views=replace(base.views, mixup=0.8))
    further = own(tmp_path, "further.toml", 'base = "mine.toml"\nbatch_size = 3\n')
    assert caching.load(further) == replace(loaded, batch_size=3)  # a path is seen from its file
    assert caching.load(further, ["views.mixup=0.2"]).views.mixup == 0.2


def test_bases_that_cannot_be(tmp_path: Path) -> None:
    def refused(text: str) -> str:
        with pytest.raises(RecipeError) as error:
            training.load(own(tmp_path, "a.toml", text))
        return str(error.value)

    assert "Did you mean 'digits'" in refused('base = "digit"')
    assert "base is the name of a recipe, found 3" in refused("base = 3")
    own(tmp_path, "b.toml", 'base = "a.toml"')
    assert "based on each other" in refused('base = "b.toml"')
    assert "unknown key 'epoch'" in refused('base = "digits"\nepoch = 3')
    assert "Check the path and its permissions" in refused('base = "none.toml"')
    assert "65,536 are the limit. Keep only keys that differ" in refused("#" * 2**16 + "\n")
    assert "Correct the file." in refused("epochs = ")
    with pytest.raises(RecipeError, match="unknown key 'base'"):
        training.load("digits", ["base=photos"])


def test_a_recipe_of_the_other_stage_is_pointed_out() -> None:
    with pytest.raises(RecipeError, match=r"stage 2\. Its cache is that of .* vanillakd-a1"):
        caching.load("vanillakd-4800")


def test_the_spec_survives_its_json() -> None:
    assert cache.from_mapping(SPEC.mapping, "here") == SPEC


def test_the_fingerprint_is_that_of_the_format() -> None:
    """Golden: the canonical JSON must never change for the same spec."""
    for renderer, fingerprint in FINGERPRINTS.items():
        assert replace(SPEC, renderer=renderer).fingerprint == fingerprint
    assert SPEC.renderer == "kernels-2"


FINGERPRINTS = {
    "kernels-1": "sha256:89f9dbf3873199ff0dac6d59b506d3adf7fce078a6b8204dc7df013b9c98d9be",
    "kernels-2": "sha256:c8e1d3ab5313c27e7a6e4e1a9ba1c98c70546db6c84a1fa4d623680514ef6243",
}


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
    assert difference(asdict(SPEC), asdict(other)) is not None


def test_a_part_that_would_exhaust_memory_is_refused() -> None:
    mapping = asdict(SPEC)
    mapping["dataset"]["num_samples"] = mapping["block_size"] = 2**20
    mapping["teacher"]["num_classes"] = mapping["targets"]["k_max"] = 60_000
    with pytest.raises(CacheDamaged, match="too large for memory"):
        cache.from_mapping(mapping, "manifest")


def test_former_names_of_keys_are_read_and_the_new_ones_written(tmp_path: Path) -> None:
    old = tmp_path / "old.toml"
    old.write_text('base = "vanillakd-vit-s"\nrepeats = 2\neval_crop = 0.9\n')
    new = training.load(str(old), ["kept=5", "accumulate=2"])
    assert (new.aug_repeats, new.crop_pct, new.top_k, new.grad_accum_steps) == (2, 0.9, 5, 2)
    saved = asdict(new)
    assert not saved.keys() & TrainRecipe.ALIASES.keys()
    former = {new: old for old, new in TrainRecipe.ALIASES.items()}
    of_an_old_run = {former.get(key, key): value for key, value in saved.items()}
    assert training.build(of_an_old_run, "config.json") == new
    with pytest.raises(RecipeError, match=r"both aug_repeats and its former name repeats"):
        training.load(str(old), ["repeats=2", "aug_repeats=3"])
    old.write_text('base = "digits"\nema_decay = 0.5\nmodel_ema_decay = 0.5\n')
    with pytest.raises(RecipeError, match=r"both model_ema_decay and its former name ema_decay"):
        training.load(str(old))


def test_a_run_with_former_names_goes_on(tmp_path: Path) -> None:
    recipe = training.load("digits", ["model_ema_decay=0.5"])
    former = {new: old for old, new in TrainRecipe.ALIASES.items()}
    rest = {"num_views": 4, "view_size": 32, "data": "data", "cache": "c.zarr"}
    keys = {former.get(key, key): value for key, value in asdict(recipe).items()}
    run_dir.write_json(tmp_path / "config.json", {"recipe": keys, **rest})
    assert run_dir.read_config(tmp_path) == {"recipe": asdict(recipe), **rest}
