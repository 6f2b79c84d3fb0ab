"""A cache: create, open, write a part, read a part, and never trust a file name.

A part (one block of the sample table × one view number) is done when its commit record exists and
the digests in it hold. Chunks are written first, the record last, each whole or not at all. A
reader checks the record, the SHA-256 of every chunk and the values in it before it uses them: a
missing chunk can never look like data, and neither a flipped bit nor a stranger's file is trained
on. FORMAT.md has the layout; `storage` knows folders, zips and object stores.

Shapes: V views, N samples.
"""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools import codec, commits, files, manifest, samples, spec
from cache_tools.codec import Stored
from cache_tools.commits import REMEDY, Part
from cache_tools.errors import (
    CacheDamaged,
    CacheIncomplete,
    DataError,
    KdcacheError,
    UsageError,
)
from cache_tools.layout import PROBES, Array, Layout
from cache_tools.manifest import Manifest
from cache_tools.samples import SampleTable
from cache_tools.spec import CacheSpec, canonical_json, sha256
from cache_tools.storage import MAX_FILE, Folder, Storage, locate

_COLUMNS = {
    "digest": "uint64",
    "label": "int32",
    "height": "int32",
    "width": "int32",
    "bytes": "int64",
}
_FETCH = "Fetch the folder again from where the cache came, or make the cache anew."
_MOST_EXPANSION = 1000
"""Keys of real data sets compress three- to tenfold."""
_NODE = (
    *("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding"),
    *("fill_value", "codecs", "storage_transformers", "consolidated_metadata"),
)


