"""What an attacker has: an honest cache to start from, and a pen for every digest in it.

`honest` writes a small cache without a teacher. An attack edits its files as it likes and calls
`seal`, which recomputes every digest, so that no checksum gives the forgery away: what refuses it
must have looked at what it says.

Shapes: N samples, B views, C classes.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np

from cache_tools.spec import sample_table
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.spec.dataset import DatasetSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec, dense
from cache_tools.targets.codec import EncodedTargets

Json = dict[str, Any]
ROWS, CLASSES, VIEWS = 96, 20, 2
PART = Part(1, 0)
"""The part that attacks on parts go for."""
CODE = "targets/code/c/1/0"
COUNT = "targets/count/c/1/0"
DELTA = "targets/index_delta/c/1/0"
TAIL = "targets/tail/c/0/1/0"
ITEMSIZES = {CODE: 1, COUNT: 2, DELTA: 2, TAIL: 1, "id": 8, "digest": 8, "bytes": 8, "key": 1}
"""Bytes of a value in chunks and columns; 4 in others."""
BOMB = 640 * 2**20
"""Bytes that a bomb expands to: more memory than a reader may touch, but less than its limit of
addresses, so that it would be seen to be expanded and not fail to be."""
_SHARED = 2**20
"""Bytes of a block of a bomb."""


def honest(path: Path) -> Path:
    """A whole cache of 2 views of 96 samples in 2 blocks, with every optional array."""
    table = _table([f"n{i:08d}" for i in range(ROWS)])
    store = Cache.create(path, _spec(table), table, VIEWS)
    rng = np.random.default_rng(5)
    for part in store.parts():
        rows = store.spec.rows(part.block)
        logits = rng.normal(0.0, 3.0, (len(rows), CLASSES)).astype(np.float32)
        labels = rng.integers(0, CLASSES, (len(rows), 2))
        sparse = dense.sparsify(logits, store.spec.targets, labels)
        stored = codec.encode(sparse, store.spec.targets, CLASSES)
        probes = rng.integers(0, 2**63, 4).astype(np.uint64)
        store.write(part, stored, probes, {"kept_classes": 6.0}, {"numpy": "2.0"})
    return path


def _table(keys: list[str]) -> SampleTable:
    keys = sorted(keys, key=sample_table.sample_id)
    ids = np.array([sample_table.sample_id(k) for k in keys], dtype=np.uint64)
    number = np.arange(len(keys))
    sides = (number.astype(np.int32) + 32, number.astype(np.int32) + 40)
    label = (number % CLASSES).astype(np.int32)
    return SampleTable(tuple(keys), ids, ids ^ np.uint64(9), label, *sides, number + 900)


def _spec(table: SampleTable) -> CacheSpec:
    mean = (0.5, 0.5, 0.5)
    targets = TargetSpec(k_max=8, tau=0.01, true_class=True, tail_square=True)
    return CacheSpec(
        DatasetSpec(len(table), CLASSES, True, "stem", table.sha256),
        TeacherSpec("test", "test", sha256(b"weights"), CLASSES, mean, mean),
        ViewSpec(size=32, mixup=0.5),
        targets,
        block_size=64,
        window=32,
    )


def load(path: Path) -> Json:
    """Any JSON of a cache."""
    value: Json = json.loads(path.read_bytes())
    return value


def edit(path: Path, change: Callable[[Json], object]) -> None:
    """Change a JSON file in place; what `change` returns is ignored."""
    value = load(path)
    change(value)
    path.write_text(json.dumps(value))


def edit_manifest(cache: Path, change: Callable[[Json], object]) -> None:
    """Change attributes.kdcache and recompute all digests."""
    edit(cache / "zarr.json", lambda group: change(group["attributes"]["kdcache"]))
    seal(cache)


def edit_spec(cache: Path, **values: Any) -> None:
    """Set fields of the spec, such as `targets__k_max=9`, and recompute all digests."""

    def change(manifest: Json) -> None:
        for name, value in values.items():
            *tables, leaf = name.split("__")
            place = manifest["spec"]
            for table in tables:
                place = place[table]
            place[leaf] = value

    edit_manifest(cache, change)


def seal(cache: Path) -> None:
    """Make every digest in manifest and records that of what lies there now."""
    group = load(cache / "zarr.json")
    manifest = group["attributes"]["kdcache"]
    if isinstance(manifest.get("spec"), dict):
        manifest["fingerprint"] = sha256(canonical(manifest["spec"]))
    reseal(manifest)
    (cache / "zarr.json").write_text(json.dumps(group))
    for path in cache.glob("commits/v*/*.json"):
        if path.is_file() and path.stat().st_size < 2**16:
            edit(path, lambda record: _seal_record(cache, record, manifest["fingerprint"]))


def reseal(value: Json) -> None:
    """Recompute the `sha256` member of a manifest or record."""
    value.pop("sha256", None)
    value["sha256"] = sha256(canonical(value))


def _seal_record(cache: Path, record: Json, fingerprint: str) -> None:
    record["fingerprint"] = fingerprint
    for name, chunk in record["chunks"].items():
        if (cache / name).is_file():
            data = (cache / name).read_bytes()
            chunk.update(bytes=len(data), sha256=sha256(data))
    reseal(record)


def canonical(value: Any) -> bytes:
    """As the product's, but an attacker's numbers may be infinite."""
    try:
        return canonical_json(value)
    except ValueError:
        return b"no canonical form"


def replace_part(cache: Path, **changes: Any) -> None:
    """Write `PART` with other values: arrays by their names in `EncodedTargets`."""
    store = Cache.open(cache)
    stored, probes = store.read(PART)
    values = {**vars(stored), **changes}
    values.pop("begin_B1", None)
    chunks = store._layout.encode_part(PART.view, PART.block, EncodedTargets(**values), probes)
    for name, data in chunks.items():
        (cache / name).write_bytes(data)
    seal(cache)


def array_bytes(values: np.ndarray[Any, Any]) -> bytes:
    """A chunk of any length, as zarr would encode it."""
    blosc = numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE)
    return with_crc(bytes(blosc.encode(np.ascontiguousarray(values))))


def bomb(size: int, fill: int = 0, itemsize: int = 1) -> bytes:
    """A legal blosc frame of a few KB that expands to `size` bytes of one value.

    Its blocks share their compressed bytes: every entry of the table of blocks names the same.
    """
    block = np.full(_SHARED, fill, dtype=np.uint8)
    frame = bytes(numcodecs.Blosc("zstd", 5, 0, blocksize=_SHARED).encode(block))
    (start,) = struct.unpack_from("<i", frame, 16)
    count = size // _SHARED
    head = 16 + 4 * count
    body = frame[start:]
    sizes = struct.pack("<iii", count * _SHARED, _SHARED, head + len(body))
    return with_crc(frame[:3] + bytes([itemsize]) + sizes + struct.pack("<i", head) * count + body)


def with_crc(frame: bytes) -> bytes:
    """A frame with its checksum behind it, as the codec crc32c leaves it."""
    return frame + struct.pack("<I", google_crc32c.value(frame))


def put_array(cache: Path, name: str, values: np.ndarray[Any, Any]) -> None:
    """Replace the data of a small array of one chunk; its metadata stay as they are."""
    (cache / name / "c/0").write_bytes(array_bytes(values))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all fields of nested JSON, tables and lists among them."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (Mapping, list)):
            yield from leaves(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Set the field at a path of nested JSON."""
    *front, last = path
    for key in front:
        value = value[key]
    value[last] = new
