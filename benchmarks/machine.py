"""Description of the machine of a measurement."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

STUDIES = ("torch", "timm", "numpy", "numba", "opencv-python-headless")
"""Libraries whose versions a study of students records."""


def machine(libraries: tuple[str, ...] = STUDIES) -> dict[str, Any]:
    """Processor (its model's name on Linux), GPU, and versions of those libraries that it has."""
    described, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    for line in described.read_text().splitlines() if described.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
    found: dict[str, Any] = {"processor": name, "cores": os.cpu_count()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    versions = {library: _version(library) for library in libraries}
    return found | {"versions": {name: found for name, found in versions.items() if found}}


def _version(library: str) -> str:
    """Version of a library, or "" where it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
