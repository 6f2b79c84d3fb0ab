"""Distillation losses from sparse targets, and losses on labels; all mean over the batch.

With the teacher's kept probabilities p_k, the mass m of the C - K classes not kept, u = m / (C - K)
for each of them, student logits s and temperature T (Hinton et al., 2015; T² keeps the gradients'
scale):

    kd    T² · KL(p ‖ q)       Σ_k p_k log p_k + (C - K) u log u + lse(s/T)
                                 - Σ_k (p_k - u) s_k/T - u Σ_c s_c/T
    bkd   binary cross-entropy of every class with the teacher's probability (VanillaKD's `bkd`)
    dkd   decoupled (Zhao et al., CVPR 2022): the true class against the rest, and the rest alone
    dist  correlation (Huang et al., NeurIPS 2022): of classes within a view, and of views within
          a class; the latter over the classes some view of the batch keeps, an approximation

The tail is "uniform" (above), a "bucket" of its own, or "zero" (what is kept, renormalised); kd
implements all three. None but the intra-class term of dist builds the teacher's dense distribution.

Shapes: B views, C classes, K slots.
"""

from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cache_tools.errors import UsageError
from train.loss.targets import AtTemperature, SoftTargets, at_temperature, probability_of
from train.recipe import Tail

_EPS = 1e-8
_TAILS = get_args(Tail)


