"""A cache: create, open, write and read parts, checking every file that is read.

A part (one block of the sample table × one view number) is done when its commit record exists and
the digests in it hold. Chunks are written first, the record last, each whole or not at all. A
reader checks the record, the SHA-256 of every chunk and the values in it before it uses them: a
missing chunk can never look like data, and neither a flipped bit nor a foreign file is trained on.
FORMAT.md has the layout; `storage` implements folders, zips and object stores.

Shapes: V views, N samples.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import (
    CacheDamaged,
    CacheIncomplete,
    CacheMismatch,
    CacheNotFound,
    DataError,
    KdcacheError,
    UsageError,
)
from cache_tools.numerics.array_types import Rows
from cache_tools.runtime import concurrency
from cache_tools.spec import cache
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import canonical_json, difference, sha256
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import atomic, mapped
from cache_tools.storage.backends import Folder, Storage, open_existing, open_storage, with_retry
from cache_tools.storage.fsspec_client import without_secrets
from cache_tools.store import commits, manifest, metadata
from cache_tools.store.commits import REMEDY, Part
from cache_tools.store.layout import PROBES, Layout
from cache_tools.store.manifest import Manifest
from cache_tools.store.metadata import CacheMetadata
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.views import imported
from cache_tools.views.imported import ImportedViews

log = logging.getLogger("kdcache")
T = TypeVar("T")
_ASKING = 16
"""Records requested at once over a network."""
_TRIES = 5
_LONGEST_NOTE = 2**16
_PAUSE_MS = 250
_ANOTHER = (
    "Another process writes it at the same time, or the disk fails; check it and run the same "
    "command again."
)


class Cache:
    """An opened cache."""

    def __init__(self, storage: Storage, stated: Manifest) -> None:
        self.storage = storage
        self.spec = stated.spec
        self._adopt(stated)

    @classmethod
    def create(
        cls, where: str | Path, cache_spec: CacheSpec, table: SampleTable, num_views: int
    ) -> "Cache":
        """Create an empty cache, which appears whole or not at all, and open it.

        Of several processes that do so at once one wins, and all open what that one made. Where
        the storage cannot put all files in place at once, each reads back what was written.

        Raises:
            UsageError: The place holds something that is not a cache.
            CacheMismatch: Another process made another cache there just now.
        """
        storage = open_storage(where)
        # 1 and 1.0 are one fingerprint
        normal = cache.from_mapping(cache_spec.mapping, "the spec")
        contents = metadata.initial_files(normal, table, num_views)
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_jitter(attempt))
            storage.initialize(contents)
            store = cls(storage, manifest.read(storage))
            if found := difference(store.spec.mapping, normal.mapping):
                raise CacheMismatch(f"another process made another cache at {storage}: {found}.")
            if store._is_whole():
                return store
        raise KdcacheError(f"{storage} does not read back as it was written. {_ANOTHER}")

    @classmethod
    def open(cls, where: str | Path) -> "Cache":
        """Open a cache by its manifest: a folder, a zip of one, or a URL that fsspec supports.

        Raises:
            CacheNotFound, CacheMismatch, CacheDamaged: As `manifest.read`.
        """
        return cls.from_storage(open_existing(where))

    @classmethod
    def from_storage(cls, storage: Storage) -> "Cache":
        """Open the cache in a storage; raises as `open`."""
        return cls(storage, with_retry(storage, lambda: manifest.read(storage), manifest.NAME))

    @property
    def name(self) -> str:
        """Path or URL of the cache, for messages."""
        return str(self.storage)

    @property
    def path(self) -> Path:
        """Folder of the cache on this machine.

        Raises:
            UsageError: The cache is in a zip or an object store.
        """
        if not isinstance(self.storage, Folder):
            raise UsageError(f"{self.name} is not a folder on this machine; copy it to one first.")
        return self.storage.path

    @property
    def location(self) -> str:
        """Absolute path of the cache, or its URL with user and query: never for texts."""
        return self.storage.location

    @property
    def is_remote(self) -> bool:
        """True if reading may wait for a network."""
        return self.storage.tries > 1

    @cached_property
    def table(self) -> SampleTable:
        """Sample table, read once and checked against the spec's digest."""
        return self._metadata.table()

    def map_table(self) -> None:
        """Take a large sample table from the data folder from now on, shared by all processes.

        It is read and checked there as here when it is put there, and has its digest in its name.
        """
        if "table" not in self.__dict__ and self.spec.dataset.num_samples >= mapped.WORTH:
            self.__dict__["table"] = self._metadata.mapped_table()

    @property
    def source(self) -> str:
        """Path or URL of the images on this machine, or "": noted beside the cache, not in it."""
        if not isinstance(self.storage, Folder):
            return ""
        path = _source_note(self.path)
        if not path.is_file():
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST_NOTE).strip()

    def set_data_path(self, source: str) -> None:
        """Note the path of the images beside a cache that is a folder."""
        if isinstance(self.storage, Folder) and self.source != source:
            try:
                atomic.write(_source_note(self.path), f"{without_secrets(source)}\n".encode())
            except KdcacheError as error:  # a folder of one's own in that of others
                log.warning("%s The path of the images is not noted: pass --data later.", error)

    def resize(self, num_views: int) -> None:
        """Make room for more views; committed parts stay as they are."""
        for _ in range(_TRIES):  # another process may write its own number over ours
            with self.storage.locked():
                self._adopt(manifest.read(self.storage))
                if num_views <= self.num_views:
                    return
                grown = replace(self._manifest, num_views=num_views)
                for name, data in Layout(self.spec, num_views).metadata().items():
                    self.storage.write(name, data)
                self.storage.write(manifest.NAME, grown.encode())
        raise KdcacheError(f"{self.name} does not grow to {num_views} views. {_ANOTHER}")

    def _adopt(self, stated: Manifest) -> None:
        """Take over the contents of a manifest."""
        self.num_views = stated.num_views
        self._manifest = stated
        self._layout = Layout(stated.spec, stated.num_views)
        self._metadata = CacheMetadata(self.storage, stated, self._layout)

    def metadata_faults(self) -> Iterator[CacheDamaged]:
        """Every file outside the parts that is damaged or misleads readers."""
        return (error for _, error in self._metadata.faults())

    def mend(self, table: Callable[[], SampleTable]) -> list[str]:
        """Write damaged and missing files outside the parts again; return their names.

        They follow from the manifest; `table` makes the sample table, where that is damaged.

        Raises:
            CacheDamaged: It is damaged, and what `table` makes is another one.
        """
        if self._is_whole():
            return []
        mended = self.mend_metadata()
        damage: CacheDamaged | None = None
        try:
            known = self.table
        except CacheDamaged as error:
            damage, known = error, table()
        if known.sha256 != self.spec.dataset.table_sha256:
            raise CacheDamaged(
                f"{damage} It cannot be written again from the samples that this command was "
                "given: they are others than those of the cache."
            )
        files = metadata.initial_files(self.spec, known, self.num_views)
        with self.storage.locked():
            faulty = {name for name, _ in self._metadata.faults()}
            of_table = (n for n in files if n.startswith("samples/") and (damage or n in faulty))
            return mended + self._rewrite({name: files[name] for name in of_table})

    def mend_metadata(self) -> list[str]:
        """Write damaged and missing metadata of groups and parts again; return the names."""
        with self.storage.locked():
            self._adopt(manifest.read(self.storage))  # another process may have added views
            faulty = {name for name, _ in self._metadata.faults()}
            own = {**self._layout.metadata(), manifest.NAME: self._manifest.encode()}
            mended = self._rewrite({name: own[name] for name in own if name in faulty})
        self.__dict__.pop("table", None)
        return mended

    def _rewrite(self, files: Mapping[str, bytes]) -> list[str]:
        """Write those files that have other bytes; return their names."""
        written = []
        for name, data in files.items():
            with contextlib.suppress(OSError):
                if self.storage.read(name) == data:
                    continue
            log.warning("%s/%s was damaged or missing: it is written again", self.name, name)
            self.storage.write(name, data)
            written.append(name)
        return written

    def foreign_files(self) -> list[str]:
        """List files that belong to no array, part or record; none where files cannot be listed."""
        names = self.storage.names() or []
        own = {"README.md", ".gitattributes", manifest.NAME, *self._layout.metadata()}
        own |= {
            f"samples/{column}/{end}" for column in metadata.COLUMNS for end in ("c/0", "zarr.json")
        }
        for part in self.parts():
            own |= {part.record, *self._layout.part_chunks(part.view, part.block)}
        return [name for name in names if name not in own]

    def parts(self) -> Iterator[Part]:
        """Every part the cache should have, view by view."""
        for view in range(self.num_views):
            for block in range(self.spec.num_blocks):
                yield Part(view, block)

    def write(
        self,
        part: Part,
        stored: EncodedTargets,
        probes: NDArray[np.uint64],
        statistics: Mapping[str, float],
        versions: Mapping[str, str],
        params: ImportedViews | None = None,
    ) -> bool:
        """Write and commit one part, unless it is committed already; `params` of imported views.

        Of two workers that race on a part the second finds it done and yields. Where the storage
        has no locks both may write; each reads the part back and, should it find one's bytes under
        the other's record, waits for the other to finish and writes once more if the part is still
        damaged.

        Returns:
            True if the committed part is this one.
        """
        self._keep_root()
        chunks = self._layout.encode_part(part.view, part.block, stored, probes, params)
        return self.commit(
            part, chunks, commits.encode(self.spec, part, chunks, statistics, versions)
        )

    def _keep_root(self) -> None:
        """Restore the files outside the parts, which another process removed as an empty cache.

        Raises:
            CacheMismatch: Another cache is in its place.
        """
        if self.is_remote:
            return
        try:
            there = manifest.read(self.storage).spec
        except (CacheNotFound, CacheDamaged):
            there = Cache.create(self.name, self.spec, self.table, self.num_views).spec
        if there.fingerprint != self.spec.fingerprint:
            raise CacheMismatch(
                f"another process has made another cache at {self.name} before this one had a "
                "part. Choose another --out for one of them."
            )

    def commit(self, part: Part, chunks: Mapping[str, bytes], record: bytes) -> bool:
        """Write the chunks of one part and then its record; as `write`."""
        with self.storage.locked():
            for attempt in range(_TRIES + 1):
                fault = self.check_part(part)
                if fault is not None and attempt:
                    time.sleep(_jitter(attempt))
                    fault = self.check_part(part)
                if fault is None:
                    return self.storage.read(part.record) == record
                if attempt == _TRIES:
                    break
                for name, data in chunks.items():
                    self.storage.write(name, data)
                self.storage.write(part.record, record)
        raise KdcacheError(
            f"{part} of {self.name} does not read back as it was written. {_ANOTHER}"
        )

    def record(self, part: Part) -> dict[str, Any]:
        """Read and check the commit record of a part; see `commits.read`."""
        return with_retry(
            self.storage, lambda: commits.read(self.storage, self.spec, part), part.record
        )

    def read(self, part: Part) -> tuple[EncodedTargets, NDArray[np.uint64]]:
        """Read targets and probes of one part, checking digests first, then every value.

        Raises:
            CacheIncomplete: The part or one of its chunks is not there.
            CacheDamaged: A chunk differs from its record, or holds what cannot be.
        """
        return self.decode(part, self.read_chunks(part, views=False)[1])

    def decode(
        self, part: Part, chunks: Mapping[str, bytes]
    ) -> tuple[EncodedTargets, NDArray[np.uint64]]:
        """Decode targets and probes from the chunks of one part; CacheDamaged as `read`."""
        stored, probes = self._decoded(part, self._layout.decode_part, chunks)
        if wrong := codec.check(stored, self.spec.targets, self.spec.teacher.num_classes):
            raise CacheDamaged(f"{part} of {self.name} holds {wrong}. {REMEDY}")
        return stored, probes

    def read_params(self, part: Part) -> ImportedViews:
        """Read parameters of the imported views of one part, checked as targets are.

        Raises:
            CacheIncomplete, CacheDamaged: As `read`.
        """
        return self.decode_params(part, self.read_chunks(part, views=True)[1])

    def decode_params(self, part: Part, chunks: Mapping[str, bytes]) -> ImportedViews:
        """Decode parameters of imported views from one part's chunks; CacheDamaged as `read`."""
        params = self._decoded(part, self._layout.decode_views, chunks)
        rows = self.spec.rows(part.block)
        if wrong := imported.check(params, self.spec, self.table, rows):
            raise CacheDamaged(f"{part} of {self.name} holds {wrong}. {REMEDY}")
        return params

    def _decoded(self, part: Part, decode: Callable[..., T], chunks: Mapping[str, bytes]) -> T:
        """Decode a part's chunks, turning every failure into CacheDamaged."""
        try:
            return decode(part.view, part.block, chunks)
        except MemoryError:
            raise
        except Exception as error:  # decompressors raise many kinds, SystemError among them
            raise CacheDamaged(
                f"{part} of {self.name} does not decode: {error}. {REMEDY}"
            ) from None

    def read_view(self, view: int, row_R: Rows | None = None) -> EncodedTargets:
        """Read the targets of one view number of all N samples, or of ascending rows of them."""
        parts = [Part(view, block) for block in range(self.spec.num_blocks)]
        count = self.spec.dataset.num_samples if row_R is None else len(row_R)

        def read(part: Part) -> EncodedTargets:
            stored = self.read(part)[0]
            if row_R is None:
                return stored
            return codec.select_rows(stored, self.spec.rows_within(part.block, row_R))

        if not self.is_remote:
            return codec.collect(map(read, parts), count)
        with ThreadPoolExecutor(
            concurrency.max_in_flight(concurrency.JOBS, self.spec.part_bytes)
        ) as pool:
            return codec.collect(pool.map(read, parts), count)

    def check_part(self, part: Part) -> CacheIncomplete | CacheDamaged | None:
        """Check a part by its record and digests; return the error, or None."""
        try:
            self.read_chunks(part)
        except (CacheIncomplete, CacheDamaged) as error:
            return error
        return None

    def present(self, part: Part) -> bool:
        """Check that record and chunks exist with their sizes: quick, without a digest.

        Raises:
            PermissionError, DataError: They cannot be looked at.
        """
        try:
            chunks = self.record(part)["chunks"]
            names = self._layout.part_chunks(part.view, part.block)
            wrong = [n for n in names if self.storage.size(n) != chunks[n]["bytes"]]
            for name in wrong:
                self.storage.invalidate(name)
            return all(self.storage.size(n) == chunks[n]["bytes"] for n in wrong)
        except (PermissionError, DataError):
            raise
        except (KdcacheError, OSError, KeyError):
            return False

    def recorded(self, parts: Iterable[Part]) -> list[Part]:
        """Filter parts to those that have a record, unread: by one request for each."""
        wanted = list(parts)
        with ThreadPoolExecutor(_ASKING if self.is_remote else 1) as pool:
            sizes = pool.map(self.storage.size, [part.record for part in wanted])
            return [part for part, size in zip(wanted, sizes, strict=True) if size is not None]

    def committed(self) -> dict[Part, dict[str, Any]]:
        """Read the records of all parts that have one; CacheDamaged if one was changed."""
        parts = self.recorded(self.parts())
        with ThreadPoolExecutor(_ASKING if self.is_remote else 1) as pool:
            return dict(zip(parts, pool.map(self.record, parts), strict=True))

    def target_bytes(self) -> int:
        """Count the stored bytes of all targets that are there."""
        names = (
            self._layout.part_chunks(part.view, part.block, views=False) for part in self.parts()
        )
        return sum(self.storage.size(name) or 0 for of_part in names for name in of_part)

    def content_id(self, committed: Mapping[Part, Mapping[str, Any]] | None = None) -> str:
        """Compute the digest of the fingerprint and of the committed parts' chunk digests.

        `committed`: their records, where `committed()` was called before.
        """
        records = self.committed() if committed is None else committed
        chunks = {
            name: chunk["sha256"]
            for record in records.values()
            for name, chunk in record["chunks"].items()
        }
        return sha256(canonical_json({"fingerprint": self.spec.fingerprint, "chunks": chunks}))

    def _is_whole(self) -> bool:
        """Check that all files outside the parts match the manifest."""
        try:
            return len(self.table) > 0 and next(self.metadata_faults(), None) is None
        except CacheDamaged:
            return False

    def read_chunks(
        self, part: Part, record: dict[str, Any] | None = None, views: bool | None = None
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Read the record of a part, unless it is given, and its chunks, path → bytes.

        `views`: None for all chunks, else those of imported views or those of targets alone. Raises
        as `read`.
        """
        record = record or self.record(part)
        recorded = record["chunks"]
        names = self._layout.part_chunks(part.view, part.block)
        if recorded.keys() != names.keys():
            raise CacheDamaged(
                f"the commit record {self.name}/{part.record} does not name the chunks of {part}. "
                f"{REMEDY}"
            )
        data: dict[str, bytes] = {}
        for name in self._layout.part_chunks(part.view, part.block, views):
            ask = partial(self._chunk, part, name, names[name], recorded[name])
            data[name] = with_retry(self.storage, ask, name)
        return record, data

    def _chunk(self, part: Part, name: str, limit: int, expected: Mapping[str, Any]) -> bytes:
        where, size = f"{self.name}/{name}", expected["bytes"]
        try:
            data = self.storage.read_sized(name, size) if size <= limit else b""
        except FileNotFoundError:
            raise CacheIncomplete(f"the chunk {where} of {part} is missing. {REMEDY}") from None
        if sha256(data) != expected["sha256"]:
            raise CacheDamaged(
                f"the chunk {where} of {part} is damaged ({self.storage.size(name)} bytes, {size} "
                f"were written; SHA-256 differs). {REMEDY}"
            )
        return data


def _jitter(attempt: int) -> float:
    """Draw seconds to wait before a part is written again: longer each time, random per process."""
    return secrets.randbelow(int(_PAUSE_MS * 2**attempt)) / 1000


def probe_numbers(rows: range) -> list[int]:
    """Select the rows of a block whose pixels are fingerprinted: first, last and two between."""
    return [rows[i * (len(rows) - 1) // (PROBES - 1)] for i in range(PROBES)]


def _source_note(path: Path) -> Path:
    path = Path(os.path.realpath(path))
    return path.with_name(f"{path.name}.source")
