"""Command of `benchmarks.gpu`; see its docstring."""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.process import Process, Settings
from benchmarks.gpu.sections import Section, sections
from benchmarks.machine import machine
from benchmarks.replay import LIBRARIES
from cache_tools.runtime import threads

RESULTS = Path(__file__).resolve().parents[1] / "results"
CLOSING = 15.0
"""Seconds kept for the start of this process and the end."""


def measure(
    todo: Sequence[Section], settings: Settings, seconds: float, work: Path
) -> Iterator[tuple[Section, dict[str, Any]]]:
    """Measure sections one after another; yields the state and the figures of each."""
    budget, process = Budget(seconds, todo), Process(settings, work)
    try:
        for number, section in enumerate(todo):
            begin, later = time.monotonic(), todo[number + 1 :]
            allowed = budget.allowed(section, later)
            if allowed is None:
                least, left = section.least, max(budget.left, 0.0)
                reason = f"it takes {least:.0f} s or more, and {left:.0f} s were left"
                yield section, {"state": "left out", "reason": reason}
                continue
            found = process.measure(section.name, allowed, max(budget.left, 0.0))
            yield section, {"seconds": round(time.monotonic() - begin, 1), **found}
    finally:
        process.close()


def device_name(short: bool) -> str:
    """Name of the device, as a part of a file's name: nvidia-h100-80gb-hbm3."""
    name = "cpu" if short else torch.cuda.get_device_name()
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def facts(short: bool) -> dict[str, Any]:
    """Machine, with the GPU's memory and the version of CUDA."""
    found = {"cores used": threads.cpu_count(), **machine(LIBRARIES)}
    if not short:
        memory = torch.cuda.get_device_properties(0).total_memory
        found |= {"gpu memory, GiB": round(memory / 2**30, 1), "cuda": torch.version.cuda}
    return found


def without_figures(todo: Sequence[Section], results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Sections that have no figures, each with the reason."""
    found = {section.name: results.get(section.name) for section in todo}
    return {
        name: f"{one['state']}: {one['reason']}" if one else "not reached"
        for name, one in found.items()
        if one is None or one["state"] != "measured"
    }


def goals(results: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Goals of all sections, each with True where it is met."""
    return {
        f"{name}: {goal}": met
        for name, found in results.items()
        for goal, met in found.get("bars", {}).items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a section failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=str(gpu.__doc__).partition("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="all of it together")
    parser.add_argument("--pictures", type=Path, help="folder of JPEGs, in place of generated ones")
    parser.add_argument("--batch", type=int, default=256, help="views per step, for a small GPU")
    parser.add_argument("--only", default="", help="sections whose name has this in it")
    parser.add_argument("--short", action="store_true", help="tiny networks on the CPU")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/gpu-<device>.json")
    options = parser.parse_args(arguments)
    if not options.short and not torch.cuda.is_available():
        parser.error("there is no GPU here; --short measures tiny networks on the CPU")
    todo = [one for one in sections(options.short) if options.only in one.name]
    if not todo:
        parser.error(f"no section has {options.only!r} in its name")
    begin = time.monotonic()
    settings = Settings(options.short, options.pictures, options.batch)
    results: dict[str, dict[str, Any]] = {}
    path = options.json or (None if options.short else RESULTS / f"gpu-{device_name(False)}.json")
    with tempfile.TemporaryDirectory() as folder:
        seconds = 60 * options.minutes - CLOSING
        for section, found in measure(todo, settings, seconds, Path(folder)):
            results[section.name] = found
            if found["state"] == "measured":
                print("\n".join(section.lines(section.name, found)), flush=True)
            else:
                print(f"{section.name}: {found['state']}: {found['reason']}\n", flush=True)
            whole = {
                "minutes": options.minutes,
                "seconds": round(time.monotonic() - begin, 1),
                "short": options.short,
                "pictures": "a folder" if options.pictures else "generated",
                "without figures": without_figures(todo, results),
                "goals": goals(results),
                "sections": results,
                "machine": facts(options.short),
            }
            if path:
                path.write_text(json.dumps(whole, indent=2) + "\n")
    for name, reason in without_figures(todo, results).items():
        print(f"NOT MEASURED  {name}: {reason}")
    for goal, met in goals(results).items():
        print(f"{'PASS' if met else 'FAIL'}  {goal}")
    if path:
        print(f"written: {path}", file=sys.stderr)
    return int(any(found["state"] == "failed" for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
