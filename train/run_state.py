"""State of a run, derived from the files in its folder."""

from pathlib import Path
from typing import Literal

from cache_tools.errors import CacheIncomplete
from cache_tools.file_contents import parse_json, read
from cache_tools.storage import seal

State = Literal["finished", "diverged", "stopped", "begun", "new"]
FAILED, STOPPED = "failed.json", "stopped.json"
"""Files with the reason why a student left a sweep: a loss of NaN or Inf, or ASHA."""
_BY_FILE: tuple[tuple[str, State], ...] = (
    ("result.json", "finished"),
    (FAILED, "diverged"),
    (STOPPED, "stopped"),
    ("config.json", "begun"),
)


def of(folder: Path) -> State:
    """Derive the state of a run."""
    return next((state for name, state in _BY_FILE if (folder / name).is_file()), "new")


def why(folder: Path) -> str:
    """Read the reason why a run diverged or was stopped; "" of any other."""
    name = {"diverged": FAILED, "stopped": STOPPED}.get(of(folder))
    if name is None:
        return ""
    try:
        return str(parse_json(read(folder / name))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "the reason is not recorded"


def check_result(folder: Path) -> None:
    """Refuse a run that was finished and has lost its result.

    Its digest is stored before it is written, and the last checkpoint is removed afterwards.

    Raises:
        CacheDamaged: result.json is missing.
    """
    if not (folder / "result.json").is_file() and not any(folder.glob("checkpoint*.pt")):
        seal.check(folder, "result.json")


def unfinished(folder: Path) -> CacheIncomplete:
    """Build the error for a run whose student is not finished; raises as `check_result`."""
    check_result(folder)
    if reason := why(folder):
        return CacheIncomplete(
            f"the run {folder} {'has diverged' if of(folder) == 'diverged' else 'was stopped'} "
            f"({reason}). Name another one of its sweep."
        )
    return CacheIncomplete(f"the run {folder} is not finished. Run its command again to go on.")
