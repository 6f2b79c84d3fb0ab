"""Memory and CPU seconds of an epoch's order, parameters and targets in one of several processes.

    python -m benchmarks.epoch [--samples 14197122] [--classes 21841] [--processes 8]
        [--batch-size 256] [--augmentation crop|a2] [--json FILE]

What `benchmarks.start` measures of it, without its files, in a minute: ids are random numbers, keys
are empty, and every part has the same targets (20 classes a view), which are in memory once and are
not counted. So no file is read, no digest compared and nothing decompressed. Memory is that of the
process itself (RssAnon, each 20 ms) above what it has before; the next epoch is made beside the
first, as it is while a student trains on that.
"""

import argparse
import gc
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import scale, start
from cache_tools.numerics.text_column import TextColumn
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from train.data.prefetch import EpochPrefetcher
from train.data.schedule import Schedule
from train.distributed import World

VIEWS = 50


class _Table(SampleTable):
    """A table of drawn numbers, whose digest is not needed."""

    sha256 = "sha256:0"


def cache(samples: int, classes: int, augmentation: ViewSpec) -> Any:
    """Stand-in for a cache in an epoch: its table, its spec, and one part in place of all."""
    random = np.random.default_rng(0)
    none = np.zeros(samples, np.int64)
    id_N = np.sort(random.integers(0, 2**64 - 1, samples, dtype=np.uint64))
    height_N, width_N = random.integers(200, 600, (2, samples), dtype=np.int32)
    keys = TextColumn(np.zeros(1, np.uint8), none, none)
    label_N = none.astype(np.int32)
    table = _Table(keys, id_N, id_N, label_N, height_N, width_N, none)
    spec = scale.cache_spec(table, augmentation, start.TARGETS, classes)
    whole, last = scale.part(spec, 0), spec.num_blocks - 1
    short = codec.select_rows(whole, np.arange(len(spec.rows(last))))
    store = SimpleNamespace(spec=spec, table=table, num_views=VIEWS, is_remote=False, name="")

    def read(part: Part) -> tuple[codec.EncodedTargets, None]:
        return short if part.block == last else whole, None

    store.read = read
    store.read_view = lambda view, row_R=None: Cache.read_view(store, view, row_R)
    return store


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Make an epoch, and the next one beside it."""
    augmentation = start.AUGMENTATIONS[options.augmentation]
    store: Any = cache(options.samples, options.classes, augmentation)
    members: Any = SimpleNamespace(reference=store, caches=(store,))
    world = World(options.processes - 1, options.processes)
    schedule = Schedule(store, 1, options.batch_size * options.processes, 0, epochs=4)
    images: Any = None
    gc.collect()
    stages = start.Stages()
    stages.after(Schedule, "plan", "order")
    epochs = EpochPrefetcher(members, [schedule], images, None, world)
    begin = time.process_time()
    held = epochs.get(0)
    seconds = time.process_time() - begin
    assert epochs._next is not None
    beside = epochs._next[1].result()
    stages.end("parameters and targets, and the next epoch beside them")
    assert held is not beside
    private = {name: stage["private_mb"] for name, stage in stages.found.items()}
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    return {**settings, "cpu_seconds": round(seconds, 1), "private_mb": private}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=14_197_122)
    parser.add_argument("--classes", type=int, default=21_841)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256, help="of each process")
    parser.add_argument("--augmentation", choices=start.AUGMENTATIONS, default="crop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
