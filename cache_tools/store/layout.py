"""Arrays of a cache and their chunk bytes, encoded and decoded by zarr in memory.

`Layout` holds a Zarr v3 group of the shape that a `CacheSpec` implies, in a dictionary. Writing a
region of it yields the bytes that belong on disk; putting bytes in and reading the region decodes
them. So the bytes on disk are zarr's, while `Cache` alone decides when a file exists. A reader
never follows the array metadata of a foreign cache, only the layout its spec implies.

Every array has one chunk per part, at `c/VIEW/BLOCK` (`c/0/VIEW/BLOCK` with planes in front).

Shapes: V views, N samples, T temperatures, P labels, B rows of a block.
"""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from cache_tools.file_contents import parse_json
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import canonical_json
from cache_tools.store import frames
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.views import imported
from cache_tools.views.imported import ImportedViews

PROBES = 4
"""Views per part whose pixels are fingerprinted."""
MOST_EXPANSION, FREE_ENTRIES = 64, 2**24
"""Entries of a part for each stored byte of their codes, which take 6 bits as a rule; so many are
read whatever their bytes."""
_GROUPS = ("samples", "targets", "probes", "commits")
_VIEWS = "views"
_NAME = re.compile(
    r"zarr\.json|README\.md|(samples|targets|probes|commits|views)/(zarr\.json|\w+/zarr\.json|"
    r"\w+/c/\d+(/\d+)*|v\d+/b\d+\.json)"
)
_LEVEL = 5  # of zstd: one more costs time and saves nothing, since entries are packed
Array = NDArray[Any]


@dataclass(frozen=True)
class Field:
    """One array of the parts."""

    name: str
    """Path in the group."""
    dtype: str
    width: int
    """Values of a part along the last axis."""
    planes: int = 0
    """Length of an axis in front of the views; 0 = no such axis."""
    rows: bool = True
    """True if the last axis is that of the samples, so that the last block is shorter."""
    fill: int = 255
    """Fill value of parts that are not written: no legal value."""

    @property
    def bytes(self) -> int:
        """Bytes of the values of a part."""
        return np.dtype(self.dtype).itemsize * self.width * max(self.planes, 1)

    @property
    def packed(self) -> bool:
        """True if the values are those of all views without gaps, and zeros behind them."""
        return not self.rows and self.planes == 0

    def chunk(self, view: int, block: int) -> str:
        """Path of the chunk of one part."""
        return f"{self.name}/c/{'0/' if self.planes else ''}{view}/{block}"


def fields(spec: CacheSpec) -> tuple[Field, ...]:
    """List the arrays that hold the parts of a cache; FORMAT.md, section 1."""
    rows, planes = spec.block_size, len(spec.targets.temperatures)
    entries = rows * spec.targets.k_max
    index = codec.index_dtype(spec.teacher.num_classes)
    last = int(np.iinfo(index).max)
    wanted = [
        Field("targets/count", "uint16", rows, fill=codec.FILL_COUNT),
        Field("targets/index_delta", np.dtype(index).name, entries, rows=False, fill=last),
        Field("targets/code", "uint8", entries, rows=False),
        Field("targets/tail", "uint8", rows, planes),
        Field("targets/true", "uint8", rows, spec.num_labels),
        Field("targets/square", "uint8", rows, int(spec.targets.tail_square)),
        Field("probes/pixels", "uint64", 1, PROBES * spec.replayable, rows=False, fill=0),
    ]
    for c in imported.columns(spec):
        fill = int(np.iinfo(c.dtype).max)
        wanted.append(Field(c.path, c.dtype, rows, c.planes, fill=fill))
    always = ("targets/count", "targets/index_delta", "targets/code")
    return tuple(f for f in wanted if f.planes or f.name in always)


def is_name(path: str) -> bool:
    """Check if a file may be one of some cache, by its path in the folder."""
    return _NAME.fullmatch(path) is not None


