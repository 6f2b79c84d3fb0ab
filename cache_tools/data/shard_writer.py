"""Any data set to WebDataset shards that timm's `wds/…` reader, WebDataset and we open.

Samples lie in the shards in the order of the sample table (by the hash of their key): every shard
holds all classes, as training from a stream wants it, and stage 1, which works in that order, reads
one shard after the other. Order and bytes depend on the samples and the options alone. A shard
appears whole, then its index beside it, `_info.json` last; running the same command again writes
what is missing. `_shards-SPLIT.json` says what the folder is being filled with, so that nothing
else is mixed in.

Shapes: N samples.
"""

import hashlib
import io
import json
import logging
import tarfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools import file_contents
from cache_tools.data import info_json, reencode, scan, tar_index
from cache_tools.data.images import NO_CRC, ImageDataset
from cache_tools.data.info_json import DatasetInfo
from cache_tools.data.open import describe
from cache_tools.data.tar_index import TarIndex
from cache_tools.errors import DataError, UsageError
from cache_tools.render import decode
from cache_tools.runtime import progress, threads
from cache_tools.runtime.text import counted
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.storage import atomic

log = logging.getLogger("kdcache")
TIMM_READS = ("jpg", "png", "webp")
QUALITY = 90
_SHOWN = 10


@dataclass(frozen=True)
class Options:
    """Options of writing shards."""

    split: str = "train"
    """Name of the split: train, validation or teacher."""
    shard_size: int = 1000
    """Samples per shard; the last one may have fewer."""
    short_side: int = 0
    """Pixels to shrink larger images to; 0 copies all bytes as they are."""
    quality: int = QUALITY
    """JPEG quality of what is shrunk."""
    check: bool = True
    """True if every image is decoded, so that broken ones are found now."""
    skip_broken: bool = False
    """True if broken images are left out; otherwise they are an error."""


