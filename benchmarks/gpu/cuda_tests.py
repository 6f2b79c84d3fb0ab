"""The tests marked `gpu`, in a process of their own."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.budget import Allowance
from benchmarks.gpu.workbench import Figures, Workbench

ROOT = Path(__file__).resolve().parents[2]
OUTCOME = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
GRACE = 1.5
"""Share of the section's seconds after which they are ended: on a new machine, code is compiled."""
LAST = 8_000
"""Characters of the output that are kept of tests that fail."""


def measure(bench: Workbench, allowance: Allowance) -> Figures:
    """Run them, and end them if they take much longer than the section's seconds."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider"]
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(
            [*command, *files()], cwd=ROOT, start_new_session=True,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            running.wait(GRACE * allowance.left)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
        output.seek(0)
        text = output.read()
    return figures(text, running.returncode, bench.device.type == "cuda")


def files() -> list[str]:
    """List the files of tests that have such ones."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [file for file in tests if "mark.gpu" in file.read_text("utf-8")]
    return [str(file.relative_to(ROOT)) for file in found]


def figures(text: str, code: int, on_gpu: bool) -> Figures:
    """Count outcomes in pytest's output; without a GPU there is no goal."""
    outcomes = {name: outcome.lower() for name, outcome in OUTCOME.findall(text)}
    counts = Counter(outcomes.values())
    ended = {0: "complete", -signal.SIGKILL: "ended early, out of time"}
    found: Figures = {
        "run": ended.get(code, f"pytest ended with {code}"),
        **{key: counts[key] for key in ("passed", "failed", "error", "skipped")},
        "tests": outcomes,
    }
    if code:
        found["output"] = text[-LAST:]
    if on_gpu:
        every = code == 0 and counts["passed"] == len(outcomes) > 0
        found["bars"] = {"every CUDA test passes": every}
    return found


def lines(name: str, found: Figures) -> Iterator[str]:
    """Counts, and the tests that fail, in lines of text."""
    counts = ", ".join(f"{found[key]} {key}" for key in ("passed", "failed", "error", "skipped"))
    yield f"{name}: {counts}; {found['run']}"
    for test, outcome in found["tests"].items():
        if outcome in ("failed", "error"):
            yield f"  {outcome}  {test}"
    for goal, met in found.get("bars", {}).items():
        yield f"{'PASS' if met else 'FAIL'}  {goal}"
    yield ""
