"""`kdcache train`, `kdcache eval` and `kdcache export`: the life of a student."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cache_tools.cli.options import Json, emit, table
from cache_tools.errors import UsageError
from cache_tools.runtime.text import counted
from train.cli.options import Architecture, Data, Device, Fresh, Log, Overrides, Weight

if TYPE_CHECKING:
    from train.data.inputs import Inputs
    from train.export.export import Weights
    from train.recipe import Mode, TrainRecipe

log = logging.getLogger("kdcache")


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe's name or TOML file.")],
    overrides: Overrides = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CACHE",
            help="Folder, zip or URL of the cache. Several of the same views by other teachers: "
            "the soft target is the weighted mean of their probabilities.",
        ),
    ] = None,
    weight: Weight = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Folder of the run.")] = None,
    data: Data = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Train this many students, from `seed` on.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="labels", help="Also train on labels, and compare.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Teacher of mode=online, if the cache's name of it does not suffice; once per "
            "cache."
        ),
    ] = None,
    log_to: Log = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="SRC may lack samples: train on those it shares with the cache."
        ),
    ] = False,
    fresh: Fresh = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print steps, views, memory and hours, with CACHE or without one; train nothing.",
        ),
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0, help="Images per second, for the hours of --plan.")
    ] = 0.0,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Stage 2: train students on the teacher's views. Run again to resume.

    Accuracies are of centre crops that are resized once, by the mean over an area: faster than
    timm's preprocessing, which `kdcache eval` has.
    """
    from train import recipe as recipes

    loaded = recipes.load(recipe, overrides or ())
    if against not in (None, "labels"):
        raise UsageError(f"--against {against} is unknown. Pass --against labels.")
    if plan:
        _plan(recipe, loaded, cache[0] if cache else None, rate, json_)
        return
    if not cache or out is None:
        raise UsageError("missing --cache and --out. Pass --cache CACHE and --out RUN.")
    from train import api
    from train.data.inputs import open_inputs
    from train.trainer import trackers

    extra = tuple(log_to or ())
    trackers.check(extra)
    inputs = open_inputs(cache, data, weight, allow_partial)
    runs = _runs(loaded, out, seeds, against, inputs)
    results, world = api.fit_all(runs, inputs, device, teacher or (), extra, fresh)
    if not world.is_main:
        return
    if against:
        _report(results, inputs, out, json_)
    elif json_:
        emit(results[0] if len(results) == 1 else {"runs": results})
    else:
        for (folder, _), result in zip(runs, results, strict=True):
            top1 = "not measured" if result["top1"] is None else f"{result['top1']:.1f} %"
            if result["top1_ema"] is not None:
                top1 += f", EMA {result['top1_ema']:.1f} %"
            print(
                f"{folder}: {result['student']} ({result['mode']}), "
                f"{counted(result['epochs'], 'epoch')}, top-1 {top1}, "
                f"{result['images_per_second']:,.0f} images/s, "
                f"{100 * result['data_wait']:.1f} % waiting"
            )


def evaluate(
    path: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="Folder of a run; or a folder as timm saves networks, a timm name, hf-hub:…, "
            "torchvision:…, transformers:…, python:….",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SRC",
            help="Validation set: shards, class folders, or numbered folders as ImageNet-V2's; "
            "once per set. Default: the run's own.",
        ),
    ] = None,
    real: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="ReaL labels (real.json), or timm for timm's copy."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="CACHE", help="Cache for the agreement with its teacher; default: the run's."
        ),
    ] = None,
    views: Annotated[
        int, typer.Option(metavar="N", min=0, help="Compare on about N cached views; 0: on none.")
    ] = 4096,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="TEACHER", help="Run this teacher beside the student: name, folder."),
    ] = None,
    architecture: Architecture = "",
    size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side; default: the run's, timm's test size.")
    ] = None,
    crop: Annotated[
        float | None,
        typer.Option(
            help="Crop's share of the resized image; default: the run's, timm's test crop."
        ),
    ] = None,
    device: Device = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Go on when a teacher agrees with the labels by chance only."),
    ] = False,
    json_: Json = False,
) -> None:
    """Measure a student: top-1 and top-5, ReaL, calibration (ECE, 15 bins), agreement.

    Images are prepared as timm's validate.py does: test size, Pillow's filter, resize before crop.
    (Accuracies in a run's logs and result.json are of a faster crop that is resized once.)

    With a cache, the student is compared with the stored targets, on views drawn again bit for bit;
    with --teacher, that network runs on the validation images, too. Of a run with a moving average
    both students are measured.
    """
    from train import api
    from train.evaluate import table as score_table

    facts = api.evaluate(
        path,
        data=data or (),
        real=real,
        cache=cache,
        views=views,
        teacher=teacher,
        architecture=architecture,
        size=size,
        crop=crop,
        device=device,
        force=force,
    ).facts
    if json_:
        emit(facts)
    else:
        print(score_table.table(facts))