class Store:
    """An opened cache."""

    def __init__(self, storage: Storage, stated: Manifest) -> None:
        self.storage = storage
        self.spec = stated.spec
        self.num_views = stated.num_views
        self._manifest = stated
        self._layout = Layout(stated.spec, stated.num_views)

    @classmethod
    def create(
        cls, path: Path, cache_spec: CacheSpec, table: SampleTable, num_views: int
    ) -> "Store":
        """Make an empty cache; it appears at `path` whole or not at all.

        Raises:
            UsageError: Something that is not a cache lies at `path`.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists and is not an empty folder. Choose another --out.")
        normal = spec.from_mapping(asdict(cache_spec), "the spec")  # 1 and 1.0 are one fingerprint
        building = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{files.PARTIAL}")
        try:
            for name, data in _skeleton(normal, table, num_views).items():
                files.write(building / name, data)
            if path.exists():
                path.rmdir()
            building.rename(path)
        except OSError as error:
            raise KdcacheError(f"cannot create the cache {path}: {error}.") from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
        files.sync_folder(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, where: str | Path) -> "Store":
        """Open a cache by its manifest: a folder, a zip of one, or a URL that fsspec knows.

        Raises:
            CacheNotFound, CacheMismatch, CacheDamaged: As `manifest.read`.
        """
        storage = locate(where)
        return cls(storage, manifest.read(storage))

    @property
    def name(self) -> str:
        """Where the cache lies, for messages."""
        return str(self.storage)

    @property
    def path(self) -> Path:
        """Its folder on this machine.

        Raises:
            UsageError: It lies in a zip or an object store.
        """
        if not isinstance(self.storage, Folder):
            raise UsageError(f"{self.name} is not a folder on this machine; copy it to one first.")
        return self.storage.path

    @cached_property
    def table(self) -> SampleTable:
        """The sample table, read once and checked against the spec's digest."""
        return self._read_table()

    @property
    def source(self) -> str:
        """Where this machine has the images, or "": a note beside the cache, never part of it."""
        if not isinstance(self.storage, Folder):
            return ""
        path = _source_note(self.path)
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""

    def note_source(self, source: str) -> None:
        """Remember where the images lie on this machine."""
        if self.source != source:
            files.write(_source_note(self.path), f"{source}\n".encode())

    def grow(self, num_views: int) -> None:
        """Make room for more views; what is committed stays as it is."""
        if num_views <= self.num_views:
            return
        self._layout = Layout(self.spec, num_views)
        metadata = self._layout.metadata()
        for name, data in metadata.items():
            self.storage.write(name, data)
        listed = {**self._manifest.files, **{n: sha256(d) for n, d in metadata.items()}}
        self._manifest = replace(self._manifest, num_views=num_views, files=listed)
        self.num_views = num_views
        self.storage.write(manifest.NAME, self._manifest.encode())

    def parts(self) -> Iterator[Part]:
        """Every part the cache should have, view by view."""
        for view in range(self.num_views):
            for block in range(self.spec.num_blocks):
                yield Part(view, block)

    def write(
        self,
        part: Part,
        stored: Stored,
        probes: NDArray[np.uint64],
        statistics: Mapping[str, float],
        versions: Mapping[str, str],
    ) -> bool:
        """Write and commit one part, unless it is committed already.

        Of two workers that race on a part the second finds it done and yields. Where the storage
        knows no locks both may write; each looks again at what lies there and, should it find the
        other's bytes under its own record, writes once more.

        Returns:
            Whether the part is ours.
        """
        chunks = self._layout.encode_part(part.view, part.block, stored, probes)
        record = commits.encode(self.spec, part, chunks, statistics, versions)
        with self.storage.locked():
            for _ in range(3):
                if self.fault(part) is None:
                    return self.storage.read(part.record) == record
                for name, data in chunks.items():
                    self.storage.write(name, data)
                self.storage.write(part.record, record)
            if self.fault(part) is None:
                return True
        raise KdcacheError(
            f"{part} of {self.name} does not read back as it was written. Another process writes "
            "the same part, or the disk fails; check it and run the same command again."
        )

    def record(self, part: Part) -> dict[str, Any]:
        """The commit record of a part, checked; see `commits.read`."""
        return commits.read(self.storage, self.spec, part)

    def read(self, part: Part) -> tuple[Stored, NDArray[np.uint64]]:
        """Targets and probes of one part; digests are checked first, then every value.

        Raises:
            CacheIncomplete: The part or one of its chunks is not there.
            CacheDamaged: A chunk differs from its record, or holds what cannot be.
        """
        chunks = self._read_chunks(part)
        try:
            stored, probes = self._layout.decode_part(part.view, part.block, chunks)
        except Exception as error:  # decompressors raise many kinds, SystemError among them
            raise CacheDamaged(
                f"{part} of {self.name} does not decode: {error}. {REMEDY}"
            ) from None
        if wrong := codec.check(stored, self.spec.targets, self.spec.teacher.num_classes):
            raise CacheDamaged(f"{part} of {self.name} holds {wrong}. {REMEDY}")
        return stored, probes

    def read_view(self, view: int) -> Stored:
        """Targets of one view number of all N samples."""
        blocks = range(self.spec.num_blocks)
        return codec.concatenate([self.read(Part(view, block))[0] for block in blocks])

    def fault(self, part: Part) -> CacheIncomplete | CacheDamaged | None:
        """What is wrong with a part, by its record and digests; None when nothing is."""
        try:
            self._read_chunks(part)
        except (CacheIncomplete, CacheDamaged) as error:
            return error
        return None

    def present(self, part: Part) -> bool:
        """Whether record and chunks are there with their sizes: quick, without a digest."""
        try:
            chunks = self.record(part)["chunks"]
            names = self._layout.part_chunks(part.view, part.block)
            return all(self.storage.size(n) == chunks[n]["bytes"] for n in names)
        except (KdcacheError, OSError, KeyError):
            return False

    def content_id(self) -> str:
        """Digest of fingerprint and chunk digests of the committed parts: it names the bytes."""
        chunks = {
            name: chunk["sha256"]
            for part in self.parts()
            if self.storage.size(part.record) is not None
            for name, chunk in self.record(part)["chunks"].items()
        }
        return sha256(canonical_json({"fingerprint": self.spec.fingerprint, "chunks": chunks}))

    def metadata_faults(self) -> Iterator[CacheDamaged]:
        """Every file outside the parts that is not as the manifest says or misleads readers."""
        ours = self._layout.metadata()
        expected = {*ours, *_whole_files()}
        if self._manifest.files.keys() != expected:
            yield CacheDamaged(
                f"{self.name}/{manifest.NAME} does not name the files it should, or others "
                f"({sorted(expected ^ self._manifest.files.keys())[:3]}). {_FETCH}"
            )
            return
        for name in sorted(expected):
            try:
                data = self._read_listed(name)
                if name in ours:
                    self._compare(name, files.parse_json(data, name), json.loads(ours[name]))
            except CacheDamaged as error:
                yield error
        yield from self._faults_of_arrays()

    def _faults_of_arrays(self) -> Iterator[CacheDamaged]:
        """Every small array that other readers would read otherwise than we do."""
        n, tables = self.spec.dataset.num_samples, levels(self.spec.targets)
        shapes = {"samples/id": (n, "uint64")} | {
            f"samples/{c}": (n, t) for c, t in _COLUMNS.items()
        }
        shapes |= dict.fromkeys(tables, (256, "float32"))
        for name in ("samples/key", *shapes):
            path = f"{name}/zarr.json"
            try:
                theirs = files.parse_json(self._read_listed(path), path)
                length, dtype = shapes.get(name) or (self._length_of_keys(), "uint8")
                ours = self._layout.whole_metadata(name, length, dtype)
                self._compare(path, theirs, json.loads(ours))
                if name in tables and (self._column(name, 256, dtype) != tables[name]).any():
                    raise CacheDamaged(f"{self.name}/{name} holds other levels. {_FETCH}")
            except CacheDamaged as error:
                yield error

    def _compare(self, name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        """Refuse metadata that would lead another reader to other data than we read."""
        for key in _NODE:
            if theirs.get(key) != ours.get(key):
                raise CacheDamaged(
                    f"{self.name}/{name}: {key} is {theirs.get(key)!r}, not {ours.get(key)!r}. "
                    f"{_FETCH}"
                )

    def _read_listed(self, name: str) -> bytes:
        """A file outside the parts, its digest checked."""
        limit = files.MAX_JSON if name.endswith(".json") else MAX_FILE
        try:
            data = self.storage.read(name, limit)
        except CacheDamaged:
            raise
        except OSError as error:
            reason = "it is missing" if isinstance(error, FileNotFoundError) else error
            raise CacheDamaged(f"{self.name}/{name} cannot be read: {reason}. {_FETCH}") from None
        if sha256(data) != self._manifest.files.get(name):
            raise CacheDamaged(
                f"{self.name}/{name} is damaged (SHA-256 differs from the manifest's). {_FETCH}"
            )
        return data

    def _read_chunks(self, part: Part) -> dict[str, bytes]:
        recorded, chunks = self.record(part)["chunks"], {}
        names = self._layout.part_chunks(part.view, part.block)
        if recorded.keys() != names.keys():
            raise CacheDamaged(
                f"the commit record {self.name}/{part.record} does not name the chunks of {part}. "
                f"{REMEDY}"
            )
        for name, limit in names.items():
            where, expected = f"{self.name}/{name}", recorded[name]
            size = self.storage.size(name)
            if size is None:
                raise CacheIncomplete(f"the chunk {where} of {part} is missing. {REMEDY}")
            fits = size == expected["bytes"] and size <= limit
            data = self.storage.read(name, limit) if fits else b""
            if sha256(data) != expected["sha256"]:
                raise CacheDamaged(
                    f"the chunk {where} of {part} is damaged ({size} bytes, "
                    f"{expected['bytes']} were written; SHA-256 differs). {REMEDY}"
                )
            chunks[name] = data
        return chunks

    def _read_table(self) -> SampleTable:
        n = self.spec.dataset.num_samples
        # Ids are uniform and sorted: even 2^32 of them do not compress below 4 bytes each, so what
        # claims more is no table, and need not be given memory.
        if (self.storage.size("samples/id/c/0") or 0) < 4 * n:
            raise CacheDamaged(f"the sample table of {self.name} cannot have {n} rows. {_FETCH}")
        keys = self._key_column(n)
        try:
            samples.check_keys(keys)
        except DataError as error:
            raise CacheDamaged(f"{self.name}/samples/key: {error} {_FETCH}") from None
        ids = np.array([samples.sample_id(key) for key in keys], dtype=np.uint64)
        columns = {f"{c}_N": self._column(f"samples/{c}", n, t) for c, t in _COLUMNS.items()}
        if not np.array_equal(ids, self._column("samples/id", n, "uint64")):
            raise CacheDamaged(f"{self.name}/samples/id are not the ids of the keys. {_FETCH}")
        table = SampleTable(keys, ids, **columns)
        if len(keys) != n or table.sha256 != self.spec.dataset.table_sha256:
            raise CacheDamaged(
                f"the sample table {self.name}/samples differs from the manifest's digest. {_FETCH}"
            )
        if (ids[1:] <= ids[:-1]).any():
            raise CacheDamaged(f"the sample table of {self.name} is not sorted by id. {_FETCH}")
        return table

    def _key_column(self, n: int) -> tuple[str, ...]:
        column = self._column("samples/key", self._length_of_keys(), "uint8")
        if int((column == ord("\n")).sum()) != n - 1:
            raise CacheDamaged(f"{self.name}/samples/key does not hold {n} keys. {_FETCH}")
        try:
            return tuple(bytes(column).decode().split("\n"))
        except UnicodeDecodeError as error:
            raise CacheDamaged(f"{self.name}/samples/key is not UTF-8: {error}.") from None

    def _length_of_keys(self) -> int:
        """Bytes of all keys together, as the metadata of their array says it."""
        name, n = "samples/key/zarr.json", self.spec.dataset.num_samples
        shape = files.parse_json(self._read_listed(name), f"{self.name}/{name}").get("shape")
        length = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
        # Distinct keys differ: they take memory only where their compressed bytes are many.
        most = min(
            samples.MAX_KEY * n, _MOST_EXPANSION * (self.storage.size("samples/key/c/0") or 0)
        )
        if type(length) is not int or not 2 * n - 1 <= length <= most:
            raise CacheDamaged(
                f"{self.name}/{name}: {n} keys cannot have {length!r} bytes. {_FETCH}"
            )
        return length

    def _column(self, name: str, length: int, dtype: str) -> Array:
        data = self._read_listed(f"{name}/c/0")
        try:
            return self._layout.decode_whole(name, length, dtype, data)
        except Exception as error:  # decompressors raise many kinds
            raise CacheDamaged(f"{self.name}/{name} does not decode: {error}. {_FETCH}") from None


def probe_numbers(rows: range) -> list[int]:
    """The rows of a block whose pixels are fingerprinted: first, last and two between."""
    return [rows[i * (len(rows) - 1) // (PROBES - 1)] for i in range(PROBES)]


def levels(targets: spec.TargetSpec) -> dict[str, Array]:
    """The tables of levels, by path: what codes mean to a reader who has only zarr."""
    return {
        "targets/levels": codec.levels(targets.levels),
        "targets/tail_levels": codec.tail_levels(),
        "targets/true_levels": codec.true_levels(),
        "targets/square_levels": codec.square_levels(),
    }


def _skeleton(cache_spec: CacheSpec, table: SampleTable, num_views: int) -> dict[str, bytes]:
    """Every file of a cache without parts, the manifest last."""
    layout = Layout(cache_spec, num_views)
    columns: dict[str, Array] = {
        "samples/key": np.frombuffer("\n".join(table.keys).encode(), dtype=np.uint8),
        "samples/id": table.id_N,
    }
    columns |= {f"samples/{c}": getattr(table, f"{c}_N").astype(t) for c, t in _COLUMNS.items()}
    whole = layout.encode_whole(columns | levels(cache_spec.targets)) | layout.metadata()
    listed = {name: sha256(data) for name, data in whole.items()}
    return {**whole, manifest.NAME: Manifest(cache_spec, num_views, listed).encode()}


def _whole_files() -> set[str]:
    """Paths of the sample table and of the tables of levels."""
    tables = ("levels", "tail_levels", "true_levels", "square_levels")
    arrays = [f"samples/{c}" for c in ("key", "id", *_COLUMNS)]
    arrays += [f"targets/{name}" for name in tables]
    return {f"{a}/{file}" for a in arrays for file in ("zarr.json", "c/0")}


def _source_note(path: Path) -> Path:
    return path.with_name(f"{path.name}.source")
