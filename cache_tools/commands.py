"""`kdcache verify`, `info` and `status`: commands on a finished cache."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cache_tools.errors import CacheIncomplete
from cache_tools.store import Store

CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of the cache.")]
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]


def verify(
    cache: CachePath,
    data: Annotated[str | None, typer.Option(metavar="SRC", help="Also check its images.")] = None,
    json_: Json = False,
) -> None:
    """Check every byte of a cache; with --data its images and pixels too. Exit 1 on a problem."""
    from cache_tools import shards
    from cache_tools import verify as verifier

    store = Store.open(cache)
    images = None if data is None else shards.open_images(data, "train")
    verdict = verifier.verify(store, images)
    if json_:
        emit(verdict.as_dict())
    elif verdict.ok:
        looked = f"{verdict.parts} parts"
        if images is not None:
            looked += f", {verdict.images:,} images, {verdict.probes} rendered views"
        print(f"ok: {looked} of {cache} are as they were written ({store.spec.fingerprint[:19]}…)")
    else:
        for problem in verdict.problems:
            print(f"{problem.kind}: {problem}")
    raise typer.Exit(0 if verdict.ok else 1)


def info(cache: CachePath, json_: Json = False) -> None:
    """Print what a cache is: teacher, views, targets, sizes."""
    from cache_tools import summary

    facts = summary.info(Store.open(cache))
    if json_:
        emit(facts)
        return
    spec = facts.pop("spec")
    statistics = facts.pop("statistics")
    for name, value in facts.items():
        print(f"{name:18} {value:,}" if isinstance(value, int) else f"{name:18} {value}")
    for name, value in statistics.items():
        print(f"{name:18} {value}")
    for section in ("dataset", "teacher", "views", "targets"):
        print(f"{section:18} " + ", ".join(f"{k}={_short(v)}" for k, v in spec[section].items()))


def status(cache: CachePath, json_: Json = False) -> None:
    """Print which parts are committed; exit 1 unless all are."""
    from cache_tools import summary

    store = Store.open(cache)
    facts = summary.status(store)
    if json_:
        emit(facts)
    else:
        print(f"{facts['committed']} of {facts['parts']} parts of {cache} are committed")
    if not facts["complete"]:
        if json_:
            raise typer.Exit(1)
        first = facts["missing"][0]
        raise CacheIncomplete(
            f"{cache} is not complete: first missing part is view {first['view']}, block "
            f"{first['block']}. Run the same `kdcache cache` command again to go on."
        )


def emit(facts: dict[str, Any]) -> None:
    """Print facts as JSON on stdout."""
    json.dump(facts, sys.stdout, indent=2)
    print()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:26] + "…"
