"""One call for each stage: the same outcome as the commands, as values, and nothing printed."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kdcache as api
from cache_tools.runtime import progress
from cache_tools.runtime.plugins import Plugin
from cache_tools.verify.api import RECOMPUTE
from tests.helpers.outcome import Outcome
from train.data.device_batch import ONLINE

SMALL = {"num_views": 1, "views.mixup": 0.0}
SHORT = {"epochs": 1, "views_per_epoch": 1, "batch_size": 50, "temperature": 2.0}


@pytest.fixture(autouse=True)
def nothing_is_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    log = logging.getLogger("kdcache")  # as in a program: no command of another test set it up
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.WARNING)
    yield
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, digits_cache: Path, digits: Path
) -> api.TrainResult:
    out = tmp_path_factory.mktemp("run") / "run"
    return api.train("digits", cache=digits_cache, data=digits, out=out, values=SHORT, device="cpu")


def frozen(result: Any) -> bool:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.facts = {}
    return True


def test_a_cache(
    digits: Path, teacher: Path, tmp_path: Path, kdcache: Callable[..., Outcome]
) -> None:
    out = tmp_path / "c.zarr"
    call = {"data": digits, "teacher": teacher, "out": out, "device": "cpu"}
    result = api.make_cache("digits", values=SMALL, **call)
    assert frozen(result)
    assert (result.parts_done, result.parts_total, result.views) == (1, 1, 100)
    command = kdcache("info", out, "--json")
    assert json.loads(command.out) == json.loads(json.dumps(result.facts))
    assert result.content_id == result.facts["content_id"]
    source = api.TeacherSource(str(teacher))
    recipe = {"base": "digits", "num_views": 2, "views": {"mixup": 0.0}}
    more = api.make_cache(recipe, **call | {"teacher": [source]}, limit=1)
    assert (more.parts_done, more.fingerprint) == (2, result.fingerprint)
    done = kdcache(
        "cache", "digits", "--data", digits, "--teacher", teacher, "--out", out, "--device=cpu",
        "num_views=2", "views.mixup=0.0",
    )  # fmt: skip
    assert done.out == (
        f"{out}: 2 of 2 parts, 200 views, {more.facts['bytes_per_view']} bytes each\n"
    )
    with pytest.raises(api.UsageError, match="no teacher is named"):
        api.make_cache("digits", data=digits, out=out)
    with pytest.raises(api.UsageError, match="limit=0"):
        api.make_cache("digits", **call, limit=0)
    with pytest.raises(api.UsageError, match=r"parts=1 is one number\. Pass a list: parts=\[1\]"):
        api.make_cache("digits", **call, parts=1)
    with pytest.raises(api.RecipeError, match=r"recipe: unknown key 'num_vews'.*'num_views'"):
        api.make_cache(recipe | {"num_vews": 2}, **call)
    with pytest.raises(api.RecipeError, match=r"expected a recipe \(name, file, dict, CacheRecipe"):
        api.make_cache(7, **call)


def test_a_verdict(
    mutable_cache: Path, digits: Path, teacher: Path, kdcache: Callable[..., Outcome]
) -> None:
    again = {"recompute": 2, "device": "cpu"}
    result = api.verify(mutable_cache, digits, teacher=[str(teacher)], **again)
    assert frozen(result)
    for one in (teacher, str(teacher)):  # in place of the letters of a name
        assert api.verify(mutable_cache, digits, teacher=one, **again).recomputed == 2
    with pytest.raises(api.UsageError, match="recompute=-1"):
        api.verify(mutable_cache, recompute=-1)
    assert (result.status, result.parts, result.images, result.recomputed) == ("ok", 4, 100, 2)
    assert result
    records = sorted((mutable_cache / "commits").rglob("*.json"))
    records[0].unlink()
    result = api.verify(mutable_cache)
    assert not result
    assert result.status == "incomplete"
    assert isinstance(result.problems[0], api.CacheIncomplete)
    assert json.loads(kdcache("verify", mutable_cache, "--json").out) == result.facts
    with pytest.raises(api.CacheNotFound):
        api.verify(mutable_cache / "none")
    with pytest.raises(api.UsageError, match=r"--recompute, in Python recompute=.*in Python data="):
        api.verify(mutable_cache, recompute=1)


def test_one_name_is_not_taken_letter_by_letter(
    digits_cache: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[Any] = []

    def again(*given: Any) -> list[Any]:
        named.append((given[2], given[5]))
        return []

    def refuse(store: Any, teachers: list[str], device: Any) -> None:
        raise api.UsageError(f"teachers {teachers}")

    load, ours = Plugin.load, {RECOMPUTE: again, ONLINE: refuse}
    monkeypatch.setattr(Plugin, "load", lambda plugin: ours.get(plugin) or load(plugin))
    for one in ("a/model", Path("a/model"), ["a/model"]):
        api.verify(digits_cache, digits, recompute=1, teacher=one, class_map=one)
    assert named == [(("a/model",), ("a/model",))] * 3
    call: Any = {"cache": digits_cache, "data": digits, "out": tmp_path, "device": "cpu"}
    keys = SHORT | {"mode": "online"}
    for one in ("a/model", Path("a/model"), ["a/model"]):
        with pytest.raises(api.UsageError, match=r"teachers \['a/model'\]"):
            api.train("digits", teacher=one, values=keys, **call)


def test_a_student(run: api.TrainResult, digits_cache: Path, digits: Path) -> None:
    call = {"cache": digits_cache, "data": digits, "device": "cpu"}
    recipe = dataclasses.replace(api.TrainRecipe(student="x", epochs=1))
    assert frozen(run)
    assert run.facts["epochs"] == 1
    assert api.train("digits", out=run.folder, values=SHORT, **call) == run
    keys = {"base": "digits"} | SHORT
    assert api.train(keys, out=run.folder, alone=True, **call) == run
    with pytest.raises(api.UsageError, match="no tracker 'wandbe'"):
        api.train(keys, out=run.folder, log_to="wandbe", **call)
    with pytest.raises(api.UsageError, match="'x'"):
        api.train(recipe, out=run.folder.parent / "x", **call)


def test_an_evaluation(run: api.TrainResult, digits: Path, kdcache: Callable[..., Outcome]) -> None:
    result = api.evaluate(run.folder, views=50, device="cpu")
    assert frozen(result)
    assert result.data[0].networks["student"].images == result.images == 797
    assert result.top1 == round(result.data[0].networks["student"].top1 or 0, 3)
    assert result.cache is not None
    assert result.cache.networks["teacher"].images == result.cache.views
    command = kdcache("eval", run.folder, "--views=50", "--device=cpu", "--json")
    assert json.loads(command.out) == json.loads(json.dumps(result.facts))
    assert api.evaluate(run.folder, data=digits, views=0, device="cpu").cache is None
    with pytest.raises(api.UsageError, match=r"crop=1\.5 .*is no share"):
        api.evaluate(run.folder, crop=1.5)
    with pytest.raises(api.UsageError, match=r"size=0 \(--size\) must be at least 1"):
        api.evaluate(run.folder, size=0)
    with pytest.raises(api.UsageError, match="views=-1"):
        api.evaluate(run.folder, views=-1)


@pytest.mark.parametrize("draw", [True, False])
def test_a_bar_is_drawn_on_request(
    draw: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a terminal, whatever is logged; a program's own lines stay on stdout."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.shown(draw), progress.bar("cache", 3, "views") as advance:
        advance(3)
        print("mine")
    assert progress.bars is None
    out, err = capfd.readouterr()
    assert out == "mine\n"
    assert ("cache" in err) == draw
