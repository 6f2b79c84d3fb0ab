"""The manifest: `attributes.kdcache` of the group's zarr.json."""

import json
from dataclasses import asdict
from pathlib import Path

from cache_tools import files, spec
from cache_tools.errors import CacheDamaged, CacheMismatch, CacheNotFound
from cache_tools.spec import CacheSpec

MAX_VIEWS = 10_000


def encode(cache_spec: CacheSpec, num_views: int) -> bytes:
    """The group's zarr.json."""
    attributes = {
        "format_version": spec.FORMAT_VERSION,
        "fingerprint": cache_spec.fingerprint,
        "num_views": num_views,
        "spec": asdict(cache_spec),
    }
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"kdcache": attributes}}
    return (json.dumps(group, indent=2, sort_keys=True) + "\n").encode()


def read(cache: Path) -> tuple[CacheSpec, int]:
    """Spec and number of views of a cache.

    Raises:
        CacheNotFound: There is none.
        CacheMismatch: Another version of the format.
        CacheDamaged: The manifest is not as it was written.
    """
    path = cache / "zarr.json"
    if not path.is_file():
        raise CacheNotFound(
            f"there is no cache at {cache}. Make one with: kdcache cache RECIPE --data DATA "
            f"--teacher TEACHER --out {cache}"
        )
    attributes = files.read_json(path).get("attributes")
    manifest = attributes.get("kdcache") if isinstance(attributes, dict) else None
    if not isinstance(manifest, dict):
        raise CacheNotFound(
            f"{cache} is a Zarr group but not a kdcache cache (no attributes.kdcache)."
        )
    version = str(manifest.get("format_version"))
    if version != spec.FORMAT_VERSION:
        raise CacheMismatch(
            f"{cache} has format version {version}, this kdcache reads {spec.FORMAT_VERSION}. "
            "Install the kdcache that wrote it (pip install -U kdcache when it is newer)."
        )
    views, mapping = manifest.get("num_views"), manifest.get("spec")
    if type(views) is not int or not 0 < views <= MAX_VIEWS or not isinstance(mapping, dict):
        raise CacheDamaged(f"{path} was changed: num_views is {views!r}.")
    cache_spec = spec.from_mapping(mapping, str(path))
    if manifest.get("fingerprint") != cache_spec.fingerprint:
        raise CacheDamaged(
            f"{path} was changed: its fingerprint is {manifest.get('fingerprint')}, its spec's is "
            f"{cache_spec.fingerprint}. Fetch it again from where the cache came."
        )
    return cache_spec, views
