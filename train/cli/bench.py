"""`kdcache bench loader`: the bottleneck of a training run, and its remedy."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cache_tools.cli.options import Json, emit
from cache_tools.errors import UsageError
from cache_tools.runtime.text import counted
from train.cli.options import Data, Device, Overrides

if TYPE_CHECKING:
    from train.trainer.stage_profile import Stages

log = logging.getLogger("kdcache")
_SMALLER = (
    "kdcache beton SRC FILE --raw stores pixels (ten times the room) and keeps this cache; "
    "kdcache shard SRC DST --short-side 256 makes smaller images, of which a new cache is made"
)
ADVICE = {
    "read": "Copy the images to a faster or a local disk (--data-cache for URLs), or make them "
    "smaller with kdcache shard SRC DST --short-side 256, of which a new cache is made",
    "decode": _SMALLER,
    "resize": "kdcache shard SRC DST --short-side 256 makes smaller images, of which a new cache "
    "is made; or give the loader more cores",
    "operations": "Give the loader more cores, or make the next cache with lighter operations",
    "transfer": "Take a larger batch_size; the bus limits the transfer to the device",
    "student": "The loader is fast enough: use a faster device, a lower precision, compile=true or "
    "a smaller student",
}
"""Remedy by the stage that binds."""


def bench(
    subject: Annotated[
        Literal["loader"], typer.Argument(metavar="loader", help="Subject of the benchmark.")
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Recipe of a student; default: the loader alone."),
    ] = None,
    overrides: Overrides = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="CACHE", help="Folder of the cache.")
    ] = None,
    data: Data = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Measure each stage of training on a few hundred views and find the bottleneck.

    Trains nothing and writes nothing. Read, decode, resize and operations are the loader's, which
    works beside the student; transfer and student follow each other.
    """
    assert subject == "loader"
    if cache is None:
        raise UsageError("missing --cache. Pass --cache CACHE.")
    facts = _measure(recipe, overrides or [], cache, data, device)
    if json_:
        emit(facts)
    else:
        print(table(facts))


def _measure(
    name: str | None, overrides: list[str], cache: Path, data: str | None, device: str | None
) -> dict[str, Any]:
    import torch

    from cache_tools.runtime import threads
    from cache_tools.runtime.device import select
    from train import backends
    from train import recipe as recipes
    from train.data import create_loader
    from train.data.device_batch import InputTransform
    from train.data.inputs import open_inputs
    from train.data.schedule import Schedule
    from train.trainer import factory, stage_profile

    loaded = recipes.load(name or "photos", overrides)
    inputs = open_inputs(cache, data)
    torch_device, own = select(torch, device), inputs.store.spec.views.size
    size, batch_size = loaded.largest(own)
    backends.configure(torch_device, loaded.deterministic)
    if torch_device.type == "cpu":
        torch.set_num_threads(threads.for_torch(size)[0])
    if name is not None:
        factory.check_head(loaded, inputs.store)
        factory.check(loaded, inputs.num_classes, own)
    most = inputs.store.spec.dataset.num_samples * loaded.views_per_epoch
    batch_size = min(batch_size, most)
    schedule = Schedule(
        inputs.store,
        loaded.views_per_epoch,
        batch_size,
        loaded.seed,
        aug_repeats=loaded.aug_repeats,
        grad_accum_steps=loaded.grad_accum_steps,
        epochs=loaded.epochs,
        size=size,
    )
    on_gpu = torch_device.type == "cuda"
    loader = create_loader.create(loaded, inputs, schedule, pin_memory=on_gpu)
    half = (0.5, 0.5, 0.5)
    feed = InputTransform(torch_device, loaded.precision, half, half)
    student = loaded if name is not None else None
    stages = stage_profile.measure(inputs, loader, student, feed, size)
    cores = loaded.threads or threads.cpu_count()
    return {
        "device": str(torch_device),
        "threads": cores,
        "batch_size": batch_size,
        "student": loaded.student if name is not None else None,
        "read_from": stage_profile.read_from(inputs.images),
        **verdict(stages, cores),
    }


def verdict(stages: "Stages", cores: int) -> dict[str, Any]:
    """Rates of all stages, the bottleneck and its remedy.

    Args:
        stages: Seconds per view.
        cores: Threads of decode, resize and operations.
    """
    of_loader = {"read": stages.read}
    of_loader |= {n: getattr(stages, n) / cores for n in ("decode", "resize", "operations")}
    of_device = {"transfer": stages.transfer}
    if stages.student is not None:
        of_device["student"] = stages.student
    step = sum(of_device.values())
    loader_binds = stages.student is None or stages.loader > step
    slower = of_loader if loader_binds else of_device
    binds = max(slower, key=lambda name: slower[name])
    return {
        "seconds_per_view": of_loader | of_device,
        "loader_images_per_second": round(1 / stages.loader, 1),
        "student_images_per_second": None if stages.student is None else round(1 / step, 1),
        "binds": binds,
        "conclusion": _conclusion(stages, binds, step),
    }


def _conclusion(stages: "Stages", binds: str, step: float) -> str:
    rate = f"{1 / stages.loader:,.0f} images/s"
    if stages.student is None:
        why = f"the loader makes {rate}"
    elif stages.loader > step:
        why = f"the loader makes {rate}, the student could take {1 / step:,.0f}"
    else:
        why = f"with its input it takes {1 / step:,.0f} images/s, the loader could make {rate}"
    verb = "bind" if binds.endswith("s") else "binds"
    return f"{binds} {verb}: {why}. {ADVICE[binds]}."


def table(facts: dict[str, Any]) -> str:
    """Format the facts as lines of text."""
    seconds, threads = facts["seconds_per_view"], facts["threads"]
    lines = [f"{'stage':12} {'µs per view':>12} {'images/s':>10}"]
    for name, each in seconds.items():
        rate = f"{1 / each:>10,.0f}" if each else f"{'':>10}"
        lines.append(f"{name:12} {1e6 * each:>12,.1f} {rate}")
    lines.append(f"{'loader':12} {'':>12} {facts['loader_images_per_second']:>10,.0f}")
    if facts["student"]:
        lines.append(f"{'device':12} {'':>12} {facts['student_images_per_second']:>10,.0f}")
    lines += [
        f"read from {facts['read_from']}; decode, resize and operations on "
        f"{counted(threads, 'thread')}; "
        f"batches of {facts['batch_size']} on {facts['device']}",
        facts["conclusion"],
    ]
    return "\n".join(lines)
