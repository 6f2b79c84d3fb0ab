"""`kdcache demo`, `plan` and `cache`: the commands of stage 1."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache_tools.commands import Json, emit
from cache_tools.errors import UsageError
from cache_tools.spec import MAX_BLOCKS

if TYPE_CHECKING:
    from pipeline.run import Share

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or a TOML file.")]
Data = Annotated[str, typer.Option(metavar="SRC", help="Folder of shards or images, or a glob.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override.")
]


def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write the data set.")],
) -> None:
    """Write the embedded real data set as WebDataset shards and train its teacher."""
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise UsageError("the embedded data needs scikit-learn: pip install 'kdcache[demo]'.")
    from pipeline import demo as embedded

    teacher = folder / "teacher-model"
    if not (folder / "_info.json").is_file():
        embedded.write_shards(folder)
    if not (teacher / "config.json").is_file():
        accuracy = embedded.train_teacher(folder, teacher)
        print(f"the teacher saw {embedded.TEACHER_SIZE:,} labels: {accuracy:.1f} % on 797 others")
    print(f"data set {folder}, teacher {teacher}")


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    data: Data = "",
    json_: Json = False,
) -> None:
    """Print samples, parts, bytes and forwards of a recipe; write nothing."""
    from cache_tools import shards
    from pipeline import plan as planner
    from pipeline import recipe as recipes

    loaded = recipes.load(recipe, overrides or ())
    images = shards.open_images(data, loaded.dataset.split) if data else None
    facts = planner.plan(loaded, len(images) if images else 0, 0)
    if json_:
        emit(facts)
        return
    for name, value in facts.items():
        print(f"{name:16} {value:>16,}")
    print(f"{'size':16} {facts['bytes'] / 1e9:>13.2f} GB")


def views(
    source: Annotated[str, typer.Argument(metavar="CACHE|RECIPE", help="A cache, or a recipe.")],
    overrides: Overrides = None,
    data: Data = "",
    out: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Where to draw the sheet.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=100, help="Rows of the sheet.")] = 6,
    columns: Annotated[int, typer.Option("--views", min=1, max=50, help="Columns.")] = 5,
    json_: Json = False,
) -> None:
    """Draw a contact sheet of views; works on a recipe before there is a cache."""
    from cache_tools import sheet
    from pipeline import preview

    if out is None and not json_:
        raise UsageError("where to draw? Pass --out sheet.png, or --json for the parameters.")
    shown = preview.open_source(source, data, overrides or ())
    numbers = preview.spread(len(shown.source.keys), samples)
    view_numbers = list(range(min(columns, shown.num_views)))
    if out is not None:
        sheet.draw(shown.source, numbers, view_numbers, shown.says).save(out)
        if not json_:
            print(f"{out}: {len(view_numbers)} views of {len(numbers)} samples")
    if json_:
        emit({"views": [sheet.facts(shown.source, n, v) for n in numbers for v in view_numbers]})


def cache(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(metavar="CACHE", help="Where the cache lies.")],
    overrides: Overrides = None,
    data: Data = "",
    teacher: Annotated[
        str,
        typer.Option(help="timm name, hf-hub:…, folder with model.safetensors, lite0-imagenet."),
    ] = "",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1, cpu; default: a GPU.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Do not load weights: for speed trials.")
    ] = False,
    parts: Annotated[
        str,
        typer.Option(
            metavar="I/N|NUMBERS",
            help="Make share I of N, counted from 0; or these parts, as `status --missing` "
            "numbers them: 0-3,7.",
        ),
    ] = "0/1",
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many parts.")] = None,
) -> None:
    """Stage 1: run the teacher once and store what it said. Run again to go on."""
    from pipeline import recipe as recipes

    loaded = recipes.load(recipe, overrides or ())
    if not data:
        raise UsageError("which images? Pass --data with a folder of shards or images.")
    if not (teacher := teacher or loaded.teacher):
        raise UsageError("which teacher? Pass --teacher with a timm name or a folder.")
    from cache_tools import summary
    from pipeline import run

    share = _share(parts, limit)
    facts = summary.info(run.run(loaded, data, teacher, out, device, random_weights, share))
    print(
        f"{out}: {facts['parts']['done']} of {facts['parts']['total']} parts, "
        f"{facts['targets']:,} views, {facts['bytes_per_view']} bytes each"
    )


def _share(parts: str, limit: int | None) -> "Share":
    from pipeline.run import Share

    if share := re.fullmatch(r"(\d+)/(\d+)", parts):
        worker, workers = map(int, share.groups())
        if worker < workers:
            return Share(worker, workers, limit)
    elif re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", parts):
        runs = [[int(n) for n in run.split("-")] for run in parts.split(",")]
        if all(run[-1] - run[0] < MAX_BLOCKS for run in runs):
            numbers = frozenset(n for run in runs for n in range(run[0], run[-1] + 1))
            return Share(limit=limit, numbers=numbers)
    raise UsageError(
        f"--parts {parts} is neither a share such as 0/8, counted from 0, nor numbers such as "
        "0-3,7."
    )
