"""A thousand random corruptions: each is found, or changes nothing that anybody reads.

Every kind of damage is done to every kind of file of two caches: the one of all tests, and one of
two blocks with every optional array. What a reader gets is held against the truth, and `verify`
must tell what a reader with plain zarr would not see. Run with `-s` to see the counts.
"""

import json
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cache_tools.errors import KdcacheError
from cache_tools.spec.targets import TargetSpec
from cache_tools.store.cache import Cache
from cache_tools.targets import codec, dense
from cache_tools.verify import verify
from pipeline import recipe as recipes
from pipeline.run import run

COUNTS = {
    "flip": 552, "truncate": 80, "empty": 32, "delete": 40, "swap": 100, "foreign": 80, "json": 120,
}  # fmt: skip
_BATCHES = 4
Bytes = dict[str, bytes]
Damage = Callable[[random.Random, "Subject"], Bytes]
"""Draws files that change, with their new bytes; b"" with the name "-NAME" deletes NAME."""


@dataclass
class Subject:
    """A cache to damage, and what is true of it."""

    path: Path
    others: Bytes
    """Chunks and records of another cache of the same images in other views."""

    @cached_property
    def files(self) -> Bytes:
        return _files(self.path)

    @cached_property
    def truth(self) -> Any:
        return _ours(self.path)

    @cached_property
    def plain(self) -> Any:
        return _plain(self.path)

    @cached_property
    def names(self) -> list[str]:
        return sorted(self.files)

    @cached_property
    def part_files(self) -> list[str]:
        """Chunks of parts, and commit records."""
        return [n for n in self.names if n in self.others]

    @cached_property
    def chunks(self) -> list[str]:
        return [n for n in self.names if not n.endswith(".json")]

    @cached_property
    def json(self) -> list[str]:
        return [n for n in self.names if n.endswith(".json")]


def _files(path: Path) -> Bytes:
    found = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in found}


def _ours(path: Path) -> list[bytes]:
    """Everything our reader gives: spec, table and decoded targets of all parts."""
    store = Cache.open(path)
    table = store.table
    found = [repr(store.spec).encode(), table.sha256.encode(), str(store.num_views).encode()]
    for part in store.parts():
        stored, probes = store.read(part)
        decoded = codec.decode(stored, store.spec.targets)
        found += [probes.tobytes(), *(v.tobytes() for v in vars(decoded).values())]
    return found


