"""Memory of a schedule of sizes: the largest step of a cohort is run before its first one.

Its batch is of zeros. As in the training, the optimizers' states of all students are there, the
batch at each of its sizes, and gradients as long as they accumulate. What memory does not suffice
for, hours or days later, ends the run now.

Shapes: B views of a batch, U views and partners, S pixels a side, K kept classes, T temperatures,
P labels of a view.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from cache_tools.store.aligned import CacheEnsemble
from cache_tools.targets.codec import DecodedTargets
from cache_tools.views.draw import LAMBDA_SCALE
from train.data.batches import Batches
from train.data.inputs import Inputs
from train.data.loader import Batch
from train.distributed import World
from train.trainer import checkpoint
from train.trainer.student import StudentTrainer


def reserve(
    students: Sequence[StudentTrainer], batches: Batches, inputs: Inputs, world: World
) -> None:
    """Run the largest step that is left of a cohort.

    Weights, statistics, optimizers and random numbers stay as they are.
    """
    device = batches.device
    epoch = _largest(students, batches)
    turn = [one for one in students if one.progress.epoch <= epoch < one.recipe.epochs]
    schedule = batches.schedule_of(epoch)
    shape = schedule.batch_size // world.size, schedule.max_pictures(world)
    sizes = {one: one.size_at(epoch) for one in turn}
    generators = checkpoint.generators(device)
    kept = [[t.detach().to("cpu", copy=True) for t in _tensors(one.module)] for one in students]
    moved = {size: batches.move(_zeros(inputs, *shape, size)) for size in {*sizes.values()}}
    inputs_of = {
        (size, one.transform.normalisation): one.transform.normalise(moved[size].pixels)
        for one, size in sizes.items()
    }
    states = [(one, one.optimizer.state_dict()) for one in students]
    fresh = [(one, copy.deepcopy(state)) for one, state in states if not state["state"]]
    for one, _ in fresh:
        for parameter in one.module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        one.optimizer.step()
        one.module.zero_grad()
    for one, size in sizes.items():
        x = inputs_of[size, one.transform.normalisation]
        one.task.train()
        with one.task.no_sync(), one.transform.autocast():
            losses = one.forward(x, one.targets(moved[size].targets, None))
        losses["loss"].backward()
        if one.recipe.grad_accum_steps == 1:
            one.module.zero_grad()
    for one, tensors in zip(students, kept, strict=True):
        one.module.zero_grad()
        with torch.no_grad():
            for tensor, value in zip(_tensors(one.module), tensors, strict=True):
                tensor.copy_(value)
    for one, state in fresh:
        one.optimizer.load_state_dict(state)
    checkpoint.restore(generators, device)


def _largest(students: Sequence[StudentTrainer], batches: Batches) -> int:
    """Return an epoch with the largest batch of a student; of several, with most pixels in all."""
    begin = min(one.progress.epoch for one in students)
    end = max(one.recipe.epochs for one in students)
    firsts = {max(begin, phase.first) for one in students for phase in one.recipe.phases}

    def pixels(epoch: int) -> tuple[int, int]:
        shown = [one for one in students if one.progress.epoch <= epoch < one.recipe.epochs]
        areas = {one.size_at(epoch) ** 2 for one in shown}
        count = batches.schedule_of(epoch).batch_size
        return count * max(areas, default=0), count * sum(areas)

    return max(sorted(first for first in firsts if first < end), key=pixels, default=begin)


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    """Weights and statistics of a network."""
    return [*network.parameters(), *network.buffers()]


def _zeros(inputs: Inputs, count: int, pictures: int, size: int) -> Batch:
    """Make a batch of B = `count` black views, U = `pictures` with their partners."""
    spec, members = inputs.store.spec, inputs.members
    label_B = np.zeros(count, np.int64)
    return Batch(
        np.zeros((pictures, size, size, 3), np.uint8),
        np.arange(count) if spec.views.mixes else None,
        np.full(count, LAMBDA_SCALE / 2, np.float32),
        np.zeros((count, 4), np.int32),
        _flat(members, count, inputs.num_classes),
        label_B,
        label_B,
        members.temperatures,
        inputs.num_classes,
    )


def _flat(members: CacheEnsemble, count: int, classes: int) -> DecodedTargets:
    """Make targets of `count` views with the shapes of those of the caches."""
    specs = [store.spec for store in members.caches]
    slots = min(classes, sum(spec.targets.k_max for spec in specs))
    labels = squares = 0
    if len(specs) > 1:
        slots = min(classes, slots + sum(spec.num_labels for spec in specs))
    else:
        labels, squares = specs[0].num_labels, int(specs[0].targets.tail_square)
    tail = 0.5 * (slots < classes)
    return DecodedTargets(
        np.tile(np.arange(slots, dtype=np.int32), (count, 1)),
        np.full((count, slots), (1 - tail) / slots, np.float32),
        np.full((count, len(members.temperatures)), tail, np.float32),
        np.zeros((count, labels), np.float32),
        np.zeros((count, squares), np.float32),
    )
