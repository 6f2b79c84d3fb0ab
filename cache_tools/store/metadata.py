"""Sample table and array metadata of a cache: all its files outside the parts.

All of it is checked. Metadata must be what the manifest's spec implies, or other readers would
read something else than we do; the table must have the digest that the spec names.

Shapes: N samples.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from cache_tools.errors import CacheDamaged, DataError
from cache_tools.file_contents import parse_json
from cache_tools.numerics import text_column
from cache_tools.numerics.text_column import TextColumn
from cache_tools.spec import sample_table
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import atomic, disk_cache, mapped
from cache_tools.storage.base import MAX_FILE, Storage, with_retry
from cache_tools.storage.mapped import Arrays
from cache_tools.store import manifest
from cache_tools.store.layout import Array, Layout
from cache_tools.store.manifest import Manifest

_COLUMNS = {
    "digest": "uint64",
    "label": "int32",
    "height": "int32",
    "width": "int32",
    "bytes": "int64",
}
COLUMNS = ("key", "id", *_COLUMNS)
"""Names of the arrays of the sample table."""
_FETCH = "Fetch the folder again from where the cache came, or make the cache anew."
_MOST_EXPANSION, _FREE_KEYS = 64, 2**20
"""Keys of real data sets compress three- to tenfold; so many bytes of keys may compress further."""
_FOLLOWED = ("node_type", "shape", "data_type", "chunk_grid", "codecs", "fill_value")
"""Members of an array's metadata that decide what a reader gets; zarr adds defaults to others."""