def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write.")],
    ema: Annotated[bool, typer.Option("--ema", help="Its moving average.")] = False,
    best: Annotated[bool, typer.Option("--best", help="The most accurate of all epochs.")] = False,
    architecture: Architecture = "",
    license_: Annotated[
        str, typer.Option("--license", help="Licence for the model card: apache-2.0, ….")
    ] = "",
    repo: Annotated[
        str, typer.Option("--push-to-hub", metavar="REPO", help="Upload to USER/NAME as well.")
    ] = "",
    private: Annotated[
        bool, typer.Option("--private", help="Make the uploaded repository private.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace the student there.")] = False,
    json_: Json = False,
) -> None:
    """Write a trained student for its library and the Hub: safetensors, config, model card."""
    if ema and best:
        raise UsageError("--ema and --best are two students; pass one of them.")
    if private and not repo:
        raise UsageError("--private requires --push-to-hub REPO.")
    from train.export import export as exporter

    weights: Weights = "model-ema" if ema else "model-best" if best else "model"
    student = exporter.read(run_folder, weights, architecture)
    exporter.write(student, out, license_, fresh)
    if not license_:
        log.info("the model card has license: unknown; pass --license to set one")
    opens = exporter.push(student, repo, license_, private) if repo else f"local-dir:{out}"
    if json_:
        emit({"opens": opens, "folder": str(out), **student.facts})
    else:
        print(f"{out}: {exporter.opening(student, opens)}")


def _runs(
    recipe: "TrainRecipe", out: Path, seeds: int | None, against: str | None, inputs: "Inputs"
) -> list[tuple[Path, "TrainRecipe"]]:
    """Folders and recipes of a command: one run, or one per seed and arm."""
    if seeds is None and against is None:
        return [(out, recipe)]
    if against and inputs.validation is None:
        raise UsageError(
            "there is no labelled validation split to compare the arms on. Pass --data with one, "
            "or leave out --against."
        )
    modes = ("kd", "labels") if against else (recipe.mode,)
    several = range(recipe.seed, recipe.seed + (seeds or 1))
    return [
        (out / f"{mode}-seed{seed}", replace(recipe, mode=cast("Mode", mode), seed=seed))
        for seed in several
        for mode in modes
    ]


def _plan(name: str, recipe: "TrainRecipe", cache: str | None, rate: float, json_: bool) -> None:
    """Print the size of a run; raises UsageError if the cache is too small for it."""
    from cache_tools.store.cache import Cache
    from train.trainer import plan as planner

    expected = (
        planner.of_store(Cache.open(cache))
        if cache
        else planner.of_recipe(recipe.cache_recipe or name)
    )
    facts = planner.plan(recipe, expected, rate)
    if json_:
        emit({**facts, "recipe": asdict(recipe)})
    else:
        table(facts)
        print(f"{'memory':16} {facts['resident_bytes'] / 1e9:>13.2f} GB")
    planner.check(recipe, expected.num_views)


def _report(results: list[dict[str, Any]], inputs: "Inputs", out: Path, json_: bool) -> None:
    """Compare the arms: a file, a plot and a table."""
    from train import run_dir
    from train.trainer import compare

    by_mode = {m: [r for r in results if r["mode"] == m] for m in ("kd", "labels")}
    top1 = {mode: [r["top1"] for r in runs] for mode, runs in by_mode.items()}
    seeds = [r["seed"] for r in by_mode["kd"]]
    assert inputs.validation is not None
    facts = {
        "student": results[0]["student"],
        "teacher": " + ".join(s.spec.teacher.architecture for s in inputs.members.caches),
        "transfer_images": inputs.coverage.found,
        "validation_images": len(inputs.validation),
        "cache_fingerprint": inputs.fingerprint,
    }
    result = compare.compare(top1, seeds, facts)
    run_dir.write_json(out / "comparison.json", result)
    title = f"{facts['student']} on {counted(facts['transfer_images'], 'image')}"
    compare.draw(result, title, out / "comparison.png")
    if json_:
        emit(result)
        return
    print(f"student {facts['student']}: {counted(facts['transfer_images'], 'training image')}")
    print(compare.table(result))
    print(f"picture: {out / 'comparison.png'}")
