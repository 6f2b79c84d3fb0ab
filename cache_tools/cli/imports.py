"""The command `import`: targets that exist, into the format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cache_tools.cli.options import KEEP, Json, emit
from cache_tools.errors import UsageError
from cache_tools.runtime.text import counted

Kind = Literal["dense", "tinyvit", "fkd", "ml-dr"]


def import_(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="dense, tinyvit, fkd or ml-dr.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="dense: an .npy, .npz or .safetensors of all logits. Others: the folder of "
            "TinyViT's saved logits, FKD's or SRe2L's soft labels or ml-dr's reinforced data.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="CACHE", help="Folder of the cache.")],
    data: Annotated[
        str, typer.Option(metavar="DATA", help="The data set they are of; not for dense.")
    ] = "",
    keep: Annotated[
        str,
        typer.Option(
            help=f"{KEEP}; also k_min=, levels=, and temperature= of dense. Default: "
            "tau=1e-3,k_max=64 of dense, all that is there of others."
        ),
    ] = "",
    teacher: Annotated[str, typer.Option(help="Name of the network of these targets.")] = "unknown",
    classes: Annotated[
        int, typer.Option(metavar="N", min=0, help="Its classes; 0: those of the data set.")
    ] = 0,
    labels: Annotated[
        bool, typer.Option(help="Whether the labels of the data set are its classes.")
    ] = True,
    dataset_index: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A line per image in the order in which files count them; default: that of "
            "torchvision's ImageFolder.",
        ),
    ] = None,
    size: Annotated[
        int,
        typer.Option(metavar="PIXELS", min=1, max=4096, help="Of FKD's views, for the student."),
    ] = 224,
    fkd_seed: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=2**32 - 1, help="Of SRe2L: that of their command."),
    ] = 42,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="dense: SRC has probabilities, not logits."),
    ] = False,
    json_: Json = False,
) -> None:
    """Write targets that exist as a cache: logits, or another system's files. Run again to go on.

    Views of FKD and ml-dr (boxes, flips, operations, mixing) are imported too, and students replay
    them; views of logits and of TinyViT cannot be drawn again. No code of a file is run.
    """
    from cache_tools.store import info

    if kind == "dense":
        from cache_tools.importers import dense
        from cache_tools.targets.keep import of_all_classes

        if data:
            raise UsageError("logits name their samples themselves: leave --data out.")
        store = dense.run(source, out, of_all_classes(keep), teacher, probabilities)
    elif probabilities:
        raise UsageError(f"--probabilities is of dense; files of {kind} have probabilities anyway.")
    elif not data:
        raise UsageError(f"the data set of {source} is not given. Pass it as --data.")
    elif not source.is_dir():
        raise UsageError(f"{source} is no folder. Unpack archives, and name the folder.")
    else:
        from cache_tools.data import scan
        from cache_tools.data.open import open_images
        from cache_tools.importers import base, fkd, ml_dr, ordering, sre2l, tinyvit

        options = base.ImportOptions(classes, labels, keep, teacher)
        opened = open_images(data, "train")
        _, _, images = scan.in_table_order(opened, None)
        num_classes = base.classes_of(images, options)
        files: base.RecordSource
        if kind == "fkd" and sre2l.is_one(source):
            ordered = ordering.by_number(opened, dataset_index)
            files = sre2l.Sre2lFiles(source, images, ordered, num_classes, size, fkd_seed)
        elif kind == "fkd":
            files = fkd.FkdFiles(source, images, num_classes, size)
        elif kind == "ml-dr":
            ordered = ordering.by_number(opened, dataset_index)
            files = ml_dr.MlDrFiles(source, images, ordered, num_classes)
        else:
            by_number = tinyvit.numbered(source)
            numbers = ordering.by_number(opened, dataset_index) if by_number else None
            files = tinyvit.TinyVitFiles(source, images, numbers, num_classes)
        store = base.run(files, images, options, out)
    facts = info.info(store)
    if json_:
        emit(facts)
        return
    if store.spec.imported:
        print(f"from {store.spec.imported.origin}: {store.spec.imported.note}")
    print(
        f"{out}: {counted(facts['samples'], 'sample')}, {counted(facts['views'], 'view')}, "
        f"{facts['bytes_per_view']} bytes each, {facts['kept_classes_mean']} classes kept"
    )
