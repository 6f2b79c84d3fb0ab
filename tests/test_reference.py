"""The pages of docs/reference: up to date, and complete by another way than they are written."""

import dataclasses
import inspect
import re
from importlib.metadata import entry_points

import pytest

import kdcache
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from docs import generate
from pipeline.recipe import CacheRecipe, DatasetRecipe, TeacherSource
from train.recipe import TrainRecipe


def rows(text: str) -> dict[str, list[str]]:
    """Cells of each row of a page's tables, by what its first cell has in backticks."""
    lines = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in text.splitlines() if "| `" in line]
    return {cells[0].strip("`"): cells for cells in lines}


@pytest.mark.parametrize("name", generate.pages())
def test_a_page_is_up_to_date(name: str) -> None:
    written = (generate.FOLDER / name).read_text(encoding="utf-8")
    assert written == generate.pages()[name], "run: python docs/generate.py"


def test_every_command_argument_and_option_has_a_row_with_its_help() -> None:
    page = generate.commands()
    for entry in entry_points(group="kdcache.commands"):
        section = page.partition(f"\n## kdcache {entry.name}\n")[2].partition("\n## ")[0]
        found = rows(section)
        assert all(len(cells) == 3 and cells[2] for cells in found.values()), entry.name
        words = {word for key in found for word in re.split(r",? ", key.replace("\\|", "|"))}
        named = words | {re.sub(r"[\[\].]", "", word) for word in words}
        for name, parameter in inspect.signature(entry.load()).parameters.items():
            [info] = parameter.annotation.__metadata__
            given = [d for d in (info.default, *(info.param_decls or ())) if str(d)[:2] == "--"]
            option = (given or [f"--{name.strip('_').replace('_', '-')}"])[0]
            assert {option.partition("/")[0], info.metavar} & named, (entry.name, name)


@pytest.mark.parametrize(
    ("title", "cls"),
    [
        ("Stage 1", CacheRecipe),
        ("Stage 1: data set", DatasetRecipe),
        ("Stage 1: views", ViewSpec),
        ("Stage 1: targets", TargetSpec),
        ("Stage 1: teachers", TeacherSource),
        ("Stage 2", TrainRecipe),
    ],
)
def test_every_key_has_a_row_with_type_and_text(title: str, cls: type) -> None:
    section = generate.keys().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = {key.rpartition(".")[2]: cells for key, cells in rows(section).items()}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        _, kind, default, *_, text = found[field.name]
        assert kind
        assert text.endswith((".", "…"))
        required = (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
        assert (default == "required") is required


def test_a_row_has_default_range_timms_option_and_the_former_name() -> None:
    found = rows(generate.keys())
    assert found["views.re_prob"][1:5] == ["float", "`0.0`", "0 to 1", "`--reprob`"]
    assert found["lr"][1:5] == ["float", "`0.001`", "above 0 to 1,000,000", "`--lr`"]
    assert found["views.color_jitter"][1] == "4 × float"
    assert found["aug_repeats"][-1].endswith("Formerly `repeats`.")
    known = {key.rpartition(".")[2] for key in found}
    assert {key.rpartition(".")[2] for key in generate.TIMM} <= known
    assert {"base", "grid", "runs", "runs.name"} <= found.keys()


def test_every_public_name_has_a_row_and_a_directive() -> None:
    page = generate.python()
    for name in kdcache.__all__:
        if not name.startswith("_"):
            assert f"| [`kdcache.{name}`]" in page
            assert f"\n::: kdcache.{name}\n" in page
