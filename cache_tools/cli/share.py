"""Commands that share caches: `pull`, `push`, `select`, `merge`, `card`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from cache_tools.cli.options import KEEP, CachePath, Json, emit
from cache_tools.errors import UsageError
from cache_tools.runtime.text import counted
from cache_tools.storage.folder import Folder
from cache_tools.store.cache import Cache

log = logging.getLogger("kdcache")
Views = Annotated[
    str, typer.Option(metavar="A:B", help="View numbers, such as 0:50, 50: or 7; default: all.")
]
Samples = Annotated[
    str,
    typer.Option(
        metavar="SHARE|FILE",
        help="A share such as 0.1, or a file with a key per line; default: all.",
    ),
]
Keep = Annotated[
    str,
    typer.Option(help=f"Fewer classes: {KEEP}; also k_min=. Default: all."),
]
Jobs = Annotated[int, typer.Option(min=1, max=64, help="Parts in flight at once.")]


def pull(
    url: Annotated[str, typer.Argument(metavar="URL", help="Folder, bucket or URL of the cache.")],
    out: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    views: Views = "",
    samples: Samples = "",
    keep: Keep = "",
    jobs: Jobs = 8,
    content_id: Annotated[
        str, typer.Option(metavar="ID", help="Refuse a cache of another content id.")
    ] = "",
    json_: Json = False,
) -> None:
    """Fetch a cache, or some of its views and samples. Run again to go on.

    URL is of any kind that fsspec supports: a folder served over http(s), hf://datasets/…, s3://…,
    gs://…. Only the selected parts are fetched, with what reading them requires; every byte is
    checked on arrival.
    """
    source = Cache.open(url)
    if content_id:
        from cache_tools.store import info

        info.check_content(source, content_id)
    _cut(source, out, (views, samples, keep), jobs, json_)


def select(
    cache: CachePath,
    out: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    views: Views = "",
    samples: Samples = "",
    keep: Keep = "",
    json_: Json = False,
) -> None:
    """Cut a cache: some views, some samples, fewer classes; no teacher is needed."""
    if not (views or samples or keep):
        raise UsageError("nothing is selected. Pass --views, --samples or --keep.")
    _cut(Cache.open(cache), out, (views, samples, keep), 8, json_)


def _cut(source: Cache, out: Path, wanted: tuple[str, str, str], jobs: int, json_: bool) -> None:
    from cache_tools.combine import select as cut
    from cache_tools.share import pull as puller

    if isinstance(source.storage, Folder) and source.path.resolve() == out.resolve():
        raise UsageError(f"{out} is the cache itself, which stays as it is. Choose another DST.")
    plan = cut.plan(source, *wanted)
    store, moved = puller.run(source, out, plan, jobs)
    if keep := wanted[2]:
        for line in cut.shortfalls(store, keep, source.name):
            log.warning(line)
    if json_:
        facts = {"path": str(out), "fingerprint": store.spec.fingerprint}
        parts = {"there": moved.there, "made": moved.made}
        emit({**facts, "parts": parts, "bytes": moved.bytes, "content_id": store.content_id()})
        return
    print(
        f"{out}: {counted(moved.made, 'part')} made, {were_there(moved.there)}, "
        f"{moved.bytes:,} bytes read "
        f"({store.spec.fingerprint[:19]}…)"
    )


License = Annotated[
    str, typer.Option("--license", metavar="L", help="Licence of the cache: cc-by-4.0, other, ….")
]
TeacherLicense = Annotated[
    str,
    typer.Option(metavar="L", help="Of the teacher's weights; default: as timm has it."),
]
DataName = Annotated[str, typer.Option("--data-name", metavar="NAME", help="Of the data set.")]
DataTerms = Annotated[
    str, typer.Option("--data-terms", metavar="TEXT", help="Its terms, or their address.")
]


def push(
    cache: CachePath,
    url: Annotated[str, typer.Argument(metavar="URL", help="Target: hf://…, s3://…, ….")],
    license_: License = "",
    teacher_license: TeacherLicense = "",
    data_name: DataName = "",
    data_terms: DataTerms = "",
    jobs: Jobs = 8,
    json_: Json = False,
) -> None:
    """Upload a cache with its card, for others to pull. Run again to go on.

    Files that are there already are not sent again. The manifest is sent last, so that no reader
    opens half a cache. --license is required where others can read it.
    """
    from cache_tools.share import card as cards
    from cache_tools.share import push as pusher

    if pusher.is_public(url) and not license_:
        raise UsageError(
            f"{url} may be read by others, and no licence is given. Pass --license, such as "
            "cc-by-4.0, or other; the terms of teacher and data set go with --teacher-license and "
            "--data-terms."
        )
    store = Cache.open(cache)
    terms = cards.Terms(license_, teacher_license, data_name, data_terms, url=url)
    sent = pusher.run(store, url, cards.text(store, terms).encode(), jobs)
    if json_:
        emit({"url": url, "parts": {"there": sent.there, "sent": sent.sent}, "bytes": sent.bytes})
        return
    words = f"{counted(sent.sent, 'part')} sent, {were_there(sent.there)}"
    print(f"{url}: {words}, {sent.bytes:,} bytes")


def card(
    cache: CachePath,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there; default: print it.")
    ] = None,
    license_: License = "",
    teacher_license: TeacherLicense = "",
    data_name: DataName = "",
    data_terms: DataTerms = "",
    citation: Annotated[str, typer.Option(metavar="TEXT", help="How to cite the cache.")] = "",
    url: Annotated[str, typer.Option(metavar="URL", help="Its address.")] = "URL",
) -> None:
    """Write a dataset card: teacher, data, views, sizes, fidelity, how to load it, its identity."""
    from cache_tools.share import card as cards
    from cache_tools.storage import atomic

    terms = cards.Terms(license_, teacher_license, data_name, data_terms, citation, url)
    written = cards.text(Cache.open(cache), terms)
    if out is None:
        print(written, end="")
    else:
        atomic.sweep(out)
        atomic.write(out, written.encode())
        print(out)


def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the merged cache.")],
    caches: Annotated[list[str], typer.Argument(metavar="CACHE", help="Two or more caches.")],
    block_size: Annotated[
        int, typer.Option(min=0, help="Samples per part; 0: as the caches have it.")
    ] = 0,
    json_: Json = False,
) -> None:
    """Join caches of one teacher: more views, more samples, or both. Run again to go on.

    What several caches have is compared; a difference is refused and its part named.
    """
    from cache_tools.combine import merge as merger
    from cache_tools.store import info

    store = merger.run([Cache.open(cache) for cache in caches], out, block_size)
    facts = info.info(store)
    if json_:
        emit(facts)
        return
    done, total = facts["parts"]["done"], facts["parts"]["total"]
    print(
        f"{out}: {done:,} of {counted(total, 'part')}, {counted(facts['samples'], 'sample')}, "
        f"{counted(facts['views'], 'view')} "
        f"({facts['fingerprint'][:19]}…)"
    )


def were_there(count: int) -> str:
    """Describe the parts that need not be moved."""
    return f"{count:,} {'was' if count == 1 else 'were'} there"