class CacheMetadata:
    """Reader of an opened cache's files outside the parts."""

    def __init__(self, storage: Storage, stated: Manifest, layout: Layout) -> None:
        self.name = str(storage)
        self.storage = storage
        self.spec = stated.spec
        self._layout = layout

    def table(self) -> SampleTable:
        """Read the sample table and check it against its digest, its ids and their order.

        Raises:
            CacheDamaged: The table was changed, or is none.
        """
        n = self.spec.dataset.num_samples
        with_retry(self.storage, self._check_size_of_ids, "samples/id/c/0")
        files = ("samples/key/c/0", "samples/key/zarr.json")
        keys = with_retry(self.storage, partial(self._key_column, n), *files)
        try:
            sample_table.check_keys(keys)
        except DataError as error:
            raise CacheDamaged(f"{self.name}/samples/key: {error} {_FETCH}") from None
        ids = sample_table.sample_ids(keys)
        columns = {f"{c}_N": self._retried_column(f"samples/{c}", t) for c, t in _COLUMNS.items()}
        if not np.array_equal(ids, self._retried_column("samples/id", "uint64")):
            raise CacheDamaged(f"{self.name}/samples/id are not the ids of the keys. {_FETCH}")
        table = SampleTable(keys, ids, **columns)
        if len(keys) != n or table.sha256 != self.spec.dataset.table_sha256:
            raise CacheDamaged(
                f"the sample table {self.name}/samples differs from the manifest's digest. {_FETCH}"
            )
        if (ids[1:] <= ids[:-1]).any():
            raise CacheDamaged(f"the sample table of {self.name} is not sorted by id. {_FETCH}")
        least, most = table.label_N.min(), table.label_N.max()
        if least < NO_LABEL or (self.spec.dataset.labels and most >= self.spec.teacher.num_classes):
            raise CacheDamaged(
                f"{self.name} has labels of {least} to {most}: they are {NO_LABEL} (none) to "
                f"{self.spec.teacher.num_classes - 1}. Correct the data set, and make it again."
            )
        return table

    def mapped_table(self) -> SampleTable:
        """Map the sample table from the data folder; `table` is put there if it is not yet."""

        def make() -> Arrays:
            made = self.table()
            keys = text_column.of(made.keys).compact()
            arrays = {name: getattr(made, f"{name}_N") for name in SampleTable.COLUMNS}
            return Arrays({"key": keys.bytes_L, "begin": keys.begin_N, "end": keys.end_N, **arrays})

        name = disk_cache.table_key("sample table 1", self.spec.dataset.table_sha256)
        arrays = mapped.load(name, make).arrays
        keys = TextColumn(arrays["key"], arrays["begin"], arrays["end"])
        return SampleTable(keys, *(arrays[name] for name in SampleTable.COLUMNS))

    def _check_size_of_ids(self) -> None:
        """Refuse a table of more samples than its ids have bytes for, before it is given memory.

        Ids are uniform and sorted: even 2^32 of them do not compress below 4 bytes each.
        """
        n = self.spec.dataset.num_samples
        if (self.storage.size("samples/id/c/0") or 0) < 4 * n:
            raise CacheDamaged(f"{self.name}/samples/id/c/0 cannot hold {n} ids. {_FETCH}")

    def _key_column(self, n: int) -> TextColumn:
        column = self._column("samples/key", self._length_of_keys(), "uint8")
        if int((column == ord("\n")).sum()) != n - 1:
            raise CacheDamaged(f"{self.name}/samples/key does not hold {n} keys. {_FETCH}")
        try:
            bytes(column).decode()
        except UnicodeDecodeError as error:
            raise CacheDamaged(f"{self.name}/samples/key is not UTF-8: {error}.") from None
        return TextColumn.of_lines(column)

    def _length_of_keys(self) -> int:
        """Read the length of all keys in bytes from the metadata of their array."""
        name, n = "samples/key/zarr.json", self.spec.dataset.num_samples
        shape = self._json(name).get("shape")
        length = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
        # Distinct keys differ: they take memory only where their compressed bytes are many.
        stored = self.storage.size("samples/key/c/0") or 0
        most = min(sample_table.MAX_KEY * n, _MOST_EXPANSION * stored + _FREE_KEYS)
        if type(length) is not int or not 2 * n - 1 <= length <= most:
            raise CacheDamaged(
                f"{self.name}/{name}: {n} keys cannot have {length!r} bytes. {_FETCH}"
            )
        return length

    def _retried_column(self, name: str, dtype: str) -> Array:
        """Read a column, again where its checksum shows that a network changed it."""
        read = partial(self._column, name, self.spec.dataset.num_samples, dtype)
        return with_retry(self.storage, read, f"{name}/c/0")

    def _column(self, name: str, length: int, dtype: str) -> Array:
        data = self._read(f"{name}/c/0")
        try:
            return self._layout.decode_whole(name, length, dtype, data)
        except MemoryError:
            raise
        except Exception as error:  # decompressors raise many kinds
            raise CacheDamaged(f"{self.name}/{name} does not decode: {error}. {_FETCH}") from None

    def faults(self) -> Iterator[tuple[str, CacheDamaged]]:
        """Find every metadata file that is not what the spec implies, by name."""
        n, layout = self.spec.dataset.num_samples, self._layout
        files = dict(layout.metadata())
        columns = {"id": "uint64", **_COLUMNS}
        for column, dtype in columns.items():
            name = f"samples/{column}"
            files[f"{name}/zarr.json"] = layout.whole_metadata(name, n, dtype)
        try:
            length = with_retry(self.storage, self._length_of_keys, "samples/key/zarr.json")
            files["samples/key/zarr.json"] = layout.whole_metadata("samples/key", length, "uint8")
        except CacheDamaged as error:
            yield "samples/key/zarr.json", error
        for name, expected in files.items():
            for fault in self._fault(name, expected):
                yield name, fault
        yield from self._consolidated(files)

    def _consolidated(self, files: Mapping[str, bytes]) -> Iterator[tuple[str, CacheDamaged]]:
        """Compare what zarr.consolidate_metadata adds to groups, and other readers follow."""
        nodes = {name.removesuffix("zarr.json"): parse_json(data) for name, data in files.items()}
        for group in ("", *(name for name in nodes if name.count("/") == 1)):
            try:
                copied = self._json(f"{group}zarr.json").get(manifest.CONSOLIDATED) or {}
            except CacheDamaged:  # named by `_fault`
                continue
            copies = copied.get("metadata") if isinstance(copied, dict) else {}
            below = (n for n in nodes if n.startswith(group) and n != group)
            own = {n[len(group) : -1]: nodes[n] for n in below}
            if copied and not (isinstance(copies, dict) and _agree(copies, own)):
                name = f"{group}zarr.json"
                yield (
                    name,
                    CacheDamaged(
                        f"{self.name}/{name}: its consolidated metadata is not that of the arrays, "
                        "and other readers follow it. Run zarr.consolidate_metadata again."
                    ),
                )

    def _fault(self, name: str, expected: bytes) -> Iterator[CacheDamaged]:
        """Compare a metadata file, which other readers follow, with the expected one."""
        try:
            theirs = with_retry(self.storage, partial(self._json, name), name)
        except CacheDamaged as error:
            yield error
            return
        ours = parse_json(expected)
        if theirs.get("attributes") == {}:  # as zarr writes a group again
            del theirs["attributes"]
        for key in sorted((theirs.keys() | ours.keys()) - {manifest.CONSOLIDATED}):
            if theirs.get(key) != ours.get(key) or (key in theirs) != (key in ours):
                yield CacheDamaged(
                    f"{self.name}/{name}: {key!r} is {theirs.get(key)!r:.99}, not "
                    f"{ours.get(key)!r}. {_FETCH}"
                )

    def _json(self, name: str) -> dict[str, Any]:
        return atomic.parse_json(self._read(name), f"{self.name}/{name}")

    def _read(self, name: str) -> bytes:
        """Read a file outside the parts."""
        try:
            return self.storage.read(name, atomic.MAX_JSON if name.endswith(".json") else MAX_FILE)
        except (CacheDamaged, DataError, PermissionError):
            raise
        except OSError as error:
            reason = "it is missing" if isinstance(error, FileNotFoundError) else error
            raise CacheDamaged(f"{self.name}/{name} cannot be read: {reason}. {_FETCH}") from None


def initial_files(cache_spec: CacheSpec, table: SampleTable, num_views: int) -> dict[str, bytes]:
    """Encode every file of a cache without parts, the manifest last."""
    layout = Layout(cache_spec, num_views)
    columns: dict[str, Array] = {
        "samples/key": np.frombuffer(text_column.joined(table.keys), dtype=np.uint8),
        "samples/id": table.id_N,
    }
    columns |= {f"samples/{c}": getattr(table, f"{c}_N").astype(t) for c, t in _COLUMNS.items()}
    whole = layout.encode_whole(columns) | layout.metadata()
    return {**whole, manifest.NAME: Manifest(cache_spec, num_views).encode()}


def _agree(copies: Mapping[str, Any], own: Mapping[str, dict[str, Any]]) -> bool:
    """Return True if copies of metadata have the names of `own`, and lead to the same values."""
    return copies.keys() == own.keys() and all(
        isinstance(copies[name], dict)
        and all(copies[name].get(key) == metadata.get(key) for key in _FOLLOWED)
        for name, metadata in own.items()
    )