def write(images: ImageDataset, target: Path, options: Options) -> dict[str, Any]:
    """Write the shards of one split, or those that are missing.

    Returns:
        Facts: samples, shards, bytes, and the names of what was left out.

    Raises:
        UsageError: The folder holds, or is being filled with, something else.
        DataError: Images are broken; all other shards were written.
    """
    _, _, images = scan.in_table_order(images, None)
    _check_names(images)
    info = describe(str(target)) or DatasetInfo(str(target / info_json.NAME))
    size = options.shard_size
    count = -(-len(images) // size)
    digits = max(4, len(str(count - 1)))
    names = [f"{options.split}-{i:0{digits}d}.tar" for i in range(count)]
    rows = [range(i * size, min((i + 1) * size, len(images))) for i in range(count)]
    shards = dict(zip(names, rows, strict=True))
    _claim(images, target, options, info, shards)
    atomic.sweep(target)
    writer = _Writer(images, target, options)
    found = [writer.written(name, place) for name, place in shards.items()]
    broken = writer.write(names, rows, found)
    if broken and not options.skip_broken:
        raise _broken(broken, images)
    indices = [index for index in found if index is not None]
    _describe(target, info, options.split, names, indices, images.class_names)
    left_out = sorted(set(images.names).difference(*(index.names for index in indices)))
    for name in left_out:
        log.warning("left out, for it is broken: %s", name)
    facts = {"samples": len(images) - len(left_out), "shards": count}
    return facts | {"bytes": sum(i.tar_bytes for i in indices), "left_out": left_out}


class _Writer:
    """Reads, looks at and shrinks images on all cores, and writes them shard by shard."""

    def __init__(self, images: ImageDataset, target: Path, options: Options) -> None:
        self._images, self._target, self._options = images, target, options
        self._reuse = decode.DecodeBuffer()
        self._kinds: set[str] = set()

    def write(
        self, names: list[str], rows: list[range], found: list[TarIndex | None]
    ) -> dict[str, str]:
        """Write every shard that is not in `found`, and fill it in; broken images by name."""
        total = len(self._images)
        missing = [i for i, index in enumerate(found) if index is None]
        done = total - sum(len(rows[i]) for i in missing)
        broken: dict[str, str] = {}
        with (
            ThreadPoolExecutor(threads.cpu_count()) as pool,
            progress.bar(f"write {self._options.split} shards", total, "images", done) as advance,
        ):
            ahead: deque[tuple[int, list[Future[bytes | DataError]]]] = deque()
            for i in [*missing, None]:
                if i is not None:
                    ahead.append((i, [pool.submit(self.load, row) for row in rows[i]]))
                if len(ahead) > 1 or (i is None and ahead):  # one shard is written, the next made
                    number, futures = ahead.popleft()
                    loaded = []
                    for future in futures:
                        loaded.append(future.result())
                        advance(1)
                    found[number] = self._finish(names[number], rows[number], loaded, broken)
        if odd := sorted(self._kinds.difference(TIMM_READS)):
            log.warning(
                "timm's reader takes jpg, png and webp only, and there are %s: give it "
                "--input-key, or shrink them (--short-side), which makes JPEGs.",
                ", ".join(odd),
            )
        return broken

    def written(self, name: str, rows: range) -> TarIndex | None:
        """Read the index of a shard that is as it was written and of these samples, or None.

        One without a sample is written again when that was broken and is no more.
        """
        path, images = self._target / name, self._images
        beside = path.with_name(path.name + tar_index.SUFFIX)
        try:
            with path.open("rb") as file:
                index = tar_index.scan(file, path.name, checksums=True)
                padded = tar_index.is_padded(file, index)
            if not padded or index.pack() != file_contents.read(
                beside, tar_index.largest(index.tar_bytes)
            ):
                return None
        except (OSError, ValueError):  # DataError, too
            return None
        place = {images.names[row]: row for row in rows}
        here = [place.get(name, -1) for name in index.names]
        left_out = {*rows} - {*here}
        if -1 in here or (left_out and not self._options.skip_broken):
            return None
        # of a folder that an older version began: a repaired image has another size
        if not (self._options.short_side or (images.length_N[here] == index.length_N).all()):
            return None
        return None if any(isinstance(self.load(row), bytes) for row in left_out) else index

    def load(self, row: int) -> bytes | DataError:
        """Read the bytes of a sample as they go into the shard, or return its error."""
        name, options = self._images.names[row], self._options
        try:
            data = self._images.read(row)
            reencode.extension(data, name)
            if options.short_side:
                return reencode.shrink(data, name, options.short_side, options.quality, self._reuse)
            if options.check:
                decode.decode(data, name, self._reuse)
            return data
        except DataError as error:
            return error

    def _finish(
        self, name: str, rows: range, loaded: list[bytes | DataError], broken: dict[str, str]
    ) -> TarIndex | None:
        """Write one shard, then its index; not when something in it is broken and must not be."""
        good = [(row, d) for row, d in zip(rows, loaded, strict=True) if isinstance(d, bytes)]
        for row, d in zip(rows, loaded, strict=True):
            if isinstance(d, DataError):
                broken[self._images.names[row]] = str(d)
        if len(good) < len(rows) and not self._options.skip_broken:
            return None
        data = self._tar(good)
        atomic.write(self._target / name, data)
        index = tar_index.scan(io.BytesIO(data), name, checksums=True)
        atomic.write(self._target / (name + tar_index.SUFFIX), index.pack())
        return index

    def _tar(self, content: Sequence[tuple[int, bytes]]) -> bytes:
        """Write a shard: for each sample its image and, if it has a label, that as .cls."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for row, data in content:
                name, label = self._images.names[row], int(self._images.label_N[row])
                kind = reencode.extension(data, name)
                self._kinds.add(kind)
                if label != NO_LABEL:
                    add(tar, f"{name}.cls", str(label).encode())
                add(tar, f"{name}.{kind}", data)
        return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member whose bytes depend on its name and data alone."""
    member = tarfile.TarInfo(name)  # owner, mode and date are constants
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _check_names(images: ImageDataset) -> None:
    """DataError when WebDataset would cut a name elsewhere than we do."""
    for name in images.names:
        if "." in name.rpartition("/")[2] or name.startswith("/"):
            raise DataError(
                f"sample {name!r} has a dot in its name, where WebDataset would end its key. "
                "Rename it."
            )


def _claim(
    images: ImageDataset,
    target: Path,
    options: Options,
    info: DatasetInfo,
    shards: dict[str, range],
) -> None:
    """Note what the folder is being filled with; UsageError when it is something else.

    The index of a shard is removed when one of its images was replaced.
    """
    note = target / f"_shards-{options.split}.json"
    hashed = hashlib.sha256()
    for i, name in enumerate(images.names):
        hashed.update(f"{name}\n{images.label_N[i]}\n".encode("utf-8", "surrogateescape"))
    hashed.update("\n".join(images.class_names).encode("utf-8", "surrogateescape"))
    plan: dict[str, Any] = {"kind": "kdcache shards 1", "split": options.split}
    plan |= {"samples": len(images), "names_sha256": hashed.hexdigest()}
    plan |= {"shard_size": options.shard_size, "short_side": options.short_side}
    if options.short_side:
        plan |= {"quality": options.quality, "encoder": reencode.encoder()}
    sources = _sources(images, shards)
    if note.is_file():
        there = atomic.read_json(note)
        if differing := [k for k in plan if there.get(k) != plan[k]]:
            raise UsageError(
                f"{target} holds {options.split} shards of "
                + ", ".join(f"{k} {there.get(k)}, not {plan[k]}" for k in differing)
                + ". Write to another folder, or repeat the command that began this one."
            )
        found = there.get("sources")
        known = found if isinstance(found, dict) else {}
        # shards of an older version: sizes tell a replaced image, but of shrunk ones nothing does
        changed = [
            target / (name + tar_index.SUFFIX)
            for name, digest in sources.items()
            if known.get(name, "" if options.short_side else digest) != digest
        ]
        if again := sum(path.is_file() for path in changed):
            log.info("%s again: files of the source have changed", counted(again, "shard"))
        for path in changed:
            path.unlink(missing_ok=True)
    elif options.split in info.splits or any(target.glob(f"{options.split}-*.tar")):
        raise UsageError(
            f"{target} holds {options.split} shards that kdcache shard did not write. Write to "
            "another folder."
        )
    named = images.class_names and info.class_names
    if named and images.class_names != info.class_names:
        other = sorted(set(images.class_names) ^ set(info.class_names))
        raise UsageError(
            f"{images.source} has {len(images.class_names):,} classes, the splits in {target} "
            f"{len(info.class_names):,}: {(other or ['their order'])[0]} differs, and class "
            "numbers would not mean the same. All splits need the same class folders."
        )
    if NO_LABEL in images.label_N:
        log.warning("not every image has a label: timm's reader needs one, stage 1 does not")
    plan["sources"] = sources
    atomic.write(note, json.dumps(plan, indent=2).encode() + b"\n")


def _sources(images: ImageDataset, shards: dict[str, range]) -> dict[str, str]:
    """Compute a digest of the images of each shard as they are: none of them is read.

    It is of their encoded sizes and, as a replaced image may have the same, of their CRC-32 or, if
    that is unknown, of both times of change of their files.
    """
    crc_N = np.full(len(images), NO_CRC) if images.crc_N is None else images.crc_N
    times_N2, unknown = np.zeros((len(images), 2), np.int64), np.flatnonzero(crc_N == NO_CRC)
    if images.remote is None and len(unknown):
        used, file_N = np.unique(images.file_N[unknown], return_inverse=True)
        times_N2[unknown] = np.array([_times(images.paths[file]) for file in used])[file_N]
    columns = np.column_stack([images.length_N, crc_N, times_N2]).astype("<i8")
    return {
        name: hashlib.sha256(columns[rows.start : rows.stop].tobytes()).hexdigest()[:16]
        for name, rows in shards.items()
    }


def _times(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # named when it is read
        return 0, 0
    return found.st_mtime_ns, found.st_ctime_ns


def _describe(
    target: Path,
    info: DatasetInfo,
    split: str,
    names: list[str],
    indices: list[TarIndex],
    classes: tuple[str, ...],
) -> None:
    """Put a split into `_info.json`, beside those that are there."""
    path, known = target / info_json.NAME, Path(info.where)  # or info.json, made by others
    value: dict[str, Any] = {"name": target.name}
    value = atomic.read_json(known) if known.is_file() else value
    lengths = [len(index.names) for index in indices]
    value.setdefault("splits", {})[split] = {
        "name": split,
        "num_samples": sum(lengths),
        "filenames": names,
        "shard_lengths": lengths,
        "index": True,
    }
    if classes or info.class_names:
        value["class_names"] = list(classes or info.class_names)
    data = json.dumps(value, indent=2).encode() + b"\n"
    if not path.is_file() or path.read_bytes() != data:
        atomic.write(path, data)


def _broken(broken: dict[str, str], images: ImageDataset) -> DataError:
    shown = "\n".join(broken[name] for name in sorted(broken)[:_SHOWN])
    more = f"\n… and {len(broken) - _SHOWN:,} more" if len(broken) > _SHOWN else ""
    return DataError(
        f"{len(broken):,} of {len(images):,} images in {images.source} are broken; shards without "
        f"them are written, the others not:\n{shown}{more}\nRepair them and run again, or pass "
        "--skip-broken to leave them out."
    )
