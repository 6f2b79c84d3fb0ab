"""Caches, runs and sweeps by path."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache_tools.errors import UsageError
from train import run_dir
from train.report import comparison, sweep_section


@dataclass(frozen=True)
class Subject:
    """Something to report on."""

    kind: Literal["cache", "run", "sweep", "comparison"]
    path: str


def find(paths: list[str]) -> list[Subject]:
    """Resolve paths, each once; a folder of runs names them all.

    Raises:
        UsageError: There is nothing of the kind at one of them.
    """
    found = [subject for path in paths for subject in _find(path)]
    return list(dict.fromkeys(found))


def _find(path: str) -> list[Subject]:
    folder = Path(path)
    if "://" in path or path.endswith(".zip") or (folder / "zarr.json").is_file():
        return [Subject("cache", path)]
    if (folder / sweep_section.NAME).is_file():
        return [Subject("sweep", path)]
    if _is_run(folder):
        return [Subject("run", path)]
    runs = sorted(str(one) for one in folder.glob("*/") if _is_run(one)) if folder.is_dir() else []
    if not runs:
        raise UsageError(
            f"there is no cache, run or sweep at {path}. Pass folders that kdcache cache, train or "
            "sweep wrote; a cache may also be a zip or a URL."
        )
    compared = (folder / comparison.NAME).is_file()
    of_all = [Subject("comparison", path)] if compared else []
    return [*of_all, *(Subject("run", one) for one in runs)]


def _is_run(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and "recipe" in run_dir.read_json(config)
