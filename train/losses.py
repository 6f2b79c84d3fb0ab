"""KL divergence from a sparse teacher, without ever building its dense distribution.

With kept probabilities p_k, the mass m of the C - K classes not kept and u = m / (C - K) for each
of them, logits s and temperature T:

    KL = Σ_k p_k log p_k + (C - K) u log u + lse(s/T) - Σ_k (p_k - u) s_k/T - u Σ_c s_c/T

times T², so that gradients keep their scale (Hinton et al., 2015). At T = 1 the p_k are those
stored. At a declared temperature the kept ones are softmax(log p_k / T) · (1 - m_T) with the
stored mass m_T, which is exact; at any other, all are p^(1/T) / Z, which takes the tail as flat.

Shapes: B views, C classes, K slots, T temperatures.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SoftTargets:
    """What the teacher said of B views, on the student's device."""

    index_BK: Tensor
    """Class ids, int64; 0 in empty slots."""
    probability_BK: Tensor
    """fp32 at T = 1; 0 in empty slots."""
    tail_BT: Tensor
    """fp32 mass of the classes not kept, at each declared temperature."""
    temperatures: tuple[float, ...]
    """The declared temperatures."""


def at_temperature(
    targets: SoftTargets, temperature: float, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's distribution at a temperature.

    Returns:
        p_BK (0 in empty slots), u_B (probability of each class not kept) and others_B (how many
        those are).
    """
    p = targets.probability_BK
    kept = p > 0
    others = num_classes - kept.sum(1)
    if temperature == 1.0:
        return p, targets.tail_BT[:, 0] / others.clamp(min=1), others
    log_p = p.log().masked_fill(~kept, float("-inf")) / temperature
    if temperature in targets.temperatures:
        tail = targets.tail_BT[:, targets.temperatures.index(temperature)]
        p = log_p.softmax(1) * (1.0 - tail)[:, None]
        return p, tail / others.clamp(min=1), others
    u = targets.tail_BT[:, 0] / others.clamp(min=1)
    log_u = u.log() / temperature  # -inf when there is no tail
    log_z = torch.logsumexp(torch.cat([log_p, (log_u + others.log())[:, None]], dim=1), dim=1)
    return (log_p - log_z[:, None]).exp(), (log_u - log_z).exp(), others


def sparse_kl(logits_BC: Tensor, targets: SoftTargets, temperature: float) -> Tensor:
    """Mean KL(teacher ‖ student) over the batch at `temperature`, times its square."""
    p, u, others = at_temperature(targets, temperature, logits_BC.shape[1])
    scaled = logits_BC.float() / temperature
    kept_logits = scaled.gather(1, targets.index_BK)
    excess = torch.where(p > 0, p - u[:, None], 0.0)
    negative_entropy = torch.xlogy(p, p).sum(1) + others * torch.xlogy(u, u)
    cross_entropy = scaled.logsumexp(1) - (excess * kept_logits).sum(1) - u * scaled.sum(1)
    return (negative_entropy + cross_entropy).mean() * temperature**2


def mixed_cross_entropy(
    logits_BC: Tensor, label_B: Tensor, partner_B: Tensor, lam_B: Tensor, smoothing: float
) -> Tensor:
    """Cross-entropy with the labels of a mixed view: λ·CE(own) + (1-λ)·CE(partner's)."""
    logits = logits_BC.float()
    own = F.cross_entropy(logits, label_B, reduction="none", label_smoothing=smoothing)
    other = F.cross_entropy(logits, partner_B, reduction="none", label_smoothing=smoothing)
    return (lam_B * own + (1.0 - lam_B) * other).mean()
