"""Start of a training run on a cache of ImageNet-22k's size: seconds and memory per process.

    python -m benchmarks.start [--samples 14197122] [--views 50] [--classes 21841] [--shards 4096]
        [--processes 8] [--batch-size 256] [--augmentation crop|a2] [--json FILE]

Real are: the cache's sample table, manifest, commit records and their digests; the data folder
with the index of every shard in its own format; the order of the epoch, the parameters and targets
of all its views; bytes, digests and sizes of the pictures of the first steps and of the probe views
that a run compares before it begins, with their fingerprints. Not real are: all other pictures, and
every header in the tars. Shards are sparse files of the right size, in which these bytes are holes:
the index is made of the layout that `tarfile` would write (a test compares both), not read from
headers, so that what is measured is a start before which the headers were read. The chunks of the
cache are hard links to those of two parts (`benchmarks.scale`): each part is read and its digest
compared, but from the page cache. So is what else was just written: no figure is of a cold disk.

Each process is started anew and does what `kdcache train` does until it has its first batch, then
waits for the epoch that is prepared in the background; several are joined by gloo, and there is no
student. Memory of a stage is above that after `import torch`:
"private_mb" is the peak of what the process has for itself (RssAnon, each 20 ms), "peak_mb" that of
all it has mapped (VmHWM), pages that it shares with the others included; at the end "pss_mb" counts
each shared page as 1/n (smaps_rollup).
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import scale
from cache_tools.data.images import ImageDataset
from cache_tools.data.tar_index import TarIndex
from cache_tools.numerics.text_column import TextColumn
from cache_tools.spec import sample_table
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.storage import atomic, disk_cache
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.store import commits
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.layout import Layout

STEPS, PROBED = 8, 64
"""Steps whose pictures are real, more than a loader reads ahead; parts that a run compares."""
TARGETS = TargetSpec(k_max=20)
"""All views keep 20 classes: random logits have more above tau."""
GOALS = {"seconds": 60.0, "private_mb": 2000.0}
AUGMENTATIONS = {
    "crop": ViewSpec(size=224),
    "a2": ViewSpec(
        size=224, interpolation="box", auto_augment="rand-m7-mstd0.5", mixup=0.1, cutmix=1.0
    ),
}
_BLOCK, LEAD, _END = 512, 1536, 1024
"""Bytes of a block of a tar; of header, label and header in front of a picture; of its end."""
_STAGE_PAUSE = 0.02


def pictures(count: int = 64) -> list[tuple[bytes, int, int]]:
    """JPEGs of about 500×375 pixels with their heights and widths."""
    from PIL import Image

    random, made = np.random.default_rng(1), []
    for _ in range(count):
        height, width = int(random.integers(300, 500)), int(random.integers(400, 600))
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.integers(-12, 13, smooth.shape)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        made.append((buffer.getvalue(), height, width))
    return made


def real_rows(rows: SampleTable, views: int, spec: ViewSpec, batch_size: int) -> "np.ndarray":
    """Rows of the table whose pictures are shown in the first steps, or compared before them."""
    from train.data.schedule import Schedule

    made = scale.cache_spec(rows, spec, TARGETS, scale.CLASSES)
    store: Any = SimpleNamespace(spec=made, table=rows, num_views=views)
    plan = Schedule(store, 1, batch_size, 0).plan(0)
    first = slice(STEPS * batch_size)
    probes = [n for part in probed(made, views) for n in probe_numbers(made.rows(part.block))]
    return np.unique(np.concatenate([plan.row_M[first], plan.partner_M[first], probes]))


def probed(spec: Any, views: int) -> list[commits.Part]:
    """Parts whose probe views a run compares before it begins (`train.data.inputs`)."""
    parts = [commits.Part(v, b) for v in range(views) for b in range(spec.num_blocks)]
    count = min(PROBED, len(parts))
    return [parts[i * len(parts) // count] for i in range(count)]


def write_shards(
    folder: Path, rows: SampleTable, shards: int, real: dict[int, bytes]
) -> ImageDataset:
    """Write sparse tars and the index of each; the data set, in the order of the table."""
    number_N = np.array([int(key.rpartition("_")[2]) for key in rows.keys])
    names = rows.keys
    assert isinstance(names, TextColumn)
    row_of = np.argsort(number_N, kind="stable")  # samples lie in the tars as they are numbered
    file_N = np.empty(len(rows), np.int32)
    offset_N = np.empty(len(rows), np.int64)
    cache, edges = DiskCache(), np.linspace(0, len(rows), shards + 1).astype(int)
    paths = [folder / f"train-{i:05d}.tar" for i in range(shards)]
    for i, path in enumerate(paths):
        at = row_of[edges[i] : edges[i + 1]]
        offsets, size = layout(rows.bytes_N[at])
        file_N[at], offset_N[at] = i, offsets
        with path.open("wb") as file:
            for row, offset in zip(at.tolist(), offsets.tolist(), strict=True):
                if row in real:
                    os.pwrite(file.fileno(), real[row], offset)
            file.truncate(size)
        stems = names.take(at)
        index = TarIndex(
            size,
            TextColumn.of([f"{stem.partition('_')[0]}/{stem}" for stem in stems]),
            offsets,
            rows.bytes_N[at],
            rows.label_N[at],
            np.full(len(at), LEAD),
        )
        cache.store_index(disk_cache.file_key(path), index.pack())
    labels = rows.label_N
    return ImageDataset(str(folder), paths, names, file_N, offset_N, rows.bytes_N, labels)


def layout(bytes_S: "np.ndarray") -> "tuple[np.ndarray, int]":
    """First byte of the picture of each sample of a tar, and the bytes of the tar.

    A sample is a `.cls` of at most a block and a `.jpg`; `tarfile` fills up 10,240 bytes.
    """
    end = np.cumsum(LEAD + -(-bytes_S // _BLOCK) * _BLOCK)
    begin = end - -(-bytes_S // _BLOCK) * _BLOCK
    return begin, int(-(-(int(end[-1]) + _END) // 10_240) * 10_240)


def build(folder: Path, options: argparse.Namespace) -> Cache:
    """Write cache and data set below a folder; see the head of this file."""
    from cache_tools.verify import probes

    spec = AUGMENTATIONS[options.augmentation]
    rows = scale.table(options.samples, options.classes)
    made, real = pictures(), {}
    for row in real_rows(
        rows, options.views, spec, options.batch_size * options.processes
    ).tolist():
        data, rows.height_N[row], rows.width_N[row] = made[row % len(made)]
        rows.bytes_N[row], rows.digest_N[row] = len(data), sample_table.digest(data)
        real[row] = data
    (folder / "data").mkdir()
    images = write_shards(folder / "data", rows, options.shards, real)
    store = scale.build(folder, 0, options.views, spec, TARGETS, options.classes, rows)
    store.__dict__["table"] = rows
    store.set_data_path(str(folder / "data"))
    own, encode = {}, Layout(store.spec, options.views).encode_part
    for part in probed(store.spec, options.views):
        if part.block not in own:
            own[part.block] = store.read(part)[0]
        numbers = probe_numbers(store.spec.rows(part.block))
        seen = [probes.probe(store, images, number, part.view) for number in numbers]
        chunks = encode(part.view, part.block, own[part.block], np.array(seen, np.uint64))
        for name, data in chunks.items():
            atomic.write_unsynced(store.path / name, data)
        facts = {"kept_classes": float(own[part.block].count_B.mean())}
        record = commits.encode(store.spec, part, chunks, facts, {"zarr": "3"})
        atomic.write_unsynced(store.path / part.record, record)
    return store


class Stages:
    """Seconds and memory of the stages of this process."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._base = self._anonymous = self._status("RssAnon")
        self._all = self._status("VmRSS")
        self._begin, self._lock = time.perf_counter(), threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self, name: str) -> None:
        """Note the stage that ends now."""
        with self._lock:
            now, self._anonymous = max(self._anonymous, self._status("RssAnon")), 0.0
        self.found[name] = {
            "seconds": round(time.perf_counter() - self._begin, 2),
            "private_mb": round(now - self._base, 1),
            "peak_mb": round(self._status("VmHWM") - self._all, 1),
        }
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        self._begin = time.perf_counter()

    def after(self, owner: Any, name: str, stage: str) -> None:
        """End a stage whenever the main thread returns from a function."""
        real: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return real(*arguments, **options)
            finally:
                if threading.current_thread() is threading.main_thread():
                    self.end(stage)

        setattr(owner, name, call)

    def _watch(self) -> None:
        while True:
            now = self._status("RssAnon")
            with self._lock:
                self._anonymous = max(self._anonymous, now)
            time.sleep(_STAGE_PAUSE)

    @staticmethod
    def _status(name: str, file: str = "status") -> float:
        """A size of this process in MB."""
        text = Path(f"/proc/self/{file}").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) * 1024 / 1e6

    def pss(self) -> float:
        """Memory with each shared page divided by the processes that share it, in MB."""
        return self._status("Pss", "smaps_rollup")


