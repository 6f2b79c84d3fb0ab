"""`kdcache demo`, `plan` and `cache`: the commands of stage 1."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cache_tools.cli.key_options import KeysOf
from cache_tools.cli.options import Json, emit, table
from cache_tools.errors import UsageError
from cache_tools.runtime.text import counted

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or a TOML file.")]
Data = Annotated[
    str, typer.Option(metavar="SRC", help="Folder of shards or images, a pattern, or a URL.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys to override."),
    KeysOf("pipeline.recipe:CacheRecipe"),
]

Teachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        help="timm name, hf-hub:…, folder as saved by timm, .safetensors or .pth, "
        "lite0-imagenet, torchvision:NAME:WEIGHTS, transformers:NAME, python:MODULE:FUNCTION. "
        "Several: the mean of their probabilities is stored.",
    ),
]
Weights = Annotated[
    list[float] | None,
    typer.Option("--teacher-weight", help="Weight of each teacher in the mean; default: equal."),
]
Architectures = Annotated[
    list[str] | None,
    typer.Option(
        "--architecture",
        metavar="NAME",
        help="Network of a file of weights, by timm's name or as torchvision:NAME: for all "
        "teachers, or for each.",
    ),
]
ClassMaps = Annotated[
    list[str] | None,
    typer.Option(
        "--class-map",
        metavar="FILE",
        help="Map of the teacher's classes to those of the data set: a JSON list or a line for "
        "each class, with numbers or synsets; several are summed. For all teachers, or for each.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1, cpu; default: a GPU.")]
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pdf")
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Use untrained weights, for speed trials.")
]


def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the data set to.")],
) -> None:
    """Write the embedded real data set as WebDataset shards and train its teacher."""
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise UsageError("the embedded data needs scikit-learn: pip install 'kdcache[demo]'.")
    from cache_tools.storage import atomic
    from pipeline import demo as embedded

    teacher = folder / "teacher-model"
    atomic.sweep(folder)
    if not embedded.is_whole(folder, "_info.json", "_info.json", "digits-"):
        embedded.write_shards(folder)
    if not embedded.is_whole(folder, "teacher-model/config.json", "teacher-model/"):
        accuracy = embedded.train_teacher(folder, teacher)
        print(f"teacher: {embedded.TEACHER_SIZE:,} labels, top-1 {accuracy:.1f} % on 797 others")
    print(f"data set {folder}, teacher {teacher}")


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    data: Data = "",
    rate: Annotated[
        float, typer.Option(min=0, help="Views per second of the teacher, to compute the hours.")
    ] = 0.0,
    teacher: Teachers = None,
    teacher_weight: Weights = None,
    architecture: Architectures = None,
    class_map: ClassMaps = None,
    device: Device = None,
    random_weights: RandomWeights = False,
    json_: Json = False,
) -> None:
    """Print samples, parts, bytes, forward passes and hours of a recipe; write nothing.

    With --data and --teacher, render a few real batches and run the teacher on them to measure the
    hours on this machine, the bottleneck, and the bytes.
    """
    from pipeline import recipe as recipes
    from pipeline.planning import plan as planner

    loaded = recipes.load(recipe, overrides or ())
    images = measured = None
    if data:
        from cache_tools.data.open import open_images

        images = open_images(data, loaded.dataset.split)
    if teacher:
        if images is None:
            raise UsageError("measuring a teacher needs images: pass --data, too.")
        from pipeline import run

        named = teacher, teacher_weight or (), architecture or (), class_map or ()
        sources = recipes.sources(loaded, *named)
        measured = run.measure(loaded, images, sources, device, random_weights)
    classes = measured.pop("classes") if measured else 0
    facts = planner.plan(loaded, len(images) if images else 0, classes, rate, measured)
    if json_:
        emit(facts)
        return
    table(facts | {"size": f"{facts['bytes'] / 1e9:.2f} GB"})


def views(
    source: Annotated[str, typer.Argument(metavar="CACHE|RECIPE", help="A cache, or a recipe.")],
    overrides: Overrides = None,
    data: Data = "",
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="File of the sheet.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=100, help="Rows of the sheet.")] = 6,
    columns: Annotated[int, typer.Option("--views", min=1, max=50, help="Columns.")] = 5,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Pixels a side, as a student of this size is shown them; default: as the teacher.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Draw a contact sheet of the views of a cache, or of a recipe before there is one."""
    from cache_tools.report import contact_sheet
    from cache_tools.report.sheet_source import evenly_spaced
    from pipeline.planning import preview

    if out is None and not json_:
        raise UsageError("no output is chosen. Pass --out sheet.png, or --json for the parameters.")
    if out is not None and (out.is_dir() or out.suffix.lower() not in _PICTURES):
        raise UsageError(f"--out {out} is no file of a picture. Pass one such as sheet.png.")
    shown = preview.open_source(source, data, overrides or (), size or 0)
    numbers = evenly_spaced(len(shown.views.keys), samples)
    view_numbers = list(range(min(columns, shown.num_views)))
    if out is not None:
        sheet = contact_sheet.draw(shown.views, numbers, view_numbers, shown.top_classes)
        contact_sheet.save(sheet, out)
        if not json_:
            views = counted(len(view_numbers), "view")
            print(f"{out}: {views} of {counted(len(numbers), 'sample')}")
    if json_:
        drawn = [contact_sheet.facts(shown.views, n, v) for n in numbers for v in view_numbers]
        emit({"views": drawn})


