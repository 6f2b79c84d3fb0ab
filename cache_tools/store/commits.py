"""Commit records: the parts of a cache that are done, and the digests of their chunks."""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cache_tools.errors import CacheDamaged, CacheIncomplete
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.storage import atomic
from cache_tools.storage.base import Storage

REMEDY = (
    "Run the command that made it (`kdcache cache`, `kdcache ensemble`) again: it makes only "
    "missing and damaged parts."
)

NAME = re.compile(r"commits/v(\d{4,})/b(\d{4,})\.json")
"""Names of commit records, with view and block."""
_MAX_RECORD = 2**16
_MOST_STATISTIC = 2**53


@dataclass(frozen=True, order=True)
class Part:
    """One block of the sample table in one view: the unit of commit, checksum and download."""

    view: int
    block: int

    @property
    def record(self) -> str:
        """Path of the commit record within the cache."""
        return f"commits/v{self.view:04d}/b{self.block:04d}.json"

    def __str__(self) -> str:
        return f"view {self.view}, block {self.block}"


def encode(
    spec: CacheSpec,
    part: Part,
    chunks: Mapping[str, bytes],
    statistics: Mapping[str, float],
    versions: Mapping[str, str],
) -> bytes:
    """Encode the commit record of a part, of its chunks by path: canonical JSON with its digest."""
    rows = spec.rows(part.block)
    record: dict[str, Any] = {
        "fingerprint": spec.fingerprint,
        "view": part.view,
        "block": part.block,
        "rows": [rows.start, rows.stop],
        "chunks": {n: {"bytes": len(d), "sha256": sha256(d)} for n, d in chunks.items()},
        "statistics": dict(statistics),
        "versions": dict(versions),
    }
    return sealed(record)


def sealed(record: Mapping[str, Any]) -> bytes:
    """Encode a record as returned by `read`."""
    return canonical_json({**record, "sha256": sha256(canonical_json(record))})


def read(cache: Storage, spec: CacheSpec, part: Part) -> dict[str, Any]:
    """Read the commit record of a part and check its digest and identity.

    Raises:
        CacheIncomplete: The part is not committed.
        CacheDamaged: The record was changed, or is of another part.
    """
    path = f"{cache}/{part.record}"
    try:
        record = atomic.parse_json(cache.read(part.record, _MAX_RECORD), path)
    except FileNotFoundError:
        raise CacheIncomplete(f"{part} of {cache} is not committed ({path}). {REMEDY}") from None
    digest = record.pop("sha256", None)
    if digest != sha256(canonical_json(record)):
        raise CacheDamaged(f"the commit record {path} was changed. {REMEDY}")
    rows = spec.rows(part.block)
    identity = (spec.fingerprint, part.view, part.block, [rows.start, rows.stop])
    if tuple(record.get(key) for key in ("fingerprint", "view", "block", "rows")) != identity:
        raise CacheDamaged(f"the commit record {path} belongs to another cache or part. {REMEDY}")
    if not all(isinstance(record.get(k), dict) for k in ("chunks", "statistics", "versions")):
        raise CacheDamaged(f"the commit record {path} lacks a field. {REMEDY}")
    if not all(_is_chunk(chunk) for chunk in record["chunks"].values()):
        raise CacheDamaged(f"the commit record {path} names a chunk without size or digest.")
    if not all(
        type(value) in (int, float) and abs(value) < _MOST_STATISTIC
        for value in record["statistics"].values()
    ):
        raise CacheDamaged(f"the commit record {path} has a statistic that is no number.")
    return record


def identity(cache: Storage, names: Iterable[str]) -> str | None:
    """Return the fingerprint in the first intact record among the files of a cache, or None."""
    for name in names:
        if NAME.fullmatch(name):
            with contextlib.suppress(OSError):
                record = atomic.parse_json(cache.read(name, _MAX_RECORD), name)
                if record.pop("sha256", None) == sha256(canonical_json(record)):
                    return str(record.get("fingerprint"))
    return None


def _is_chunk(chunk: Any) -> bool:
    return (
        isinstance(chunk, dict)
        and chunk.keys() == {"bytes", "sha256"}
        and type(chunk["bytes"]) is int
        and isinstance(chunk["sha256"], str)
    )
