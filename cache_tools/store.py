"""A cache on disk: create, open, write a part, read a part, and never trust a file name.

A part (one block of the sample table × one view number) is done when its commit record exists and
the digests in it hold. Chunks are written first, the record last, each to a temporary name, synced
and renamed. A reader checks the record and the SHA-256 of every chunk before it decodes: a missing
chunk can never look like data, and a flipped bit is never trained on.

    zarr.json                    attributes.kdcache: format version, fingerprint, views, CacheSpec
    samples/                     key, digest, label, height, width, bytes, id        [N]
    targets/                     index_delta u2, code u1 [V, N, K]; tail u1 [V, N, T]; both LUTs
    probes/pixels                fingerprints of a few views of each part            [V, blocks, 4]
    commits/v0007/b0012.json     the commit record of view 7, block 12

Shapes: V views, N samples, K slots, T temperatures.
"""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools import codec, commits, files, manifest, samples, spec
from cache_tools.codec import Stored
from cache_tools.commits import REMEDY, Part
from cache_tools.errors import CacheDamaged, CacheIncomplete, KdcacheError, UsageError
from cache_tools.layout import PROBES, Array, Layout
from cache_tools.samples import SampleTable
from cache_tools.spec import CacheSpec, sha256

_COLUMNS = {
    "digest": "uint64",
    "label": "int32",
    "height": "int32",
    "width": "int32",
    "bytes": "int64",
}