class _SparseKL(torch.autograd.Function):
    """KL of each view with a flat tail; the gradient is softmax(s) - u - scatter(p - u).

    Fused: of what has the size of the logits only they themselves are kept for the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, scaled_BC: Tensor, index_BK: Tensor, p_BK: Tensor, u_B: Tensor, others_B: Tensor
    ) -> Tensor:
        lse_B = scaled_BC.logsumexp(1)
        excess_BK = torch.where(p_BK > 0, p_BK - u_B[:, None], 0.0)
        ctx.save_for_backward(scaled_BC, lse_B, index_BK, excess_BK, u_B)
        cross = lse_B - (excess_BK * scaled_BC.gather(1, index_BK)).sum(1)
        cross = cross - u_B * scaled_BC.sum(1)
        return torch.xlogy(p_BK, p_BK).sum(1) + others_B * torch.xlogy(u_B, u_B) + cross

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None, None, None]:
        scaled_BC, lse_B, index_BK, excess_BK, u_B = ctx.saved_tensors
        grad_BC = (scaled_BC - lse_B[:, None]).exp_().sub_(u_B[:, None])
        grad_BC.scatter_add_(1, index_BK, -excess_BK)
        return grad_BC.mul_(grad_B[:, None]), None, None, None, None


def kd(
    logits_BC: Tensor, targets: SoftTargets, temperature: float = 1.0, tail: str = "uniform"
) -> Tensor:
    """KL(teacher ‖ student) at `temperature`, times its square: a scalar, the mean over B views.

        >>> loss = kdcache.kd_loss(student(images), targets, temperature=2.0)
        >>> loss.shape, loss.requires_grad
        (torch.Size([]), True)

    Args:
        logits_BC: [B, C] of the student, before the softmax.
        targets: Those of the same views.
        temperature: T of both.
        tail: Classes not kept: "uniform", a "bucket" of their own, or "zero".

    Raises:
        UsageError: The student has other classes, or there is no such tail.
    """
    if tail not in _TAILS:
        raise UsageError(f"tail={tail!r} is not one of {', '.join(map(repr, _TAILS))}.")
    teacher, scaled = at_temperature(targets, temperature), _wide(logits_BC, targets)
    if temperature != 1.0:  # a division by 1 would copy the logits there and their gradient back
        scaled = scaled / temperature
    if tail == "uniform":
        loss_B = _SparseKL.apply(scaled, targets.index, teacher.p_BK, teacher.u_B, teacher.others_B)
    else:
        loss_B = _kl_of_kept(scaled, targets.index, teacher, tail)
    return loss_B.mean() * temperature**2


def _kl_of_kept(scaled_BC: Tensor, index_BK: Tensor, teacher: AtTemperature, tail: str) -> Tensor:
    """KL over the kept classes and, for "bucket", one class of all others."""
    log_q_BK = scaled_BC.log_softmax(1).gather(1, index_BK)
    p_BK, tail_B = teacher.p_BK, teacher.tail_B
    if tail == "zero":
        p_BK = p_BK / p_BK.sum(1, keepdim=True)
    loss_B = (torch.xlogy(p_BK, p_BK) - p_BK * log_q_BK).sum(1)
    if tail == "bucket":  # the student's rest from its logits: 1 - Σ kept is 0 for a sure one
        kept_BC = torch.zeros_like(scaled_BC).scatter_add_(1, index_BK, 1.0 * (p_BK > 0)) > 0
        others = scaled_BC.masked_fill(kept_BC, torch.finfo(scaled_BC.dtype).min / 2)
        log_rest_B = others.logsumexp(1) - scaled_BC.logsumexp(1)
        loss_B = loss_B + torch.xlogy(tail_B, tail_B) - tail_B * log_rest_B
    return loss_B


def bkd(logits_BC: Tensor, targets: SoftTargets) -> Tensor:
    """Mean over views and classes of BCE(student's logit, teacher's probability).

        >>> bool(kdcache.bkd_loss(student(images), targets) > 0)
        True

    Args:
        logits_BC: [B, C] of the student, before the softmax.
        targets: Those of the same views.

    Raises:
        UsageError: The student has other classes.
    """
    teacher, logits = at_temperature(targets, 1.0), _wide(logits_BC, targets)
    excess_BK = torch.where(teacher.p_BK > 0, teacher.p_BK - teacher.u_B[:, None], 0.0)
    hit_B = (excess_BK * logits.gather(1, targets.index)).sum(1) + teacher.u_B * logits.sum(1)
    return (F.softplus(logits).sum(1) - hit_B).mean() / logits.shape[1]


def dkd(
    logits_BC: Tensor,
    targets: SoftTargets,
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 2.0,
) -> Tensor:
    """α T² KL of (true class, rest) + β T² KL within the rest.

        >>> bool(kdcache.dkd_loss(student(images), targets, alpha=1.0, beta=8.0) > 0)
        True

    The true class of a mixed view is that with the larger share.

    The rest is the sum of its classes: 1 - p of a sure teacher has no digits left, or is 0. Where
    all its probabilities are 0 in this precision, there is no term within the rest. A cache's
    codes end at 4e-9 (`targets.levels` = 127): what is below is flat there, exact in mode online.

    Args:
        logits_BC: The student's.
        targets: The teacher's.
        temperature: T.
        alpha: Weight of the first term.
        beta: Weight of the second.

    Raises:
        UsageError: The student has other classes.
    """
    scaled, own_share_B = _wide(logits_BC, targets) / temperature, targets.lam >= 0.5
    label_B = torch.where(own_share_B, targets.label, targets.partner_label)
    teacher, column = at_temperature(targets, temperature), label_B[:, None]
    p_y, kept_B = probability_of(targets, teacher, temperature, label_B, 1 - own_share_B.long())
    own_B = scaled.gather(1, column)[:, 0]
    rest_lse_B = scaled.scatter(1, column, float("-inf")).logsumexp(1)
    others_B = (teacher.others_B - 1.0 * ~kept_B).clamp(min=0)
    tail_B = torch.where(kept_B, teacher.tail_B, teacher.tail_B - p_y).clamp(min=0)
    p_BK = teacher.p_BK.masked_fill(targets.index == column, 0.0)
    rest_B = p_BK.sum(1) + tail_B
    odds_B = own_B - rest_lse_B
    target_class = torch.xlogy(p_y, p_y) + torch.xlogy(rest_B, rest_B)
    target_class = target_class - p_y * F.logsigmoid(odds_B) - rest_B * F.logsigmoid(-odds_B)
    scale_B = 1.0 / rest_B.clamp(min=torch.finfo(rest_B.dtype).tiny)
    p_BK, u_B = p_BK * scale_B[:, None], tail_B / others_B.clamp(min=1) * scale_B
    excess_BK = torch.where(p_BK > 0, p_BK - u_B[:, None], 0.0)
    hit_B = (excess_BK * scaled.gather(1, targets.index)).sum(1)
    hit_B = hit_B + u_B * (scaled.sum(1) - own_B)
    negative_entropy = torch.xlogy(p_BK, p_BK).sum(1) + others_B * torch.xlogy(u_B, u_B)
    rest = negative_entropy - hit_B + rest_lse_B * (p_BK.sum(1) + others_B * u_B)
    return (alpha * target_class + beta * rest).mean() * temperature**2


def dist(
    logits_BC: Tensor,
    targets: SoftTargets,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """β T² (1 - correlation of classes within a view) + γ T² (1 - … of views within a class).

        >>> bool(kdcache.dist_loss(student(images), targets, temperature=4.0) > 0)
        True

    Args:
        logits_BC: [B, C] of the student, before the softmax.
        targets: Those of the same views.
        temperature: T of both.
        beta: Weight of the first term.
        gamma: Weight of the second.

    Raises:
        UsageError: The student has other classes.
    """
    num_classes, teacher = logits_BC.shape[1], at_temperature(targets, temperature)
    q_BC = (_wide(logits_BC, targets) / temperature).softmax(1)
    excess_BK = torch.where(teacher.p_BK > 0, teacher.p_BK - teacher.u_B[:, None], 0.0)
    both_B = (excess_BK * q_BC.gather(1, targets.index)).sum(1) + teacher.u_B
    stored = targets.square if temperature == 1.0 else None
    rest_B = teacher.others_B * teacher.u_B**2 if stored is None else stored
    square_B = (teacher.p_BK**2).sum(1) + rest_B
    mean = 1.0 / num_classes
    spread_B = (q_BC.square().sum(1) - mean).clamp(min=0) * (square_B - mean).clamp(min=0)
    inter = 1.0 - ((both_B - mean) / (spread_B + _EPS**2).sqrt()).mean()
    intra = _intra(q_BC, targets.index, teacher) if gamma else 0.0
    return (beta * inter + gamma * intra) * temperature**2


def _intra(q_BC: Tensor, index_BK: Tensor, teacher: AtTemperature) -> Tensor:
    """1 - correlation over the batch, mean over the classes that some view keeps."""
    kept_BK = teacher.p_BK > 0
    present, place = index_BK[kept_BK].unique(return_inverse=True)
    row = kept_BK.nonzero()[:, 0]
    p_BX = teacher.u_B[:, None].repeat(1, len(present))
    p_BX[row, place] = teacher.p_BK[kept_BK]
    q_BX = q_BC[:, present]
    p_BX, q_BX = p_BX - p_BX.mean(0), q_BX - q_BX.mean(0)
    spread = p_BX.norm(dim=0) * q_BX.norm(dim=0)
    return 1.0 - ((p_BX * q_BX).sum(0) / (spread + _EPS)).mean()


def cross_entropy(
    logits_BC: Tensor, label_B: Tensor, partner_B: Tensor, lam_B: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with the labels of a mixed view: λ·CE(own) + (1-λ)·CE(partner's)."""
    logits = _wide(logits_BC)
    own = F.cross_entropy(logits, label_B, reduction="none", label_smoothing=smoothing)
    other = F.cross_entropy(logits, partner_B, reduction="none", label_smoothing=smoothing)
    return (lam_B * own + (1.0 - lam_B) * other).mean()


