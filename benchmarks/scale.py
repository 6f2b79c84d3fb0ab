"""Commands on a cache of ImageNet's size: seconds, memory, files and folders.

    python -m benchmarks.scale [--samples 1281167] [--views 300] [--classes 1000] [--json FILE]

The sample table is real (synthetic keys, every column), and so is every commit record. The chunks
of all parts are hard links to those of two real parts, a full block's and the last one's, so that
sizes and digests hold and the disk is not filled. Each command runs as its own process, as users
run it; memory is the process's peak. `benchmarks.start` measures how a training run begins.
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

from cache_tools.numerics.text_column import TextColumn
from cache_tools.spec import sample_table
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import DatasetSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store import commits
from cache_tools.store.cache import Cache
from cache_tools.store.layout import PROBES, Layout
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


def table(count: int, classes: int = CLASSES) -> SampleTable:
    """A sample table with keys like ImageNet's."""
    names = TextColumn.of([f"n{1440764 + i % classes:08d}_{i}" for i in range(count)])
    ids = sample_table.sample_ids(names)
    order = np.argsort(ids)
    random = np.random.default_rng(0)
    return SampleTable(
        names.take(order).compact(),
        ids[order],
        random.integers(0, 2**64 - 1, count, dtype=np.uint64),
        (order % classes).astype(np.int32),
        random.integers(200, 600, count, dtype=np.int32),
        random.integers(200, 600, count, dtype=np.int32),
        random.integers(10_000, 200_000, count),
    )


def part(spec: CacheSpec, block: int) -> codec.EncodedTargets:
    """Targets of a block: random logits of a confident teacher."""
    rows, random, classes = len(spec.rows(block)), np.random.default_rng(block), spec.teacher
    logits = (random.standard_normal((2048, classes.num_classes)) * 3).astype(np.float32)
    one = codec.encode(dense.sparsify(logits, spec.targets), spec.targets, classes.num_classes)
    many = codec.concatenate([one] * (rows // 2048 + 1))
    cut = int(many.begin_B1[rows])
    return codec.EncodedTargets(
        many.count_B[:rows], many.index_delta_E[:cut], many.code_E[:cut], many.tail_TB[:, :rows],
        many.true_PB[:, :rows], many.square_QB[:, :rows],
    )  # fmt: skip


def build(
    folder: Path,
    count: int,
    views: int,
    augmentation: ViewSpec = VIEWS,
    targets: TargetSpec = TARGETS,
    classes: int = CLASSES,
    rows: SampleTable | None = None,
) -> Cache:
    """The cache, all parts committed, without fingerprints of pixels."""
    rows = rows or table(count, classes)
    spec = cache_spec(rows, augmentation, targets, classes)
    store = Cache.create(folder / "cache.zarr", spec, rows, views)
    last, layout = spec.num_blocks - 1, Layout(spec, views)
    none = np.zeros(PROBES, np.uint64)
    chunks = {block: layout.encode_part(0, block, part(spec, block), none) for block in {0, last}}
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


def cache_spec(
    rows: SampleTable, augmentation: ViewSpec, targets: TargetSpec, classes: int
) -> CacheSpec:
    """The spec of a cache of these samples."""
    dataset = DatasetSpec(len(rows), classes, True, "stem", rows.sha256)
    teacher = TeacherSpec("t", "t", "sha256:0", classes, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return CacheSpec(dataset, teacher, augmentation, targets, 65_536)


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
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = options.samples, options.views
        store = build(Path(folder), *size, classes=options.classes)
        cache = str(store.path)
        (Path(folder) / "small").mkdir()
        small = str(build(Path(folder) / "small", 65_536, 2).path)
        results: dict[str, Any] = {
            "samples": options.samples,
            "views": options.views,
            "classes": options.classes,
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
