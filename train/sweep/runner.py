"""Many students from one cache: those that see the same views share every batch.

    SWEEP/test_vit,temperature=4/   a run as of `kdcache train`, with up to three files more:
        need.json                   measured memory and time of the student on its device
        failed.json                 the error, if its loss became NaN or Inf
        stopped.json                present if ASHA stopped it; without ASHA it resumes
    SWEEP/sweep.json, sweep.csv     a row for each student, and the cost of the sweep
    SWEEP/sweep.png                 plots of them

A run with a result is never trained again; one that has begun resumes from its checkpoint, in any
cohort; one that diverged is left as it is, since it would diverge again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_tools.errors import NonFinite, UsageError
from cache_tools.runtime import progress
from cache_tools.runtime.device_memory import is_out_of_memory, too_small
from cache_tools.runtime.signals import StopRequest
from cache_tools.runtime.text import counted
from cache_tools.spec.canonical import canonical_json
from train import run_dir, run_state
from train.data import create_loader
from train.data.inputs import Inputs, check_inputs
from train.recipe import TrainRecipe
from train.run_state import FAILED, STOPPED, State
from train.sweep import cohorts, grid
from train.sweep.cohorts import MemoryEstimate
from train.sweep.grid import Student
from train.trainer import loop, validate
from train.trainer.loop import OnEpoch

log = logging.getLogger("kdcache")
NEED, MEASURED = "need.json", "measured"
"""File of a student's estimate, and its key with the values that were measured."""


@dataclass(frozen=True)
class Sweep:
    """Students with their inputs, folder and device."""

    students: tuple[Student, ...]
    """Students to train."""
    inputs: Inputs
    """Caches and data."""
    out: Path
    """Folder of the sweep."""
    device: torch.device
    """Device of this process."""
    trackers: tuple[str, ...] = ()
    """Trackers beside JSONL and TensorBoard."""
    asha: bool = False
    """True if students that fall behind are stopped early and not resumed."""

    def folder(self, student: Student) -> Path:
        """Folder of its run."""
        return self.out / student.name

    def state(self, student: Student) -> State:
        """State of its run."""
        return run_state.of(self.folder(student))

    @property
    def todo(self) -> list[Student]:
        """Students still to train."""
        unfinished = ("begun", "new") if self.asha else ("begun", "new", "stopped")
        return [one for one in self.students if self.state(one) in unfinished]


def plan(
    sweep: Sweep, fresh: bool = False, gigabytes: float = 0.0, max_students: int = 0
) -> list[list[Student]]:
    """Group the students still to train into cohorts; writes nothing.

    `fresh` trains existing students anew; `gigabytes` of 0: a share of what is free.

    Raises:
        UsageError: A student is impossible, or does not fit.
    """
    return _plan(sweep, fresh, gigabytes, max_students)[0]


def prepare(
    sweep: Sweep, fresh: bool = False, gigabytes: float = 0.0, max_students: int = 0
) -> list[list[Student]]:
    """Plan, check cache and images, and create the folders; arguments as of `plan`.

    Raises:
        UsageError: Also if the folder of a student contains another run.
        CacheIncomplete, CacheDamaged, CacheMismatch: The cache is not whole, or of other images.
    """
    planned, estimates = _plan(sweep, fresh, gigabytes, max_students)
    if not all(student.recipe.follow for cohort in planned for student in cohort):
        check_inputs(sweep.inputs)
    for student in sweep.students:
        run_dir.init_run(sweep.folder(student), student.recipe, sweep.inputs, fresh)
        if student.name in estimates:
            facts = estimates[student.name].to_json()
            facts[MEASURED] = _measured(student.recipe, sweep.inputs)
            run_dir.write_json(sweep.folder(student) / NEED, facts)
    _log_plan(sweep, planned)
    return planned


