"""A cache: create, open, write a part, read a part, and never trust a file name.

A part (one block of the sample table × one view number) is done when its commit record exists and
the digests in it hold. Chunks are written first, the record last, each whole or not at all. A
reader checks the record, the SHA-256 of every chunk and the values in it before it uses them: a
missing chunk can never look like data, and neither a flipped bit nor a stranger's file is trained
on. FORMAT.md has the layout; `storage` knows folders, zips and object stores.

Shapes: V views, N samples.
"""

import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools import codec, commits, files, manifest, spec, whole
from cache_tools.codec import Stored
from cache_tools.commits import REMEDY, Part
from cache_tools.errors import (
    CacheDamaged,
    CacheIncomplete,
    KdcacheError,
    UsageError,
)
from cache_tools.layout import PROBES, Layout
from cache_tools.manifest import Manifest
from cache_tools.samples import SampleTable
from cache_tools.spec import CacheSpec, canonical_json, sha256
from cache_tools.storage import Folder, Storage, locate
from cache_tools.whole import Whole


class Store:
    """An opened cache."""

    def __init__(self, storage: Storage, stated: Manifest) -> None:
        self.storage = storage
        self.spec = stated.spec
        self.num_views = stated.num_views
        self._manifest = stated
        self._layout = Layout(stated.spec, stated.num_views)
        self._whole = Whole(storage, stated, self._layout)

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
            for name, data in whole.skeleton(normal, table, num_views).items():
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
        return self._whole.table()

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
        self._whole = Whole(self.storage, self._manifest, self._layout)
        self.num_views = num_views
        self.storage.write(manifest.NAME, self._manifest.encode())

    def metadata_faults(self) -> Iterator[CacheDamaged]:
        """Every file outside the parts that is not as the manifest says or misleads readers."""
        return self._whole.faults()

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
        except MemoryError:
            raise
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


def probe_numbers(rows: range) -> list[int]:
    """The rows of a block whose pixels are fingerprinted: first, last and two between."""
    return [rows[i * (len(rows) - 1) // (PROBES - 1)] for i in range(PROBES)]


def _source_note(path: Path) -> Path:
    return path.with_name(f"{path.name}.source")
