"""`kdcache sweep`: a grid of students from one cache."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cache_tools.cli.cache import DataCache, Json, emit
from cache_tools.errors import UsageError
from cache_tools.store import info
from train.cli.train import Device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.sweep.grid import Student
    from train.sweep.runner import Sweep

log = logging.getLogger("kdcache")


def sweep(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="Grid's name or TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys of all students to override."),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(metavar="CACHE", help="Folder, zip or URL; several are mixed."),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(metavar="W", help="How much each cache counts; default: alike."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="SWEEP", help="Folder of the sweep.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SRC", help="Its images; default: where the cache was made from."),
    ] = None,
    data_cache: DataCache = "",
    students: Annotated[
        str,
        typer.Option(metavar="0-3,7", help="Only these, by their place in the grid from 0 on."),
    ] = "",
    together: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most N students share a batch; 0: any.")
    ] = 0,
    memory: Annotated[
        float, typer.Option(metavar="GB", min=0, help="Memory to plan with; 0: what is free.")
    ] = 0.0,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Cohorts one after another here, or as trials of Ray Tune."),
    ] = "local",
    asha: Annotated[
        bool, typer.Option("--asha", help="With ray: stop cohorts that fall behind (ASHA).")
    ] = False,
    print_: Annotated[
        Literal["commands", "slurm"] | None,
        typer.Option("--print", help="Print a command per cohort, or a Slurm array; do nothing."),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="The teacher, to time what it would cost in the loop; name or folder."),
    ] = None,
    log_to: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="wandb", help="Log to W&B too; JSONL, TensorBoard always."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew what is there.")] = False,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Train a grid of students; those that see the same views share every batch.

    Run again to go on: finished students are skipped. A table, sweep.csv, sweep.json and sweep.png
    say what was found and what it cost beside a teacher in the loop.
    """
    from train.sweep import grid as grids

    named = grids.load(grid, overrides or ())
    chosen = _chosen(named, students)
    if not cache or out is None:
        raise UsageError("from which cache, and where to? Pass --cache CACHE and --out SWEEP.")
    if asha and engine != "ray":
        raise UsageError("--asha goes with --engine ray.")
    if print_ is not None and (engine == "ray" or fresh):
        raise UsageError(
            "--print is for other machines than --engine ray's, and not for --fresh: a task that "
            "is started again would begin anew. Leave that out, or remove what is to begin anew."
        )
    if engine == "ray":
        from train.sweep import ray_tune

        ray_tune.check()
    from timm.utils.distributed import is_distributed_env

    from train.data.inputs import open_inputs
    from train.distributed import pick
    from train.sweep import runner as sweeps
    from train.trainer import trackers, validate

    if is_distributed_env():
        raise UsageError(
            "a sweep does not share a student between processes, and torchrun or Slurm started "
            "several. Start one; --engine ray and --print slurm use many GPUs."
        )
    also = tuple(log_to or ())
    trackers.check(also)
    inputs, where = open_inputs(cache, data, weight), pick(device)
    if print_ is None:
        validate.set_up(inputs, where)
    everything = sweeps.Sweep(tuple(named), inputs, out, where, also, asha)
    mine = replace(everything, students=tuple(chosen))
    if print_ is not None:
        from train.sweep import scripts

        cohorts = sweeps.plan(mine, fresh, memory, together)
        print(scripts.script(print_, sys.argv[1:], named, cohorts, gpu=device != "cpu"))
        return
    planned = sweeps.prepare(mine, fresh, memory, together)
    if engine == "ray":
        ray_tune.train(mine, planned)
    else:
        sweeps.train(mine, planned)
    _report(everything, teacher or [], json_)


def _chosen(named: "Sequence[Student]", numbers: str) -> "list[Student]":
    if not numbers:
        return list(named)
    wanted = info.numbers(numbers)
    if wanted is None or wanted[-1] >= len(named):
        raise UsageError(
            f"--students {numbers} are no numbers such as 0-3,7, from 0 to {len(named) - 1}."
        )
    return [named[number] for number in wanted]


def _report(sweep: "Sweep", teacher: list[str], json_: bool) -> None:
    """Files, picture and table of all students of the grid."""
    from train import run_dir
    from train.sweep import cost, table
    from train.sweep import grid as grids
    from train.sweep import runner as sweeps

    there = sweep.out / "sweep.json"
    known = run_dir.read_json(there).get("ledger", {}).get("teacher") if there.is_file() else None
    timed = (known["seconds_per_view"], known["device"]) if known and not teacher else None
    if timed is None:
        batch = sweep.students[0].recipe.batch_size
        timed = cost.time_teacher(sweep.inputs, teacher, sweep.device, batch)
    swept, states = grids.swept(sweep.students), None
    facts: dict[str, Any] = {}
    while states != (states := [sweep.state(one) for one in sweep.students]):
        # again where another task of an array has finished meanwhile, and has seen us unfinished
        rows = sweeps.rows(sweep)
        facts = {
            "cache_fingerprint": sweep.inputs.fingerprint,
            "swept": swept,
            "students": rows,
            "ledger": cost.sweep_cost(sweep, rows, *(timed or (None,))),
        }
        drawn = _write(sweep, facts)
    if json_:
        emit(facts)
        return
    print(table.table(facts["students"], swept))
    print("\n".join(cost.lines(facts["ledger"])))
    if drawn:
        print(f"picture: {sweep.out / 'sweep.png'}")


def _write(sweep: "Sweep", facts: dict[str, Any]) -> bool:
    """Write sweep.json, sweep.csv and, where there is something to draw, sweep.png."""
    from train import run_dir
    from train.sweep import plot, table

    run_dir.write_json(sweep.out / "sweep.json", facts)
    table.write_csv(facts["students"], sweep.out / "sweep.csv")
    title = (
        f"{len(facts['students'])} students of the teacher "
        f"{sweep.inputs.store.spec.teacher.architecture}, {len(sweep.inputs.images):,} images"
    )
    return plot.draw(facts["students"], facts["swept"], title, sweep.out / "sweep.png")
