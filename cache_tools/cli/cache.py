"""Commands on a cache: `verify`, `info`, `status`, `ensemble`, `diff`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cache_tools.cli.options import KEEP, CachePath, Json, emit
from cache_tools.errors import CacheIncomplete, UsageError
from cache_tools.runtime.text import counted
from cache_tools.store.cache import Cache


def verify(
    cache: CachePath,
    data: Annotated[str | None, typer.Option(metavar="SRC", help="Also check its images.")] = None,
    recompute: Annotated[
        int, typer.Option(metavar="N", min=0, help="Re-run the teacher on N views.")
    ] = 0,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Teacher to run, where its name alone does not find it."),
    ] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="The teacher's class map, if it has one."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Its device: cuda, cpu.")] = None,
    content_id: Annotated[
        str, typer.Option(metavar="ID", help="Also compare the content id, such as a signed one.")
    ] = "",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="SRC may lack samples and have others.")
    ] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Before, mend what follows from the cache itself, from --data or from --from.",
        ),
    ] = False,
    source: Annotated[
        str,
        typer.Option(
            "--from", metavar="URL", help="A copy of the cache, to take damaged parts of."
        ),
    ] = "",
    json_: Json = False,
) -> None:
    """Check every byte of a cache; with --data its images and pixels too. Exit 1 on a problem."""
    from cache_tools.verify import api

    result = api.verify(
        cache,
        data,
        recompute=recompute,
        teacher=teacher or [],
        class_map=class_map or [],
        device=device,
        content_id=content_id,
        allow_partial=allow_partial,
        repair=mend,
        source=source,
    )
    if json_:
        emit(result.facts)
    else:
        for line in result.mended:
            print(f"mended: {line}")
        for problem in result.problems:
            print(f"{problem.kind}: {problem}")
        if result.coverage is not None and not result.coverage.by_name:
            print(f"{data}: {result.coverage}")
        print(f"{result.status}: {_looked(result, cache)}")
    raise typer.Exit(0 if result else 1)


def info(
    cache: CachePath,
    content_id: Annotated[
        bool, typer.Option("--content-id", help="Print the content id alone, to sign it.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help="Print every fact and recipe key.")] = False,
    json_: Json = False,
) -> None:
    """Print the facts of a cache on one screen: teacher, data, views, targets, size, identity.

    Of the recipe's keys, those that differ from their defaults.
    """
    from cache_tools.cli import overview
    from cache_tools.store import info as summary

    store = Cache.open(cache)
    if content_id:
        print(store.content_id())
        return
    facts = summary.info(store)
    if json_:
        emit(facts)
    else:
        print("\n".join(overview.everything(facts) if all_ else overview.lines(store, facts)))


def status(
    cache: CachePath,
    missing: Annotated[bool, typer.Option("--missing", help="Print the missing parts.")] = False,
    form: Annotated[
        Literal["list", "slurm"],
        typer.Option("--format", help="Numbers of parts, a line each or as a Slurm array."),
    ] = "list",
    json_: Json = False,
) -> None:
    """Print which parts are committed; exit 1 unless all are."""
    from cache_tools.store import info as summary
    from cache_tools.store.commits import Part

    store = Cache.open(cache)
    facts = summary.status(store)
    numbers = [summary.part_number(store, Part(**part)) for part in facts["missing"]]
    if json_:
        emit(facts)
    elif missing:
        print(summary.ranges(numbers) if form == "slurm" else "\n".join(map(str, numbers)))
    else:
        done, total = facts["parts"]["done"], facts["parts"]["total"]
        verb = "is" if total == 1 else "are"
        print(f"{done:,} of {counted(total, 'part')} of {cache} {verb} committed")
    if not facts["complete"]:
        if json_ or missing:
            raise typer.Exit(1)
        first = facts["missing"][0]
        raise CacheIncomplete(
            f"{cache} is not complete: first missing part is view {first['view']}, block "
            f"{first['block']}. Run the command that made it (`kdcache cache`, `kdcache ensemble`) "
            "again to go on."
        )


def ensemble(
    caches: Annotated[list[str], typer.Argument(metavar="CACHE", help="Two or more caches.")],
    out: Annotated[Path, typer.Option(metavar="CACHE", help="Folder of their mixture.")],
    weights: Annotated[
        str,
        typer.Option(metavar="W,W…", help="A weight for each: 0.7,0.3; default: equal."),
    ] = "",
    keep: Annotated[
        str,
        typer.Option(help=f"{KEEP}; also k_min=, levels=. Default: as the members."),
    ] = "",
    json_: Json = False,
) -> None:
    """Mix caches of several teachers over the same views into one. Run again to go on.

    Its targets are the weighted mean of the teachers' probabilities, of which a class that one of
    them did not keep gets that one's flat share of its tail.
    """
    from cache_tools.combine import ensemble as mixer
    from cache_tools.store import aligned
    from cache_tools.store import info as summary

    if len(caches) < 2:
        raise UsageError("an ensemble has two members or more. Name the caches of all teachers.")
    try:
        shares = [float(number) for number in weights.split(",")] if weights else []
    except ValueError:
        raise UsageError(f"--weights {weights} are not numbers such as 0.7,0.3.") from None
    opened = aligned.open_ensemble(caches, shares, blocks=True)
    facts = summary.info(mixer.run(opened, out, keep))
    if json_:
        emit(facts)
        return
    print(f"teacher {facts['teacher']['name']}")
    print(
        f"{out}: {facts['parts']['done']:,} of {counted(facts['parts']['total'], 'part')}, "
        f"{counted(facts['targets'], 'view')}, {facts['bytes_per_view']} bytes each, "
        f"{facts['kept_classes_mean']} classes kept"
    )


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A cache or a file of logits.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The cache to compare it with.")],
    limit: Annotated[
        int, typer.Option(min=0, help="Compare at most this many views; 0: all.")
    ] = 50_000,
    json_: Json = False,
) -> None:
    """Compare two caches, or logits and a cache: KL(A ‖ B), L1, agreement, bytes per view."""
    from cache_tools.combine import diff as compare

    facts = compare.diff(compare.open_side(a), compare.open_side(b), limit)
    if json_:
        emit(facts)
        return
    sizes = facts.pop("bytes_per_view")
    for name, value in facts.items():
        print(f"{name:16} {f'{value:.6g}' if isinstance(value, float) else value}")
    print(f"{'bytes_per_view':16} {sizes['a']:.2f} and {sizes['b']:.2f}")


def _looked(result: Any, cache: str) -> str:
    """Describe the checks that were made."""
    words = [counted(result.parts, "part")]
    if result.images:
        words += [counted(result.images, "image"), counted(result.probes, "rendered view")]
    if result.recomputed:
        words += [f"{counted(result.recomputed, 'view')} of the teacher"]
    end = f"of {cache} ({result.fingerprint[:19]}…)"
    if result.status == "ok":
        return f"{', '.join(words)} {end} are as they were written"
    found = counted(len(result.problems), "problem")
    return f"{found} found in {', '.join(words)} {end}"
