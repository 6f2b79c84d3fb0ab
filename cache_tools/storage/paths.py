"""Paths as users write them: a leading ~ that no shell has expanded, and patterns of names."""

import os
from pathlib import Path


def expand(text: str) -> str:
    """Expand a leading ~, as in --out=~/run, unless there is a file of that very name."""
    home = text.startswith("~") and not os.path.lexists(text)
    return os.path.expanduser(text) if home else text  # noqa: PTH111 - Path's raises without a home


def exists(path: str | Path, folder: bool = False) -> bool:
    """Check if there is a file or folder, or a `folder`, of a name that may be too long for any."""
    return (os.path.isdir if folder else os.path.exists)(path)


def split_pattern(pattern: str) -> tuple[Path, str]:
    """Split a pattern into the longest leading folder that exists, and the pattern below it.

    The folder is taken as it is, whatever characters of a pattern its name has.
    """
    folder = next(parent for parent in Path(pattern).parents if exists(parent, folder=True))
    return folder, str(Path(pattern).relative_to(folder))
