"""`kdcache beton`: a data set as the container FFCV reads."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache_tools.cli.options import Json, emit
from cache_tools.errors import UsageError
from cache_tools.runtime.text import counted

log = logging.getLogger("kdcache")

if TYPE_CHECKING:
    from cache_tools.data.beton.reader import Beton
    from cache_tools.data.images import ImageDataset


def beton(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder of shards or images.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The .beton to write.")],
    split: Annotated[
        str, typer.Option(help="Split of SRC: train, validation or teacher.")
    ] = "train",
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Store pixels: ten times the bytes, and no decoding."),
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
    from cache_tools.data.beton.reader import open_beton
    from cache_tools.data.beton.records import SUFFIX
    from cache_tools.data.info_json import SPLITS
    from cache_tools.data.open import open_images

    if split not in SPLITS:
        raise UsageError(f"--split {split} is none of {', '.join(SPLITS)}.")
    if out.suffix != SUFFIX:
        raise UsageError(f"{out} does not end in {SUFFIX}: choose a name that does.")
    images = open_images(source, split)
    if not out.exists() or fresh:
        written = write(images, out, raw, threads)
    elif compare(images, out, raw, threads):
        written = open_beton(out)
        log.info("%s is complete; --fresh would write it again", out)
    else:
        raise UsageError(f"{out} exists and is not of these images. Pass --fresh to replace it.")
    found = facts(written)
    if json_:
        emit(found)
    else:
        print(sentence(found))


def write(images: "ImageDataset", out: Path, raw: bool, threads: int = 0) -> "Beton":
    """Write one with a progress bar, and open it; `threads` 0 = one per core."""
    from cache_tools.data.beton import writer
    from cache_tools.data.beton.reader import open_beton
    from cache_tools.runtime import progress
    from cache_tools.runtime import threads as cores

    with progress.bar(f"write {out.name}", len(images), "images") as advance:
        writer.write(images, out, raw, threads or cores.cpu_count(), advance)
    return open_beton(out)


def compare(images: "ImageDataset", out: Path, raw: bool, threads: int) -> bool:
    """Return whether an existing file is the one that `write` would write, with a progress bar."""
    from cache_tools.data.beton import writer
    from cache_tools.runtime import progress
    from cache_tools.runtime import threads as cores

    with progress.bar(f"compare {out.name}", len(images), "images") as advance:
        return writer.holds(out, images, raw, threads or cores.cpu_count(), advance)


def facts(written: "Beton") -> dict[str, Any]:
    """File, images, bytes, and the number of images stored as pixels."""
    from cache_tools.data.beton.records import RAW

    pixels = int((written.rows_N["mode"] == RAW).sum())
    size = written.path.stat().st_size
    return {"file": str(written.path), "images": len(written), "bytes": size, "as_pixels": pixels}


def sentence(facts: dict[str, Any]) -> str:
    """Describe the facts in words."""
    images = f"{counted(facts['images'], 'image')}, {facts['as_pixels']:,} of them as pixels"
    return f"{facts['file']}: {images}, {facts['bytes']:,} B"
