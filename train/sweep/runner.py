"""Many students from one cache: those that see the same views share every batch.

    SWEEP/test_vit,temperature=4/   a run as of `kdcache train`, with two files more:
        need.json                   what the student takes of its device, measured
        failed.json                 why it has left, if its loss became NaN or Inf
        stopped.json                that ASHA has stopped it; without ASHA it goes on
    SWEEP/sweep.json, sweep.csv     a row for each student, and what it all cost
    SWEEP/sweep.png                 the same to look at

A run that has its result is never trained again; one that has begun goes on from its checkpoint,
whoever of the cohort comes along this time; one that diverged stays as it is, as it would again.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cache_tools.errors import NonFinite, UsageError
from cache_tools.runtime import progress
from cache_tools.runtime.signals import StopRequest
from train import run_dir, run_state
from train.data import native_loader
from train.run_dir import Inputs
from train.run_state import FAILED, STOPPED, State
from train.sweep import cohorts, grid
from train.sweep.cohorts import Need
from train.sweep.grid import Student
from train.trainer import loop, validate
from train.trainer.loop import Told

log = logging.getLogger("kdcache")
NEED = "need.json"


@dataclass(frozen=True)
class Sweep:
    """Students, what they learn from, and where."""

    students: tuple[Student, ...]
    inputs: Inputs
    out: Path
    device: torch.device
    also: tuple[str, ...] = ()
    """Where to log beside JSONL and TensorBoard."""
    asha: bool = False
    """Whether students that fall behind are stopped early, and stay so."""

    def folder(self, student: Student) -> Path:
        """Folder of its run."""
        return self.out / student.name

    def state(self, student: Student) -> State:
        """How far it is."""
        return run_state.of(self.folder(student))

    @property
    def todo(self) -> list[Student]:
        """Whom there is still to train."""
        due = ("begun", "new") if self.asha else ("begun", "new", "stopped")
        return [one for one in self.students if self.state(one) in due]


def plan(
    sweep: Sweep, fresh: bool = False, gigabytes: float = 0.0, most: int = 0
) -> list[list[Student]]:
    """Who there is still to train, and who with whom; refuses what cannot be, writes nothing.

    Args:
        sweep: What to do.
        fresh: Whether to train anew what is there.
        gigabytes: Memory that a cohort may take; 0 = what is free.
        most: Most students of a cohort; 0 = as many as fit.

    Raises:
        UsageError: A student that cannot be, or does not fit.
    """
    return _plan(sweep, fresh, gigabytes, most)[0]


def prepare(
    sweep: Sweep, fresh: bool = False, gigabytes: float = 0.0, most: int = 0
) -> list[list[Student]]:
    """As `plan`, and prepares the folders, once cache and images are found whole.

    Raises:
        UsageError: Also when another run lies in the folder of a student.
        CacheIncomplete, CacheDamaged, CacheMismatch: The cache is not whole, or of other images.
    """
    planned, needs = _plan(sweep, fresh, gigabytes, most)
    if planned:
        native_loader.check_all(sweep.inputs.members, sweep.inputs.images, sweep.inputs.present_N)
    for student in sweep.students:
        run_dir.begin(sweep.folder(student), student.recipe, sweep.inputs, fresh)
        if student.name in needs:
            run_dir.write_json(sweep.folder(student) / NEED, asdict(needs[student.name]))
    _say(sweep, planned)
    return planned


def _plan(
    sweep: Sweep, fresh: bool, gigabytes: float, most: int
) -> tuple[list[list[Student]], dict[str, Need]]:
    if online := [one.name for one in sweep.students if one.recipe.mode == "online"]:
        raise UsageError(
            f"a sweep learns from the cache, and {online[0]} has mode=online, a teacher in the "
            "loop. Train it by itself: kdcache train … mode=online."
        )
    _refuse_other(sweep.out)
    validate.check([student.recipe for student in sweep.students], sweep.inputs)
    todo = list(sweep.students) if fresh else sweep.todo
    needs = _needs(sweep, todo)
    room, size = cohorts.budget(sweep.device, gigabytes), sweep.inputs.store.spec.views.size
    return cohorts.group(todo, needs, room, size, most), needs


def _refuse_other(out: Path) -> None:
    """UsageError where something lies that is no sweep."""
    other = {"config.json": "a run", "zarr.json": "a cache"}
    found = [what for name, what in other.items() if (out / name).is_file()]
    if found or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is {(found or ['a file'])[0]}. Choose another --out for a sweep.")


def train(sweep: Sweep, planned: Sequence[Sequence[Student]]) -> None:
    """Train cohort after cohort in this process.

    Raises:
        KeyboardInterrupt: A signal came; the checkpoints are written.
    """
    with StopRequest() as stop:
        for number, cohort in enumerate(planned, 1):
            if stop.requested:
                raise KeyboardInterrupt
            log.info("cohort %d of %d: %s", number, len(planned), _listed(cohort))
            train_cohort(sweep, cohort, stop=stop)


def train_cohort(
    sweep: Sweep,
    cohort: Sequence[Student],
    told: Told | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Train those of a cohort that are not finished; in halves where memory does not suffice."""
    due = sweep.todo
    todo = [one for one in cohort if one in due]
    if not todo:
        return
    runs = [(sweep.folder(student), student.recipe) for student in todo]
    try:
        results = loop.train_cohort(
            runs, sweep.inputs, sweep.device, also=sweep.also, told=told, stop=stop
        )
    except torch.OutOfMemoryError as error:
        results = None
        if len(todo) == 1:
            raise UsageError(
                f"the device is too small for {todo[0].name} ({str(error).partition('.')[0]}). "
                "Lower batch_size and raise accumulate."
            ) from None
    if results is None:  # outside of the handler, which keeps the memory of what failed
        if sweep.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(todo) // 2
        log.warning("out of memory: these %d students go on in two cohorts", len(todo))
        train_cohort(sweep, todo[:half], told, stop)
        train_cohort(sweep, todo[half:], told, stop)
        return
    for student, result in zip(todo, results, strict=True):
        if isinstance(result, NonFinite):
            log.warning("%s has left the sweep: %s", student.name, result)
            run_dir.write_json(
                sweep.folder(student) / FAILED, {"kind": result.kind, "error": str(result)}
            )


