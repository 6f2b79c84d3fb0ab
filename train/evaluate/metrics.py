"""Scores of a network's predictions: accuracy, ReaL accuracy, calibration, agreement.

    ECE         Σ_b n_b/n |accuracy_b - confidence_b| over 15 bins of equal width of the highest
                probability, each open below and closed above (Guo et al., ICML 2017)
    ReaL        share of images whose first class is one of their ReaL labels; images without such a
                label do not count (Beyer et al., arXiv 2006.07159)
    agreement   share of images on which two networks predict the same class first
    KL          KL(teacher ‖ student) at T = 1, in nats, mean over images

Shapes: B images, C classes, R ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
RANKS = 5


@dataclass(frozen=True)
class Scores:
    """Scores of a network on a data set; shares in percent, None where nothing was counted."""

    images: int
    """Number of images."""
    top1: float | None = None
    """Share whose label is the first class."""
    top5: float | None = None
    """Share whose label is among the first five."""
    ece: float | None = None
    """Expected calibration error."""
    real_top1: float | None = None
    """As top1, by ReaL labels."""
    real_top5: float | None = None
    """As top5, by ReaL labels."""
    real_images: int | None = None
    """Images that have ReaL labels."""
    agreement: float | None = None
    """Share with the same first class as the teacher's."""
    kl: float | None = None
    """Mean KL(teacher ‖ this network) in nats."""


def top_classes(logits_BC: Tensor) -> Tensor:
    """Five most probable classes [B, R] (fewer, if there are fewer), best first."""
    return logits_BC.float().topk(min(RANKS, logits_BC.shape[1]), dim=1).indices


def kl_divergence(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """KL(teacher ‖ student) [B] of dense logits at T = 1, in nats."""
    log_p, log_q = teacher_BC.double().log_softmax(1), student_BC.double().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


class Calibration:
    """Sums of confidence and correctness in bins of confidence."""

    def __init__(self) -> None:
        self._sums = torch.zeros(BINS, 2, dtype=torch.float64)
        self._count = 0

    def add(self, confidence_B: Tensor, hit_B: Tensor) -> None:
        """Count images: the highest probability, and True where its class is right."""
        confidence_B = confidence_B.double().cpu()
        bin_B = (confidence_B * BINS).ceil().long().clamp(1, BINS) - 1
        self._sums.index_add_(0, bin_B, torch.stack([confidence_B, hit_B.double().cpu()], dim=1))
        self._count += len(confidence_B)

    @property
    def error(self) -> float | None:
        """ECE in percent; None when nothing was counted."""
        if not self._count:
            return None
        return 100.0 * float((self._sums[:, 0] - self._sums[:, 1]).abs().sum()) / self._count


class Tally:
    """Running sums of one network's scores."""

    def __init__(self) -> None:
        self._images = self._real = self._compared = self._ranks = 0
        self._hits, self._real_hits = torch.zeros(2).long(), torch.zeros(2).long()
        self._agreed, self._kl = 0, 0.0
        self._calibration = Calibration()

    def add(self, logits_BC: Tensor, label_B: Tensor) -> None:
        """Count predictions against labels."""
        class_BR = top_classes(logits_BC)
        hit_BR = class_BR == label_B.to(class_BR.device)[:, None]
        self.add_hits(hit_BR)
        self._calibration.add(logits_BC.double().softmax(1).amax(1), hit_BR[:, 0])

    def add_hits(self, hit_BR: Tensor) -> None:
        """Count predictions by the rank at which they are right; with R = 1 no top5."""
        self._hits += _first_and_any(hit_BR)
        self._images += len(hit_BR)
        self._ranks = hit_BR.shape[1]

    def add_real(self, logits_BC: Tensor, allowed: Sequence[frozenset[int]]) -> None:
        """Count predictions against sets of right classes; an empty set does not count."""
        first = top_classes(logits_BC).tolist()
        hits = [[c in a for c in row] for row, a in zip(first, allowed, strict=True) if a]
        if hits:
            self._real_hits += _first_and_any(torch.tensor(hits))
            self._real += len(hits)

    def compare(self, agreed_B: Tensor, kl_B: Tensor) -> None:
        """Count agreement with the teacher: equality of the first classes, and the KL."""
        self._agreed += int(agreed_B.sum())
        self._kl += float(kl_B.double().sum())
        self._compared += len(agreed_B)

    def scores(self) -> Scores:
        """Scores of everything counted so far."""

        def percent(count: Tensor | int, of: int) -> float | None:
            return 100.0 * int(count) / of if of else None

        return Scores(
            max(self._images, self._compared),
            percent(self._hits[0], self._images),
            percent(self._hits[1], self._images) if self._ranks > 1 else None,
            self._calibration.error,
            percent(self._real_hits[0], self._real),
            percent(self._real_hits[1], self._real),
            self._real or None,
            percent(self._agreed, self._compared),
            self._kl / self._compared if self._compared else None,
        )


def _first_and_any(hit_BR: Tensor) -> Tensor:
    """Numbers [2] of rows right at the first rank, and at any rank."""
    return torch.stack([hit_BR[:, 0].sum(), hit_BR.any(dim=1).sum()]).cpu()
