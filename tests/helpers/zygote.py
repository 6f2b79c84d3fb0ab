"""A process that has imported everything and forks runs of `kdcache cache`: a hundred start fast.

Driven through a pipe by `Zygote`, and run as a script by it. What a run is patched with slows the
teacher, so that there is time to kill somebody, and writes down what it was asked and what was
committed; nothing else differs from the command but the way workers are started.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Run:
    """A run of the command, in a process of its own."""

    zygote: "Zygote"
    process: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        try:
            return self.process.children()
        except psutil.NoSuchProcess:
            return []

    def wait(self) -> int:
        """Its exit code, once it has ended; minus the signal when one killed it."""
        code: int = self.zygote.ask({"wait": self.process.pid})
        return code

    def alive(self) -> bool:
        try:
            return self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class Zygote:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ZYGOTE_LOG": str(self.log)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, text=True,
        )  # fmt: skip

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, arguments: list[str], said: Path, **patches: Any) -> Run:
        """Start a run whose stderr is appended to a file."""
        pid = self.ask({"run": arguments, "stderr": str(said), **patches})
        return Run(self, psutil.Process(pid))

    def events(self) -> list[list[Any]]:
        """What was asked and committed: [pid, "asked", views] and [pid, "committed", part]."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def count(self) -> int:
        """How many events there were."""
        return self.log.read_bytes().count(b"\n")

    def close(self) -> None:
        self._process.communicate()


def _write_down(*event: Any) -> None:
    with Path(os.environ["ZYGOTE_LOG"]).open("ab", buffering=0) as log:
        log.write(json.dumps([os.getpid(), *event]).encode() + b"\n")


def _patch(pace: float = 0, perturbed: float = 0, locks: bool = True, poison: Any = None) -> None:
    import contextlib

    from cache_tools.storage.folder import Folder
    from cache_tools.store.cache import Cache
    from pipeline.engines import local
    from pipeline.teacher.forward import Forward
    from pipeline.teacher.logits import Logits
    from pipeline.worker import write as collect

    local.START = "fork"
    collect.CAPACITY = collect._MAX_PARTS = 1
    ask, say, write = Forward.__call__, Logits.__call__, Cache.write

    def slowly(self: Forward, pixels: Any, *more: Any) -> Any:
        _write_down("asked", len(pixels))
        time.sleep(pace)
        return ask(self, pixels, *more)

    def otherwise(self: Logits, x: Any) -> Any:
        return say(self, x) * (1 + perturbed)

    def committed(self: Cache, part: Any, *more: Any) -> bool:
        if [part.view, part.block] == poison:
            os.kill(os.getpid(), signal.SIGSEGV)
        won = write(self, part, *more)
        if won:
            _write_down("committed", [part.view, part.block])
        return won

    Forward.__call__ = slowly  # type: ignore[method-assign]
    Logits.__call__ = otherwise  # type: ignore[method-assign]
    Cache.write = committed  # type: ignore[method-assign]
    if not locks:
        Folder.locked = lambda self: contextlib.nullcontext()  # type: ignore[method-assign]


def _child(question: dict[str, Any]) -> None:
    """One run of the command."""
    os.close(1)
    os.open(os.devnull, os.O_WRONLY)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    log = os.open(question["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    from cache_tools.cli import main

    arguments, _ = question.pop("run"), question.pop("stderr")
    _patch(**question)
    sys.argv = ["kdcache", *arguments]
    main.main()


def _serve() -> None:
    import torch

    from cache_tools.views import draw  # noqa: F401 - imported once for all runs
    from pipeline import cli as commands  # noqa: F401
    from pipeline.engines import launch  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            status = os.waitpid(question["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        if pid := os.fork():
            print(pid, flush=True)
            continue
        code = 1
        try:
            _child(question)
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    _serve()
