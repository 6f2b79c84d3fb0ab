"""The arrays of a cache and their chunk bytes, made and read by zarr in memory.

`Layout` holds a Zarr v3 group of the very shape a `CacheSpec` asks for, in a dictionary. Writing a
region of it yields the bytes that belong on disk; putting bytes in and reading the region decodes
them. So what lies on disk is what zarr writes, while `store` alone decides when a file exists. A
reader never follows the array metadata of a stranger's cache, only the layout its spec implies.

Shapes: V views, N samples, K slots, T temperatures, B rows of a block.
"""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from cache_tools import codec
from cache_tools.spec import CacheSpec

PROBES = 4
"""Views per part whose pixels are fingerprinted."""
PART_ARRAYS = ("targets/index_delta", "targets/code", "targets/tail", "probes/pixels")
_GROUPS = ("samples", "targets", "probes", "commits")
Array = NDArray[Any]


class Layout:
    """The Zarr group that a spec and a number of views imply."""

    def __init__(self, spec: CacheSpec, num_views: int) -> None:
        self._files: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._group = zarr.create_group(MemoryStore(self._files), zarr_format=3)
        n, k = spec.dataset.num_samples, spec.targets.k_max
        t, b = len(spec.targets.temperatures), spec.block_size
        rows = (num_views, n)
        self._create("targets/index_delta", (*rows, k), (1, b, k), "uint16", codec.FILL_DELTA)
        self._create("targets/code", (*rows, k), (1, b, k), "uint8", codec.FILL_CODE)
        self._create("targets/tail", (*rows, t), (1, b, t), "uint8", codec.FILL_CODE)
        probes = (num_views, spec.num_blocks, PROBES)
        self._create("probes/pixels", probes, (1, 1, PROBES), "uint64", 0)
        for name in _GROUPS:  # commits is one too, so that plain zarr knows the folder
            self._group.require_group(name)
        self._spec = spec

    def metadata(self) -> dict[str, bytes]:
        """`zarr.json` of the arrays of parts and of all groups but the root, path → bytes."""
        nodes = [*PART_ARRAYS, *_GROUPS]
        return {f"{n}/zarr.json": bytes(self._files[f"{n}/zarr.json"].to_bytes()) for n in nodes}

    def encode_part(self, view: int, block: int, arrays: Mapping[str, Array]) -> dict[str, bytes]:
        """Chunk bytes of one part, path → bytes, for every array of PART_ARRAYS."""
        with self._lock:
            chunks = {}
            for name in PART_ARRAYS:
                self._array(name)[self._region(name, view, block)] = arrays[name]
                path = self.chunk(name, view, block)
                chunks[path] = bytes(self._files.pop(path).to_bytes())
            return chunks

    def decode_part(self, view: int, block: int, chunks: Mapping[str, bytes]) -> dict[str, Array]:
        """The inverse of `encode_part`."""
        with self._lock:
            arrays = {}
            for name in PART_ARRAYS:
                path = self.chunk(name, view, block)
                self._put(path, chunks[path])
                arrays[name] = np.asarray(self._array(name)[self._region(name, view, block)])
                del self._files[path]
            return arrays

    def encode_whole(self, columns: Mapping[str, Array]) -> dict[str, bytes]:
        """All files (metadata and the one chunk) of small one-dimensional arrays."""
        with self._lock:
            for name, values in columns.items():
                fill = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else float("nan")
                shape = values.shape
                self._create(name, shape, shape, values.dtype.name, fill)[:] = values
            return {
                path: bytes(buffer.to_bytes())
                for path, buffer in self._files.items()
                if path.rpartition("/c/")[0] in columns or path[:-10] in columns
            }

    def decode_whole(self, name: str, length: int, dtype: str, chunk: bytes) -> Array:
        """One small array of known length and type from the bytes of its only chunk."""
        with self._lock:
            array = self._create(name, (length,), (length,), dtype, 0)
            self._put(f"{name}/c/0", chunk)
            return np.asarray(array[:])

    def part_chunks(self, view: int, block: int) -> list[str]:
        """Paths of all chunks of one part."""
        return [self.chunk(name, view, block) for name in PART_ARRAYS]

    @staticmethod
    def chunk(name: str, view: int, block: int) -> str:
        """Path of the chunk of array `name` that belongs to one part."""
        return f"{name}/c/{view}/{block}/0"

    def _region(self, name: str, view: int, block: int) -> tuple[Any, ...]:
        if name == "probes/pixels":
            return view, block, slice(None)
        rows = self._spec.rows(block)
        return view, slice(rows.start, rows.stop), slice(None)

    def _array(self, name: str) -> Any:
        return self._group[name]

    def _put(self, path: str, data: bytes) -> None:
        self._files[path] = default_buffer_prototype().buffer.from_bytes(data)

    def _create(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, fill: float
    ) -> Any:
        itemsize = np.dtype(dtype).itemsize
        blosc = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=itemsize)
        return self._group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            fill_value=fill,
            serializer=BytesCodec(endian="little") if itemsize > 1 else BytesCodec(endian=None),
            compressors=[blosc, Crc32cCodec()],
            overwrite=True,
        )
