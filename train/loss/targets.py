"""Soft targets on the student's device, and the teacher's distribution at a temperature.

At T = 1 the kept probabilities are those stored. At a declared temperature the kept ones are
softmax(log p / T) · (1 - m_T) with the stored mass m_T, which is exact; at any other, all are
p^(1/T) / Z, which takes the tail as flat.

Shapes: B views, C classes, K slots, T temperatures, P labels of a view.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.errors import UsageError
from cache_tools.targets.codec import DecodedTargets, SparseTargets


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """Soft targets and labels of B views, each of K slots for kept classes, on a device.

    K is `targets.k_max` of the cache's recipe, for several caches at most the sum of theirs. A view
    that keeps fewer classes has its empty slots at the end, with index 0 and probability 0:
    `probability > 0` distinguishes them from class 0. `dense` makes [B, C] distributions; the
    losses take the targets as they are.

    Example:
        >>> targets.dense(2.0).shape, targets.label.shape
        (torch.Size([50, 10]), torch.Size([50]))

    Attributes:
        index: [B, K] int64 class ids of the kept classes, ascending by id, not by probability,
            in targets of a cache; 0 in empty slots.
        probability: [B, K] fp32 teacher's probabilities of these classes at T = 1; 0 in empty
            slots. With `tail[:, 0]` a row adds up to 1.
        tail: [B, T] fp32 mass of all classes not kept, together, at each declared temperature.
        temperatures: The T declared temperatures; the first is 1.
        num_classes: Number of classes, C.
        label: [B] int64 class of the view's own picture; -1 where the cache has none.
        partner_label: [B] int64 class of the picture that the view is mixed with (mixup or cutmix),
            or of the view's own picture where there is no such partner; -1 likewise.
        lam: [B] fp32 share of the view's own picture, 0..1: the label's weight, 1 - lam is the
            partner's; 1 where nothing is mixed.
        true: [B, P] fp32 probability at T = 1 of the true class (and the partner's, P = 2) where it
            is not kept, else 0; None if not stored.
        square: [B] fp32 Σp² over the classes not kept, at T = 1; None if not stored.
    """

    index: Tensor
    probability: Tensor
    tail: Tensor
    temperatures: tuple[float, ...]
    num_classes: int
    label: Tensor
    partner_label: Tensor
    lam: Tensor
    true: Tensor | None = None
    square: Tensor | None = None

    @classmethod
    def of(
        cls,
        stored: DecodedTargets | SparseTargets,
        temperatures: tuple[float, ...],
        num_classes: int,
        labels: tuple[Tensor, Tensor, Tensor],
        move: Callable[[NDArray[Any]], Tensor] = torch.from_numpy,
    ) -> "SoftTargets":
        """Make tensors of sparse targets, whose empty slots have the id 0.

        Args:
            stored: Targets of B views.
            temperatures: Their declared temperatures.
            num_classes: C.
            labels: Label, partner's label and own share of each view, on the device.
            move: Copies an array to the device.
        """
        return cls(
            index=move(stored.index_BK).long(),
            probability=move(stored.probability_BK),
            tail=move(stored.tail_BT),
            temperatures=temperatures,
            num_classes=num_classes,
            label=labels[0],
            partner_label=labels[1],
            lam=labels[2],
            true=move(stored.true_BP) if stored.true_BP.size else None,
            square=move(stored.square_BQ[:, 0]) if stored.square_BQ.size else None,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SoftTargets":
        """Move the targets to a device, as Lightning and Accelerate do with each batch."""
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in found.items() if torch.is_tensor(value)}
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=non_blocking) for k, v in tensors.items()
        }
        return replace(self, **moved)

    def dense(self, temperature: float = 1.0) -> Tensor:
        """Return the teacher's distributions at a temperature: [B, C] fp32, rows add up to 1.

        The classes not kept share their mass evenly.

        Raises:
            UsageError: The temperature is not positive.
        """
        teacher = at_temperature(self, temperature)
        p_BC = teacher.u_B[:, None].repeat(1, self.num_classes)
        row_E, slot_E = (teacher.p_BK > 0).nonzero(as_tuple=True)
        p_BC[row_E, self.index[row_E, slot_E]] = teacher.p_BK[row_E, slot_E]
        return p_BC


@dataclass(frozen=True)
class AtTemperature:
    """The teacher's distribution at one temperature."""

    p_BK: Tensor
    """Probabilities of the kept classes; 0 in empty slots."""
    tail_B: Tensor
    """Mass of the others together."""
    others_B: Tensor
    """Number of the others, as floats."""
    log_z_B: Tensor
    """log Σ p^(1/T): divides p^(1/T) of a probability at T = 1 into the one at T."""

    @property
    def u_B(self) -> Tensor:
        """Probability of each class that is not kept, the tail being flat."""
        return self.tail_B / self.others_B.clamp(min=1)


def at_temperature(targets: SoftTargets, temperature: float) -> AtTemperature:
    """Return the teacher's distribution at `temperature`; UsageError if that is not positive."""
    if not temperature > 0:
        raise UsageError(f"temperature={temperature} must be positive.")
    p = targets.probability
    kept = p > 0
    others = (targets.num_classes - kept.sum(1)).to(p.dtype)
    first = targets.tail[:, 0]
    if temperature == 1.0:
        return AtTemperature(p, first, others, torch.zeros_like(first))
    log_p = p.log() / temperature  # -inf in empty slots
    log_kept = log_p.logsumexp(1)
    if temperature in targets.temperatures:
        tail = targets.tail[:, targets.temperatures.index(temperature)]
        log_z = log_kept - torch.log1p(-tail)
    else:
        log_tail = (first / others.clamp(min=1)).log() / temperature + others.log()
        log_z = torch.logaddexp(log_kept, log_tail)  # the tail is -inf when all are kept
        tail = (log_tail - log_z).exp()
    return AtTemperature((log_p - log_z[:, None]).exp(), tail, others, log_z)


def most_probable(targets: SoftTargets, count: int) -> SoftTargets:
    """Reduce targets to the `count` most probable classes, as if no others had been kept.

    The others join the tail, exactly at each declared temperature, and what is stored of the tail
    (true class, Σp²) takes them in.
    """
    p_BK = targets.probability
    if count >= p_BK.shape[1]:
        return targets
    chosen_BK = p_BK.topk(count, dim=1).indices.sort(dim=1).values
    gone_BK = torch.ones_like(p_BK).scatter_(1, chosen_BK, 0.0)
    at = [at_temperature(targets, t).p_BK for t in targets.temperatures]
    moved_BT = torch.stack([(p * gone_BK).sum(1) for p in at], dim=1)
    p_gone_BK, true_BP = p_BK * gone_BK, targets.true
    if true_BP is not None:
        label_BP = torch.stack([targets.label, targets.partner_label], dim=1)
        here_BPK = targets.index[:, None] == label_BP[:, : true_BP.shape[1], None]
        true_BP = true_BP + (p_gone_BK[:, None] * here_BPK).sum(2)
    square_B = targets.square
    return replace(
        targets,
        index=targets.index.gather(1, chosen_BK),
        probability=p_BK.gather(1, chosen_BK),
        tail=targets.tail + moved_BT,
        true=true_BP,
        square=None if square_B is None else square_B + p_gone_BK.square().sum(1),
    )


def probability_of(
    targets: SoftTargets,
    teacher: AtTemperature,
    temperature: float,
    label_B: Tensor,
    which_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """Look up the teacher's probability of a class of each view.

    Args:
        targets: The stored targets.
        teacher: The same at a temperature.
        temperature: That temperature.
        label_B: The class, 0..C-1.
        which_B: Which of the stored labels it is: 0 the view's own, 1 its partner's.

    Returns:
        Its probability; and whether it is among the kept. Where it is neither kept nor stored, the
        flat tail's.
    """
    here_BK = (targets.index == label_B[:, None]) & (teacher.p_BK > 0)
    kept_B = here_BK.any(1)
    p_kept_B = (teacher.p_BK * here_BK).sum(1)
    if targets.true is None:
        return torch.where(kept_B, p_kept_B, teacher.u_B), kept_B
    column = which_B.clamp(max=targets.true.shape[1] - 1)
    stored_B = targets.true.gather(1, column[:, None])[:, 0]
    at_t = (stored_B.log() / temperature - teacher.log_z_B).exp()
    return torch.where(kept_B, p_kept_B, torch.minimum(at_t, teacher.tail_B)), kept_B
