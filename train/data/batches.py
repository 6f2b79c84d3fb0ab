"""`Batches`: pixels of views on the device, with the soft targets that belong to them.

`kdcache train` runs on it, and any other training loop can. A batch is a function of (epoch, step)
alone, so that a loop which saves `state_dict` goes on with exactly the batches it has not had.

Shapes: B views of a batch, S pixels a side.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from cache_tools.errors import UsageError
from cache_tools.reader import CacheReader
from cache_tools.runtime import arguments
from cache_tools.runtime.device import select
from cache_tools.spec.canonical import difference
from train import recipe as recipes
from train.data import create_loader
from train.data.device_batch import DeviceBatch, InputTransform, OnlineFn
from train.data.follow import Follower
from train.data.inputs import Inputs, check_inputs, open_inputs
from train.data.loader import Batch, Loader
from train.data.schedule import Schedule
from train.distributed import ALONE, World
from train.recipe import ORDER, Phase, TrainRecipe

SizesOf = Callable[[int], Sequence[int]]
"""Sizes in pixels of the views that students are shown in an epoch."""
_STATE = ("epoch", "step", "steps", "stream", "samples", "values")
_STREAM = ("cache", "processes", *ORDER, "size")
"""Names of a state's `stream`; those of one size have no `size`."""


