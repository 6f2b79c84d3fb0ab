import numpy as np
import pytest
import torch
from torch.nn import functional as F

from train.losses import SoftTargets, mixed_cross_entropy, sparse_kl


def sparse(teacher: torch.Tensor, k: int, temperatures: tuple[float, ...]) -> SoftTargets:
    """The top k of exact logits, in double precision, with two empty slots."""
    p, index = teacher.softmax(1).topk(k, dim=1)
    kept = torch.zeros_like(teacher).scatter_(1, index, 1.0) > 0
    tail = [(teacher / t).softmax(1).masked_fill(kept, 0).sum(1) for t in temperatures]
    empty = torch.zeros(len(teacher), 2)
    return SoftTargets(
        torch.cat([index, empty.long()], 1),
        torch.cat([p, empty.to(p.dtype)], 1),
        torch.stack(tail, 1),
        temperatures,
    )


def flattened(teacher: torch.Tensor, k: int) -> torch.Tensor:
    """Teacher logits that are equal beyond the top k: what a uniform tail means exactly."""
    index = teacher.topk(k, dim=1).indices
    rest = torch.full_like(teacher, -1.3)
    return rest.scatter(1, index, teacher.gather(1, index).clamp(min=-1.0))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.3])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_value_and_gradient_are_those_of_the_dense_loss(temperature: float, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = flattened(torch.randn(16, 40, generator=generator, dtype=torch.float64) * 3, k)
    student = torch.randn(16, 40, generator=generator, dtype=torch.float64)
    results = []
    for dense in (True, False):
        s = student.float().requires_grad_() if not dense else student.clone().requires_grad_()
        if dense:
            loss = F.kl_div(
                (s / temperature).log_softmax(1),
                (teacher / temperature).log_softmax(1),
                log_target=True,
                reduction="batchmean",
            )
            loss = loss * temperature**2
        else:
            targets = sparse(teacher, k, (1.0, 4.0))
            single = SoftTargets(
                targets.index_BK,
                targets.probability_BK.float(),
                targets.tail_BT.float(),
                targets.temperatures,
            )
            loss = sparse_kl(s, single, temperature)
        loss.backward()
        results.append((loss.item(), s.grad.double()))
    (value, gradient), (ours, our_gradient) = results
    assert ours == pytest.approx(value, rel=2e-5, abs=2e-6)
    assert (gradient - our_gradient).abs().max() < 2e-6


def test_the_stored_mass_at_a_temperature_is_exact_for_any_tail() -> None:
    teacher = torch.randn(64, 100, generator=torch.Generator().manual_seed(1)).double() * 4
    student = torch.zeros(64, 100)
    known = sparse(teacher, 10, (1.0, 4.0))
    soft = (teacher / 4).softmax(1)
    # against a uniform student, KL = log C - H(teacher with a flat tail)
    kept = torch.zeros_like(soft).scatter_(1, known.index_BK[:, :10], 1.0) > 0
    mass = soft.masked_fill(kept, 0).sum(1, keepdim=True) / 90
    flat = torch.where(kept, soft, mass)
    expected = 16 * (np.log(100) + torch.xlogy(flat, flat).sum(1)).mean()
    single = SoftTargets(
        known.index_BK, known.probability_BK.float(), known.tail_BT.float(), (1.0, 4.0)
    )
    assert sparse_kl(student, single, 4.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixed_labels() -> None:
    logits = torch.randn(8, 5)
    own, other = torch.arange(8) % 5, (torch.arange(8) + 2) % 5
    lam = torch.linspace(0, 1, 8)
    dense = lam[:, None] * F.one_hot(own, 5) + (1 - lam)[:, None] * F.one_hot(other, 5)
    expected = F.cross_entropy(logits, dense)
    assert torch.isclose(mixed_cross_entropy(logits, own, other, lam, 0.0), expected)
