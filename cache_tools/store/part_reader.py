"""Committed parts of a cache: their records, chunks and targets, checked as they are read.

A part is done when its commit record exists and the digests in it hold. A reader checks the record,
the SHA-256 of every chunk and the values in it before it uses them: a missing chunk can never look
like data, and neither a flipped bit nor a foreign file is trained on.

Shapes: V views, N samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CacheDamaged, CacheIncomplete, DataError, KdcacheError
from cache_tools.numerics.array_types import Rows
from cache_tools.runtime import concurrency
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import mapped
from cache_tools.storage.base import Storage, with_retry
from cache_tools.store import commits
from cache_tools.store.commits import REMEDY, Part
from cache_tools.store.layout import Layout
from cache_tools.store.manifest import Manifest
from cache_tools.store.metadata import CacheMetadata
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.views import imported
from cache_tools.views.imported import ImportedViews

T = TypeVar("T")
_ASKING = 16
"""Records requested at once over a network."""


class PartReader:
    """Reader of an opened cache's sample table and parts."""

    def __init__(self, storage: Storage, stated: Manifest) -> None:
        self.storage = storage
        self.spec = stated.spec
        self._adopt(stated)

    def _adopt(self, stated: Manifest) -> None:
        """Take over the contents of a manifest."""
        self.num_views = stated.num_views
        self._manifest = stated
        self._layout = Layout(stated.spec, stated.num_views)
        self._metadata = CacheMetadata(self.storage, stated, self._layout)

    @property
    def name(self) -> str:
        """Path or URL of the cache, for messages."""
        return str(self.storage)

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

    def parts(self) -> Iterator[Part]:
        """Every part the cache should have, view by view."""
        for view in range(self.num_views):
            for block in range(self.spec.num_blocks):
                yield Part(view, block)

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
