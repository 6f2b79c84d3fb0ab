"""`kdcache report`: caches, runs and sweeps on one page."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache_tools.cli.options import Json, emit
from cache_tools.errors import KdcacheError, UsageError
from train.cli.options import Architecture, Device

if TYPE_CHECKING:
    from cache_tools.report.page import Element, Section
    from cache_tools.store.cache import Cache
    from train.report.inputs import Subject

log = logging.getLogger("kdcache")


def report(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="CACHE|RUN|SWEEP", help="Any number; of a folder of runs all its runs."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="HTML", help="Page to write: one file that opens offline."),
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="SRC", help="Images of the caches; default: the noted sources.")
    ] = "",
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave out contact sheets, for publication.")
    ] = False,
    limit: Annotated[
        int,
        typer.Option(min=0, help="Read the targets of at most this many views a cache; 0: all."),
    ] = 100_000,
    views: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Run a run's student on N cached views; 0: none."),
    ] = 2048,
    architecture: Architecture = "",
    device: Device = None,
    json_: Json = False,
) -> None:
    """Draw a report: one page of charts that opens offline.

    Of a cache: its views, the teacher's entropy, calibration and accuracy, the codec's loss. Of a
    run: curves, agreement with the teacher, confusions. Of several runs: a comparison. Of a sweep:
    accuracy against size, speed and time, and its cost beside a teacher in the loop.
    """
    if out is None and not json_:
        raise UsageError("missing --out. Pass --out report.html, or --json for the facts.")
    import torch

    from cache_tools.report import cache_facts, page, svg
    from cache_tools.runtime import progress, text
    from cache_tools.runtime.device import select
    from cache_tools.storage import atomic
    from cache_tools.store.cache import Cache
    from train.evaluate.models import EvalOptions
    from train.report import comparison, run_facts, sweep_section
    from train.report.inputs import find

    if out is not None:
        svg.check()
        if out.is_dir():
            raise UsageError(f"{out} is a folder. Pass --out with the name of a file.")
    named = find(subjects)
    options = EvalOptions(select(torch, device), architecture=architecture)
    read: dict[str, Callable[[str], dict[str, Any]]] = {
        "run": lambda path: run_facts.facts(Path(path), options, views),
        "sweep": lambda path: sweep_section.facts(Path(path)),
        "comparison": comparison.facts,
    }
    all_facts: list[dict[str, Any]] = []
    sections: list[page.Section] = []
    with progress.bar("report", len(named), "subjects", even=False) as advance:
        for subject in named:
            sheet: list[page.Element] = []
            if subject.kind == "cache":
                store = Cache.open(subject.path)
                facts = cache_facts.facts(store, limit)
                sheet = _sheet(store, data) if out is not None and not no_images else []
            else:
                facts = read[subject.kind](subject.path)
            all_facts.append(facts)
            if out is not None:
                sections.append(_section(subject, text.printable_json(facts), sheet))
            advance(1, Path(subject.path).name)
    if out is not None:
        runs = [i for i, subject in enumerate(named) if subject.kind == "run"]
        if len(runs) > 1:  # side by side, before the sections of each
            names = comparison.short_names([Path(named[i].path) for i in runs])
            beside = comparison.section([text.printable_json(all_facts[i]) for i in runs], names)
            sections.insert(runs[0], beside)
        atomic.sweep(out)
        atomic.write(out, page.render(sections).encode())
    if json_:
        emit({"subjects": all_facts})
    elif out is not None:
        kinds = Counter(subject.kind for subject in named)
        listed = ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in kinds.items())
        print(f"{out}: {listed}, {out.stat().st_size / 1e6:.2f} MB")


def _section(subject: "Subject", facts: dict[str, Any], sheet: "list[Element]") -> "Section":
    from cache_tools.report import cache_section
    from train.report import comparison, run_section, sweep_section

    if subject.kind == "cache":
        return cache_section.section(facts, sheet)
    if subject.kind == "comparison":
        return comparison.against_labels(facts, subject.path)
    return run_section.section(facts) if subject.kind == "run" else sweep_section.section(facts)


def _sheet(store: "Cache", data: str) -> "list[Element]":
    """Contact sheet of a cache, or the reason for its absence."""
    from cache_tools.report import pictures, sheet_source

    try:
        return [pictures.contact_sheet(sheet_source.of_cache(store, data))]
    except (KdcacheError, OSError) as error:
        if data:
            raise
        return [pictures.absent(error)]