class Batches(IterableDataset[Any]):
    """Batches of the views of a cache, in the order of a recipe.

    An item is a pair (images, targets) on the device. The images are [B, 3, S, S] fp32, mixed and
    normalised, channels_last in memory on a GPU; the targets are `SoftTargets` of the same B views,
    with their labels. B is this process's share of the batch size, the same at every step of an
    epoch. With `as_dict`, an item is {"pixel_values": images, "labels": targets.label, "teacher":
    targets}.

    Each iteration is one epoch: the one of `set_epoch`, else the one after the last that was
    complete. Its length is `len(batches)` steps. The class is batched, threaded, on the device and
    divided among the processes already: loops take it as it is, or `DataLoader(batches,
    batch_size=None)`. A loader that reads ahead, as Accelerate's does, has had one batch more than
    was trained on: `set_epoch(epoch, step)` goes on after a number of steps of one's own count.

        >>> batches = kdcache.Batches("digits-cache.zarr", "digits", batch_size=50, device="cpu")
        >>> images, targets = next(iter(batches))
        >>> len(batches), images.shape
        (2, torch.Size([50, 3, 32, 32]))

    Attributes:
        device: Device of the batches.
        num_classes: Number of classes, C.
        follower: Wait for the parts of an epoch, while the cache is being made; None without
            `follow`.
    """

    def __init__(
        self,
        cache: str | Path | CacheReader | Sequence[str | Path | CacheReader],
        data: str | Path | None = None,
        *,
        batch_size: int = 256,
        device: str | torch.device | None = None,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        weights: Sequence[float] | None = None,
        views_per_epoch: int = 1,
        aug_repeats: int = 1,
        grad_accum_steps: int = 1,
        num_views: int = 0,
        view_order: Literal["cycle", "shuffle"] = "cycle",
        tail: Literal["uniform", "zero"] = "uniform",
        seed: int = 0,
        epochs: int | None = None,
        size: int | Sequence[Sequence[float]] = 0,
        loader: Literal["auto", "native", "ffcv"] = "auto",
        threads: int = 0,
        allow_partial: bool = False,
        follow: bool = False,
        follow_timeout: float = 0.0,
        rank: int | None = None,
        world_size: int | None = None,
        as_dict: bool = False,
    ) -> None:
        """Open caches and images, and check that they belong together.

        Args:
            cache: A cache that is open, or its folder, zip or URL; or several whose targets are
                mixed.
            data: The images; None: where the cache was made from.
            batch_size: Views per step, of all processes together.
            device: Device of the batches; None: a GPU if there is one.
            mean: Mean of red, green and blue (of 0..1) that the student's input is normalised with.
            std: Deviation, likewise.
            weights: Weight of each cache; None: all alike.
            views_per_epoch: Views of each sample per epoch.
            aug_repeats: Repeated augmentation: an epoch shows one r-th of the samples in r views.
            grad_accum_steps: Steps of an update, among which repeated views are dealt out.
            num_views: Views of the cache that are shown, from the first one on; 0: all.
            view_order: "cycle" shows views in their order and then again, "shuffle" in a new order
                each time all have been shown.
            tail: Probability that a mixture gives to classes which a cache did not keep.
            seed: Seed of the order of samples.
            epochs: Epochs of the run, after which nothing is loaded ahead; None: unknown.
            size: Pixels a side, S: the same views, rendered from the originals at this size; 0: the
                cache's own. Or a schedule over the epochs, as in recipes: rows of the share of the
                run, pixels and, if it differs, the batch size.
            loader: Renderer; pixels are the same.
            threads: Renderer threads; 0: one per core.
            allow_partial: True to train on those samples that the data set has.
            follow: True if the cache is still being made: each epoch waits for its parts.
            follow_timeout: Minutes of waiting, as of the recipe's key.
            rank: Number of this process; None: that of torch.distributed, else 0.
            world_size: Number of processes, each of which has its share of every batch.
            as_dict: True for {"pixel_values", "labels", "teacher"} in place of a pair.

        Raises:
            UsageError: An argument that cannot be.
            CacheNotFound, CacheIncomplete, CacheDamaged, CacheMismatch: The cache is not whole, or
                of other images.
        """
        if not isinstance(size, int) and epochs is None:
            raise UsageError(f"size={size} is a schedule over the run. Pass epochs, too.")
        recipe = recipes.build(
            {
                "student": "",
                "epochs": 1 if epochs is None else epochs,
                "batch_size": batch_size,
                "views_per_epoch": views_per_epoch,
                "aug_repeats": aug_repeats,
                "grad_accum_steps": grad_accum_steps,
                "num_views": num_views,
                "view_order": view_order,
                "tail": tail,
                "seed": seed,
                "size": size,
                "loader": loader,
                "threads": threads,
                "follow": follow,
                "follow_timeout": follow_timeout,
            },
            "Batches",
        )
        normalisation = _rgb("mean", mean), _rgb("std", std)
        one = isinstance(cache, str | Path | CacheReader)
        given: list[Any] = [cache] if one else arguments.listed("cache", cache)
        caches = [c.store.location if isinstance(c, CacheReader) else c for c in given]
        source = None if data is None else str(data)
        inputs = open_inputs(caches, source, weights, allow_partial)
        if num_views > inputs.members.num_views:
            raise UsageError(
                f"num_views={num_views} cannot be shown: the cache has {inputs.members.num_views} "
                "views of a sample."
            )
        if not follow:
            check_inputs(inputs)
        chosen = select(torch, None if device is None else str(device))
        world = _world(rank, world_size)
        self._set_up(recipe, inputs, chosen, world, epochs, ALONE)
        self._transform = InputTransform(chosen, "fp32", *normalisation)
        self._values |= {"mean": list(normalisation[0]), "std": list(normalisation[1])}
        self._as_dict = as_dict

    @classmethod
    def of_recipe(
        cls,
        recipe: TrainRecipe,
        inputs: Inputs,
        device: torch.device,
        world: World = ALONE,
        epochs: int | None = None,
    ) -> Self:
        """Make the batches of a run, of inputs that `check_inputs` has seen or that it follows."""
        batches = cls.__new__(cls)
        batches._set_up(recipe, inputs, device, world, epochs or recipe.epochs, world)
        return batches

    def _set_up(
        self,
        recipe: TrainRecipe,
        inputs: Inputs,
        device: torch.device,
        world: World,
        epochs: int | None,
        waiting: World,
    ) -> None:
        self.device = device
        self.num_classes = inputs.num_classes
        self.follower: Follower | None = None
        if recipe.follow:
            self.follower = Follower(inputs.members, recipe.follow_timeout, waiting)
        phases = recipe.phases
        self._firsts = [phase.first for phase in phases]
        ends = [*self._firsts[1:], epochs]
        self._schedules = [
            Schedule.of(recipe, inputs, *of) for of in zip(ends, phases, strict=True)
        ]
        for schedule in self._schedules:
            schedule.max_pictures(world)  # a batch that cannot be divided is refused now
        self._epochs, self._of = epochs, partial(Schedule.of, recipe, inputs)
        self._create = partial(
            create_loader.create,
            recipe,
            inputs,
            world=world,
            pin_memory=device.type == "cuda",
            follower=self.follower,
        )
        self._loaded: tuple[int, tuple[int, ...]] | None = None
        self._load(0, self._own_size)  # a loader that cannot be used is refused now
        shown = replace(recipe, num_views=inputs.num_views(recipe))  # a cache may grow
        self._stream = [inputs.fingerprint, world.size, *shown.order]
        if recipe.size:  # without one, states of earlier versions are loaded
            self._stream.append(f"size={recipe.size if len(phases) == 1 else phases}")
        self._samples, self._num_views = inputs.samples, recipe.num_views
        self._values: dict[str, Any] = {"tail": recipe.tail}
        self._epoch = self._step = self._first = 0

    def __len__(self) -> int:
        """Count the batches of the epoch in hand, or of the next one."""
        return self.schedule.steps

    @property
    def schedule(self) -> Schedule:
        """Order of the views in the epoch in hand, or the next one."""
        return self.schedule_of(self._epoch)

    def schedule_of(self, epoch: int) -> Schedule:
        """Return the order of the views in the phase of an epoch."""
        return self._schedules[bisect_right(self._firsts, epoch) - 1]

    def total(self, epochs: int, count: Callable[[Schedule], int]) -> int:
        """Add up what `count` finds in the schedule of each of the first `epochs` epochs."""
        ends = [*self._firsts[1:], epochs]
        spans = zip(self._firsts, ends, self._schedules, strict=True)
        return sum(max(0, min(end, epochs) - first) * count(of) for first, end, of in spans)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one epoch: pairs of images and targets, or dictionaries of them.

        Raises:
            UsageError: In a worker process of a DataLoader.
            CacheDamaged, CacheMismatch, DataError: A part or an image is not what it was.
            CacheIncomplete: With `follow`: the cache is made no more.
        """
        if get_worker_info() is not None:
            raise UsageError("Batches renders in threads of its own: pass num_workers=0.")
        if self.follower is not None:
            self.follower.wait(self.schedule.view_numbers(self._epoch))
        self._step, self._first = self._first, 0
        for batch in self.rendered(self._epoch, self._step):
            moved = self.move(batch)
            self._step += 1
            if self._step == len(self):  # whoever knows the length asks for no more
                self._epoch, self._step = self._epoch + 1, 0
            pixels, targets = self._transform.normalise(moved.pixels), moved.targets
            if self._as_dict:
                yield {"pixel_values": pixels, "labels": targets.label, "teacher": targets}
            else:
                yield pixels, targets

    def rendered(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch on the host, from `first_step` on."""
        [size] = self._own_size(epoch)
        return (batches[size] for batches in self.sized(epoch, first_step, self._own_size))

    def sized(self, epoch: int, first_step: int, sizes: SizesOf) -> Iterator[dict[int, Batch]]:
        """Yield the batches of one epoch on the host at each size, by size.

        A picture is decoded once for all of them. Order and batch size are those of the schedule.
        """
        return self._load(epoch, sizes).sized(epoch, first_step)

    def _load(self, epoch: int, sizes: SizesOf) -> Loader:
        """Return the loader of an epoch at these sizes, the one in hand if it is the same."""

        def wanted(epoch: int) -> tuple[int, tuple[int, ...]]:
            return self.schedule_of(epoch).batch_size, tuple(sizes(epoch))

        if self._loaded != (now := wanted(epoch)):
            later = range(epoch + 1, self._epochs) if self._epochs else ()
            end = next((one for one in later if wanted(one) != now), self._epochs)
            phases = [Phase(epoch, size, now[0]) for size in now[1]]
            first, *others = [self._of(end, phase) for phase in phases]
            self._loaded, self._loader = now, self._create(first, others=others)
        return self._loader

    def _own_size(self, epoch: int) -> tuple[int, ...]:
        """Size of the schedule's views in an epoch."""
        return (self.schedule_of(epoch).views.size,)

    def move(self, batch: Batch, online: OnlineFn | None = None) -> DeviceBatch:
        """Move a batch to the device, mix it, and run a teacher in the loop on it."""
        return DeviceBatch.of(batch, self.device, online)

    @property
    def epoch(self) -> int:
        """Epoch in hand, or the next one."""
        return self._epoch

    @property
    def step(self) -> int:
        """Steps of that epoch whose batches have been yielded."""
        return self._step or self._first

    def set_epoch(self, epoch: int, step: int | None = None) -> None:
        """Choose the epoch of the next iteration, and the step that it begins at.

        Without a step, the epoch of a loaded state goes on where it was, and any other one begins
        at its first. The step after the last one is the first of the next epoch.

        Raises:
            UsageError: An epoch or a step that cannot be.
        """
        if epoch != self._epoch or step is not None:
            self._begin_at(epoch, step or 0)

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and step: the batches that have been yielded are not yielded again."""
        state = (self._epoch, self.step, len(self), self._stream, self._samples, self._values)
        return dict(zip(_STATE, state, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            UsageError: The state is of another cache, order, number of views or processes, of
                other samples, another `tail`, `mean` or `std`, or none.
        """
        if missing := [name for name in _STATE[:4] if name not in state]:
            raise UsageError(
                f"this is no state of batches: it has no {missing[0]!r}. Pass what state_dict has "
                "returned."
            )
        steps = self.schedule_of(int(state["epoch"])).steps
        values = state.get("values", self._values)  # earlier versions saved none
        here = self._order(self._stream, steps, self._samples) | self._values
        there = self._order(state["stream"], state["steps"], state.get("samples")) | values
        if "samples" not in state:
            self._complete(there)
        if found := difference(there, here):
            views = there["num_views"]
            now = "Open the same caches with the same options and number of processes."
            if {**there, "num_views": here["num_views"]} == here and views < here["num_views"]:
                now = f"Pass num_views={views}, the number of views that were shown."
            raise UsageError(f"this state is of other batches: {found} here. {now}")
        self._begin_at(int(state["epoch"]), int(state["step"]))

    def _begin_at(self, epoch: int, step: int) -> None:
        """Choose where the next iteration begins; UsageError if there is no such epoch or step."""
        if epoch < 0:
            raise UsageError(f"epoch={epoch} cannot be: epochs count from 0.")
        steps = self.schedule_of(epoch).steps
        if not 0 <= step <= steps:
            raise UsageError(
                f"step={step} cannot be: epoch {epoch} has {steps} steps. Pass 0 to {steps}, or "
                f"count as divmod(steps of all epochs, {steps})."
            )
        epoch, step = (epoch + 1, 0) if step == steps else (epoch, step)
        self._epoch, self._step, self._first = epoch, 0, step

    def _order(self, stream: Sequence[Any], steps: int, samples: str | None) -> dict[str, Any]:
        """Values of a state that decide its batches, by name."""
        return {**dict(zip(_STREAM, stream, strict=False)), "steps": steps, "samples": samples}

    def _complete(self, there: dict[str, Any]) -> None:
        """Complete values of a state of kdcache 0.1, which has `num_views` as it was passed."""
        if not (views := there["num_views"] or self._num_views):
            raise UsageError(
                "this state was written by kdcache 0.1, which did not store how many views the "
                "cache had. Pass num_views with that number; "
                f"the cache has {self._stream[_STREAM.index('num_views')]} now."
            )
        there |= {"num_views": views, "samples": self._samples}


def _rgb(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    """Check one number for each color; a deviation is above 0."""
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError):
        raise UsageError(f"{name}={values!r} must be three numbers: red, green, blue.") from None
    if not all(math.isfinite(v) and (name == "mean" or v > 0) for v in (red, green, blue)):
        kind = "finite" if name == "mean" else "finite and above 0"
        raise UsageError(f"{name}={values!r} must be three numbers that are {kind}.")
    return red, green, blue


def _world(rank: int | None, size: int | None) -> World:
    """Return this process among those that train together."""
    joined = distributed.is_available() and distributed.is_initialized()
    if size is None:
        size = distributed.get_world_size() if joined else 1
    if rank is None:
        rank = distributed.get_rank() if joined else 0
    if not 0 <= rank < size:
        raise UsageError(f"rank={rank} cannot be among world_size={size} processes.")
    return World(rank, size)
