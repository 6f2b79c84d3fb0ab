"""Options and output that several commands share."""

import json
from typing import Annotated, Any

import typer

CachePath = Annotated[str, typer.Argument(metavar="CACHE", help="Folder, zip or URL of the cache.")]
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
KEEP = "k=20 (the 20 most probable classes) or tau=1e-3,k_max=64 (those above a probability)"


def emit(facts: dict[str, Any]) -> None:
    """Print facts as JSON on stdout."""
    print(json.dumps(facts, indent=2))


def table(facts: dict[str, Any]) -> None:
    """Print numbers and words by name for people."""
    width = max([16, *map(len, facts)])
    for name, value in facts.items():
        print(f"{name:{width}} {value if isinstance(value, str) else f'{value:,}':>16}")
