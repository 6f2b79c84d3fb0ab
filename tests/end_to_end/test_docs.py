"""The pages of the documentation: their commands exist, and what they show runs in their order.

A block of `sh` is run by bash, one of `python` as a program of its own. A block whose first line is
a comment with a name (`# loop.py`, `# mine.toml`) is saved under that name. A comment in the page,
`<!-- not run: REASON -->` above a block, leaves it out; blocks in other languages are output. All
blocks of a page run in one shell and one folder. Those of the guides begin where `make cache` has
run, with build/digits and build/digits-cache.zarr, the tutorial's with nothing; `examples/` is
there for all.
"""

import ast
import dataclasses
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from pipeline.recipe import CacheRecipe, DatasetRecipe
from tests.helpers.paths import ROOT
from train.recipe import TrainRecipe

TUTORIAL = ROOT / "docs/tutorial.md"
RUN = [TUTORIAL, ROOT / "docs/first-hour.md", *sorted(ROOT.glob("docs/guide/*.md"))]
PAGES = [ROOT / "README.md", ROOT / "examples/README.md", *sorted(ROOT.glob("docs/**/*.md"))]
LANGUAGES = {"", "sh", "python", "pycon", "toml", "yaml", "json", "console", "text"}
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
ENDS = ("|", "||", "&&", "&", ";", ">", "<")
GROUPS = {"views": ViewSpec, "targets": TargetSpec, "dataset": DatasetRecipe}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    text: str
    reason: str
    """Reason why it is not run; "" = it is."""

    @property
    def file(self) -> str:
        """Name under which it is saved; "" = it is run, or output."""
        found = re.match(r"# ([\w-]+\.(?:py|toml|yaml|sh))\n", self.text)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(text[: m.start("text")].count("\n"), m["language"], m["text"], m["reason"] or "")
        for m in FENCE.finditer(text)
    ]


def program(page: Path) -> str:
    """One program of bash that does what a reader of the page does."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"]
    for block in blocks(page):
        if block.reason or not (block.file or block.language in ("sh", "python")):
            continue
        lines.append(f"echo '== {page.name}, line {block.line}' >&2")
        if block.language == "sh" and not block.file:
            lines.append(block.text)
        else:
            into = f"cat > {block.file}" if block.file else "python -"
            lines.append(f"{into} <<'END OF BLOCK'\n{block.text}END OF BLOCK")
    return "\n".join(lines)


def calls(text: str) -> Iterator[list[str]]:
    """Words of each call of kdcache in a block of sh, from the name of the command on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = [*shlex.split(line.replace("…", ""), comments=True)]
        for at, word in enumerate(words):
            call = [*itertools.takewhile(lambda w: w not in ENDS, words[at + 1 :])]
            if call and Path(word).name == "kdcache" and words[at - 1] != "-n":  # not ssh-keygen's
                yield call


def key_is_known(key: str) -> bool:
    """Whether a recipe of either stage has this key."""
    group, _, name = key.partition(".")
    if group in GROUPS:
        return name in {f.name for f in dataclasses.fields(GROUPS[group])}
    return group in {f.name for cls in (CacheRecipe, TrainRecipe) for f in dataclasses.fields(cls)}


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Options of each command."""
    found = {}
    for entry in entry_points(group="kdcache.commands"):
        app = typer.Typer(add_completion=False)
        app.command(entry.name)(entry.load())
        found[entry.name] = {o for p in typer.main.get_command(app).params for o in p.opts}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_exist(page: Path, options: dict[str, set[str]]) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, block
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)
        for name, *words in calls(block.text) if block.language == "sh" else ():
            if name.startswith("-"):
                continue
            assert name in options, (block.line, name)
            long = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
            assert long <= options[name] | {"--help", "--data-cache"}, (block.line, name, long)
            pairs = zip(["", *words], words, strict=False)
            given = [w for before, w in pairs if not before.startswith("--")]
            keys = [w.partition("=")[0] for w in given if re.match(r"[a-z_.]+=", w)]
            assert [key for key in keys if not key_is_known(key)] == [], block.line


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 180


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, digits_demo: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if page != TUTORIAL:
        cache, data = digits_demo
        shutil.copytree(data, tmp_path / "build/digits")
        shutil.copytree(cache, tmp_path / "build/digits-cache.zarr")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", program(page)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