def _plan(
    sweep: Sweep, fresh: bool, gigabytes: float, max_students: int
) -> tuple[list[list[Student]], dict[str, MemoryEstimate]]:
    if online := [one.name for one in sweep.students if one.recipe.mode == "online"]:
        raise UsageError(
            f"a sweep trains from the cache, and {online[0]} has mode=online, a teacher in the "
            "loop. Train it by itself: kdcache train … mode=online."
        )
    other = {"config.json": "a run", "zarr.json": "a cache"}
    found = [what for name, what in other.items() if (sweep.out / name).is_file()]
    if found or (sweep.out.exists() and not sweep.out.is_dir()):
        what = (found or ["a file"])[0]
        raise UsageError(f"{sweep.out} is {what}. Choose another --out for a sweep.")
    validate.check([student.recipe for student in sweep.students], sweep.inputs)
    todo = list(sweep.students) if fresh else sweep.todo
    estimates = _estimates(sweep, todo, fresh)
    budget, own = cohorts.budget(sweep.device, gigabytes), sweep.inputs.store.spec.views.size
    single = _of_one_size(sweep, todo)
    planned = cohorts.group(todo, estimates, budget, own, max_students, single)
    if why := cohorts.decoded_apart(todo, own, single):
        log.info("%s", why)
    return planned, estimates


def _of_one_size(sweep: Sweep, students: Sequence[Student]) -> frozenset[str]:
    """Names of students of several sizes whose loader makes views of one size."""
    inputs, recipes = sweep.inputs, {one.name: one.recipe for one in students}
    if len(cohorts.sizes_of(students, inputs.store.spec.views.size)) < 2:
        return frozenset()

    def compiled(recipe: TrainRecipe) -> bool:
        if recipe.loader != "auto":
            return recipe.loader == "ffcv"
        views = len(inputs.images) * recipe.views_shown
        return create_loader.choose(recipe, inputs.images, inputs.store.spec, views)[0] == "ffcv"

    return frozenset(name for name, recipe in recipes.items() if compiled(recipe))


def train(sweep: Sweep, planned: Sequence[Sequence[Student]]) -> None:
    """Train cohort after cohort in this process.

    Raises:
        KeyboardInterrupt: A signal came; the checkpoints are written.
    """
    with StopRequest() as stop:
        for number, cohort in enumerate(planned, 1):
            if stop.requested:
                raise KeyboardInterrupt
            names = [student.name for student in cohort]
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            place = f"cohort {number} of {len(planned)}"
            sizes = cohorts.sizes_of(cohort, sweep.inputs.store.spec.views.size)
            of = f" ({', '.join(map(str, sizes))} px of one decode)" if len(sizes) > 1 else ""
            log.info("%s%s: %s%s", place, of, ", ".join(names[:6]), more)
            train_cohort(sweep, cohort, stop=stop, place=place)


