"""Places that draw a run's curves: TensorBoard always, W&B on request.

Neither is the truth about a run: its JSONL files are. Both can take up a run that was killed.
"""

import io
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cache_tools.errors import UsageError
from cache_tools.file_contents import parse_json
from cache_tools.storage import atomic

Row = dict[str, float]
BOARD, WANDB_ID = "tensorboard", "wandb.json"
PLACES = ("wandb",)
"""Values of --log; TensorBoard is always on."""


class Curves(Protocol):
    """A place that draws curves."""

    def write(self, step: int, values: Row) -> None:
        """Take values at a step, counted in batches from the run's beginning; they outlive us."""


def check(names: tuple[str, ...]) -> None:
    """Refuse a place that is unknown, not installed or not ready, before any work is done."""
    for name in names:
        if name not in PLACES:
            raise UsageError(
                f"there is no tracker {name!r} (--log, in Python log_to=). Known are: "
                f"{', '.join(PLACES)}."
            )
    if "wandb" in names:
        library = _import_wandb()
        online = library.setup().settings.mode in ("online", "shared")
        if online and not library.login(prompt=False):
            raise UsageError(
                "log_to=wandb (--log): not logged in to W&B. Run: wandb login. Or set "
                "WANDB_MODE=offline to keep the curves in RUN/wandb and upload them later (wandb "
                "sync)."
            )


class _Board:
    """An event file, durable row by row: the errors of SummaryWriter's thread name no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._append(file_version="brain.Event:2")

    def hide(self, step: int) -> None:
        """Hide the rows of earlier files from `step` on."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._append(step=step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(step=step, summary=Summary(value=shown))

    def _append(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **event).SerializeToString())
        atomic.append(self._path, record.getvalue())


def tensorboard(folder: Path, step: int) -> Curves:
    """Begin an event file of TensorBoard; it hides rows of earlier ones from `step` on."""
    again = folder.is_dir()
    # TensorBoard reads files in the order of their names, which begin with seconds: a second file
    # of the same second may come before the first, and would be hidden by it.
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)
    place = f"{socket.gethostname()}.{os.getpid()}"
    board = _Board(folder / f"events.out.tfevents.{int(time.time()):010d}.{place}")
    if again:
        board.hide(step)
    return board


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, step: int, values: Row) -> None:
        self._run.log(values, step=step)


@contextmanager
def wandb(folder: Path, config: dict[str, Any]) -> Iterator[_Wandb]:
    """Open a run of W&B; its id is in the folder, so that it is one run however often killed."""
    library = _import_wandb()
    if not (folder / WANDB_ID).is_file():
        atomic.write(folder / WANDB_ID, json.dumps({"id": uuid.uuid4().hex[:12]}).encode())
    try:
        run = library.init(
            id=parse_json((folder / WANDB_ID).read_bytes())["id"],
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "kdcache"),
            name="/".join(folder.resolve().parts[-2:]),
            dir=str(folder),
            config=config,
            # a cohort has a run for each student, at the same time
            settings=library.Settings(console="off", reinit="create_new"),
        )
    except (library.Error, ValueError, KeyError) as error:
        raise UsageError(
            f"log_to=wandb (--log): W&B refuses the run ({error}). Run wandb login, or set "
            "WANDB_MODE=offline; without it the run goes on all the same."
        ) from None
    failed = True
    try:
        yield _Wandb(run)
        failed = False
    finally:
        run.finish(exit_code=int(failed))


def _import_wandb() -> Any:
    try:
        import wandb as library
    except ImportError:
        raise UsageError(
            "log_to=wandb (--log) needs W&B's package. Run: pip install 'kdcache[wandb]'."
        ) from None
    return library
