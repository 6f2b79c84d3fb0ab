"""Values in the JSON files of runs and sweeps that kdcache does not write."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache_tools.errors import UsageError
from train import run_dir, run_schema
from train.data.inputs import open_inputs
from train.recipe import TrainRecipe
from train.trainer import compare


@pytest.fixture(scope="module")
def written(digits_cache: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the config of a run as a run writes it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = TrainRecipe("test_vit", epochs=1)
    run_dir.init_run(out, recipe, open_inputs(digits_cache, str(digits)), fresh=False)
    return out / "config.json"


RESULT = {
    "student": "test_vit", "mode": "kd", "top1": 1.0, "top1_ema": None, "top1_best": 1, "loss": 2.0,
    "cache_fingerprint": "sha256:0", "seconds": 1.0, "images_per_second": 3, "data_wait": 0.1,
    "images": 10, "parameters": 10, "cost_seconds": 1.0, "a later key": [{}],
}  # fmt: skip
NEED = {
    "parameters": 10, "images_per_second": 1.0, "resident": 1, "passing": 1, "step_seconds": 0.1,
    "device": "cpu",
}  # fmt: skip
LEDGER = {
    "students": 1,
    "forwards": {"cache": 1, "online": 2, "online_cohorts": 3},
    "student_hours": 0.1,
    "imagenet": {"images": 1, "views": 2, "views_shown": 3, "forwards": {"cache": 1, "online": 2}},
    "teacher": {"seconds_per_view": 0.1, "device": "cpu"},
    "hours": {"cache": 0.1, "online": 0.2, "online_cohorts": 0.3},
}
FILES: dict[str, dict[str, Any]] = {
    "result.json": RESULT,
    "need.json": NEED,
    "comparison.json": compare.compare(
        {"kd": [2.0, 3.0], "labels": [1.0, 1.0]},
        [0, 1],
        {"student": "a", "teacher": "b", "transfer_images": 3},
    ),
    "sweep.json": {"swept": ["lr"], "students": [{"name": "a"}], "ledger": LEDGER},
}


def _changed(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key with values that it cannot have, and the table so changed."""
    for key, found in value.items():
        if key == "a later key" or (isinstance(found, list) and isinstance(found[0], dict)):
            continue
        for wrong in (math.nan, {"a": 1}, b"bytes", [[]]):
            yield key, {**value, key: wrong}
        if isinstance(found, dict):
            for inner, table in _changed(found):
                yield inner, {**value, key: table}


@pytest.mark.parametrize("name", FILES)
def test_a_value_of_another_type_is_refused_by_key(name: str) -> None:
    for key, changed in _changed(FILES[name]):
        with pytest.raises(UsageError, match=key):
            run_schema.check(Path("run", name), changed)


@pytest.mark.parametrize("name", FILES)
def test_files_as_they_are_written_pass(name: str) -> None:
    run_schema.check(Path("run", name), json.loads(json.dumps(FILES[name])))


def test_the_config_of_a_run_passes(written: Path) -> None:
    run_schema.check(written, json.loads(written.read_text()))


@pytest.mark.parametrize(
    "key", ["num_views", "view_size", "eval_size", "samples", "teacher.num_classes", "teacher.mean",
            "views.size", "views.scale", "recipe.epochs", "recipe.lr", "recipe.mode"],
)  # fmt: skip
@pytest.mark.parametrize("wrong", [None, -1.5, "x", [], {}, -(10**30)])
def test_a_value_of_a_config_that_cannot_be_is_refused_by_key(
    written: Path, key: str, wrong: Any
) -> None:
    config = json.loads(written.read_text())
    table, _, leaf = key.rpartition(".")
    (config[table] if table else config)[leaf] = wrong
    with pytest.raises(UsageError, match=leaf):
        run_schema.check(written, config)


@pytest.mark.parametrize("key", ["data", "cache", "class_names", "teacher", "views", "samples"])
def test_a_config_without_a_key_is_refused(written: Path, key: str) -> None:
    config = json.loads(written.read_text())
    del config[key]
    if key == "teacher":  # of the first kdcache, which `report` asks to train again
        run_schema.check(written, config)
        return
    with pytest.raises(UsageError, match=key):
        run_schema.check(written, config)
