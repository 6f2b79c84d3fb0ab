"""Gradients of a loss with respect to a student's logits, from full and from sparse targets.

Both are those of `train.loss` by autograd. Sparse targets go through the codec; full ones keep
every class, in double precision. The gradient depends on the student, hence two: one untrained,
with zero logits, and a late one, with the teacher's logits plus N(0, 1). At zero logits there is no
correlation: the untrained one of dist has N(0, 0.1²).

Shapes: B views, C classes.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache_tools.numerics import rng
from cache_tools.numerics.array_types import F8
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec, dense
from cache_tools.targets.codec import DecodedTargets, EncodedTargets, SparseTargets
from train.advise.sample import Sample
from train.loss.targets import SoftTargets, most_probable
from train.loss.task import distill_loss
from train.recipe import Tail, TrainRecipe


@dataclass(frozen=True)
class Comparison:
    """Gradient from sparse targets beside that from full ones, over all views."""

    error: float
    """Norm of their difference / norm of the full one's."""
    cosine: float
    """Cosine of the angle between them."""


def normal(seed: int, count: int, classes: int) -> F8:
    """Draw [count, classes] numbers of N(0, 1), by Box and Muller's transformation."""
    bits = rng.bits(seed, np.arange(count, dtype=np.uint64), 0, rng.STREAM_NOISE, 2 * classes)
    radius, turn = np.split(rng.uniform(bits), 2, axis=1)
    return np.asarray(np.sqrt(-2.0 * np.log1p(-radius)) * np.cos(2.0 * np.pi * turn))


def temperature(recipe: TrainRecipe) -> float:
    """Return the highest T of a run; 1 of bkd, which has none."""
    return 1.0 if recipe.loss == "bkd" else max(recipe.temperature, recipe.temperature_end)


class Gradients:
    """Gradients of two students on a sample, in the batches of a recipe."""

    def __init__(self, sample: Sample, recipe: TrainRecipe) -> None:
        """Compute the gradients from full targets."""
        self._sample, self._recipe = sample, recipe
        self.temperature = temperature(recipe)
        """T of student and teacher."""
        logits_BC = sample.logits_BC.astype(np.float64)
        noise_BC = normal(recipe.seed, *logits_BC.shape)
        untrained_BC = (0.1 if recipe.loss == "dist" else 0.0) * noise_BC
        self._students = {"untrained": untrained_BC, "late": logits_BC + noise_BC}
        size, total = recipe.batch_size, len(logits_BC)
        self._batches = [np.arange(i, min(i + size, total)) for i in range(0, total, size)]
        all_C = np.arange(logits_BC.shape[1])
        self._full: dict[str, list[Tensor]] = {name: [] for name in self._students}
        for rows in self._batches:
            p_BC = dense.softmax(logits_BC[rows])
            none = np.zeros((len(rows), 0))
            no_tail = np.zeros((len(rows), 1))
            stored = SparseTargets(np.tile(all_C, (len(rows), 1)), p_BC, no_tail, none, none)
            targets = self._soft(stored, (1.0,), rows)
            for name, student_BC in self._students.items():
                self._full[name].append(self._gradient(student_BC[rows], targets, recipe))

    def compare(
        self, stored: EncodedTargets, spec: TargetSpec, tail: Tail
    ) -> dict[str, Comparison]:
        """Compare gradients from stored targets with those from full ones, by student."""
        recipe = replace(self._recipe, tail=tail)
        sums = {name: np.zeros(4) for name in self._students}
        for i, rows in enumerate(self._batches):
            targets = self._soft(codec.decode(stored, spec, rows), spec.temperatures, rows)
            if recipe.top_k:
                targets = most_probable(targets, recipe.top_k)
            for name, student_BC in self._students.items():
                full = self._full[name][i]
                ours = self._gradient(student_BC[rows].astype(np.float32), targets, recipe)
                pairs = (ours, full), (ours, ours), (full, full), (ours - full, ours - full)
                sums[name] += [float((a * b).sum()) for a, b in pairs]
        return {
            name: Comparison(float(np.sqrt(e / ff)), float(of / np.sqrt(oo * ff)))
            for name, (of, oo, ff, e) in sums.items()
        }

    def _soft(
        self,
        stored: DecodedTargets | SparseTargets,
        temperatures: tuple[float, ...],
        rows: np.ndarray,
    ) -> SoftTargets:
        label_BP, lam_B = (
            torch.from_numpy(x[rows]) for x in (self._sample.label_BP, self._sample.lam_B)
        )
        labels = label_BP[:, 0], label_BP[:, -1], lam_B
        return SoftTargets.of(stored, temperatures, self._sample.logits_BC.shape[1], labels)

    def _gradient(
        self, student_BC: np.ndarray, targets: SoftTargets, recipe: TrainRecipe
    ) -> Tensor:
        """Gradient of each view's loss, [B, C] in double precision."""
        logits_BC = torch.from_numpy(student_BC).requires_grad_()
        loss = distill_loss(recipe, logits_BC, targets, self.temperature) * len(student_BC)
        return torch.autograd.grad(loss, logits_BC)[0].double()
