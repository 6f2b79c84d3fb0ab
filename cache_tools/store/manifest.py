"""The manifest: `attributes.kdcache` of the group's zarr.json.

It holds the spec with its fingerprint and how many views there are; its own digest covers all of
it, so that no number in it can change unseen. What else a cache has but its parts follows from it:
every array's metadata from the spec, the sample table from the digest in the spec.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache_tools.errors import CacheDamaged, CacheMismatch, CacheNotFound
from cache_tools.spec import cache
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.storage import atomic
from cache_tools.storage.base import MANIFEST, Storage

NAME = MANIFEST
CONSOLIDATED = "consolidated_metadata"
"""Member that zarr.consolidate_metadata adds to a group; it is ignored."""
MAX_VIEWS = 10_000
MAX_PARTS = 2**21
_REMEDY = "Fetch it again from where the cache came."


@dataclass(frozen=True)
class Manifest:
    """Manifest contents: spec and number of views."""

    spec: CacheSpec
    num_views: int

    def encode(self) -> bytes:
        """Encode the group's zarr.json."""
        attributes: dict[str, Any] = {
            "format_version": self.spec.format_version,
            "fingerprint": self.spec.fingerprint,
            "num_views": self.num_views,
            "spec": self.spec.mapping,
        }
        attributes["sha256"] = sha256(canonical_json(attributes))
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"kdcache": attributes}}
        return canonical_json(group)


def read(storage: Storage) -> Manifest:
    """Read and check the manifest of a cache.

    Raises:
        CacheNotFound: There is none.
        CacheMismatch: Another version of the format.
        CacheDamaged: The manifest was changed.
    """
    path = f"{storage}/{NAME}"
    try:
        group = atomic.parse_json(storage.read(NAME, atomic.MAX_JSON), path)
    except FileNotFoundError:
        above = str(storage).removesuffix(f"/{NAME}")
        guess = above if above != str(storage) else f"{storage}/cache.zarr"
        raise CacheNotFound(
            f"there is no cache at {storage} ({NAME} is missing). Its path or URL ends with the "
            f"folder that has {NAME}, such as {guess}."
        ) from None
    attributes = group.get("attributes")
    manifest = attributes.get("kdcache") if isinstance(attributes, dict) else None
    if not isinstance(manifest, dict):
        raise CacheNotFound(
            f"{storage} is a Zarr group but not a kdcache cache ({NAME} has no "
            "attributes.kdcache). Check the path or URL."
        )
    _check_version(manifest, storage)
    digest = manifest.pop("sha256", None)
    _require(digest == sha256(canonical_json(manifest)), path, "its sha256 is not that of the rest")
    group.pop(CONSOLIDATED, None)  # of zarr.consolidate_metadata; a copy of what is checked itself
    plain = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    _require(group == plain, path, f"it has other members than {', '.join(sorted(plain))}")
    views, mapping = manifest.get("num_views"), manifest.get("spec")
    _require(type(views) is int and 0 < views <= MAX_VIEWS, path, f"num_views is {views!r}")
    _require(isinstance(mapping, dict), path, "it lacks a member")
    cache_spec = cache.from_mapping(mapping, path)  # type: ignore[arg-type]
    parts = views * cache_spec.num_blocks  # type: ignore[operator]
    _require(parts <= MAX_PARTS, path, f"{parts} parts are too many")
    _require(manifest.get("fingerprint") == cache_spec.fingerprint, path, "fingerprint and spec")
    return Manifest(cache_spec, views)  # type: ignore[arg-type]


def _check_version(manifest: Mapping[str, Any], storage: Storage) -> None:
    """Refuse what this version cannot read: another major version, or one of before 1.0."""
    version = str(manifest.get("format_version"))
    shown = version[:20] if version.isprintable() else repr(version[:20])
    if version.partition(".")[0] != cache.FORMAT_VERSION.partition(".")[0]:
        raise CacheMismatch(
            f"{storage} has format version {shown}, this kdcache reads {cache.FORMAT_VERSION}. "
            + (
                "Caches of 0.x must be made anew."
                if version.startswith("0.")
                else "Install the kdcache that wrote it (pip install -U kdcache when it is newer)."
            )
        )


def _require(holds: bool, path: str, what: str) -> None:
    if not holds:
        raise CacheDamaged(f"{path} was changed ({what}). {_REMEDY}")
