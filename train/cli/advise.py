"""`kdcache advise`: the smallest cache that suffices for a student."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cache_tools.cli.options import Json, emit
from cache_tools.errors import UsageError
from cache_tools.runtime.plugins import Plugin
from cache_tools.spec.targets import TargetSpec
from cache_tools.store.cache import Cache
from train.cli.options import Data, Device, Overrides

if TYPE_CHECKING:
    from train.recipe import Tail, TrainRecipe

TARGETS: Plugin[Callable[[str], TargetSpec]] = Plugin(
    "kdcache.plans", "targets", "read a recipe of stage 1"
)
_ANY_STUDENT = {"student": "resnet18", "epochs": 1}
"""Keys without a default, which no gradient depends on."""
_OF_LOGITS = ("--probabilities", "--rows")
_OF_RECOMPUTE = ("--data", "--teacher", "--class-map", "--device")
_ROWS = 400


def advise(
    source: Annotated[
        str, typer.Argument(metavar="CACHE|RECIPE", help="A cache, or a recipe of stage 1.")
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="The student's recipe; default: kd at T = 1.")
    ] = "",
    logits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Dense logits: .npy, .npz or .safetensors."),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="FILE has probabilities.")
    ] = False,
    rows: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Rows of FILE, spread evenly; default: 400."),
    ] = None,
    recompute: Annotated[
        int, typer.Option(metavar="N", min=0, help="Run the teacher of CACHE on N of its views.")
    ] = 0,
    data: Data = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Teacher to run, where its name alone does not find it; repeatable."),
    ] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="The teacher's class map, if it has one; repeatable."),
    ] = None,
    tau: Annotated[
        list[float] | None,
        typer.Option(min=0, max=0.99, help="Thresholds to try; repeatable. 0: a fixed K."),
    ] = None,
    k_max: Annotated[
        list[int] | None, typer.Option(min=1, max=65_534, help="Most classes kept; repeatable.")
    ] = None,
    levels: Annotated[
        list[int] | None,
        typer.Option(min=7, max=254, help="Steps of the scale of probabilities; repeatable."),
    ] = None,
    tail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAIL", help="Of uniform, bucket, zero: to try with loss=kd; repeatable."
        ),
    ] = None,
    error: Annotated[
        float, typer.Option(min=0, help="Largest relative error of the gradient.")
    ] = 0.1,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="Picture to write.")] = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Measure how small a cache may be for a student's temperature and loss.

    Gradients of the loss from sparse targets (through the codec) are compared with those from all
    classes, for a grid of sparsities, beside the compressed bytes of a view. KEY=VALUE are keys of
    the student's recipe: temperature, temperature_end, loss, tail, top_k, batch_size, ….
    """
    if (logits is None) == (not recompute):
        raise UsageError("pass --logits FILE, or --recompute N with the images: one of them.")
    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out} is no PNG. Pass one such as advice.png.")
    is_recipe = source.endswith(".toml") or ("://" not in source and not Path(source).exists())
    if is_recipe and logits is None:
        raise UsageError(f"{source} is no cache, whose teacher can run again. Pass --logits FILE.")
    _check_options(logits is not None, {
        "--probabilities": probabilities, "--rows": rows, "--data": data, "--teacher": teacher,
        "--class-map": class_map, "--device": device,
    })  # fmt: skip
    from train import recipe as recipes
    from train.advise import gradients, picture, sample
    from train.advise import grid as grids

    student = recipes.load(recipe or _ANY_STUDENT, overrides or ())
    _check_student(student, tail or ())
    store = None if is_recipe else Cache.open(source)
    own = TARGETS.load()(source) if store is None else store.spec.targets
    if logits is not None:
        found = sample.of_file(logits, rows or _ROWS, probabilities)
    else:
        assert store is not None
        options = teacher or [], class_map or [], device
        found = sample.of_cache(store, recompute, data, *options)
    classes = found.logits_BC.shape[1]
    if store is not None and store.spec.teacher.num_classes != classes:
        raise UsageError(
            f"{logits} has {classes} classes, {store.name} has {store.spec.teacher.num_classes}. "
            "Pass logits of the teacher of this cache."
        )
    tails = cast("list[Tail] | None", tail) or grids.TAILS
    grid = grids.Grid(tau or grids.TAUS, k_max or grids.K_MAX, levels or grids.LEVELS, tails)
    measured = grids.measure(found, student, own, grid)
    best = grids.cheapest(measured, error)
    hottest = gradients.temperature(student)
    loss = f"{student.loss} at T = {hottest:g}"
    if json_:
        facts: dict[str, Any] = {"views": len(found.row_B), "of": found.of, "classes": classes}
        facts |= {"loss": student.loss, "temperature": hottest, "limit": error}
        facts["bytes"] = "measured" if grids.is_measured(found) else "estimated"
        facts |= {"settings": [row.facts for row in measured], "cheapest": best and best.facts}
        emit(facts)
    else:
        print(
            f"{len(found.row_B):,} of {found.of:,} views, spread evenly; {classes:,} classes; "
            f"{loss}; relative error / cosine of the gradient"
        )
        if not grids.is_measured(found):
            print(f"bytes are estimates: fewer than {grids.ENOUGH} samples")
        print(picture.table(measured, best))
        print(
            f"no setting has an error of at most {error:g}: pass a larger --k-max or --error"
            if best is None
            else f"cheapest with an error of at most {error:g}: {best.keys}"
        )
    if out is not None:
        title = f"{loss}, {classes:,} classes, {len(found.row_B):,} views"
        drawn = picture.draw(measured, best, error, title, out)
        if drawn and not json_:
            print(f"picture: {out}")


def _check_options(of_file: bool, given: Mapping[str, object]) -> None:
    """Raise UsageError for an option of the other source of logits."""
    if odd := [name for name in (_OF_RECOMPUTE if of_file else _OF_LOGITS) if given[name]]:
        ways = "--logits FILE", "--recompute N"
        here, there = ways if of_file else ways[::-1]
        raise UsageError(f"{odd[0]} goes with {there}, not with {here}. Leave it out.")


def _check_student(student: "TrainRecipe", tails: Sequence[str]) -> None:
    """Raise UsageError for a student without soft targets, or tails that its loss has not."""
    from train.advise.grid import TAILS

    if student.mode == "labels":
        raise UsageError("mode=labels trains without soft targets, so that no cache is too small.")
    if unknown := [name for name in tails if name not in TAILS]:
        raise UsageError(f"--tail {unknown[0]} is unknown. Pass {', '.join(TAILS)}.")
    if student.loss != "kd" and (others := [name for name in tails if name != "uniform"]):
        raise UsageError(
            f"--tail {others[0]} goes with loss=kd only, this student has loss={student.loss}. "
            "Leave it out."
        )