def _plain(path: Path) -> Any:
    """Everything that zarr and numpy alone read, as in the guide to trainers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr warns of files that it does not know
        group = zarr.open_group(path, mode="r")
        manifest: Any = group.attrs["kdcache"]
        read = {}
        for folder in ("samples", "targets", "probes"):
            for name, array in group[folder].arrays():  # type: ignore[union-attr]
                values: Any = array[...]
                read[f"{folder}/{name}"] = (values.dtype, values.shape, values.tobytes())
    return manifest["spec"], manifest["num_views"], read


def _flip(random_: random.Random, subject: Subject) -> Bytes:
    name = random_.choice(subject.names)
    data = bytearray(subject.files[name])
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return {name: bytes(data)}


def _truncate(random_: random.Random, subject: Subject) -> Bytes:
    name = random_.choice(subject.names)
    return {name: subject.files[name][: random_.randrange(1, len(subject.files[name]))]}


def _empty(random_: random.Random, subject: Subject) -> Bytes:
    return {random_.choice(subject.names): b""}


def _delete(random_: random.Random, subject: Subject) -> Bytes:
    return {f"-{random_.choice(subject.names)}": b""}


def _swap(random_: random.Random, subject: Subject) -> Bytes:
    """Two chunks change places: of one array, or of any."""
    a = random_.choice(subject.chunks)
    array = a.partition("/c/")[0]
    same = [n for n in subject.chunks if n.startswith(f"{array}/c/") and n != a]
    others = same if same and random_.random() < 0.6 else [n for n in subject.chunks if n != a]
    b = random_.choice(others)
    return {a: subject.files[b], b: subject.files[a]}


def _foreign(random_: random.Random, subject: Subject) -> Bytes:
    """Chunks or records of another cache: one file, or all of one part."""
    name = random_.choice(subject.part_files)
    if random_.random() < 0.7:
        return {name: subject.others[name]}
    _, _, place = name.rpartition("/c/")
    place = "/".join(place.split("/")[-2:])
    part = [n for n in subject.part_files if n.endswith(f"/{place}")]
    return {n: subject.others[n] for n in part}


def _json(random_: random.Random, subject: Subject) -> Bytes:
    """One number, word or truth value of a JSON file is another."""
    name = random_.choice(subject.json)
    value = json.loads(subject.files[name])
    places = list(_leaves(value))
    holder, key = random_.choice(places)
    holder[key] = _another(random_, holder[key])
    return {name: json.dumps(value).encode()}


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, (dict, list)) and inner:
            yield from _leaves(inner)
        else:
            yield value, key


def _another(random_: random.Random, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return random_.choice([7, "x", not value])
    if isinstance(value, str):
        return value[:-1] + random_.choice([c for c in "0a7f" if c != value[-1:]])
    return value + random_.choice([-1, 1, 100])


KINDS: dict[str, Damage] = {
    "flip": _flip, "truncate": _truncate, "empty": _empty, "delete": _delete, "swap": _swap,
    "foreign": _foreign, "json": _json,
}  # fmt: skip


def _apply(subject: Subject, damage: Bytes) -> None:
    for name, data in damage.items():
        if name.startswith("-"):
            (subject.path / name[1:]).unlink()
        else:
            (subject.path / name).write_bytes(data)


def _restore(subject: Subject, damage: Bytes) -> None:
    for name in (n.removeprefix("-") for n in damage):
        (subject.path / name).write_bytes(subject.files[name])


def _finding(subject: Subject) -> str:
    """ "refused" by a reader, "same" as the truth, or a word that must not occur."""
    try:
        read = "same" if _ours(subject.path) == subject.truth else "SILENT"
    except KdcacheError:
        read = "refused"
    except Exception as error:
        read = f"ESCAPED {error!r}"
    return read


def _verdict(subject: Subject) -> str:
    """The verdict of `verify`, or the kind of the error that forbids to open the cache."""
    try:
        return verify.verify(Cache.open(subject.path)).status
    except KdcacheError as error:
        return error.kind
    except Exception as error:
        return f"ESCAPED {error!r}"


def _same_to_others(subject: Subject) -> bool:
    try:
        return bool(_plain(subject.path) == subject.plain)
    except Exception:  # another reader's errors are its own
        return False


def _complaint(subject: Subject, damage: Bytes) -> tuple[str, str | None]:
    """How the damage was met, and what is wrong with that."""
    read, verdict = _finding(subject), _verdict(subject)
    for word in (read, verdict):
        if word.startswith(("SILENT", "ESCAPED")):
            return word, f"{sorted(damage)}: {word}"
    if verdict != "ok":
        return f"{read}, {verdict}", None
    if read != "same" or not _same_to_others(subject):
        return "UNSEEN", f"{sorted(damage)}: read: {read}, but verify says ok"
    return "harmless", None


def _rich(made: Path, path: Path, seed: int) -> Path:
    """A cache of the same images in two blocks, with every optional array, of random logits."""
    base = Cache.open(made)
    targets = TargetSpec(k_max=6, tau=0.01, true_class=True, tail_square=True)
    views = replace(base.spec.views, seed=seed)
    spec = replace(base.spec, targets=targets, views=views, block_size=64, window=32)
    store = Cache.create(path, spec, base.table, 3)
    random_ = np.random.default_rng(seed)
    for part in store.parts():
        shape = len(spec.rows(part.block)), spec.teacher.num_classes
        logits, labels = random_.normal(0, 3, shape), random_.integers(0, 10, (shape[0], 2))
        stored = codec.encode(dense.sparsify(logits, targets, labels), targets, shape[1])
        store.write(part, stored, random_.integers(0, 2**63, 4, dtype=np.uint64), {}, {})
    return path


@pytest.fixture(scope="module")
def caches(
    tmp_path_factory: pytest.TempPathFactory, digits_cache: Path, digits: Path, teacher: Path
) -> list[tuple[Path, Path]]:
    """Both caches, and beside each one of other views."""
    folder = tmp_path_factory.mktemp("corruption")
    other = recipes.load("digits", ["num_views=4", "views.mixup=0.5", "views.seed=2"])
    run(other, str(digits), str(teacher), folder / "other.zarr", "cpu")
    rich = [_rich(digits_cache, folder / f"rich{seed}.zarr", seed) for seed in (1, 2)]
    return [(digits_cache, folder / "other.zarr"), (rich[0], rich[1])]


@pytest.fixture
def subjects(caches: list[tuple[Path, Path]], tmp_path: Path) -> list[Subject]:
    """Copies of both caches, to be damaged."""
    found = []
    for path, other in caches:
        copy = Path(shutil.copytree(path, tmp_path / path.name))
        files = _files(path)
        others = {n: d for n, d in _files(other).items() if files.get(n, d) != d}
        parts = {n: d for n, d in others.items() if "/c/" in n or n.startswith("commits/v")}
        found.append(Subject(copy, {n: d for n, d in parts.items() if n in files}))
    assert all(s.truth and s.plain and s.part_files for s in found)
    return found


@pytest.mark.parametrize(
    "batch", [0, *(pytest.param(b, marks=pytest.mark.slow) for b in range(1, _BATCHES))]
)
def test_no_corruption_is_silent(subjects: list[Subject], batch: int) -> None:
    random_ = random.Random(20_261_124 + batch)
    met: dict[str, Counter[str]] = {kind: Counter() for kind in COUNTS}
    complaints = []
    for number, kind in enumerate(k for k, n in COUNTS.items() for _ in range(n // _BATCHES)):
        subject = subjects[number % 2]
        damage = KINDS[kind](random_, subject)
        _apply(subject, damage)
        how, complaint = _complaint(subject, damage)
        _restore(subject, damage)
        met[kind][how] += 1
        complaints += [f"{kind} {complaint}"] if complaint else []
    for kind, counts in met.items():
        print(f"{kind:9} {sum(counts.values()):4}  " + str(dict(counts.most_common())))
    assert not complaints, "\n".join(complaints)
    assert sum(map(sum, (c.values() for c in met.values()))) >= sum(COUNTS.values()) // _BATCHES
    assert [_finding(s) for s in subjects] == ["same", "same"]  # all was restored
