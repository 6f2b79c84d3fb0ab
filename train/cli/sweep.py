"""`kdcache sweep`: a grid of students from one cache."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cache_tools.cli.options import Json, emit
from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import launcher
from cache_tools.runtime.device import select
from cache_tools.runtime.text import counted
from cache_tools.store import info
from train.cli.options import Data, Device, Fresh, Log, Weight

if TYPE_CHECKING:
    from train.sweep.runner import Sweep

log = logging.getLogger("kdcache")


def sweep(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="Grid's name or TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Recipe keys of all students to override."),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(metavar="CACHE", help="Folder, zip or URL; several are mixed."),
    ] = None,
    weight: Weight = None,
    out: Annotated[Path | None, typer.Option(metavar="SWEEP", help="Folder of the sweep.")] = None,
    data: Data = None,
    students: Annotated[
        str, typer.Option(metavar="0-3,7", help="Only these, by their number in the grid, from 0.")
    ] = "",
    together: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most N students share a batch; 0: any.")
    ] = 0,
    memory: Annotated[
        float, typer.Option(metavar="GB", min=0, help="Memory to plan with; 0: the free memory.")
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
        typer.Option(
            "--print", help="Print a command per cohort, or a Slurm array; train nothing."
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Teacher, to time its cost in the loop; name or folder."),
    ] = None,
    log_to: Log = None,
    fresh: Fresh = False,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Train a grid of students; those on the same views share every batch.

    Run again to resume: finished students are skipped. A table, sweep.csv, sweep.json and sweep.png
    contain the results, and the cost beside a teacher in the loop.
    """
    from train.sweep import grid as grids

    named = grids.load(grid, overrides or ())
    chosen = [*range(len(named))]
    if students:
        chosen = info.numbers(students) or []
        if not chosen or chosen[-1] >= len(named):
            raise UsageError(
                f"--students {students} must be numbers such as 0-3,7, from 0 to {len(named) - 1}."
            )
    if not cache or out is None:
        raise UsageError("missing --cache and --out. Pass --cache CACHE and --out SWEEP.")
    if asha and engine != "ray":
        raise UsageError("--asha requires --engine ray.")
    if print_ is not None and (engine == "ray" or fresh):
        raise UsageError(
            "--print excludes --engine ray, which starts the cohorts itself, and --fresh, with "
            "which a restarted task would discard its results. Leave that out, or remove the "
            "results by hand."
        )
    if engine == "ray":
        from train.sweep import ray_tune

        ray_tune.check()
    import torch

    from train.data.inputs import open_inputs
    from train.sweep import runner
    from train.trainer import trackers, validate

    if (launch := launcher.find()).count > 1:
        raise UsageError(
            f"a sweep does not share a student between processes, and {launch.by} started "
            f"{launch.count}. Start one; --engine ray and --print slurm use many GPUs."
        )
    extra = tuple(log_to or ())
    trackers.check(extra)
    inputs, torch_device = open_inputs(cache, data, weight), select(torch, device)
    if print_ is None:
        validate.set_up([one.recipe for one in named], inputs, torch_device)
    whole = runner.Sweep(tuple(named), inputs, out, torch_device, extra, asha)
    mine = replace(whole, students=tuple(named[number] for number in chosen))
    if print_ is not None:
        from train.sweep import scripts

        cohorts = runner.plan(mine, fresh, memory, together)
        print(scripts.script(print_, sys.argv[1:], named, cohorts, gpu=device != "cpu"))
        return
    planned = runner.prepare(mine, fresh, memory, together)
    if engine == "ray":
        ray_tune.train(mine, planned)
    else:
        runner.train(mine, planned)
    _report(whole, teacher or [], json_)


def _report(sweep: "Sweep", teacher: list[str], json_: bool) -> None:
    """Write files and plot of all students of the grid; print the table."""
    from train import run_dir
    from train.sweep import cost, runner, table
    from train.sweep import grid as grids

    old = sweep.out / "sweep.json"
    try:
        known = (run_dir.read_json(old).get("ledger") or {}).get("teacher")
    except KdcacheError:
        known = None  # there is none, or it is damaged: it is written below
    timed = (known["seconds_per_view"], known["device"]) if known and not teacher else None
    if timed is None:
        batch = sweep.students[0].recipe.batch_size
        timed = cost.time_teacher(sweep.inputs, teacher, sweep.device, batch)
    swept, states = grids.swept(sweep.students), None
    facts: dict[str, Any] = {}
    while states != (states := [sweep.state(one) for one in sweep.students]):
        # Again if another task of an array finished meanwhile and saw this one unfinished.
        rows = runner.rows(sweep)
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
    """Write sweep.json, sweep.csv and, if there is something to draw, sweep.png."""
    from train import run_dir
    from train.sweep import plot, table

    run_dir.write_json(sweep.out / "sweep.json", facts)
    table.write_csv(facts["students"], sweep.out / "sweep.csv")
    title = (
        f"{counted(len(facts['students']), 'student')} of the teacher "
        f"{sweep.inputs.store.spec.teacher.architecture}, "
        f"{counted(len(sweep.inputs.images), 'image')}"
    )
    return plot.draw(facts["students"], facts["swept"], title, sweep.out / "sweep.png")
