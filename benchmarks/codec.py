"""Size and fidelity of a cached view, beside other systems' layouts.

    python -m benchmarks.codec LOGITS.npz [--scales 1,1.5,2.5] [--repeats 7] [--json FILE]

LOGITS holds `logits` [N, C] of real pictures. Where it has `photo` [N] too, the first view of each
photo is taken: views of one photo resemble each other, which a compressor would exploit. Scaled
logits model a more confident teacher. Two parts:

Size and fidelity. Logits go through `kdcache import dense` into a cache on disk and are read back
with all checks; peers get the same float32 logits (`benchmarks.peers`). "ours, tau" has the
threshold at which the mean KL divergence is at or just below that of TinyViT's records with K
classes; "ours, K" keeps as many classes as those. Two bytes per view are the masses of the dropped
classes at T = 1 and 2. Bytes per view, of ours:

* "chunks" are the compressed arrays;
* "files" is everything on disk but the sample table: metadata and commit records, some 3 kB a
  cache, which counts for a thousand views and not for a million;
* "in 65,536" is what these chunks would come to with those 3 kB shared by one full part.

A peer's bytes are all its files; TinyViT's ratio to ours counts its records and leaves out its list
of keys. Divergences are taken in float64, restored probabilities below 1e-12 count as that.

Speed, per second of CPU time (of all threads together; medians after a warm-up). The views of a
full part are made from the logits: each takes its logits from two photos, class by class from one
or the other at random, and noise (sd 0.3) is added. So no view is met twice, classes are as
frequent as in real views, and chunks compress as well and as fast. An epoch is ImageNet's
1,281,167 views in 20 parts, read from a cache on disk (in the page cache) with SHA-256 and every
check: the made part in 20 rotations, as parts are compressed one by one. A decoded view is ids,
log-probabilities and tail masses in K slots; TinyViT's reader gives ids and fp16 probabilities.

Shapes: N views of LOGITS, B views, C classes, K slots.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.distillkit import BINS, BUDGET, RECOMMENDED
from benchmarks.machine import machine
from benchmarks.peers import FKD, MlDr, Peer, PlainZarr, TinyViT, TinyViTReader
from cache_tools.importers import dense as importer
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import NO_LABEL, DatasetSpec
from cache_tools.spec.sample_table import SampleTable, sample_id
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import UNKNOWN_VIEWS
from cache_tools.store.cache import Cache
from cache_tools.store.layout import Layout
from cache_tools.targets import codec, dense
from cache_tools.targets.codec import EncodedTargets, SparseTargets

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Row = dict[str, Any]

LIBRARIES = ("numpy", "numba", "zarr", "numcodecs", "torch")
KEPT = (10, 20, 50)
PART = 65_536
IMAGENET = 1_281_167
NOISE = 0.3
BATCH = 256

BAR_SCALE = 1.5
SIZE_BARS = {10: 16.5, 20: 24.0, 50: 42.5}
"""Most bytes per view at the KL of TinyViT with so many classes."""
RATE_BARS = {"encode": 0.3e6, "encode and compress": 0.3e6, "decode": 2e6, "gather": 2e6}
"""Least views per second of CPU time."""
EPOCH_BAR = 1.5
"""Most CPU seconds to read an epoch of ImageNet."""


@dataclass(frozen=True)
class Bar:
    """A promised figure and the measured one."""

    what: str
    measured: float
    limit: float
    at_most: bool = True

    @property
    def passed(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def row(self) -> Row:
        sign = "<=" if self.at_most else ">="
        verdict = "PASS" if self.passed else "FAIL"
        figures = {"measured": self.measured, "bar": f"{sign} {self.limit:.5g}"}
        return {"what": self.what, **figures, "verdict": verdict}


def standard(views_per_image: int | None = None) -> list[Peer]:
    """Create the peers of the table.

    Args:
        views_per_image: For FKD and ml-dr, which keep a file per image; None: 500 and 400, as
            their published caches have, which is where they are smallest.
    """
    crops, views = (views_per_image or 500), (views_per_image or 400)
    return [
        *(TinyViT(k) for k in KEPT),
        FKD(5, "float32", crops),
        FKD(5, "float16", crops),
        FKD(10, "float32", crops),
        FKD(10, "float16", crops),
        *(MlDr(k, views, gz) for k in (10, 20) for gz in (False, True)),
        RECOMMENDED,
        BUDGET,
        BINS,
        *(PlainZarr(k) for k in KEPT),
    ]


def distinct(path: Path) -> F4:
    """Load the logits [N, C] of a file, one view per photo where it has `photo`."""
    with np.load(path, allow_pickle=False) as archive:
        logits_NC: F4 = archive["logits"].astype(np.float32)
        if "photo" in archive:
            logits_NC = logits_NC[np.unique(archive["photo"], return_index=True)[1]]
    return logits_NC


def fidelity(logits_NC: F4, restored_NC: F8, at_two_NC: F8 | None = None) -> Row:
    """Divergences of restored distributions from the teacher's.

    Args:
        logits_NC: The teacher's.
        restored_NC: What came back, at T = 1.
        at_two_NC: The same at T = 2 where it was stored; None: p^(1/2), normalised.
    """
    kl_N = peers.divergence(logits_NC, restored_NC)
    if at_two_NC is None:
        kl_two_N = peers.divergence(logits_NC, restored_NC, 2.0)
    else:
        kl_two_N = peers.divergence(logits_NC / np.float32(2), at_two_NC)
    return {
        "kl": float(kl_N.mean()),
        "kl p99": float(np.percentile(kl_N, 99)),
        "kl T=2": float(kl_two_N.mean()),
        "l1": float(np.abs(peers.softmax(logits_NC) - restored_NC).sum(axis=1).mean()),
    }


def of_peer(peer: Peer, logits_NC: F4) -> Row:
    stored = peer.encode(logits_NC)
    size = {"record": peer.record_bytes(logits_NC.shape[1]), "files": stored.bytes_per_view}
    return {"name": peer.name, **size, **fidelity(logits_NC, peer.restore(stored))}


def of_cache(name: str, logits_NC: F4, targets: TargetSpec) -> Row:
    """Import logits as a user would, count the bytes on disk and read the cache back."""
    count = len(logits_NC)
    with tempfile.TemporaryDirectory() as folder:
        np.save(source := Path(folder, "logits.npy"), logits_NC)
        store = importer.run(source, Path(folder, "cache.zarr"), targets, "teacher")
        chunks, files = _sizes(store)
        stored, order = store.read_view(0), np.array(store.table.keys, np.int64)
    decoded = codec.decode(stored, store.spec.targets)
    restored = np.empty((2, *logits_NC.shape))
    for i, temperature in enumerate((1.0, 2.0)):
        restored[i, order] = dense.densify(
            decoded, store.spec.targets, logits_NC.shape[1], temperature
        )
    return {
        "name": name,
        "tau": targets.tau,
        "kept": len(stored.code_E) / count,
        "chunks": chunks / count,
        "files": files / count,
        "in 65,536": chunks / count + (files - chunks) / PART,
        **fidelity(logits_NC, *restored),
    }


def _sizes(store: Cache) -> tuple[int, int]:
    """Bytes of the parts' chunks, and of all files but the sample table's."""
    recorded = [store.record(part)["chunks"].values() for part in store.parts()]
    files = [path for path in store.path.rglob("*") if path.is_file()]
    counted = [p for p in files if p.relative_to(store.path).parts[0] != "samples"]
    return sum(c["bytes"] for r in recorded for c in r), sum(p.stat().st_size for p in counted)


def threshold(logits_NC: F4, limit: float, targets: TargetSpec, steps: int = 15) -> TargetSpec:
    """The spec with the highest tau whose mean KL is at most `limit`, by bisection of ln tau."""
    low, high = np.log(1e-6), np.log(0.5)
    for _ in range(steps):
        middle = (low + high) / 2
        spec = replace(targets, tau=float(np.exp(middle)))
        stored = codec.encode(dense.sparsify(logits_NC, spec), spec, logits_NC.shape[1])
        back = dense.densify(codec.decode(stored, spec), spec, logits_NC.shape[1])
        below = peers.divergence(logits_NC, back).mean() <= limit
        low, high = (middle, high) if below else (low, middle)
    return replace(targets, tau=float(np.exp(low)))


def size_table(logits_NC: F4) -> list[Row]:
    """Peers, then ours at each of TinyViT's divergences."""
    rows = [of_peer(peer, logits_NC) for peer in standard()]
    for k, tinyvit in zip(KEPT, rows[: len(KEPT)], strict=True):
        wide = TargetSpec(k_max=128)
        fewer = replace(wide, levels=63)
        specs = {
            f"ours, tau, as TinyViT K={k}": threshold(logits_NC, tinyvit["kl"], wide),
            f"ours, tau, 63 levels, as K={k}": threshold(logits_NC, tinyvit["kl"], fewer),
            f"ours, K={k}": TargetSpec(k_max=k, k_min=k, tau=0.0),
        }
        for name, spec in specs.items():
            row = of_cache(name, logits_NC, spec)
            rows.append({**row, "TinyViT / ours": tinyvit["record"] / row["chunks"]})
    return rows