def binary_cross_entropy(
    logits_BC: Tensor,
    label_B: Tensor,
    partner_B: Tensor,
    lam_B: Tensor,
    smoothing: float = 0.0,
    threshold: float = -1.0,
) -> Tensor:
    """BCE of every class with the mixed, smoothed labels (Wightman et al., 2021).

    Labels above `threshold` are 1 and others 0; a negative one leaves them as they are.
    """
    logits, num_classes = _wide(logits_BC), logits_BC.shape[1]
    if threshold >= 0:
        y_BC = torch.full_like(logits, smoothing / num_classes)
        for label, share_B in ((label_B, lam_B), (partner_B, 1.0 - lam_B)):
            hit_B = (1.0 - smoothing) * share_B.to(y_BC.dtype)
            y_BC.scatter_add_(1, label[:, None], hit_B[:, None])
        return F.binary_cross_entropy_with_logits(logits, y_BC.gt(threshold).to(logits.dtype))
    own_B, other_B = (logits.gather(1, y[:, None])[:, 0] for y in (label_B, partner_B))
    hit_B = (1.0 - smoothing) * (lam_B * own_B + (1.0 - lam_B) * other_B)
    hit_B = hit_B + smoothing / num_classes * logits.sum(1)
    return (F.softplus(logits).sum(1) - hit_B).mean() / num_classes


def _wide(logits: Tensor, targets: SoftTargets | None = None) -> Tensor:
    """At least single precision, whatever autocast made of the logits; of the targets' classes."""
    if targets is not None and logits.shape[1] != targets.num_classes:
        raise UsageError(
            f"the student predicts {logits.shape[1]} classes, its targets are of "
            f"{targets.num_classes}. Make it with num_classes={targets.num_classes}."
        )
    return logits if logits.dtype == torch.float64 else logits.float()
