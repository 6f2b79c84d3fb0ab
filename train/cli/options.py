"""Options that several commands of stage 2 share."""

from typing import Annotated

import typer

from cache_tools.cli.key_options import KeysOf

Device = Annotated[str | None, typer.Option(help="cuda, cuda:1 or cpu; default: a GPU if any.")]
Log = Annotated[
    list[str] | None,
    typer.Option("--log", metavar="wandb", help="Log to W&B too; JSONL, TensorBoard always."),
]
Weight = Annotated[
    list[float] | None,
    typer.Option(metavar="W", help="Weight of each cache; default: equal weights."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys to override."),
    KeysOf("train.recipe:TrainRecipe"),
]
Data = Annotated[
    str | None, typer.Option(metavar="SRC", help="Its images; default: the source of the cache.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard existing results and start anew.")]
Architecture = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Network of the student; must be named where it is code: python:MODULE:FUNCTION.",
    ),
]
