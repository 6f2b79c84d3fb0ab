"""The pages of docs/reference: up to date, and complete by another way than they are written."""

import ast
import dataclasses
import inspect
import re
from importlib.metadata import entry_points
from typing import Any

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
            info, *_ = parameter.annotation.__metadata__
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


PUBLIC = {name: getattr(kdcache, name) for name in kdcache.__all__ if name[0] != "_"}


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """Text below each heading of the page of Python, by the heading."""
    parts = re.split(r"^#{2,4} (.+)$", generate.python(), flags=re.M)
    return {
        heading.strip("`"): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_row_signature_and_text(name: str, sections: dict[str, str]) -> None:
    text, summary = sections[f"kdcache.{name}"], (PUBLIC[name].__doc__ or "").strip().split("\n")[0]
    assert any(f"| [`kdcache.{name}`](#kdcache{name.lower()}) |" in t for t in sections.values())
    [code] = re.findall(r"^```python\n(.+?)^```$", text, flags=re.M | re.S)
    assert re.search(rf"^(class|def) {name}\b", code, flags=re.M)
    ast.parse(code)
    assert f"\n{summary}\n" in text.replace("`", "") or f"\n{summary}\n" in text


@pytest.mark.parametrize("name", [name for name, found in PUBLIC.items() if inspect.isclass(found)])
def test_every_member_of_a_class_has_its_text(name: str, sections: dict[str, str]) -> None:
    found = PUBLIC[name]
    above = {key for base in found.__mro__[1:] for key in vars(base)}
    names = {key for key in vars(found) if key[0] != "_"} - above
    names |= (
        {f.name for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else set()
    )
    listed = dict(re.findall(r"^\* `(\w+)`(?: \(.+?\))?: (.+)$", sections[f"kdcache.{name}"], re.M))
    for key in names:
        text = listed.get(key) or sections[f"{name}.{key}"].rpartition("```\n")[2]
        assert len(text.strip()) > 1, key


@pytest.mark.parametrize("name", [n for n, found in PUBLIC.items() if inspect.isfunction(found)])
def test_every_argument_has_its_text(name: str, sections: dict[str, str]) -> None:
    _, _, text = sections[f"kdcache.{name}"].partition("**Arguments**")
    if name != "open":
        listed = re.findall(r"^\* `(\w+)`: \S", text.partition("**Raises**")[0], re.M)
        assert listed == [*inspect.signature(PUBLIC[name]).parameters]


def test_links_within_the_page_have_a_heading(sections: dict[str, str]) -> None:
    headings = {re.sub(r"[^a-z_0-9-]", "", heading.lower()) for heading in sections}
    links = {link for text in sections.values() for link in re.findall(r"\]\(#(.+?)\)", text)}
    assert len(links) >= len(PUBLIC)
    assert links <= headings


@pytest.mark.parametrize(
    "undocumented", [kdcache.kd_loss, kdcache.SoftTargets, kdcache.Cache.rows, kdcache.Cache.keys]
)
def test_an_undocumented_name_is_an_error(
    undocumented: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undocumented, "__doc__", None)
    with pytest.raises(SystemExit, match="has no docstring"):
        generate.python()


def test_an_undocumented_field_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (kdcache.SoftTargets.__doc__ or "").replace("lam: [B]", "lambda: [B]")
    monkeypatch.setattr(kdcache.SoftTargets, "__doc__", text)
    with pytest.raises(SystemExit, match=r"SoftTargets\.lam has no docstring"):
        generate.python()