class Layout(threading.local):
    """Zarr group that a spec and a number of views imply; each thread has its own."""

    def __init__(self, spec: CacheSpec, num_views: int) -> None:
        self._files: dict[str, Any] = {}
        self._group = zarr.create_group(MemoryStore(self._files), zarr_format=3)
        self._spec = spec
        self.fields = fields(spec)
        self._arrays: dict[str, Any] = {}
        for f in self.fields:
            along = spec.dataset.num_samples if f.rows else spec.num_blocks * f.width
            front = (f.planes,) if f.planes else ()
            shape, chunks = (*front, num_views, along), (*front, 1, f.width)
            self._arrays[f.name] = self._create(f.name, shape, chunks, f.dtype, f.fill)
        self._groups = (*_GROUPS, _VIEWS) if spec.imported else _GROUPS
        for name in self._groups:  # commits is one too, so that plain zarr lists the folder
            self._group.require_group(name)

    def metadata(self) -> dict[str, bytes]:
        """Encode `zarr.json` of the parts' arrays and of all groups but the root, path → bytes."""
        nodes = [*(f.name for f in self.fields), *self._groups]
        return {f"{n}/zarr.json": self._node(n) for n in nodes}

    def encode_part(
        self,
        view: int,
        block: int,
        stored: EncodedTargets,
        probes: NDArray[np.uint64],
        params: ImportedViews | None = None,
    ) -> dict[str, bytes]:
        """Encode the chunks of one part, path → bytes, for every array of `fields`."""
        if (params is None) != (self._spec.imported is None):
            raise ValueError("parameters of views belong to imported views, and to no others")
        arrays: dict[str, Array] = imported.to_arrays(params, self._spec) if params else {}
        arrays |= {
            "targets/count": stored.count_B,
            "targets/index_delta": stored.index_delta_E,
            "targets/code": stored.code_E,
            "targets/tail": stored.tail_TB,
            "targets/true": stored.true_PB,
            "targets/square": stored.square_QB,
            "probes/pixels": probes[:, None],
        }
        chunks = {}
        for f in self.fields:
            path, values = f.chunk(view, block), arrays[f.name]
            if f.packed:
                values = np.pad(values, (0, f.width - len(values)))
            self._arrays[f.name][self._region(f, view, block)] = values
            chunks[path] = bytes(self._files.pop(path).to_bytes())
        return chunks

    def decode_part(
        self, view: int, block: int, chunks: Mapping[str, bytes]
    ) -> tuple[EncodedTargets, NDArray[np.uint64]]:
        """Decode targets and probes of one part; of the values only the entries' end is checked.

        Memory is that of the entries, whatever room the spec has for them.

        Raises:
            ValueError, RuntimeError: The bytes do not decode.
        """
        found = self._decode(view, block, chunks, views=False)
        rows = len(found["targets/count"])
        entries = int(found["targets/count"].sum(dtype=np.int64))
        columns = {f.name: (f, chunks[f.chunk(view, block)]) for f in self.fields if f.packed}
        if entries > (most := MOST_EXPANSION * len(columns["targets/code"][1]) + FREE_ENTRIES):
            raise ValueError(f"it has {entries:,} entries, at most {most:,} fit its bytes")
        delta, code = (
            frames.decode_entries(chunk, f.width, np.dtype(f.dtype), entries)
            for f, chunk in columns.values()
        )
        none = np.empty((0, rows), dtype=np.uint8)
        stored = EncodedTargets(
            found["targets/count"],
            delta,
            code,
            found["targets/tail"],
            found.get("targets/true", none),
            found.get("targets/square", none),
        )
        return stored, found.get("probes/pixels", np.empty((0, 1), dtype=np.uint64))[:, 0]

    def decode_views(self, view: int, block: int, chunks: Mapping[str, bytes]) -> ImportedViews:
        """Decode parameters of the imported views of one part; their values are not checked.

        Raises:
            ValueError, RuntimeError: The bytes do not decode.
        """
        found = self._decode(view, block, chunks, views=True)
        return imported.from_arrays(found, len(self._spec.rows(block)), self._spec)

    def encode_whole(self, columns: Mapping[str, Array]) -> dict[str, bytes]:
        """Encode all files (metadata and the one chunk) of small one-dimensional arrays."""
        for name, values in columns.items():
            shape, dtype = values.shape, values.dtype.name
            self._create(name, shape, shape, dtype, _fill(dtype))[:] = values
        chunks = {f"{n}/c/0": bytes(self._files[f"{n}/c/0"].to_bytes()) for n in columns}
        return chunks | {f"{n}/zarr.json": self._node(n) for n in columns}

    def decode_whole(self, name: str, length: int, dtype: str, chunk: bytes) -> Array:
        """Decode one small array of given length and type from its only chunk."""
        itemsize = np.dtype(dtype).itemsize
        frames.check(chunk, itemsize * length, itemsize)
        array = self._create(name, (length,), (length,), dtype, 0)
        self._put(f"{name}/c/0", chunk)
        return np.asarray(array[:])

    def part_chunks(self, view: int, block: int, views: bool | None = None) -> dict[str, int]:
        """List the chunks of one part with their largest size.

        `views`: None for all, else those of imported views or those of targets.
        """
        wanted = (f for f in self.fields if views in (None, f.name.startswith(f"{_VIEWS}/")))
        return {f.chunk(view, block): f.bytes + frames.SLACK for f in wanted}

    def whole_metadata(self, name: str, length: int, dtype: str) -> bytes:
        """Encode `zarr.json` of a small one-dimensional array."""
        self._create(name, (length,), (length,), dtype, _fill(dtype))
        return self._node(name)

    def _decode(
        self, view: int, block: int, chunks: Mapping[str, bytes], views: bool
    ) -> dict[str, Array]:
        """Decode the arrays of imported views, or those of targets, name → values."""
        found: dict[str, Array] = {}
        for f in self.fields:
            if f.name.startswith(f"{_VIEWS}/") != views or f.packed:
                continue
            path = f.chunk(view, block)
            frames.check(chunks[path], f.bytes, np.dtype(f.dtype).itemsize)
            self._put(path, chunks[path])
            try:
                region = self._region(f, view, block)
                found[f.name] = np.asarray(self._arrays[f.name][region])
            finally:
                del self._files[path]
        return found

    def _node(self, name: str) -> bytes:
        """Encode `zarr.json` of a node: zarr's, as canonical JSON without empty members."""
        node = parse_json(self._files[f"{name}/zarr.json"].to_bytes())
        members = {key: value for key, value in node.items() if value not in ({}, [])}
        if members["node_type"] == "array":
            members["chunk_key_encoding"] = {"name": "default"}
        return canonical_json(members)

    def _region(self, field: Field, view: int, block: int) -> tuple[Any, ...]:
        begin = block * field.width
        rows = self._spec.rows(block)
        last = slice(begin, begin + (len(rows) if field.rows else field.width))
        return (slice(None), view, last) if field.planes else (view, last)

    def _put(self, path: str, data: bytes) -> None:
        self._files[path] = default_buffer_prototype().buffer.from_bytes(data)

    def _create(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, fill: float
    ) -> Any:
        itemsize = np.dtype(dtype).itemsize
        blosc = BloscCodec(cname="zstd", clevel=_LEVEL, shuffle="shuffle", typesize=itemsize)
        return self._group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            fill_value=fill,
            serializer=BytesCodec(endian="little") if itemsize > 1 else BytesCodec(endian=None),
            compressors=[blosc, Crc32cCodec()],
            config={"write_empty_chunks": True},
            overwrite=True,
        )


def _fill(dtype: str) -> int:
    """Return the fill value of a small array: no value it has."""
    return int(np.iinfo(dtype).max)
