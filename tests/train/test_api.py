"""`fit`: one run, which a tuner may stop, called as the page on sweeps shows."""

import inspect
import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from cache_tools.errors import KdcacheError
from tests.helpers.paths import ROOT
from train import recipe as recipes
from train.api import fit


def test_fit_is_one_run_and_a_tuner_may_stop_it(digits_cache: Path, tmp_path: Path) -> None:
    class Pruned(Exception):
        pass

    seen: list[float] = []

    def prune(row: dict[str, float]) -> None:
        seen.append(row["top1"])
        if len(seen) == 1:
            raise Pruned

    values = {"epochs": 2, "views_per_epoch": 1, "batch_size": 50, "temperature": 2}
    call = {"cache": digits_cache, "out": tmp_path / "run", "device": "cpu", "values": values}
    with pytest.raises(Pruned):
        fit("digits", **call, on_epoch=prune)
    result = fit("digits", **call, on_epoch=prune)
    assert len(seen) == 2
    assert result.top1 == seen[1]
    assert (result.folder / "model").is_dir()
    assert fit("digits", **call) == result
    with pytest.raises(KdcacheError, match="unknown key 'tmperature'"):
        fit("digits", **call | {"values": {"tmperature": 1}})


@pytest.mark.parametrize("library", ["optuna", "wandb"])
def test_what_the_page_on_sweeps_shows_of_others(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its programs run as they are printed, as far as is ours: `fit` takes what they say."""
    page = (ROOT / "docs/guide/sweeps.md").read_text("utf-8")
    [program] = re.findall(rf"```python\n(import {library}\n.*?)```", page, re.S)
    told: list[Any] = []

    def recorded(*arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(fit).bind(*arguments, **named).arguments
        recipe = recipes.load(bound["recipe"])
        recipes.build({**asdict(recipe), **bound["values"]}, "docs")
        bound["on_epoch"]({"epoch": 0, "loss": 1.0, "top1": 50.0})
        told.append(bound["out"])
        return SimpleNamespace(top1=50.0)

    monkeypatch.setattr("train.api.fit", recorded)
    if library == "optuna":
        fake: Any = MagicMock()
        trial = MagicMock(number=3)
        trial.suggest_float.side_effect = lambda name, low, high, **_: low
        trial.suggest_categorical.side_effect = lambda name, choices: choices[0]
        trial.should_prune.return_value = False
        fake.create_study.return_value.optimize = lambda objective, n_trials: objective(trial)
        monkeypatch.setitem(sys.modules, "optuna", fake)
        exec(program, {})
        trial.report.assert_called_once_with(50.0, 0)
        assert told == ["build/optuna/3"]
        return
    fake = MagicMock()
    each = fake.init.return_value.__enter__.return_value
    each.id, each.config, each.summary = "abc", {"temperature": 2.0, "loss": "dkd"}, {}
    monkeypatch.setitem(sys.modules, "wandb", fake)
    exec(program, {})
    each.log.assert_called_once_with({"epoch": 0, "loss": 1.0, "top1": 50.0})
    assert (told, each.summary) == (["build/wandb-sweep/abc"], {"top1": 50.0})
