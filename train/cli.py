"""`kdcache train` and `kdcache eval`: the commands of stage 2."""

import logging
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cache_tools.commands import Json, emit
from cache_tools.errors import UsageError

if TYPE_CHECKING:
    import torch

    from train.recipe import Mode, TrainRecipe
    from train.run import Inputs
    from train.world import World

log = logging.getLogger("kdcache")
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1, cpu; default: a GPU if any.")]


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe's name or TOML file.")],
    cache: Annotated[Path, typer.Option(metavar="CACHE", help="Folder of the cache.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SRC", help="Its images; default: where the cache was made from."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Train this many students, from `seed` on.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="labels", help="Also train on labels, and compare.")
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="The teacher of mode=online, where its name does not find it.")
    ] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew what is there.")] = False,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Stage 2: train students on the very views the teacher saw. Run again to go on."""
    from train import recipe as recipes

    loaded = recipes.load(recipe, overrides or ())
    if against not in (None, "labels"):
        raise UsageError(f"--against {against} is not known; it can be: labels.")
    from train import factory, loop, replay, run
    from train.world import join, leave

    inputs = run.open_inputs(cache, data)
    world, where = join(device)
    _set_up(inputs, where, world)
    factory.check(loaded, inputs.num_classes)
    if seeds is None and against is None:
        results = [(out, loaded)]
    else:
        modes = ("kd", "labels") if against else (loaded.mode,)
        several = range(loaded.seed, loaded.seed + (seeds or 1))
        results = [
            (out / f"{mode}-seed{seed}", replace(loaded, mode=cast("Mode", mode), seed=seed))
            for seed in several
            for mode in modes
        ]
    if any(_wants_labels(item) for _, item in results):
        _need_labels(inputs)
    there = [run.begin(*one, inputs, fresh) if world.first else None for one in results]
    begun = [(*one, result) for one, result in zip(results, world.of_first(there), strict=True)]
    if any(result is None for _, _, result in begun):
        replay.check(inputs.store, inputs.images)
    online = any(item.mode == "online" and result is None for _, item, result in begun)
    ask = _teacher(inputs, teacher, where) if online else None
    done = []
    for folder, item, result in begun:
        if result is not None:
            log.info("%s is finished; --fresh would train it anew", folder)
        done.append(result or loop.train(item, inputs, folder, where, ask, world))
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
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    data: Annotated[
        str | None, typer.Option(metavar="SRC", help="Data set; default: the run's own.")
    ] = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Measure a trained student on the validation split."""
    from train import measure

    facts = measure.measure(run_folder, data, device)
    if json_:
        emit(facts)
    else:
        for name, value in facts.items():
            print(f"{name:12} {value}")


def _teacher(inputs: "Inputs", name: str, device: "torch.device") -> Any:
    """The teacher in the loop, from whichever package offers one."""
    found = entry_points(group="kdcache.teachers", name="online")
    if not found:
        raise UsageError("nothing is installed that runs a teacher. Install kdcache as a whole.")
    return next(iter(found)).load()(inputs.store, name, device)


def _set_up(inputs: "Inputs", where: "torch.device", world: "World") -> None:
    import torch

    from cache_tools import threads

    if not world.first:
        log.setLevel(logging.ERROR)
    if where.type == "cpu":
        count, why = threads.for_torch(inputs.store.spec.views.size)
        torch.set_num_threads(count)
        log.info("%s", why)
    if inputs.validation is None:
        log.info("no labelled validation split of the teacher's classes: top1 will be null")


def _wants_labels(recipe: "TrainRecipe") -> bool:
    """Whether a run cannot do without labels."""
    weights = recipe.task_loss_weight, recipe.task_loss_weight_end
    return recipe.mode == "labels" or recipe.loss == "dkd" or max(weights) > 0


def _need_labels(inputs: "Inputs") -> None:
    if not inputs.store.spec.dataset.labels:
        raise UsageError(
            f"{inputs.store.name} has no labels (its recipe says dataset.labels=ignore), so "
            "mode=labels, task_loss_weight and loss=dkd cannot be. Train with mode=kd."
        )


def _report(done: list[dict[str, Any]], inputs: "Inputs", out: Path, json_: bool) -> None:
    """Compare the arms: a file, a picture and a table."""
    from train import compare, run

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
        "teacher": inputs.store.spec.teacher.architecture,
        "transfer_images": len(inputs.images),
        "validation_images": len(inputs.validation),
        "cache_fingerprint": inputs.store.spec.fingerprint,
    }
    result = compare.compare(arms["kd"], arms["labels"], seeds, facts)
    run.write_json(out / "comparison.json", result)
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
