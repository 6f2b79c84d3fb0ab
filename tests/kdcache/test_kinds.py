"""Arguments of a wrong kind are refused by name, before anything is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdcache as api
from pipeline import recipe as recipes

CALL: dict[str, Any] = {"data": "nowhere", "teacher": "t", "out": "o"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(**changed: Any) -> None:
    api.make_cache("digits", **CALL | changed)


def trained(**changed: Any) -> None:
    api.train("digits", **{"cache": "c", "out": "o"} | changed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made(teacher=5), "teacher=5 is one number. Pass a list"),
        (lambda: made(limit="3"), "limit='3' (--limit) must be at least 1, and a whole"),
        (lambda: made(limit=1.5), "limit=1.5 (--limit) must be at least 1"),
        (lambda: made(parts="12"), "parts='12' is no list. Pass a list: parts=['12']"),
        (lambda: made(parts=1.0), "parts=1.0 is one number. Pass a list"),
        (lambda: made(parts=[[1]]), "parts=[1] (--parts) must be at least 0, and a whole"),
        (lambda: made(parts=["a"]), "parts='a' (--parts) must be at least 0"),
        (lambda: made(parts=[None]), "parts=None (--parts) must be at least 0"),
        (lambda: made(workers="2"), "workers='2' (--workers) must be at least 1"),
        (lambda: made(task="0", tasks=2), "task='0' (--task) must be at least 0"),
        (lambda: made(task=0, tasks="2"), "tasks='2' (--tasks) must be at least 1"),
        (lambda: made(values=["num_views=3"]), "a dict of keys of a recipe, got ['num_views=3']"),
        (lambda: trained(values=3), "a dict of keys of a recipe, got 3"),
        (lambda: trained(cache=5), "5 is no path or name. Pass one, or a list"),
        (lambda: trained(log_to=3), "3 is no path or name"),
        (lambda: trained(teacher=3), "3 is no path or name"),
        (lambda: trained(weights="a"), "weights='a' is no list. Pass a list: one for each cache"),
        (lambda: trained(weights=["a"]), "weights=['a'] are no numbers. Pass one for each cache"),
        (lambda: api.evaluate("r", size="3"), "size='3' (--size) must be at least 1"),
        (lambda: api.evaluate("r", crop="3"), "crop=3 (--crop) is no share"),
        (lambda: api.evaluate("r", data=3), "3 is no path or name"),
        (lambda: api.Batches(3), "cache=3 is one number. Pass a list"),
        (lambda: teachers(3.0), "weights=3.0 is one number. Pass a list: one for each teacher"),
        (lambda: teachers([1.0]), "there are 2 teachers and 1 weights"),
    ],
)
def test_an_argument_of_a_wrong_kind_is_refused(call: Callable[[], None], message: str) -> None:
    with pytest.raises(api.UsageError) as error:
        call()
    assert message in str(error.value)


def teachers(weights: Any) -> tuple[api.TeacherSource, ...]:
    return recipes.sources(recipes.load("digits"), ["a", "b"], weights)


def test_arrays_are_lists() -> None:
    assert [one.weight for one in teachers(np.array([1.0, 2.0]))] == [1.0, 2.0]
    with pytest.raises(api.CacheNotFound):
        trained(cache=["c", "d"], weights=np.array([1.0, 2.0]))
    with pytest.raises(api.UsageError, match="no data set at nowhere"):
        made(parts=np.array([0, 1]), limit=np.int64(3))
