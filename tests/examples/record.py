"""Run an example as its users do, record its batches, and kill it in place of one of them.

python record.py FILE BATCH EXAMPLE.py ARGUMENTS…        BATCH -1: to the end

KILL_IN=module:function:N in the environment kills it in place of the N-th call of a function.
"""

import hashlib
import importlib
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kdcache

path, kill_at = Path(sys.argv[1]), int(sys.argv[2])
iterate = kdcache.Batches.__iter__
seen = 0


def recorded(batches: kdcache.Batches) -> Iterator[Any]:
    global seen  # noqa: PLW0603 - of all epochs
    for batch in iterate(batches):
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
        pixels = batch["pixel_values"] if isinstance(batch, dict) else batch[0]
        with path.open("a") as file:
            file.write(hashlib.sha256(pixels.numpy().tobytes()).hexdigest() + "\n")
        yield batch


def kill_in(place: str) -> None:
    """Let the last of some calls of a function remove half a folder, or write half a file."""
    module, name, count = place.split(":")
    *classes, function = name.split(".")
    owner: Any = importlib.import_module(module)
    for each in classes:
        owner = getattr(owner, each)
    real, left = getattr(owner, function), int(count)

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left:
            return real(*arguments, **options)
        if function == "rmtree":
            min(path for path in Path(arguments[0]).iterdir() if path.is_file()).unlink()
        if function == "move":
            Path(arguments[1]).write_bytes(Path(arguments[0]).read_bytes()[:10_000])
        if function == "save_to_json":
            Path(arguments[1]).write_text('{"epoch": 1')
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(owner, function, called)


if place := os.environ.get("KILL_IN"):
    kill_in(place)
kdcache.Batches.__iter__ = recorded  # type: ignore[method-assign]
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
