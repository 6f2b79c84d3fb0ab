"""Open the storage of a cache by its path or URL."""

import os
from pathlib import Path

from cache_tools.errors import CacheNotFound, UsageError
from cache_tools.storage import folder_kind, paths
from cache_tools.storage.base import MANIFEST, REMOVE, Storage
from cache_tools.storage.folder import Folder
from cache_tools.storage.object_store import ObjectStore
from cache_tools.storage.zip_folder import Zip

_HERE = "file://"


def open_storage(location: str | Path) -> Storage:
    """Open the storage at a path or URL, with or without a cache in it.

    Raises:
        UsageError: `location` is no URL that can be opened.
    """
    text = str(location)
    if text.startswith(_HERE):  # `Folder` has atomic writes and a lock, fsspec's has neither
        text = text.removeprefix(_HERE)
        if not text.startswith("/"):
            raise UsageError(
                f"{location} names another machine, {text.partition('/')[0]!r}. A folder of this "
                f"one has three slashes: {Path(text).resolve().as_uri()}."
            )
    if "://" in text:
        return ObjectStore(text)
    path = Path(paths.expand(text))
    if not text or not Path(os.path.realpath(path)).name:
        raise UsageError(f"{text!r} is no folder for a cache. Pass its path or URL.")
    return Zip(path) if path.is_file() and path.suffix == ".zip" else Folder(path)


def open_existing(location: str | Path) -> Storage:
    """Open the storage of the cache at a path or URL.

    Raises:
        CacheNotFound: It is a folder without a manifest.
    """
    found = open_storage(location)
    if isinstance(found, Folder) and not (found.path / MANIFEST).is_file():
        if found.path.is_symlink() and not found.path.exists():
            raise CacheNotFound(
                f"{found} is a link to {found.path.readlink()}, where nothing is. Correct the "
                "link, or pass the folder of the cache."
            )
        if os.path.lexists(root := found.path / MANIFEST):
            link = f"a link to {root.readlink()}, where no file is" if root.is_symlink() else ""
            what = f"{root} is {link or 'no file'}"
            raise CacheNotFound(f"there is no cache at {found}: {what}. {REMOVE}")
        if kind := folder_kind.likely_kind(found.path):
            raise CacheNotFound(
                f"there is no cache at {found}: it seems to be {kind}. Pass the folder that "
                f"kdcache cache has written, its --out, which has {MANIFEST}."
            )
        raise CacheNotFound(
            f"there is no cache at {found}. Check the path, or make one with: kdcache cache RECIPE "
            f"--data DATA --teacher TEACHER --out {found}"
        )
    return found