def train_cohort(
    sweep: Sweep,
    cohort: Sequence[Student],
    on_epoch: OnEpoch | None = None,
    stop: StopRequest | None = None,
    place: str = "",
) -> None:
    """Train the unfinished students of a cohort; in halves if memory does not suffice.

    `place` is which cohort of how many, for the progress bar.
    """
    unfinished = sweep.todo
    todo = [one for one in cohort if one in unfinished]
    if not todo:
        return
    runs = [(sweep.folder(student), student.recipe) for student in todo]
    try:
        results = loop.train_cohort(
            runs,
            sweep.inputs,
            sweep.device,
            trackers=sweep.trackers,
            on_epoch=on_epoch,
            stop=stop,
            place=place,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        results = None
        if len(todo) == 1:
            raise too_small(todo[0].name, error) from None
    if results is None:  # outside of the handler, which keeps the failed attempt's memory
        if sweep.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(todo) // 2
        log.warning("out of memory: training these %d students in two cohorts", len(todo))
        train_cohort(sweep, todo[:half], on_epoch, stop, place)
        train_cohort(sweep, todo[half:], on_epoch, stop, place)
        return
    for student, result in zip(todo, results, strict=True):
        if isinstance(result, NonFinite):
            log.warning("%s has left the sweep: %s", student.name, result)
            facts = {"kind": result.kind, "error": str(result)}
            run_dir.write_json(sweep.folder(student) / FAILED, facts)


def mark_stopped(sweep: Sweep, student: Student) -> None:
    """Record that ASHA stopped a student, which only a run without ASHA resumes."""
    why = "it fell behind at an epoch where ASHA compares students"
    run_dir.write_json(sweep.folder(student) / STOPPED, {"kind": "Stopped", "error": why})


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Facts of each student: its values, its measurements and, when finished, its result."""
    keys = [*grid.swept(sweep.students), "student", "epochs", "seed"]
    of_result = ("top1", "top1_ema", "top1_best", "loss", "parameters", "cost_seconds", "images")
    found = []
    for student in sweep.students:
        folder, state = sweep.folder(student), sweep.state(student)
        row: dict[str, Any] = {"name": student.name, "state": state}
        row |= {key: grid.plain(student.recipe.value(key)) for key in keys}
        if (folder / NEED).is_file():
            estimate = run_dir.read_json(folder / NEED)
            row |= {key: estimate[key] for key in ("parameters", "images_per_second")}
        if state == "finished":
            result = run_dir.read_json(folder / "result.json")
            row |= {key: result[key] for key in of_result}
            row["accuracy"] = row["top1"] if row["top1_ema"] is None else row["top1_ema"]
        found.append(row)
    return found


def _measured(recipe: TrainRecipe, inputs: Inputs) -> dict[str, Any]:
    """Values that decide memory and time of a student."""
    names = "student", "student_kwargs", "grad_checkpointing", "opt", "opt_kwargs", "precision"
    size, batch_size = recipe.largest(inputs.store.spec.views.size)
    values = {name: recipe.value(name) for name in names}
    values |= {"size": size, "batch_size": batch_size, "num_classes": inputs.num_classes}
    return values | {"moving_average": bool(recipe.model_ema_decay)}


def _estimates(sweep: Sweep, students: Sequence[Student], fresh: bool) -> dict[str, MemoryEstimate]:
    """Estimates of earlier runs on this device, or new measurements; of equal students once.

    An estimate of kdcache 0.1 does not name the values that were measured: they are those of the
    run, which `fresh` may replace by another one.
    """
    own, classes = sweep.inputs.store.spec.views.size, sweep.inputs.num_classes
    estimates: dict[str, MemoryEstimate] = {}
    alike: dict[bytes, MemoryEstimate] = {}
    with progress.bar("measure the students", len(students), "students", even=False) as advance:
        for student in students:
            r, path = student.recipe, sweep.folder(student) / NEED
            key = canonical_json(values := _measured(r, sweep.inputs))
            if key not in alike and path.is_file():
                facts = run_dir.read_json(path)
                of = facts.get(MEASURED, {} if fresh else values)
                there = MemoryEstimate.from_json(facts)
                if canonical_json(of) == key and there.device == cohorts.device_name(sweep.device):
                    alike[key] = there
            if key not in alike:
                alike[key] = cohorts.measure(r, classes, own, sweep.device)
            estimates[student.name] = alike[key]
            advance(1)
    return estimates


def _log_plan(sweep: Sweep, planned: Sequence[Sequence[Student]]) -> None:
    states = [sweep.state(student) for student in sweep.students]
    for student, now in zip(sweep.students, states, strict=True):
        if now == "diverged":
            log.info(
                "%s diverged (%s); pass --fresh or remove its folder to train it anew",
                student.name,
                sweep.folder(student) / FAILED,
            )
    if sweep.asha and "stopped" in states:
        log.info("%d remain stopped; without --asha they resume", states.count("stopped"))
    log.info(
        "%s, %d of them finished; %s: %s",
        counted(len(states), "student"),
        states.count("finished"),
        counted(len(planned), "cohort"),
        " + ".join(str(len(cohort)) for cohort in planned) or "nothing to do",
    )
