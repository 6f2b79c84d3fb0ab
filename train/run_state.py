"""How far a run is, as the files in its folder say."""

import json
from pathlib import Path
from typing import Literal

from cache_tools.errors import CacheIncomplete

State = Literal["finished", "diverged", "stopped", "begun", "new"]
FAILED, STOPPED = "failed.json", "stopped.json"
"""Why a student has left a sweep: its loss became NaN or Inf, or ASHA has stopped it."""
_BY_FILE: tuple[tuple[str, State], ...] = (
    ("result.json", "finished"),
    (FAILED, "diverged"),
    (STOPPED, "stopped"),
    ("config.json", "begun"),
)


def of(folder: Path) -> State:
    """How far a run is."""
    return next((state for name, state in _BY_FILE if (folder / name).is_file()), "new")


def why(folder: Path) -> str:
    """Why a run that diverged or was stopped did not go on; "" of any other."""
    name = {"diverged": FAILED, "stopped": STOPPED}.get(of(folder))
    if name is None:
        return ""
    try:
        return str(json.loads((folder / name).read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "nobody knows why"


def unfinished(folder: Path) -> CacheIncomplete:
    """What to tell who wants the student of a run that is not finished."""
    if reason := why(folder):
        return CacheIncomplete(
            f"the run {folder} {'has diverged' if of(folder) == 'diverged' else 'was stopped'} "
            f"({reason}). Name another one of its sweep."
        )
    return CacheIncomplete(f"the run {folder} is not finished. Run its command again to go on.")