def begin(cache: str, batch_size: int, rank: int, processes: int) -> dict[str, Any]:
    """Begin a training run in this process, as far as the first batch and the next epoch."""
    import torch
    from torchvision.transforms import v2  # noqa: F401 - with torch, what a student loads anyway

    torch.set_num_threads(1)
    if processes > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{cache}.processes", rank=rank, world_size=processes
        )
    stages = Stages()
    from cache_tools.data import match
    from cache_tools.store.aligned import open_ensemble
    from train.data.batches import Batches
    from train.data.inputs import Inputs, check_inputs
    from train.data.prefetch import EpochPrefetcher
    from train.data.schedule import Schedule
    from train.distributed import World
    from train.recipe import TrainRecipe

    world = World(rank, processes)
    stages.end("imports")
    members = open_ensemble([cache], None)
    members.reference.map_table()
    store, table = members.reference, members.reference.table
    stages.end("sample table")
    images, covered = match.open_aligned(table, store.spec.dataset, members.source)
    inputs = Inputs(members, images, None, members.source, covered)
    stages.end("index of the data")
    check_inputs(inputs, world)
    stages.end("digests and probe views")
    recipe = TrainRecipe(student="", epochs=4, batch_size=batch_size * processes)
    batches = Batches.of_recipe(recipe, inputs, torch.device("cpu"), world)
    stages.after(Schedule, "plan", "order of an epoch")
    stages.after(EpochPrefetcher, "_make", "parameters and targets of an epoch")
    rendered = batches.rendered(0)
    first = next(rendered)
    stages.end("first batch")
    following = batches._loader._epochs._next
    assert following is not None
    following[1].result()
    stages.end("the next epoch beside it")
    pss = round(stages.pss(), 1)
    assert len(first) == batch_size
    rendered.close()  # type: ignore[attr-defined]
    return {"stages": stages.found, "pss_mb": pss, "after_torch_mb": round(stages._all, 1)}


