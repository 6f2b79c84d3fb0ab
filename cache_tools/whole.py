"""What a cache has but its parts: the sample table, the tables of levels, every array's metadata.

The manifest names each of these files with its SHA-256. A digest only says that a file is as it was
written, so what it holds is checked as well: whoever forges a cache can compute digests.

Shapes: N samples.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from cache_tools import codec, files, manifest, samples, spec
from cache_tools.errors import CacheDamaged, DataError
from cache_tools.layout import Array, Layout
from cache_tools.manifest import Manifest
from cache_tools.samples import SampleTable
from cache_tools.spec import CacheSpec, sha256
from cache_tools.storage import MAX_FILE, Storage

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


class Whole:
    """Reads the files of an opened cache that are not of a part."""

    def __init__(self, storage: Storage, stated: Manifest, layout: Layout) -> None:
        self.name = str(storage)
        self.storage = storage
        self.spec = stated.spec
        self._manifest = stated
        self._layout = layout

    def table(self) -> SampleTable:
        """The sample table, checked against its digest, its ids and their order.

        Raises:
            CacheDamaged: It is not as it was written, or is none.
        """
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
        except MemoryError:
            raise
        except Exception as error:  # decompressors raise many kinds
            raise CacheDamaged(f"{self.name}/{name} does not decode: {error}. {_FETCH}") from None

    def faults(self) -> Iterator[CacheDamaged]:
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


def levels(targets: spec.TargetSpec) -> dict[str, Array]:
    """The tables of levels, by path: what codes mean to a reader who has only zarr."""
    return {
        "targets/levels": codec.levels(targets.levels),
        "targets/tail_levels": codec.tail_levels(),
        "targets/true_levels": codec.true_levels(),
        "targets/square_levels": codec.square_levels(),
    }


def skeleton(cache_spec: CacheSpec, table: SampleTable, num_views: int) -> dict[str, bytes]:
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
