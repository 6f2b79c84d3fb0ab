"""Commands on a cache of ImageNet's size: seconds, memory, files and folders.

    python -m benchmarks.scale [--samples 1281167] [--views 300] [--json FILE]

The sample table is real (synthetic keys, every column), and so is every commit record. The chunks
of all parts are hard links to those of two real parts, a full block's and the last one's, so that
sizes hold and the disk is not filled; digests therefore do not, and `verify` is not run here.
Each command runs as its own process, as users run it; memory is the process's peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools.spec import sample_table
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import DatasetSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store import commits
from cache_tools.store.cache import Cache
from cache_tools.store.layout import Layout
from cache_tools.targets import codec, dense

CLASSES, HUB_FILES, HUB_ENTRIES = 1000, 100_000, 10_000
VIEWS, TARGETS = ViewSpec(size=224), TargetSpec()
BARS = {"open": 1.0, "status": 5.0}
_PEAK = """
import atexit, sys
peak = lambda: open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
atexit.register(lambda: print(peak(), file=sys.stderr))
"""
_NOTHING = _PEAK + "import cache_tools.store.cache"
_OPEN = _PEAK + "from cache_tools.store.cache import Cache; Cache.open(sys.argv[1])"
_COMMAND = _PEAK + "from cache_tools.cli import main as cli; sys.argv[0] = 'kdcache'; cli.main()"


def table(count: int) -> SampleTable:
    """A sample table with keys like ImageNet's."""
    names = [f"n{1440764 + i % 1000:08d}_{i}" for i in range(count)]
    ids = np.array([sample_table.sample_id(name) for name in names], dtype=np.uint64)
    order = np.argsort(ids)
    random = np.random.default_rng(0)
    return SampleTable(
        tuple(names[i] for i in order),
        ids[order],
        random.integers(0, 2**64 - 1, count, dtype=np.uint64),
        (order % 1000).astype(np.int32),
        random.integers(200, 600, count, dtype=np.int32),
        random.integers(200, 600, count, dtype=np.int32),
        random.integers(10_000, 200_000, count),
    )


def part(spec: CacheSpec, block: int) -> dict[str, bytes]:
    """Chunk bytes of a real part of view 0: random logits of a confident teacher."""
    rows, random = len(spec.rows(block)), np.random.default_rng(block)
    logits = (random.standard_normal((2048, CLASSES)) * 3).astype(np.float32)
    one = codec.encode(dense.sparsify(logits, spec.targets), spec.targets, CLASSES)
    many = codec.concatenate([one] * (rows // 2048 + 1))
    cut = int(many.begin_B1[rows])
    stored = codec.EncodedTargets(
        many.count_B[:rows], many.index_delta_E[:cut], many.code_E[:cut], many.tail_TB[:, :rows],
        many.true_PB[:, :rows], many.square_QB[:, :rows],
    )  # fmt: skip
    return Layout(spec, 1).encode_part(0, block, stored, np.arange(4, dtype=np.uint64))


def build(
    folder: Path,
    count: int,
    views: int,
    augmentation: ViewSpec = VIEWS,
    targets: TargetSpec = TARGETS,
) -> Cache:
    """The cache, all parts committed."""
    rows = table(count)
    dataset = DatasetSpec(count, CLASSES, True, "stem", rows.sha256)
    teacher = TeacherSpec("t", "t", "sha256:0", CLASSES, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    spec = CacheSpec(dataset, teacher, augmentation, targets, 65_536)
    store = Cache.create(folder / "cache.zarr", spec, rows, views)
    last, layout = spec.num_blocks - 1, Layout(spec, views)
    chunks = {block: part(spec, block) for block in {0, last}}
    for place in store.parts():
        real = chunks[last if place.block == last else 0]
        names = layout.part_chunks(place.view, place.block)
        own = dict(zip(names, real.values(), strict=True))
        for name, source in zip(names, real, strict=True):
            _link(store.path, name, source, real[source])
        record = commits.encode(spec, place, own, {"kept_classes": 12.0}, {"zarr": "3"})
        path = store.path / place.record
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record)
    return store


def _link(cache: Path, name: str, source: str, data: bytes) -> None:
    pool, path = cache.with_name("chunks") / source.replace("/", "-"), cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not pool.exists():
        pool.parent.mkdir(exist_ok=True)
        pool.write_bytes(data)
    os.link(pool, path)


def measure(code: str, *arguments: str) -> dict[str, float]:
    """Wall seconds and peak memory in MB of a process."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin
    return {"seconds": round(seconds, 2), "peak_mb": round(int(done.stderr.split()[-1]) / 1024, 1)}


def counts(cache: Path) -> dict[str, int]:
    """Files, folders and the most entries of one folder."""
    entries: Counter[Path] = Counter()
    files = folders = 0
    for path in cache.rglob("*"):
        entries[path.parent] += 1
        files, folders = files + path.is_file(), folders + path.is_dir()
    return {"files": files, "folders": folders, "most_in_a_folder": max(entries.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--views", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = build(Path(folder), options.samples, options.views)
        cache = str(store.path)
        (Path(folder) / "small").mkdir()
        small = str(build(Path(folder) / "small", 65_536, 2).path)
        results: dict[str, Any] = {
            "samples": options.samples,
            "views": options.views,
            "parts": options.views * store.spec.num_blocks,
            "imports alone": measure(_NOTHING),
            "open": measure(_OPEN, cache),
            "open, 2 views of one block": measure(_OPEN, small),
            "status": measure(_COMMAND, "status", cache),
            "status, 2 views of one block": measure(_COMMAND, "status", small),
            "info": measure(_COMMAND, "info", cache),
            **counts(store.path),
        }
    opening = results["open"]["seconds"] - results["imports alone"]["seconds"]
    memory = results["open"]["peak_mb"] / results["open, 2 views of one block"]["peak_mb"]
    results["open without imports"] = round(max(opening, 0.0), 2)
    results["passed"] = {
        "open < 1 s": opening < BARS["open"],
        "memory of open within 10 % of a small cache's": memory < 1.1,
        "status < 5 s": results["status"]["seconds"] < BARS["status"],
        "files < 100,000": results["files"] < HUB_FILES,
        "entries of a folder < 10,000": results["most_in_a_folder"] < HUB_ENTRIES,
    }
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(0 if all(results["passed"].values()) else 1)


if __name__ == "__main__":
    main()
