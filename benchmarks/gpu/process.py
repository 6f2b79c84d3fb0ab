"""A process that measures sections one after another, and is replaced when it fails.

An error of CUDA stays with its process, and one that hangs can only be ended.
"""

import contextlib
import gc
import logging
import multiprocessing
import os
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import psutil
import torch

from benchmarks.gpu.budget import Allowance
from benchmarks.gpu.sections import sections
from benchmarks.gpu.workbench import Workbench


@dataclass(frozen=True)
class Settings:
    """Settings of the command."""

    short: bool
    """True for the short form, on the CPU."""
    pictures: Path | None
    """Folder of JPEGs; None: generated ones."""
    batch: int
    """Views per step of students and teachers."""


class Process:
    """A process with the sections, started when it is needed."""

    def __init__(self, settings: Settings, work: Path) -> None:
        """Prepare; files go into folders below `work`."""
        self._settings, self._work = settings, work
        self._started = 0
        self._process: Any = None

    def measure(self, name: str, seconds: float, left: float) -> dict[str, Any]:
        """Measure a section in some seconds; it is ended when all that is left is over.

        Returns:
            Its state, "measured", "failed" or "stopped", with its figures or the reason.
        """
        if self._process is None:
            self._start()
        try:
            self._to.send((name, seconds))
            if not self._to.poll(left):
                self.close()
                reason = f"it had not ended after {left:.0f} s, at the end of all minutes"
                return {"state": "stopped", "reason": reason}
            found: dict[str, Any] = self._to.recv()
        except (EOFError, OSError):
            self._process.join()
            found = {"state": "failed", "reason": f"its process ended: {self._process.exitcode}"}
        if found["state"] == "failed":
            self.close()
        return found

    def close(self) -> None:
        """End the process and its children, if there is one."""
        if self._process is None:
            return
        with_children = [self._process.pid]
        if self._process.is_alive():
            with_children += [c.pid for c in psutil.Process(self._process.pid).children(True)]
        for pid in with_children:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        self._process.join()
        self._to.close()
        self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._to, theirs = context.Pipe()
        folder = self._work / str(self._started)
        folder.mkdir()
        self._process = context.Process(target=_serve, args=(theirs, self._settings, folder))
        self._process.start()
        self._started += 1
        theirs.close()


def _serve(orders: Connection, settings: Settings, folder: Path) -> None:
    """Measure sections by name until the pipe closes or one fails."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    bench = Workbench(settings.short, settings.pictures, settings.batch, folder)
    cores = torch.get_num_threads()
    known = {section.name: section for section in sections(settings.short)}
    while True:
        try:
            name, seconds = orders.recv()
        except EOFError:
            return
        reset(cores)
        try:
            figures = known[name].measure(bench, Allowance(seconds))
            orders.send({"state": "measured", **figures})
        except Exception as error:
            logging.getLogger(__name__).exception("%s fails", name)
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            orders.send({"state": "failed", "reason": reason})
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def reset(cores: int) -> None:
    """Restore torch's settings, which training changes, and free the device's memory."""
    torch.set_num_threads(cores)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    gc.collect()
    torch.cuda.empty_cache()
