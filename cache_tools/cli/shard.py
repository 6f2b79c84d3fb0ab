"""`kdcache shard`: any data set to WebDataset shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cache_tools.cli.options import Json, emit
from cache_tools.errors import UsageError
from cache_tools.runtime.text import counted

if TYPE_CHECKING:
    from cache_tools.columnar.layout import Columns
    from cache_tools.data.images import ImageDataset


def shard(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="ImageFolder, shards (folder, pattern, URL), Parquet (hf://datasets/USER/NAME), a "
            "folder of datasets' save_to_disk, or ILSVRC's train or val tar.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write shards to.")],
    split: Annotated[
        str, typer.Option(help="train, validation or teacher; default: all that SRC has, or train.")
    ] = "",
    shard_size: Annotated[int, typer.Option(min=1, help="Samples per shard.")] = 1000,
    short_side: Annotated[
        int,
        typer.Option(min=0, help="Shrink larger images to this short side in pixels; 0: copy all."),
    ] = 0,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="JPEG quality when shrunk; default: 90."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Labels of ILSVRC's val tar: its devkit, or a synset per line; of class folders "
            "the classes to take, in the order of their numbers, one per line.",
        ),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="image=NAME,label=NAME,path=NAME",
            help="Columns of Parquet and Arrow files, where other names than usual.",
        ),
    ] = "",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Decode every image to find broken ones.")
    ] = True,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave broken images out, and name them.")
    ] = False,
    beton: Annotated[
        bool, typer.Option("--beton", help="Also write DST/SPLIT.beton of them, which FFCV reads.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="With --beton: store pixels instead of JPEG bytes.")
    ] = False,
    key: Annotated[
        Literal["key", "shard/key"],
        typer.Option(
            help="Names of samples: their keys in SRC's shards, or with the shard's name in front "
            "where keys begin anew in each."
        ),
    ] = "key",
    json_: Json = False,
) -> None:
    """Write WebDataset shards that timm reads, too. Run again to go on."""
    from cache_tools.cli import beton as beton_command
    from cache_tools.columnar.layout import Columns
    from cache_tools.data import ilsvrc, shard_writer
    from cache_tools.data.beton.reader import open_beton
    from cache_tools.data.info_json import SPLITS
    from cache_tools.data.open import describe, has_split, open_images

    if raw and not beton:
        raise UsageError("--raw is of the container that --beton writes. Pass both, or neither.")
    if quality is not None and not short_side:
        raise UsageError("--quality is of images that --short-side shrinks. Pass both, or neither.")
    chosen = Columns.parse(columns)
    splits = [split] if split else [s for s in SPLITS if has_split(source, s)] or ["train"]
    facts = {}
    for name in splits:
        if name not in SPLITS:
            raise UsageError(f"--split {name} is none of {', '.join(SPLITS)}.")
        there = describe(str(folder))
        classes = there.class_names if there else ()
        images = _open(source, name, key, chosen, classes if classes and labels is None else None)
        if labels is not None:
            images = ilsvrc.with_labels(images, labels, classes)
        options = shard_writer.Options(
            name, shard_size, short_side, quality or shard_writer.QUALITY, check, skip_broken
        )
        facts[name] = shard_writer.write(images, folder, options)
        if beton:
            written = open_images(str(folder), name, containers=False)
            path = folder / f"{name}.beton"
            made = open_beton(path) if path.exists() else None
            if (
                made is None
                or made.names != written.names
                or (made.length_N != written.length_N).any()
                or any(tar.stat().st_mtime_ns > path.stat().st_mtime_ns for tar in written.paths)
                or raw != (made.offset_N == 0).all()  # without the encoded images
            ):
                made = beton_command.write(written, path, raw)
            facts[name]["beton"] = beton_command.facts(made)
    if json_:
        emit(facts)
        return
    for name, said in facts.items():
        print(
            f"{folder}: {counted(said['samples'], f'{name} image')} in "
            f"{counted(said['shards'], 'shard')}, "
            f"{said['bytes']:,} bytes"
        )
        if beton:
            print(beton_command.sentence(said["beton"]))


def _open(
    source: str, split: str, key: str, columns: "Columns", classes: Sequence[str] | None
) -> "ImageDataset":
    """Open a data set, or a tar of tars."""
    from cache_tools.columnar.layout import Columns
    from cache_tools.data import ilsvrc
    from cache_tools.data.open import open_images
    from cache_tools.storage.paths import exists

    if not (exists(source) and Path(source).is_file() and ilsvrc.is_tar_of_tars(Path(source))):
        return open_images(
            source, split, shard_keys=key == "shard/key", classes=classes, columns=columns
        )
    if key != "key" or columns != Columns():
        option = "--columns is of tables" if key == "key" else f"--key {key} is of tars of images"
        raise UsageError(f"{option}, and {source} is a tar of tars. Leave it out.")
    return ilsvrc.train(Path(source))
