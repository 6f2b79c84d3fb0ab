"""Every recipe of both stages: its header says what it needs, and two steps of it run."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from cache_tools import config as reading
from cache_tools.runtime.signals import StopRequest
from cache_tools.store.cache import Cache
from pipeline import recipe as caching
from pipeline.planning import plan as planning
from pipeline.run import run as make_cache
from tests.helpers.paths import ROOT
from train import recipe as training
from train import run_dir
from train.data.inputs import open_inputs
from train.loss.task import CachedDistillationTask
from train.recipe import TrainRecipe
from train.trainer import checkpoint, factory, loop
from train.trainer import plan as sizing

CACHES, STUDENTS = reading.names("pipeline"), reading.names("train")
DEMOS = {"digits", "photos"}  # no paper has them
IMAGES = 20
STAND_INS = {
    "resnet": "test_resnet",
    "vit": "test_vit",
    "convnextv2": "test_convnext2",
    "tiny": "test_efficientnet",
    "test": "test_efficientnet",
    "mobilenetv4": "test_efficientnet",
}
MakeCache = Callable[[str, int], Path]


def papers(names: list[str]) -> list[str]:
    return [name for name in names if name not in DEMOS]


def text_of(package: str, name: str) -> str:
    return (resources.files(package) / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def header(package: str, name: str) -> dict[str, str]:
    """What the comment at the top of a recipe says, by the words at its left."""
    facts: dict[str, str] = {}
    label = ""
    for line in text_of(package, name).splitlines():
        if match := re.match(r"# (\w+) {2,}(.*)", line):
            label = match[1]
            facts[label] = match[2]
        elif label and line.startswith("#  "):
            facts[label] += " " + line[1:].strip()
        else:
            label = ""
    return facts


def found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in {text!r}"
    return match.groups()


def number(text: str) -> float:
    return float(text.replace(",", ""))


def cache_of(name: str) -> str:
    return training.load(name).cache_recipe or name


@pytest.mark.parametrize("name", CACHES)
def test_every_cache_recipe_plans(name: str) -> None:
    loaded = caching.load(name)
    facts = planning.plan(loaded, loaded.dataset.num_samples or 500, 0)
    assert facts["forwards"] == facts["samples"] * loaded.num_views
    assert facts["bytes"] > 0
    assert facts["files"] < 100_000  # the Hub's advice


@pytest.mark.parametrize("name", papers(CACHES))
def test_the_header_of_a_cache_recipe_matches_its_plan(name: str) -> None:
    said, loaded = header("pipeline", name), caching.load(name)
    assert "Deviations" in text_of("pipeline", name)
    assert said["command"].startswith(f"kdcache cache {name} --data ")
    views, forwards, gigabytes = found(
        r"^([\d,]+) views, ([\d,]+) million forward passes.* ([\d.]+) GB", said["needs"]
    )
    hours, rate = found(
        r"^([\d,]+) on one GPU, if its teacher does ([\d,]+) views/s: an assumption, not measured",
        said["hours"],
    )
    facts = planning.plan(loaded, 0, 0, number(rate))
    assert number(views) == loaded.num_views
    assert number(forwards) == round(facts["forwards"] / 1e6)
    assert number(gigabytes) == round(facts["bytes"] / 1e9, 2)
    assert number(hours) == round(facts["hours"])


@pytest.mark.parametrize("name", papers(CACHES))
def test_a_cache_recipe_names_its_students(name: str) -> None:
    said = header("pipeline", name)["students"]
    named = [word for word in re.findall(r"[\w-]+", said) if word in STUDENTS]
    assert sorted(named) == [s for s in STUDENTS if cache_of(s) == name]


@pytest.mark.parametrize("name", papers(STUDENTS))
def test_the_header_of_a_training_recipe_matches_its_plan(name: str) -> None:
    said, loaded = header("train", name), training.load(name)
    assert "Deviations" in text_of("train", name)
    assert said["command"].startswith(f"make train RECIPE={name} DATA=")
    assert said["expected"].startswith("not measured here; ")
    cache, views, times = found(
        r"the cache ([\w-]+)(?:, | with num_views=)([\d,]+).* each is shown ([\d.]+) time",
        said["needs"],
    )
    assert cache == cache_of(name)
    expected = replace(sizing.of_recipe(cache), num_views=int(number(views)))
    hours, rate = found(
        r"^([\d,]+) on one GPU that trains on ([\d,]+) images/s: an assumption, not measured",
        said["hours"],
    )
    facts = sizing.plan(loaded, expected, number(rate))
    assert number(hours) == round(facts["hours"])
    assert number(times) == facts["times_each_view"]
    sizing.check(loaded, int(number(views)))


@pytest.mark.parametrize("name", papers(STUDENTS))
def test_no_schedule_shows_a_view_more_often_than_was_found_harmless(name: str) -> None:
    loaded = training.load(name)
    assert loaded.views_shown <= 3 * loaded.min_views


def test_adding_views_to_the_cache_of_a1_matches_the_longest_run() -> None:
    said = header("train", "vanillakd-4800")
    (gigabytes,) = found(r"([\d.]+) GB", said["needs"])
    whole, rate, added = found(
        r"and (\d+) of the teacher at ([\d,]+) views/s, or (\d+) to add", said["hours"]
    )
    plans = [
        planning.plan(caching.load("vanillakd-a1", [f"num_views={n}"]), 0, 0, number(rate))
        for n in (1800, 1200)
    ]
    assert number(gigabytes) == round(plans[0]["bytes"] / 1e9, 2)
    assert [number(whole), number(added)] == [round(p["hours"]) for p in plans]


@pytest.mark.parametrize("name", papers(STUDENTS))
def test_make_finds_the_cache_that_a_recipe_shares(name: str) -> None:
    command = ["make", "-n", "train", f"RECIPE={name}", "DATA=/data"]
    root = ROOT
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    cache = f"build/{cache_of(name)}-cache.zarr"
    assert f"kdcache cache {cache_of(name)} --data /data --out {cache}" in said
    assert f"kdcache train {name} --cache {cache} --data /data --out build/{name}-run" in said


@pytest.mark.parametrize("name", STUDENTS)
def test_timm_has_the_student_with_all_keys_of_the_recipe(name: str) -> None:
    loaded = replace(training.load(name), init="")
    with torch.device("meta"):
        student = factory.create_student(loaded, 1000)
        optimizer = factory.create_optimizer(loaded, student)
    factory.create_scheduler(loaded, optimizer, updates=625)
    if loaded.drop_path:
        rates = [getattr(module, "drop_prob", 0.0) for module in student.modules()]
        assert max(rates) == pytest.approx(loaded.drop_path)


def test_the_weights_that_recipes_start_from_are_those_of_their_students() -> None:
    """By names and shapes, as timm describes them: nothing is fetched."""
    for name in STUDENTS:
        if not (init := training.load(name).init):
            continue
        assert init in timm.list_pretrained()
        with torch.device("meta"):
            there = timm.create_model(init, pretrained=False).state_dict()
            own = factory.create_student(replace(training.load(name), init=""), 1000).state_dict()
        differ = [key for key in own if key not in there or there[key].shape != own[key].shape]
        assert there.keys() == own.keys()
        assert all(key.startswith("head.") for key in differ)


def test_the_guide_lists_the_recipes_with_their_sizes() -> None:
    guide = (ROOT / "docs/guide/choosing.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| `([\w-]+)` \| ([\d,]+), ([\d.]+) GB.* \| (.*) \|$", re.MULTILINE)
    rows = row.findall(guide)
    assert sorted(name for name, *_ in rows) == papers(CACHES)
    for name, views, gigabytes, students in rows:
        facts = planning.plan(caching.load(name), 0, 0)
        assert number(views) == facts["views_per_sample"]
        assert number(gigabytes) == round(facts["bytes"] / 1e9, 2)
        named = [word for word in re.findall(r"`([\w-]+)`", students) if word in STUDENTS]
        assert sorted(named) == [s for s in STUDENTS if cache_of(s) == name]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of ten classes."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / "train" / f"class{i % 10}" / f"picture{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60)).save(path)
    return folder


@pytest.fixture(scope="module")
def make_views(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, teacher: Path
) -> MakeCache:
    """Tiny caches of recipes: their augmentation and targets, small views, another teacher."""
    there: dict[tuple[str, int], Path] = {}

    def of(name: str, size: int) -> Path:
        if (name, size) not in there:
            tiny = [f"views.size={size}", "num_views=4", "dataset.num_classes=10"]
            if caching.load(name).views.teacher_size:
                tiny.append(f"views.teacher_size={2 * size}")
            if size > 32:
                tiny.append("precision=fp32")  # bf16 takes a CPU ten times as long
            out = tmp_path_factory.mktemp(name) / "cache.zarr"
            make_cache(caching.load(name, tiny), str(pictures), str(teacher), out, "cpu")
            torch.set_num_threads(1)  # as all tests have it; stage 1 chose by the size of its views
            there[name, size] = out
        return there[name, size]

    return of


def two_updates(recipe: TrainRecipe, cache: Path, out: Path, keep: bool) -> list[float]:
    """The losses of the first two updates of a recipe, all of its epochs being still to come."""
    inputs, losses = open_inputs(cache, None), []
    forward = CachedDistillationTask.forward

    def watched(task: CachedDistillationTask, *batch: object) -> dict[str, torch.Tensor]:
        result = forward(task, *batch)  # type: ignore[arg-type]
        losses.append(float(result["loss"].detach()))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedDistillationTask, "forward", watched)
        enough = property(lambda _: len(losses) >= 2 * recipe.grad_accum_steps)
        patch.setattr(StopRequest, "requested", enough, raising=False)
        patch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
        if not keep:
            patch.setattr(checkpoint, "save", lambda *_: None)
        factory.check(recipe, inputs.num_classes, inputs.store.spec.views.size)
        run_dir.init_run(out, recipe, inputs, fresh=False)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, inputs, out, torch.device("cpu"))
    return losses


def tiny(name: str, *overrides: str) -> TrainRecipe:
    """A recipe with nothing changed but the size of its batches, and where it starts."""
    size = max(1, 8 // training.load(name).grad_accum_steps)
    return training.load(name, [f"batch_size={size}", "min_views=0", "init=", *overrides])


@pytest.mark.parametrize("name", CACHES)
def test_a_tiny_cache_of_every_recipe(name: str, make_views: MakeCache) -> None:
    made, loaded = Cache.open(make_views(name, 32)), caching.load(name)
    assert made.spec.views == replace(
        loaded.views, size=32, teacher_size=64 if loaded.views.teacher_size else 0
    )
    assert made.spec.targets.tau == loaded.targets.tau
    assert all(made.check_part(part) is None for part in made.parts())
    said = [made.read_view(view) for view in range(4)]
    assert len({stored.code_E.tobytes() for stored in said}) == 4  # four views differ


@pytest.mark.parametrize("name", STUDENTS)
def test_two_steps_of_every_recipe(name: str, make_views: MakeCache, tmp_path: Path) -> None:
    student = STAND_INS[re.split(r"_|50", training.load(name).student)[0]]
    recipe = tiny(name, f"student={student}", "views_per_epoch=1")
    losses = two_updates(recipe, make_views(cache_of(name), 32), tmp_path / "run", keep=True)
    assert len(losses) == 2 * recipe.grad_accum_steps
    assert np.isfinite(losses).all()
    assert min(losses) > 0
    state = torch.load(tmp_path / "run" / checkpoint.NAME, weights_only=True)
    assert state["place"]["step"] == 2 * recipe.grad_accum_steps
    torch.manual_seed(recipe.seed)
    start = factory.create_student(recipe, 10).state_dict()
    assert any(not torch.equal(start[key], state["model"][key]) for key in start)


REAL = [
    pytest.param("vanillakd-vit-t", 224),
    pytest.param("vanillakd-convnextv2-t", 32),
    *(
        pytest.param(name, 224, marks=pytest.mark.slow)
        for name in ("vanillakd-a2", "vanillakd-vit-s", "tinyvit-1k", "tinyvit-22k", "fkd", "ml-dr")
    ),
]


@pytest.mark.parametrize(("name", "size"), REAL)
def test_two_steps_of_the_real_student(
    name: str, size: int, make_views: MakeCache, tmp_path: Path
) -> None:
    recipe = tiny(name, "batch_size=2", "grad_accum_steps=1", "precision=fp32")
    losses = two_updates(recipe, make_views(cache_of(name), size), tmp_path / "run", keep=False)
    assert len(losses) == 2
    assert np.isfinite(losses).all()
