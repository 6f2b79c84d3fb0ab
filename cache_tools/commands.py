"""Commands on a cache: `verify`, `info`, `status`, `import`, `diff`."""

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cache_tools.errors import CacheIncomplete, UsageError
from cache_tools.store import Store

CachePath = Annotated[str, typer.Argument(metavar="CACHE", help="Folder, zip or URL of the cache.")]
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]


def verify(
    cache: CachePath,
    data: Annotated[str | None, typer.Option(metavar="SRC", help="Also check its images.")] = None,
    recompute: Annotated[
        int, typer.Option(metavar="N", min=0, help="Ask the teacher again about N views.")
    ] = 0,
    teacher: Annotated[
        str, typer.Option(help="The teacher to ask, where its name alone does not find it.")
    ] = "",
    device: Annotated[str | None, typer.Option(help="Where it runs: cuda, cpu.")] = None,
    json_: Json = False,
) -> None:
    """Check every byte of a cache; with --data its images and pixels too. Exit 1 on a problem."""
    from cache_tools import shards
    from cache_tools import verify as verifier

    store = Store.open(cache)
    if recompute and data is None:
        raise UsageError("--recompute renders views: pass --data with the images, too.")
    images = None if data is None else shards.open_images(data, "train")
    verdict = verifier.verify(store, images)
    if recompute and images is not None and verdict.word == "ok":
        check = _check("recompute")
        verdict.recomputed = recompute
        verdict.problems.extend(check(store, images, teacher, device, recompute))
    if json_:
        emit(verdict.as_dict())
    else:
        for problem in verdict.problems:
            print(f"{problem.kind}: {problem}")
        print(f"{verdict.word}: {_looked(verdict, cache, store)}")
    raise typer.Exit(0 if verdict.word == "ok" else 1)


def info(cache: CachePath, json_: Json = False) -> None:
    """Print what a cache is: teacher, views, targets, sizes."""
    from cache_tools import summary

    facts = summary.info(Store.open(cache))
    if json_:
        emit(facts)
        return
    spec = facts.pop("spec")
    for name, value in facts.items():
        lines = value.items() if isinstance(value, dict) else [("", value)]
        for key, one in lines:
            print(f"{' '.join((name, key)).strip():22} {f'{one:,}' if type(one) is int else one}")
    for section in ("dataset", "views", "targets"):
        print(f"{section:22} " + ", ".join(f"{k}={_short(v)}" for k, v in spec[section].items()))


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
    from cache_tools import summary
    from cache_tools.commits import Part

    store = Store.open(cache)
    facts = summary.status(store)
    numbers = [summary.part_number(store, Part(**part)) for part in facts["missing"]]
    if json_:
        emit(facts)
    elif missing:
        print(summary.ranges(numbers) if form == "slurm" else "\n".join(map(str, numbers)))
    else:
        done, total = facts["parts"]["done"], facts["parts"]["total"]
        print(f"{done} of {total} parts of {cache} are committed")
    if not facts["complete"]:
        if json_ or missing:
            raise typer.Exit(1)
        first = facts["missing"][0]
        raise CacheIncomplete(
            f"{cache} is not complete: first missing part is view {first['view']}, block "
            f"{first['block']}. Run the same `kdcache cache` command again to go on."
        )


def import_(
    kind: Annotated[Literal["dense"], typer.Argument(metavar="KIND", help="dense: all logits.")],
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="An .npy, .npz or .safetensors of logits.")
    ],
    out: Annotated[Path, typer.Option(metavar="CACHE", help="Where the cache lies.")],
    keep: Annotated[
        str, typer.Option(help="tau=1e-3,max=64 (also min=, levels=, t2=) or k=20.")
    ] = "tau=1e-3,max=64",
    teacher: Annotated[str, typer.Option(help="Name of the network that said this.")] = "unknown",
    json_: Json = False,
) -> None:
    """Write logits that exist, [N, C] or [V, N, C], as a cache. Run again to go on."""
    from cache_tools import summary
    from cache_tools.importers import dense

    assert kind == "dense"
    facts = summary.info(dense.run(source, out, dense.keep(keep), teacher))
    if json_:
        emit(facts)
        return
    print(
        f"{out}: {facts['samples']:,} samples, {facts['views']} views, "
        f"{facts['bytes_per_view']} bytes each, {facts['kept_classes_mean']} classes kept"
    )


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A cache or a file of logits.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What is held against it.")],
    limit: Annotated[
        int, typer.Option(min=0, help="Compare at most this many views; 0: all.")
    ] = 50_000,
    json_: Json = False,
) -> None:
    """Compare two caches, or logits and a cache: KL(A ‖ B), L1, agreement, bytes per view."""
    from cache_tools import compare

    facts = compare.diff(compare.open_side(a), compare.open_side(b), limit)
    if json_:
        emit(facts)
        return
    sizes = facts.pop("bytes_per_view")
    for name, value in facts.items():
        print(f"{name:16} {f'{value:.6g}' if isinstance(value, float) else value}")
    print(f"{'bytes_per_view':16} {sizes['a']:.2f} and {sizes['b']:.2f}")


def emit(facts: dict[str, Any]) -> None:
    """Print facts as JSON on stdout."""
    json.dump(facts, sys.stdout, indent=2)
    print()


def _check(name: str) -> Any:
    """A check that another package offers."""
    found = entry_points(group="kdcache.checks", name=name)
    if not found:
        raise UsageError(f"nothing is installed that can {name}. Install kdcache as a whole.")
    return next(iter(found)).load()


def _looked(verdict: Any, cache: str, store: Store) -> str:
    """What was looked at, in words."""
    words = [f"{verdict.parts} parts"]
    if verdict.images:
        words += [f"{verdict.images:,} images", f"{verdict.probes} rendered views"]
    if verdict.recomputed:
        words += [f"{verdict.recomputed} views of the teacher"]
    end = f"of {cache} ({store.spec.fingerprint[:19]}…)"
    if verdict.word == "ok":
        return f"{', '.join(words)} {end} are as they were written"
    count = len(verdict.problems)
    return f"{count} problem{'s' if count > 1 else ''} found in {', '.join(words)} {end}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:26] + "…"
