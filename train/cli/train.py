"""`kdcache train` and `kdcache eval`: the commands of stage 2."""

import logging
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cache_tools.cli.cache import DataCache, Json, emit, table
from cache_tools.errors import UsageError

if TYPE_CHECKING:
    import torch

    from train.data.inputs import Inputs
    from train.recipe import Mode, TrainRecipe

log = logging.getLogger("kdcache")
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1, cpu; default: a GPU if any.")]


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe's name or TOML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override.")
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CACHE",
            help="Folder, zip or URL of the cache. Several of the same views by other teachers: "
            "the student learns from the weighted mean of their probabilities.",
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(metavar="W", help="How much each cache counts; default: alike."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Folder of the run.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SRC", help="Its images; default: where the cache was made from."),
    ] = None,
    data_cache: DataCache = "",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Train this many students, from `seed` on.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="labels", help="Also train on labels, and compare.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="The teacher of mode=online, where its name does not find it; of several each."
        ),
    ] = None,
    log_to: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="wandb", help="Log to W&B too; JSONL, TensorBoard always."),
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="SRC may lack samples: train on those it shares with the cache."
        ),
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew what is there.")] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print steps, views, memory and hours, of CACHE or before there is one; train "
            "nothing.",
        ),
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0, help="Images per second, for the hours of --plan.")
    ] = 0.0,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Stage 2: train students on the very views the teacher saw. Run again to go on."""
    from train import recipe as recipes

    loaded = recipes.load(recipe, overrides or ())
    if against not in (None, "labels"):
        raise UsageError(f"--against {against} is not known; it can be: labels.")
    if plan:
        _plan(recipe, loaded, cache[0] if cache else None, rate, json_)
        return
    if not cache or out is None:
        raise UsageError("from which cache, and where to? Pass --cache CACHE and --out RUN.")
    from train import run_dir
    from train.data import native_loader
    from train.data.inputs import open_inputs
    from train.distributed import join, leave
    from train.trainer import loop, trackers, validate

    also = tuple(log_to or ())
    trackers.check(also)
    inputs = open_inputs(cache, data, weight, allow_partial)
    world, where = join(device)
    validate.set_up(inputs, where, world)
    results = _runs(loaded, out, seeds, against)
    validate.check([item for _, item in results], inputs)
    there = [run_dir.init_run(*one, inputs, fresh) if world.first else None for one in results]
    begun = [(*one, result) for one, result in zip(results, world.of_first(there), strict=True)]
    if any(result is None for _, _, result in begun):
        native_loader.check_all(inputs.members, inputs.images, inputs.present_N)
    online = any(item.mode == "online" and result is None for _, item, result in begun)
    ask = _teacher(inputs, teacher or [], where) if online else None
    done = []
    for folder, item, result in begun:
        if result is not None:
            log.info("%s is finished; --fresh would train it anew", folder)
        done.append(result or loop.train(item, inputs, folder, where, ask, world, also))
    leave()
    if not world.first:
        return
    if against:
        _report(done, inputs, out, json_)
    elif json_:
        emit(done[0] if len(done) == 1 else {"runs": done})
    else:
        for (folder, _), result in zip(results, done, strict=True):
            _print(folder, result)


def evaluate(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="Folder of a run; or a folder as timm saves networks, a timm name, hf-hub:….",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SRC",
            help="Validation set: shards, class folders, or numbered folders as ImageNet-V2's. May "
            "be given several times. Default: the run's own.",
        ),
    ] = None,
    data_cache: DataCache = "",
    real: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="ReaL labels (real.json), or timm for its copy."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="CACHE", help="Agreement with its teacher; default: the run's own."),
    ] = None,
    views: Annotated[
        int, typer.Option(metavar="N", min=0, help="Look at about N cached views; 0: at none.")
    ] = 4096,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="TEACHER", help="Run this teacher beside the student: name, folder."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side; default: as it was trained.")
    ] = None,
    crop: Annotated[
        float | None, typer.Option(help="Share of the shorter side; default: as it was trained.")
    ] = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Measure a student: top-1 and top-5, ReaL, calibration (ECE, 15 bins), and its teacher.

    With a cache, the student is held against what is stored of the teacher, on views drawn again
    bit for bit; with --teacher, that network sees the validation pictures, too. A run that keeps a
    moving average has both students measured.
    """
    if crop is not None and not 0 < crop <= 1:
        raise UsageError(f"--crop {crop} is no share: it must be above 0 and at most 1.")
    from train.distributed import pick
    from train.evaluate import evaluate as measure
    from train.evaluate import table as scoreboard
    from train.evaluate.models import EvalOptions

    request = measure.EvalRequest(tuple(data or ()), real, cache, views, teacher)
    facts = measure.measure(subject, request, EvalOptions(pick(device), size, crop))
    if json_:
        emit(facts)
    else:
        print(scoreboard.table(facts))


