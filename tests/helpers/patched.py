"""`kdcache` in a process of its own, in which a test has replaced a function."""

import subprocess
import sys
from collections.abc import Sequence

BEGIN = """
import os, signal, sys
from pathlib import Path
"""
END = """
from cache_tools.cli import main as cli
sys.argv[0] = "kdcache"
cli.console()
"""


def run(
    patch: str, settings: Sequence[object], arguments: Sequence[object]
) -> subprocess.CompletedProcess[str]:
    """Run a patch, to which its settings are `settings`, a list of str, and then the command."""
    given = f"settings = {[*map(str, settings)]!r}\n"
    script = [sys.executable, "-c", BEGIN + given + patch + END]
    command = [*script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