def measure(cache: Path, batch_size: int, processes: int) -> dict[str, Any]:
    """Let processes begin a run at once; maxima over them."""
    command = [sys.executable, "-m", "benchmarks.start", "--begin", str(cache)]
    command += ["--batch-size", str(batch_size), "--processes", str(processes)]
    started = [
        subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed")
    each = [json.loads(text.splitlines()[-1]) for text in said]
    names = each[0]["stages"]
    stages = {
        name: {key: max(one["stages"][name][key] for one in each) for key in names[name]}
        for name in names
    }
    seconds = [
        sum(s["seconds"] for name, s in one["stages"].items() if "next" not in name) for one in each
    ]
    return {
        "stages": stages,
        "seconds": round(max(seconds), 1),
        "private_mb": max(stage["private_mb"] for stage in stages.values()),
        "peak_mb": max(stage["peak_mb"] for stage in stages.values()),
        "pss_mb": max(one["pss_mb"] for one in each),
        "after_torch_mb": max(one["after_torch_mb"] for one in each),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=14_197_122)
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--classes", type=int, default=21_841)
    parser.add_argument("--shards", type=int, default=4096)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256, help="of each process")
    parser.add_argument("--augmentation", choices=AUGMENTATIONS, default="crop")
    parser.add_argument("--folder", type=Path, help="where the files are written, and removed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--begin", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.begin:
        print(json.dumps(begin(options.begin, options.batch_size, options.rank, options.processes)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        os.environ[disk_cache.FOLDER] = str(folder / "kept")
        store = build(folder, options)
        used = subprocess.run(["du", "-sm", name], capture_output=True, text=True, check=True)
        results: dict[str, Any] = {
            key: getattr(options, key) for key in ("samples", "views", "classes", "shards")
        }
        results |= {"augmentation": options.augmentation, "batch_size": options.batch_size}
        results["disk_mb"] = int(used.stdout.split()[0])
        for what, processes in (
            ("first start", 1),
            ("one process", 1),
            (f"{options.processes} processes", options.processes),
        ):
            results[what] = measure(store.path, options.batch_size, processes)
            print(json.dumps({what: results[what]}, indent=2), flush=True)
    last = results[f"{options.processes} processes"]
    results["passed"] = {
        "first batch of one process in 60 s": results["one process"]["seconds"] < GOALS["seconds"],
        "under 2 GB a process": last["private_mb"] < GOALS["private_mb"],
    }
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(0 if all(results["passed"].values()) else 1)


if __name__ == "__main__":
    main()