class Store:
    """An opened cache."""

    def __init__(self, path: Path, cache_spec: CacheSpec, num_views: int) -> None:
        self.path = path
        self.spec = cache_spec
        self.num_views = num_views
        self._layout = Layout(cache_spec, num_views)
        self._table: SampleTable | None = None

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
        store = cls(path, normal, num_views)
        building = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{files.PARTIAL}")
        try:
            for name, data in store._skeleton(table).items():
                files.write(building / name, data)
            if path.exists():
                path.rmdir()
            building.rename(path)
        except OSError as error:
            raise KdcacheError(f"cannot create the cache {path}: {error}.") from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
        files.sync_folder(path.parent)
        return store

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a cache by its manifest.

        Raises:
            CacheNotFound, CacheMismatch, CacheDamaged: As `manifest.read`.
        """
        return cls(path, *manifest.read(path))

    @property
    def table(self) -> SampleTable:
        """The sample table, read once and checked against the spec's digest."""
        if self._table is None:
            self._table = self._read_table()
        return self._table

    @property
    def source(self) -> str:
        """Where this machine has the images, or "": a note beside the cache, never part of it."""
        path = _source_note(self.path)
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    def note_source(self, source: str) -> None:
        """Remember where the images lie on this machine."""
        if self.source != source:
            files.write(_source_note(self.path), f"{source}\n".encode())

    def grow(self, num_views: int) -> None:
        """Make room for more views; what is committed stays as it is."""
        if num_views <= self.num_views:
            return
        self._layout = Layout(self.spec, num_views)
        for name, data in self._layout.metadata().items():
            files.write(self.path / name, data)
        self.num_views = num_views
        files.write(self.path / "zarr.json", manifest.encode(self.spec, num_views))

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
    ) -> None:
        """Write and commit one part.

        Two workers that race on a part both write all of it, record last, and look again at what
        lies there; whoever finds the other's bytes under its record writes once more.
        """
        arrays: dict[str, Array] = {
            "targets/index_delta": stored.index_delta_BK,
            "targets/code": stored.code_BK,
            "targets/tail": stored.tail_BT,
            "probes/pixels": probes,
        }
        chunks = self._layout.encode_part(part.view, part.block, arrays)
        record = commits.encode(self.spec, part, chunks, statistics, versions)
        for _ in range(3):
            for name, data in chunks.items():
                files.write(self.path / name, data)
            files.write(self.path / part.record, record)
            if self.fault(part) is None:
                return
        raise KdcacheError(
            f"{part} of {self.path} does not read back as it was written. Another process writes "
            "the same part, or the disk fails; check it and run the same command again."
        )

    def record(self, part: Part) -> dict[str, Any]:
        """The commit record of a part, checked; see `commits.read`."""
        return commits.read(self.path, self.spec, part)

    def read(self, part: Part) -> tuple[Stored, NDArray[np.uint64]]:
        """Targets and probes of one part, digests checked first.

        Raises:
            CacheIncomplete: The part or one of its chunks is not there.
            CacheDamaged: A chunk differs from its record.
        """
        chunks = self._read_chunks(part)
        try:
            arrays = self._layout.decode_part(part.view, part.block, chunks)
        except (ValueError, RuntimeError) as error:
            raise CacheDamaged(
                f"{part} of {self.path} does not decode: {error}. {REMEDY}"
            ) from None
        names = ("targets/index_delta", "targets/code", "targets/tail")
        return Stored(*(arrays[name] for name in names)), arrays["probes/pixels"]

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
            return all((self.path / n).stat().st_size == c["bytes"] for n, c in chunks.items())
        except (KdcacheError, OSError):
            return False

    def metadata_fault(self) -> CacheDamaged | None:
        """The first `zarr.json` that would mislead another reader, or None."""
        for name, data in self._layout.metadata().items():
            ours, path = json.loads(data), self.path / name
            theirs = files.read_json(path) if path.is_file() else {}
            for key in ("shape", "data_type", "chunk_grid", "fill_value", "node_type"):
                if ours.get(key) != theirs.get(key):
                    return CacheDamaged(
                        f"{path}: {key} is {theirs.get(key)!r}, not {ours.get(key)!r}. {REMEDY}"
                    )
        return None

    def _read_chunks(self, part: Part) -> dict[str, bytes]:
        record = self.record(part)
        chunks = {}
        for name in self._layout.part_chunks(part.view, part.block):
            path, expected = self.path / name, record["chunks"].get(name)
            if not isinstance(expected, dict) or expected.keys() != {"bytes", "sha256"}:
                raise CacheDamaged(f"the commit record of {part} does not name {name}. {REMEDY}")
            if not path.is_file():
                raise CacheIncomplete(f"the chunk {path} of {part} is missing. {REMEDY}")
            data = path.read_bytes() if path.stat().st_size == expected["bytes"] else b""
            if sha256(data) != expected["sha256"]:
                raise CacheDamaged(
                    f"the chunk {path} of {part} is damaged (SHA-256 differs). {REMEDY}"
                )
            chunks[name] = data
        return chunks

    def _skeleton(self, table: SampleTable) -> dict[str, bytes]:
        """Every file of a cache without parts, the manifest last."""
        columns: dict[str, Array] = {
            "samples/key": np.frombuffer("\n".join(table.keys).encode(), dtype=np.uint8),
            "samples/id": table.id_N,
            "targets/levels": codec.levels(),
            "targets/tail_levels": codec.tail_levels(),
        }
        columns |= {f"samples/{c}": getattr(table, f"{c}_N").astype(t) for c, t in _COLUMNS.items()}
        whole = self._layout.encode_whole(columns)
        return {
            **whole,
            **self._layout.metadata(),
            "zarr.json": manifest.encode(self.spec, self.num_views),
        }

    def _read_table(self) -> SampleTable:
        n = self.spec.dataset.num_samples
        keys = self._key_column(n)
        ids = np.array([samples.sample_id(key) for key in keys], dtype=np.uint64)
        columns = {f"{c}_N": self._column(f"samples/{c}", n, t) for c, t in _COLUMNS.items()}
        table = SampleTable(keys, ids, **columns)
        if len(keys) != n or table.sha256 != self.spec.dataset.table_sha256:
            raise CacheDamaged(
                f"the sample table {self.path}/samples differs from the manifest's digest. "
                "Fetch the folder again from where the cache came, or make the cache anew."
            )
        return table

    def _key_column(self, n: int) -> tuple[str, ...]:
        metadata = files.read_json(self.path / "samples/key/zarr.json")
        try:
            (length,) = metadata["shape"]
            if not 0 < int(length) <= 4096 * n:
                raise ValueError(f"{length} bytes of keys")
            return tuple(
                bytes(self._column("samples/key", int(length), "uint8")).decode().split("\n")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CacheDamaged(f"{self.path}/samples/key cannot be read: {error}.") from None

    def _column(self, name: str, length: int, dtype: str) -> Array:
        path = self.path / name / "c/0"
        try:
            return self._layout.decode_whole(name, length, dtype, path.read_bytes())
        except (OSError, ValueError, RuntimeError) as error:
            raise CacheDamaged(
                f"{path} cannot be read: {error}. Fetch or make the cache again."
            ) from None


def _source_note(path: Path) -> Path:
    return path.with_name(f"{path.name}.source")


def probe_numbers(rows: range) -> list[int]:
    """The rows of a block whose pixels are fingerprinted: first, last and two between."""
    return [rows[i * (len(rows) - 1) // (PROBES - 1)] for i in range(PROBES)]
