"""`kdcache beton`: a data set as the container FFCV reads."""

from pathlib import Path
from typing import Annotated

import typer

from cache_tools.commands import Json, emit
from cache_tools.errors import UsageError


def beton(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder of shards or images.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The .beton to write.")],
    split: Annotated[
        str, typer.Option(help="Which part of SRC: train, validation or teacher.")
    ] = "train",
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Store pixels: ten times the room, and nothing to decode."),
    ] = False,
    threads: Annotated[
        int, typer.Option(min=0, help="Images decoded at once; 0 = one per core.")
    ] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace the file there.")] = False,
    json_: Json = False,
) -> None:
    """Write a data set as one .beton, the container FFCV reads: JPEG bytes as they are, or pixels.

    Train from it with: kdcache train RECIPE --cache CACHE --data FILE. Name it train.beton and one
    with --split validation beside it validation.beton, and both are found by either name.
    """
    from cache_tools import beton as container
    from cache_tools import progress, shards
    from cache_tools import threads as cores

    if split not in shards.SPLITS:
        raise UsageError(f"--split {split} is none of {', '.join(shards.SPLITS)}.")
    if out.suffix != container.SUFFIX:
        raise UsageError(f"{out} does not end in {container.SUFFIX}, by which it would be known.")
    if out.exists() and not fresh:
        raise UsageError(f"{out} exists. Pass --fresh to replace it.")
    images = shards.open_images(source, split)
    with progress.bar("write images", len(images), "images") as advance:
        pixels = container.write(images, out, raw, threads or cores.available(), advance)
    facts = {"file": str(out), "images": len(images), "bytes": out.stat().st_size}
    if json_:
        emit({**facts, "as_pixels": pixels})
    else:
        print(f"{out}: {len(images):,} images, {pixels:,} of them as pixels, {facts['bytes']:,} B")