def cache(
    recipe: Recipe,
    out: Annotated[str, typer.Option(metavar="CACHE", help="Folder or URL of the cache.")],
    overrides: Overrides = None,
    data: Data = "",
    teacher: Teachers = None,
    teacher_weight: Weights = None,
    architecture: Architectures = None,
    class_map: ClassMaps = None,
    device: Device = None,
    random_weights: RandomWeights = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Engine: processes on this machine, or Ray's actors."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Ray's cluster; default: $RAY_ADDRESS, one that runs here, a new one."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes or actors; default: one for each visible GPU, else one (on each node).",
        ),
    ] = None,
    task: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Make this share of --tasks, counted from 0; default: from torchrun, srun or a "
            "Slurm array.",
        ),
    ] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Number of shares.")] = None,
    parts: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="Only these parts, by their numbers in `status --missing`: 0-3,7.",
        ),
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after this many parts, as a trial: they are kept when the command is run "
            "again without it.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Go on when the teacher agrees with the labels by chance only."
        ),
    ] = False,
) -> None:
    """Stage 1: run the teacher once and store its soft targets. Run again to continue."""
    from pipeline import recipe as recipes

    loaded = recipes.load(recipe, overrides or ())
    if not data:
        raise UsageError(
            "no images are given. Pass --data with a folder of shards or images, or a URL."
        )
    named = teacher or (), teacher_weight or (), architecture or (), class_map or ()
    sources = recipes.sources(loaded, *named)
    from cache_tools.store import info
    from pipeline import api
    from pipeline.engines import launch

    numbers = info.numbers(parts) if parts else []
    if numbers is None:
        raise UsageError(
            f"--parts {parts} is invalid, expected numbers such as 0-3,7. For a share of all, pass "
            "--task and --tasks."
        )
    result = api.make_cache(
        loaded,
        data=data,
        teacher=sources,
        out=out,
        device=device,
        engine=engine,
        address=address,
        workers=workers,
        task=task,
        tasks=tasks,
        parts=numbers,
        limit=limit,
        random_weights=random_weights,
        force=force,
    )
    if launch.choose(task, tasks, by_number=bool(numbers)).is_main:
        print(
            f"{out}: {result.parts_done:,} of {counted(result.parts_total, 'part')}, "
            f"{counted(result.views, 'view')}, "
            f"{result.facts['bytes_per_view']} bytes each"
        )
