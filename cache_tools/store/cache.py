"""A cache: create, open, grow and mend it, write its parts; `part_reader` reads them.

A part is one block of the sample table × one view number. Its chunks are written first, its commit
record last, each whole or not at all. FORMAT.md has the layout; `storage` implements folders, zips
and object stores.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import (
    CacheDamaged,
    CacheMismatch,
    CacheNotFound,
    KdcacheError,
    UsageError,
)
from cache_tools.spec import cache
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import difference
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import atomic
from cache_tools.storage.base import Storage, with_retry
from cache_tools.storage.folder import Folder
from cache_tools.storage.fsspec_client import without_secrets
from cache_tools.storage.open import open_existing, open_storage
from cache_tools.store import commits, manifest, metadata
from cache_tools.store.commits import Part
from cache_tools.store.layout import PROBES, Layout
from cache_tools.store.part_reader import PartReader
from cache_tools.targets.codec import EncodedTargets
from cache_tools.views.imported import ImportedViews

log = logging.getLogger("kdcache")
_TRIES = 5
_LONGEST_NOTE = 2**16
_PAUSE_MS = 250
_ANOTHER = (
    "Another process writes it at the same time, or the disk fails; check it and run the same "
    "command again."
)


class Cache(PartReader):
    """An opened cache."""

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

    def _is_whole(self) -> bool:
        """Check that all files outside the parts match the manifest."""
        try:
            return len(self.table) > 0 and next(self.metadata_faults(), None) is None
        except CacheDamaged:
            return False


def _jitter(attempt: int) -> float:
    """Draw seconds to wait before a part is written again: longer each time, random per process."""
    return secrets.randbelow(int(_PAUSE_MS * 2**attempt)) / 1000


def probe_numbers(rows: range) -> list[int]:
    """Select the rows of a block whose pixels are fingerprinted: first, last and two between."""
    return [rows[i * (len(rows) - 1) // (PROBES - 1)] for i in range(PROBES)]


def _source_note(path: Path) -> Path:
    path = Path(os.path.realpath(path))
    return path.with_name(f"{path.name}.source")