def stop(sweep: Sweep, student: Student) -> None:
    """Note that a student is not to go on as long as the others are compared with it."""
    why = "it fell behind at an epoch where ASHA compares students"
    run_dir.write_json(sweep.folder(student) / STOPPED, {"kind": "Stopped", "error": why})


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """What is known of each student: its values, its needs and, when it is finished, its result."""
    keys = grid.swept(sweep.students)
    return [_row(sweep, student, keys) for student in sweep.students]


def _row(sweep: Sweep, student: Student, keys: Sequence[str]) -> dict[str, Any]:
    folder, recipe = sweep.folder(student), student.recipe
    row: dict[str, Any] = {"name": student.name, "state": sweep.state(student)}
    row |= {key: getattr(recipe, key) for key in keys}
    row |= {"student": recipe.student, "epochs": recipe.epochs, "seed": recipe.seed}
    if (folder / NEED).is_file():
        need = run_dir.read_json(folder / NEED)
        row |= {key: need[key] for key in ("parameters", "images_per_second")}
    if row["state"] != "finished":
        return row
    result = run_dir.read_json(folder / "result.json")
    kept = ("top1", "top1_ema", "top1_best", "loss", "parameters", "cost_seconds", "images")
    row |= {key: result[key] for key in kept}
    row["accuracy"] = row["top1"] if row["top1_ema"] is None else row["top1_ema"]
    return row


def _needs(sweep: Sweep, students: Sequence[Student]) -> dict[str, Need]:
    """What students take of the device: as was measured before, or now; alike ones once."""
    size, classes = sweep.inputs.store.spec.views.size, sweep.inputs.num_classes
    needs: dict[str, Need] = {}
    alike: dict[tuple[Any, ...], Need] = {}
    with progress.bar("measure the students", len(students), "students") as advance:
        for student in students:
            r, path = student.recipe, sweep.folder(student) / NEED
            key = r.student, r.opt, bool(r.ema_decay), r.precision, r.batch_size
            if key not in alike and path.is_file():
                there = Need(**json.loads(path.read_text(encoding="utf-8")))
                if there.device == cohorts.name_of(sweep.device):
                    alike[key] = there
            if key not in alike:
                alike[key] = cohorts.measure(r, classes, size, sweep.device)
            needs[student.name] = alike[key]
            advance(1)
    return needs


def _say(sweep: Sweep, planned: Sequence[Sequence[Student]]) -> None:
    states = [sweep.state(student) for student in sweep.students]
    for student, now in zip(sweep.students, states, strict=True):
        if now == "diverged":
            log.info(
                "%s diverged (%s); --fresh, or without its folder, it is trained anew",
                student.name,
                sweep.folder(student) / FAILED,
            )
    if sweep.asha and "stopped" in states:
        log.info("%d stay stopped; without --asha they go on", states.count("stopped"))
    log.info(
        "%d students, %d of them finished; %d cohorts: %s",
        len(states),
        states.count("finished"),
        len(planned),
        " + ".join(str(len(cohort)) for cohort in planned) or "nothing to do",
    )


def _listed(cohort: Sequence[Student]) -> str:
    names = [student.name for student in cohort]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
