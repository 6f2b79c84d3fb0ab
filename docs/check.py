"""Compare the built site with the package: every public name must be documented.

python docs/check.py build/site

mkdocstrings renders an object of the page on `kdcache` only if it has a docstring, and lists those
in `objects.inv`. A name that is missing there has no docstring, or is not on the page.
"""

import inspect
import sys
import zlib
from pathlib import Path

import kdcache


def rendered(site: Path) -> set[str]:
    """Names in a site's `objects.inv`: four lines of header, then a line for each, compressed."""
    lines = zlib.decompress(site.joinpath("objects.inv").read_bytes().split(b"\n", 4)[4])
    return {line.partition(" ")[0] for line in lines.decode().splitlines()}


def public() -> set[str]:
    """Public names of kdcache, and the members that its classes add to those of their bases."""
    names = {f"kdcache.{name}" for name in kdcache.__all__ if not name.startswith("_")}
    for name in kdcache.__all__:
        if inspect.isclass(found := getattr(kdcache, name)):
            above = {key for base in found.__mro__[1:] for key in vars(base)}
            members = {key for key in vars(found) if not key.startswith("_")} - above
            names |= {f"kdcache.{name}.{key}" for key in members}
    return names


if __name__ == "__main__":
    if missing := sorted(public() - rendered(Path(sys.argv[1]))):
        sys.exit("not documented: " + ", ".join(missing))