def size_bars(scale: float, rows: list[Row]) -> list[Bar]:
    """At every scale the divergences; at one the bytes."""
    bars, named = [], {row["name"]: row for row in rows}
    for k, limit in SIZE_BARS.items():
        ours, tinyvit = named[f"ours, tau, as TinyViT K={k}"], named[f"TinyViT K={k}"]
        where = f"scale {scale:g}, KL of TinyViT K={k}"
        if scale == BAR_SCALE:
            bars += [Bar(f"{where}: bytes, {n}", ours[n], limit) for n in ("chunks", "in 65,536")]
            fewer = named[f"ours, tau, 63 levels, as K={k}"]
            bars += [Bar(f"{where}: bytes, files, 63 levels", fewer["files"], limit)]
            few = f"{where}, 63 levels"
            bars += [Bar(f"{few}: {n}", fewer[n], tinyvit[n]) for n in ("kl", "kl p99")]
        bars += [Bar(f"{where}: {n}", ours[n], tinyvit[n]) for n in ("kl", "kl p99")]
    return bars


def made(logits_NC: F4, views: int = PART) -> Iterator[F4]:
    """Logits of `views` views in blocks of at most N: two photos' halves each, noise added."""
    random = np.random.default_rng(0)
    for begin in range(0, views, len(logits_NC)):
        shape = min(len(logits_NC), views - begin), logits_NC.shape[1]
        first_BC, second_BC = logits_NC[random.integers(0, len(logits_NC), (2, shape[0]))]
        halves_BC = np.where(random.random(shape) < 0.5, first_BC, second_BC)
        yield halves_BC + np.float32(NOISE) * random.standard_normal(shape, np.float32)


