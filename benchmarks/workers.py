"""Scaling of N workers on N cores: `python -m benchmarks.workers [--repeats 3] [--json FILE]`.

`kdcache cache --workers N` as a user runs it, on the first N cores alone, so that a worker has a
core of its own whatever N is; timed from the Nth commit record to the last. Beside it the machine's
limit: N processes that run the same network on a resident batch, against one, since cores share
memory and clock, and some are halves of one. Contestants take turns.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.pairs import Pair, write
from benchmarks.rounds import ratio, spread
from benchmarks.stage1 import A2, LIBRARIES
from cache_tools.runtime import threads
from pipeline.teacher import teacher as teachers
from pipeline.teacher.logits import Logits

GOAL = 1.8
"""Least speed of two workers over one."""
TEACHER, SIZE, BATCH, SAMPLES, VIEWS = "resnet18", 224, 16, 64, 24
PAIR = Pair("", TEACHER, SIZE, BATCH, steps=0)


def cores(count: int) -> set[int]:
    """First `count` cores available to this process."""
    return set(sorted(os.sched_getaffinity(0))[:count])


def pipeline(folder: Path, count: int, turn: int) -> float:
    """Seconds per view of so many workers."""
    out = folder / f"{count}-{turn}.zarr"
    command = [
        *(
            sys.executable,
            "-c",
            "from cache_tools.cli.main import console; console()",
            "cache",
            "photos",
        ),
        *("--data", folder / "data", "--teacher", TEACHER, "--out", out, "--random-weights"),
        *("--device", "cpu", "--workers", count, f"num_views={VIEWS}", f"views.size={SIZE}", *A2),
        *(f"batch_size={BATCH}", "views_per_decode=1"),
    ]
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores(count))
    try:
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    finally:
        os.sched_setaffinity(0, allowed)
    ends = sorted(record.stat().st_mtime_ns for record in out.glob("commits/*/*.json"))
    assert len(ends) == VIEWS
    return (ends[-1] - ends[count - 1]) / 1e9 / (VIEWS - count) / SAMPLES


def alone(core: int, begin: Barrier, seconds: "multiprocessing.Queue[float]") -> None:
    """Run the network on a resident batch on one core, as often as a worker does."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    network = teachers.load(TEACHER, SIZE, "fp32", random_weights=True)
    ask, x = Logits(network, torch.device("cpu")), 255 * torch.rand(BATCH, 3, SIZE, SIZE)
    x = x.to(memory_format=torch.channels_last)
    ask(x)
    begin.wait()
    start, steps = time.perf_counter(), SAMPLES * VIEWS // BATCH // 2
    for _ in range(steps):
        ask(x)
    seconds.put((time.perf_counter() - start) / steps / BATCH)


def limit(count: int) -> float:
    """Seconds per view of so many networks."""
    spawn = multiprocessing.get_context("spawn")
    begin, seconds = spawn.Barrier(count), spawn.Queue()
    everyone = [spawn.Process(target=alone, args=(c, begin, seconds)) for c in cores(count)]
    for process in everyone:
        process.start()
    rates = [1 / seconds.get() for _ in everyone]
    for process in everyone:
        process.join()
    return 1 / sum(rates)


def measure(repeats: int) -> dict[str, Any]:
    """Speeds of 1 and more workers over one, and the machine's limit."""
    counts = range(1, threads.cpu_count() + 1)
    costs: dict[str, list[float]] = {
        f"{k} {n}": [] for k in ("workers", "networks") for n in counts
    }
    with tempfile.TemporaryDirectory() as folder:
        write(PAIR, SAMPLES, Path(folder) / "data")
        for turn in range(repeats):
            for n in counts[:: 1 if turn % 2 else -1]:
                costs[f"networks {n}"].append(limit(n))
                costs[f"workers {n}"].append(pipeline(Path(folder), n, turn))
            last = ", ".join(f"{name} {1 / each[-1]:.1f}" for name, each in costs.items())
            print(f"turn {turn + 1} of {repeats}: views/s: {last}", file=sys.stderr)
    result: dict[str, Any] = {
        "views per second": {name: spread([1 / c for c in each]) for name, each in costs.items()}
    }
    for n in counts[1:]:
        scaled, could = (ratio(costs[f"{k} 1"], costs[f"{k} {n}"]) for k in ("workers", "networks"))
        result[f"{n} over one"] = {"workers": scaled, "networks": could}
        if n == 2:
            result["bars"] = {f"two workers at least {GOAL} of one": scaled["median"] >= GOAL}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.repeats)
    print(json.dumps(result, indent=2))
    result |= {"repeats": options.repeats, "machine": machine(LIBRARIES)}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
