"""Canonical JSON, digests, and the first difference of two specs."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Encode JSON in its one canonical form: sorted keys, no spaces, ASCII, shortest floats."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


def sha256(data: bytes) -> str:
    """Return the digest as manifests and commit records contain it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> str | None:
    """Find the first field in which two specs differ, as "views.size: 224 against 192"."""
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if found := difference(a, b, f"{prefix}{key}."):
                return found
        elif a != b:
            return f"{prefix}{key}: {a!r} against {b!r}"
    return None