def sparse_part(logits_NC: F4, targets: TargetSpec) -> SparseTargets:
    """Sparse targets of a full part of made views."""
    pieces = [dense.sparsify(block_BC, targets) for block_BC in made(logits_NC)]
    names = ("index_BK", "probability_BK", "tail_BT", "true_BP", "square_BQ")
    return SparseTargets(*(np.concatenate([getattr(p, name) for p in pieces]) for name in names))


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median over the repeats, after one run that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def epoch_spec(targets: TargetSpec, classes: int, table: SampleTable) -> CacheSpec:
    dataset = DatasetSpec(len(table), 0, False, "stem", table.sha256)
    teacher = TeacherSpec("made", "", "", classes, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return CacheSpec(dataset, teacher, UNKNOWN_VIEWS, targets, PART, renderer="none")


def sample_table(count: int) -> SampleTable:
    """Sample table with nothing but names."""
    keys = np.array([f"{i:08d}" for i in range(count)])
    ids = np.array([sample_id(key) for key in keys.tolist()], np.uint64)
    order, none = np.argsort(ids), np.zeros(count, np.int32)
    columns = (np.zeros(count, np.uint64), np.full(count, NO_LABEL, np.int32), none, none)
    named = tuple(keys[order].tolist())
    return SampleTable(named, ids[order], *columns, np.zeros(count, np.int64))


def codec_speed(sparse: SparseTargets, spec: CacheSpec, repeats: int) -> tuple[Row, EncodedTargets]:
    """CPU seconds of each step with one part, and the part."""
    targets, classes, views = spec.targets, spec.teacher.num_classes, len(sparse.index_BK)
    layout, probes = Layout(spec, 1), np.empty(0, np.uint64)
    stored = codec.encode(sparse, targets, classes)
    chunks = layout.encode_part(0, 0, stored, probes)
    random = np.random.default_rng(1).permutation(views)
    batches = [random[i : i + BATCH] for i in range(0, views, BATCH)]

    def decode() -> object:
        part = layout.decode_part(0, 0, chunks)[0]
        if wrong := codec.check(part, targets, classes):
            raise ValueError(wrong)
        decoded = codec.decode(part, targets)
        with np.errstate(divide="ignore"):  # empty slots
            return decoded.index_BK, np.log(decoded.probability_BK), decoded.tail_BT

    def gather() -> None:
        for rows in batches:  # a loader drops each before it asks for many more
            codec.decode(stored, targets, rows)

    steps: dict[str, Callable[[], object]] = {
        "encode": lambda: codec.encode(sparse, targets, classes),
        "compress": lambda: layout.encode_part(0, 0, stored, probes),
        "decode": decode,
        "gather": gather,
    }
    seconds = {name: cpu_seconds(run, repeats) for name, run in steps.items()}
    seconds["encode and compress"] = seconds["encode"] + seconds["compress"]
    rates = {name: views / value for name, value in seconds.items()}
    size = sum(map(len, chunks.values())) / views
    return {"kept": len(stored.code_E) / views, "chunks": size, **rates}, stored


def tinyvit_speed(logits_NC: F4, top_k: int, repeats: int) -> float:
    """Views per CPU second that TinyViT's reader reads, each once and in order."""
    peer = TinyViT(top_k)
    values, keys = f"{peer.folder}/rank0-values.bin", list(map(str, range(PART)))
    blocks = [peer.encode(block_BC).files[values] for block_BC in made(logits_NC)]
    files = {values: b"".join(blocks), f"{peer.folder}/rank0-keys.txt": "\n".join(keys).encode()}
    with tempfile.TemporaryDirectory() as folder:
        peers.Stored(files, PART, logits_NC.shape[1]).write(Path(folder))
        with TinyViTReader(Path(folder, peer.folder), top_k) as reader:
            return PART / cpu_seconds(lambda: [reader.read(key) for key in keys], repeats)


def epoch_speed(stored: EncodedTargets, spec: CacheSpec, table: SampleTable, repeats: int) -> Row:
    """Bytes per view on disk, and CPU seconds to read one view number of every sample."""
    with tempfile.TemporaryDirectory() as folder:
        store = Cache.create(Path(folder, "cache.zarr"), spec, table, 1)
        for part in store.parts():
            rows = rotated(stored, 1000 * part.block, len(spec.rows(part.block)))
            store.write(part, rows, np.empty(0, np.uint64), {}, {})
        seconds = cpu_seconds(lambda: store.read_view(0), repeats)
        return {"files": _sizes(store)[1] / len(table), "epoch": seconds}


def rotated(stored: EncodedTargets, start: int, rows: int) -> EncodedTargets:
    """`rows` targets from `start` on, the first following the last."""
    double, begin = codec.concatenate([stored, stored]), start % len(stored)
    first, last = double.begin_B1[[begin, begin + rows]]
    of_rows = (getattr(double, name)[..., begin : begin + rows] for name in _BY_ROW)
    count, *codes = of_rows
    return EncodedTargets(
        count, double.index_delta_E[first:last], double.code_E[first:last], *codes
    )


_BY_ROW = ("count_B", "tail_TB", "true_PB", "square_QB")


def speed(logits_NC: F4, repeats: int) -> tuple[list[Row], list[Bar]]:
    """Table of speeds and its bars, which are set for K = 20."""
    default = TargetSpec()
    contestants = {
        "ours, K=20": TargetSpec(k_max=20, k_min=20, tau=0.0),
        f"ours, default (tau={default.tau:g}, K<={default.k_max})": default,
    }
    table, rows = sample_table(IMAGENET), []
    for name, targets in contestants.items():
        spec = epoch_spec(targets, logits_NC.shape[1], table)
        row, stored = codec_speed(sparse_part(logits_NC, targets), spec, repeats)
        rows.append({"name": name, **row, **epoch_speed(stored, spec, table, repeats)})
    bars = [
        Bar(f"{row['name']}: {name}, views per CPU second", row[name], limit, at_most=False)
        for row in rows
        for name, limit in RATE_BARS.items()
    ]
    bars += [Bar(f"{row['name']}: epoch, CPU seconds", row["epoch"], EPOCH_BAR) for row in rows]
    rate, size = tinyvit_speed(logits_NC, 20, repeats), TinyViT(20).record_bytes(len(logits_NC[0]))
    reader = {"decode": rate, "epoch": IMAGENET / rate}
    return [*rows, {"name": "TinyViT K=20's reader", "kept": 20, "chunks": size, **reader}], bars


def text(rows: Sequence[Row]) -> str:
    """Rows of a table with the columns any of them has; figures to four digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([_figure(row.get(name)) for name in columns] for row in rows)]
    first, *others = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    layout = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(layout.format(*line) for line in lines)


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("logits", type=Path)
    parser.add_argument("--scales", default="1,1.5,2.5")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logits_NC, bars = distinct(options.logits), list[Bar]()
    results: Row = {"views": len(logits_NC), "classes": logits_NC.shape[1], "size": {}}
    for scale in map(float, options.scales.split(",")):
        rows = size_table(logits_NC * np.float32(scale))
        results["size"][f"{scale:g}"] = rows
        bars += size_bars(scale, rows)
        print(f"size and fidelity, {len(logits_NC)} views, scale {scale:g}\n\n{text(rows)}\n")
    results["speed"], of_speed = speed(logits_NC * np.float32(BAR_SCALE), options.repeats)
    bars += of_speed
    results |= {"bars": [bar.row() for bar in bars], "machine": machine(LIBRARIES)}
    print(f"speed, {PART:,} views, scale {BAR_SCALE:g}: views per second of CPU time; an epoch of")
    print(f"{IMAGENET:,} views in seconds of CPU time\n\n{text(results['speed'])}\n")
    print(f"bars\n\n{text(results['bars'])}\n\n{json.dumps(results['machine'])}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
