"""The command `convert`: a cache in a format that others read."""

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cache_tools.cli.options import CachePath, Json, emit
from cache_tools.errors import CacheDamaged, UsageError
from cache_tools.file_contents import parse_json
from cache_tools.runtime.text import counted
from cache_tools.spec.canonical import sha256
from cache_tools.storage import atomic, seal
from cache_tools.store.cache import Cache

Kind = Literal["webdataset", "parquet", "tinyvit"]
log = logging.getLogger("kdcache")
NOTE = "_kdcache.json"


def convert(
    cache: CachePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to.")],
    to: Annotated[Kind, typer.Option("--to", help="webdataset, parquet or tinyvit.")],
    per_file: Annotated[
        int, typer.Option(min=1, help="Most samples of a shard or file; not of tinyvit.")
    ] = 10_000,
    dataset_index: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="tinyvit: keys are numbers, those of the lines of this file, which name images.",
        ),
    ] = None,
    without_seeds: Annotated[
        bool,
        typer.Option("--without-seeds", help="tinyvit: write seeds of 0 for a reader of your own."),
    ] = False,
    json_: Json = False,
) -> None:
    """Write the targets and views of a cache for other programs. Run again to go on."""
    from cache_tools.exporters import base, parquet, tinyvit, webdataset
    from cache_tools.importers import ordering
    from cache_tools.runtime import progress

    store = Cache.open(cache)
    base.check_whole(store)
    keys = store.table.keys
    of_samples = webdataset if to == "webdataset" else parquet
    if to == "tinyvit":
        wanted = tinyvit.names(store, without_seeds)
        if dataset_index:
            ordered = ordering.lines(dataset_index, keys, store.name)
            line_of = {key: str(i) for i, key in enumerate(ordered)}
            keys = tuple(line_of[key] for key in keys)
    else:
        wanted = of_samples.names(store, per_file)
    digest = sha256("\n".join(keys).encode())
    _claim(out, store, {"kind": to, "files": len(wanted), "keys": digest})
    todo = {name: rows for name, rows in wanted.items() if not _is_whole(out, name)}
    if to == "tinyvit":
        written = tinyvit.write(store, out, todo, keys)
    else:
        written = base.write(store, out, todo, of_samples.encode)
    total, left = (sum(map(len, some.values())) for some in (wanted, todo))
    with progress.bar(f"convert to {to}", total, "samples", total - left) as advance:
        for count in written:
            advance(count)
    facts: dict[str, Any] = {
        "files": len(wanted),
        "bytes": sum((out / name).stat().st_size for name in wanted),
        "samples": len(keys),
        "views": store.num_views,
        "content_id": store.content_id(),
    }
    if json_:
        emit(facts)
    else:
        print(
            f"{out}: {counted(facts['files'], 'file')} of {to}, {facts['bytes']:,} bytes, "
            f"{counted(facts['samples'], 'sample')}, {counted(facts['views'], 'view')}"
        )


def _is_whole(out: Path, name: str) -> bool:
    """Check that a file is there, and that its digest holds; TinyViT's has its keys beside it."""
    from cache_tools.exporters import base, tinyvit

    names = [name] if name == (keys := name.replace(tinyvit.VALUES, tinyvit.KEYS)) else [keys, name]
    try:
        for each in names:
            seal.check(out, each, note=base.DIGESTS)
    except CacheDamaged as error:
        log.warning("%s It is written again.", str(error).partition(". ")[0] + ".")
        return False
    return all((out / each).is_file() for each in names)


def _claim(out: Path, store: Cache, plan: dict[str, Any]) -> None:
    """Note which cache the folder is of; UsageError when it is of another."""
    spec = store.spec
    atomic.sweep(out)
    plan |= {
        "cache": spec.fingerprint,
        "content_id": store.content_id(),
        "views": store.num_views,
        "spec": parse_json(json.dumps(spec.mapping)),
    }
    note = out / NOTE
    if note.is_file():
        try:
            there = atomic.read_json(note)
        except CacheDamaged as error:
            raise CacheDamaged(f"{error} Remove {out}, and run the same command again.") from None
        if differing := [name for name in plan if there.get(name) != plan[name]]:
            raise UsageError(
                f"{out} holds something else ({', '.join(differing)} differ). Choose another "
                "folder, or repeat the command that began this one."
            )
        return
    if out.exists() and (
        not out.is_dir() or not all(atomic.is_temporary(path.name) for path in out.iterdir())
    ):
        raise UsageError(f"{out} exists and is not an empty folder. Choose another.")
    atomic.write(note, json.dumps(plan, indent=2).encode() + b"\n")
