"""Sparse targets of logits, on the teacher's device: top-k, tails, true classes.

The same choice as `cache_tools.targets.dense.sparsify`, in torch, so that only the classes kept
leave the device.

Shapes: B views, C classes, K kept classes, T temperatures, P labels of a view, Q = 0 or 1.
"""

import torch
from torch import Tensor

from cache_tools.spec.targets import TargetSpec


def sparsify(
    logits_BC: Tensor, spec: TargetSpec, label_BP: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Choose the classes to keep.

    NaN and Inf logits become NaN tails, so that one check of the tails finds them.
    """
    probability_BC = logits_BC.softmax(1)
    p, index = probability_BC.topk(spec.k_max, dim=1)
    slots = torch.arange(spec.k_max, device=p.device)
    keep = (p > spec.tau) | (slots < spec.k_min)
    kept_BC = torch.zeros_like(logits_BC, dtype=torch.bool).scatter_(1, index, keep)
    tails = [(logits_BC / t).softmax(1).masked_fill(kept_BC, 0.0).sum(1) for t in spec.temperatures]
    tail = torch.stack(tails, dim=1) + 0.0 * logits_BC.sum(1, keepdim=True)
    rest_BC = probability_BC.masked_fill(kept_BC, 0.0)
    square_BQ = rest_BC.square().sum(1, keepdim=True)[:, : int(spec.tail_square)]
    if label_BP is None or not spec.true_class:
        label_BP = index.new_zeros((len(index), 0))
    true_BP = rest_BC.gather(1, label_BP.clamp(min=0)).masked_fill(label_BP < 0, 0.0)
    return index.masked_fill(~keep, -1), p.masked_fill(~keep, 0.0), tail, true_BP, square_BQ