def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the student goes.")],
    ema: Annotated[bool, typer.Option("--ema", help="Its moving average.")] = False,
    best: Annotated[bool, typer.Option("--best", help="The most accurate of all epochs.")] = False,
    license_: Annotated[
        str, typer.Option("--license", help="Licence that the model card names: apache-2.0, ….")
    ] = "",
    repo: Annotated[
        str, typer.Option("--push-to-hub", metavar="REPO", help="Upload to USER/NAME as well.")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Make that a private one.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace the student there.")] = False,
    json_: Json = False,
) -> None:
    """Write a trained student for timm and the Hub: safetensors, config, model card."""
    if ema and best:
        raise UsageError("--ema and --best are two students; pass one of them.")
    if private and not repo:
        raise UsageError("--private goes with --push-to-hub REPO.")
    from train.export import export as exporter

    student = exporter.read(run_folder, "model-ema" if ema else "model-best" if best else "model")
    exporter.write(student, out, license_, fresh)
    if not license_:
        log.info("the model card says license: unknown; --license names one")
    opens = exporter.push(student, repo, license_, private) if repo else f"local-dir:{out}"
    if json_:
        emit({"opens": opens, "folder": str(out), **student.facts})
    else:
        print(f'{out}: timm.create_model("{opens}", pretrained=True)')


def _runs(
    recipe: "TrainRecipe", out: Path, seeds: int | None, against: str | None
) -> list[tuple[Path, "TrainRecipe"]]:
    """The runs that a command asks for: one, or one per seed and arm."""
    if seeds is None and against is None:
        return [(out, recipe)]
    modes = ("kd", "labels") if against else (recipe.mode,)
    several = range(recipe.seed, recipe.seed + (seeds or 1))
    return [
        (out / f"{mode}-seed{seed}", replace(recipe, mode=cast("Mode", mode), seed=seed))
        for seed in several
        for mode in modes
    ]


def _plan(name: str, recipe: "TrainRecipe", cache: str | None, rate: float, json_: bool) -> None:
    """Print the size of a run; UsageError when the cache is too small for it."""
    from cache_tools.store.cache import Cache
    from train.trainer import plan as planner

    expected = (
        planner.of_store(Cache.open(cache))
        if cache
        else planner.of_recipe(recipe.cache_recipe or name)
    )
    facts = planner.plan(recipe, expected, rate)
    if json_:
        emit(facts)
    else:
        table(facts)
        print(f"{'memory':16} {facts['resident_bytes'] / 1e9:>13.2f} GB")
    planner.check(recipe, expected.num_views)


def _teacher(inputs: "Inputs", names: list[str], device: "torch.device") -> Any:
    """The teacher in the loop, from whichever package offers one."""
    found = entry_points(group="kdcache.teachers", name="online")
    if not found:
        raise UsageError("nothing is installed that runs a teacher. Install kdcache as a whole.")
    return next(iter(found)).load()(inputs.store, names, device)


def _report(done: list[dict[str, Any]], inputs: "Inputs", out: Path, json_: bool) -> None:
    """Compare the arms: a file, a picture and a table."""
    from train import run_dir
    from train.trainer import compare

    by_mode = {m: [r for r in done if r["mode"] == m] for m in ("kd", "labels")}
    if any(r["top1"] is None for r in done):
        raise UsageError("there is no labelled validation split to compare on; nothing to report.")
    arms = {
        m: compare.Arm(cast("Mode", m), tuple(r["top1"] for r in rs)) for m, rs in by_mode.items()
    }
    seeds = [r["seed"] for r in by_mode["kd"]]
    assert inputs.validation is not None
    facts = {
        "student": done[0]["student"],
        "teacher": " + ".join(s.spec.teacher.architecture for s in inputs.members.stores),
        "transfer_images": inputs.coverage.found,
        "validation_images": len(inputs.validation),
        "cache_fingerprint": inputs.fingerprint,
    }
    result = compare.compare(arms["kd"], arms["labels"], seeds, facts)
    run_dir.write_json(out / "comparison.json", result)
    title = f"{facts['student']} on {facts['transfer_images']:,} images"
    compare.draw(result, title, out / "comparison.png")
    if json_:
        emit(result)
        return
    print(f"student {facts['student']}: {facts['transfer_images']:,} training images")
    print(compare.table(result))
    print(f"picture: {out / 'comparison.png'}")


def _print(folder: Path, result: dict[str, Any]) -> None:
    top1 = "top-1 not measured" if result["top1"] is None else f"top-1 {result['top1']:.1f} %"
    if result["top1_ema"] is not None:
        top1 += f", EMA {result['top1_ema']:.1f} %"
    print(
        f"{folder}: {result['student']} ({result['mode']}), {result['epochs']} epochs, {top1}, "
        f"{result['images_per_second']:,.0f} images/s, {100 * result['data_wait']:.1f} % waiting"
    )
