"""The running command, as its user can type it again."""

import os
import shutil
import sys
from pathlib import Path


def program() -> str:
    """Return `kdcache`, or the path that it was called by where PATH has another or none."""
    called = sys.argv[0]
    if Path(called).name != "kdcache" or called == "kdcache":
        return "kdcache"
    found = shutil.which("kdcache")
    on_path = found is not None and os.path.realpath(found) == os.path.realpath(called)
    return "kdcache" if on_path else str(Path(called).absolute())
