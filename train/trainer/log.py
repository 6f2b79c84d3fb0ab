"""Log of a run: rows of numbers, each written to JSONL, TensorBoard and, on request, W&B.

    RUN/log.jsonl      a row per epoch: mean loss and accuracies; no clock enters it
    RUN/steps.jsonl    a row per few dozen steps: terms of the loss, lr, images/s, share of waiting
    RUN/tensorboard/   both, as TensorBoard's event files
    W&B                both, with --log wandb

A row belongs to a step, never to a moment, so that a killed run has the rows of an undisturbed one,
each once. What was written after the last checkpoint is taken back when the run goes on: lines are
cut, TensorBoard gets a `purge_step`, and W&B ignores a step that it has seen. Rows are on disk
before the checkpoint that counts them.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheDamaged
from cache_tools.file_contents import open_plain, parse_json
from cache_tools.storage import atomic, seal
from train.distributed import World
from train.trainer import trackers
from train.trainer.checkpoint import Progress
from train.trainer.trackers import Curves, Row

log = logging.getLogger("kdcache")
EPOCHS, STEPS = "log.jsonl", "steps.jsonl"
_LONGEST = 2**16
"""Bytes of a line: a row has some hundreds."""


class Log:
    """The rows of one run; processes other than the first have one that keeps nothing."""

    def __init__(self, folder: Path | None, progress: Progress, curves: list[Curves]) -> None:
        """Open a log as `open_log` does; without a folder, nothing is kept."""
        self._folder = folder
        self._progress = progress
        self._curves = curves

    def steps(self, epoch: int, step: int, views: int, lr: float) -> str:
        """Log a row for the steps since the last one.

        Returns:
            The row in short, for the progress bar.
        """
        progress = self._progress
        spent = progress.seconds - progress.mark[0], progress.wait - progress.mark[1]
        seconds, count = max(spent[0], 1e-9), progress.terms["loss"][1]
        row: Row = {"epoch": epoch, "step": step}
        row |= {name: total / number for name, (total, number) in progress.terms.items()}
        row["images_per_second"] = round(views * count / seconds, 1)
        row |= {"data_wait": round(spent[1] / seconds, 4), "lr": lr}
        progress.terms, progress.mark = {}, [progress.seconds, progress.wait]
        if self._folder is not None:
            atomic.append(self._folder / STEPS, f"{json.dumps(row)}\n".encode())
        self._draw(step, "train", row)
        return f"loss {row['loss']:.3f}, {100 * row['data_wait']:.0f} % waiting"

    def epoch(self, step: int) -> None:
        """Log the last row of the history, before the checkpoint that holds it."""
        self._write_epochs()
        self._draw(step, "epoch", self._progress.history[-1])

    def seal(self) -> None:
        """Store the digests of the rows so far, before a checkpoint or the result is written."""
        for name in (EPOCHS, STEPS):
            if self._folder is not None and (self._folder / name).exists():
                seal.add(self._folder, name, (self._folder / name).read_bytes())

    def resume(self, step: int) -> None:
        """Take back what was written after `step`, where the last checkpoint is."""
        if self._folder is None:
            return
        kept = _cut(self._folder / STEPS, step)
        try:
            seal.check(self._folder, STEPS)
        except CacheDamaged as error:
            log.warning("%s The run goes on without the rows that are lost.", error.args[0])
        if self._progress.history or (self._folder / EPOCHS).exists():
            self._write_epochs()
        # the rows of this very step were purged with those after it
        if kept and kept[-1]["step"] == step:
            self._draw(step, "train", kept[-1])
        if self._progress.history and self._progress.step == 0:
            self._draw(step, "epoch", self._progress.history[-1])

    def _write_epochs(self) -> None:
        if self._folder is not None:
            lines = "".join(f"{json.dumps(row)}\n" for row in self._progress.history)
            atomic.write(self._folder / EPOCHS, lines.encode())

    def _draw(self, step: int, group: str, row: Row) -> None:
        values = {f"{group}/{k}": v for k, v in row.items() if k not in ("epoch", "step")}
        for each in self._curves:
            each.write(step, values)


@contextmanager
def open_log(
    folder: Path,
    progress: Progress,
    step: int,
    world: World,
    names: tuple[str, ...] = (),
    config: dict[str, Any] | None = None,
) -> Iterator[Log]:
    """Open the log of a run that goes on after `step`.

    The first process of `world` writes; `names` are some of `trackers.PLACES`, and W&B shows
    `config` beside the curves.
    """
    if not world.is_main:
        yield Log(None, progress, [])
        return
    with ExitStack() as stack:
        curves = [trackers.tensorboard(folder / trackers.BOARD, step)]
        if "wandb" in names:
            curves.append(stack.enter_context(trackers.wandb(folder, config or {})))
        log = Log(folder, progress, curves)
        log.resume(step)
        yield log


def _cut(path: Path, step: int) -> list[Row]:
    """Leave the rows up to `step` in a file, whatever a killed process left in its last line."""
    if not path.exists():
        return []
    rows: list[Row] = []
    lines = []
    with open_plain(path) as file:
        while line := file.readline(_LONGEST):
            try:
                row = parse_json(line)
            except ValueError:
                break
            if not isinstance(row, dict) or not all(type(v) in (int, float) for v in row.values()):
                break
            if row.get("step", step + 1) > step:
                break
            rows.append(row)
            lines.append(line if line.endswith(b"\n") else line + b"\n")
    atomic.write(path, b"".join(lines))
    return rows
