"""Every loss on sparse targets against the dense formula in double precision."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor
from torch.nn import functional as F

from cache_tools.errors import UsageError
from train.loss import losses
from train.loss.targets import SoftTargets

SIZES = [(40, 1), (40, 7), (40, 40), (1000, 20), (21_841, 50)]
Loss = Callable[[Tensor], Tensor]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flattened(teacher: Tensor, k: int) -> Tensor:
    """Teacher logits that are equal beyond the top k: what a uniform tail means exactly."""
    index = teacher.topk(k, dim=1).indices
    rest = torch.full_like(teacher, -1.3)
    return rest.scatter(1, index, teacher.gather(1, index).clamp(min=-1.0))


def sparse(
    teacher: Tensor,
    k: int,
    temperatures: tuple[float, ...] = (1.0, 4.0),
    labels: Tensor | None = None,
) -> SoftTargets:
    """The top k of exact logits in single precision, with two empty slots."""
    full = teacher.softmax(1)
    p, index = full.topk(k, dim=1)
    kept = torch.zeros_like(teacher).scatter_(1, index, 1.0) > 0
    tail = [(teacher / t).softmax(1).masked_fill(kept, 0).sum(1) for t in temperatures]
    rest, empty = full.masked_fill(kept, 0), torch.zeros(len(teacher), 2)
    true = None if labels is None else rest.gather(1, labels).float()
    label = index[:, 0] if labels is None else labels[:, 0]
    return SoftTargets(
        index=torch.cat([index, empty.long()], 1),
        probability=torch.cat([p, empty], 1).float(),
        tail=torch.stack(tail, 1).float(),
        temperatures=temperatures,
        num_classes=teacher.shape[1],
        label=label,
        partner_label=label,
        lam=torch.ones(len(teacher)),
        true=true,
        square=rest.square().sum(1).float(),
    )


def same(dense: Loss, ours: Loss, student: Tensor, tolerance: float = 2e-6) -> None:
    """Both give one value and one gradient."""
    results = []
    for loss, logits in ((dense, student.clone()), (ours, student.float())):
        logits.requires_grad_()
        value = loss(logits)
        value.backward()
        results.append((value.item(), logits.grad.double()))
    (value, gradient), (our_value, our_gradient) = results
    assert our_value == pytest.approx(value, rel=3e-5, abs=3e-6)
    assert (gradient - our_gradient).abs().max() < tolerance


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.3])
@pytest.mark.parametrize(("classes", "k"), SIZES)
def test_kd(temperature: float, classes: int, k: int) -> None:
    teacher, student = flattened(3 * normal(0, 16, classes), k), normal(1, 16, classes)
    targets = sparse(teacher, k)

    def dense(s: Tensor) -> Tensor:
        p, q = (teacher / temperature).log_softmax(1), (s / temperature).log_softmax(1)
        return F.kl_div(q, p, log_target=True, reduction="batchmean") * temperature**2

    same(dense, lambda s: losses.kd(s, targets, temperature), student, 2e-6 * temperature)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("tail", ["bucket", "zero"])
@pytest.mark.parametrize(("classes", "k"), [(40, 7), (1000, 20)])
def test_kd_with_other_tails(tail: str, temperature: float, classes: int, k: int) -> None:
    teacher, student = 3 * normal(2, 16, classes), normal(3, 16, classes)
    kept = teacher.topk(k, dim=1).indices

    def dense(s: Tensor) -> Tensor:
        p, q = (x.softmax(1) for x in (teacher / temperature, s / temperature))
        pk, qk = p.gather(1, kept), q.gather(1, kept)
        if tail == "zero":
            pk = pk / pk.sum(1, keepdim=True)
            return (pk * (pk / qk).log()).sum(1).mean() * temperature**2
        pk, qk = (torch.cat([x, 1 - x.sum(1, keepdim=True)], 1) for x in (pk, qk))
        return (pk * (pk / qk).log()).sum(1).mean() * temperature**2

    same(dense, lambda s: losses.kd(s, sparse(teacher, k), temperature, tail), student, 4e-6)


def test_the_stored_mass_at_a_temperature_is_exact_for_any_tail() -> None:
    """Against a uniform student KL = log C - H(teacher with a flat tail)."""
    teacher = 4 * normal(4, 64, 100)
    known, soft = sparse(teacher, 10), (teacher / 4).softmax(1)
    kept = torch.zeros_like(soft).scatter_(1, known.index[:, :10], 1.0) > 0
    mass = soft.masked_fill(kept, 0).sum(1, keepdim=True) / 90
    flat = torch.where(kept, soft, mass)
    expected = 16 * (np.log(100) + torch.xlogy(flat, flat).sum(1)).mean()
    found = losses.kd(torch.zeros(64, 100), known, 4.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_fused_gradient_is_that_of_its_parts() -> None:
    scaled = normal(5, 6, 30).requires_grad_()
    index = normal(17, 6, 30).topk(4, dim=1).indices
    p = normal(18, 6, 5).softmax(1)[:, :4]
    u = (1 - p.sum(1)) / 26
    others = torch.full((6,), 26.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: losses._SparseKL.apply(s, index, p, u, others), (scaled,)
    )


@pytest.mark.parametrize(("classes", "k"), SIZES)
def test_bkd(classes: int, k: int) -> None:
    teacher, student = flattened(3 * normal(6, 16, classes), k), normal(7, 16, classes)
    same(
        lambda s: F.binary_cross_entropy_with_logits(s, teacher.softmax(1)),
        lambda s: losses.bkd(s, sparse(teacher, k)),
        student,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0, 1.7])
@pytest.mark.parametrize(("classes", "k"), [(40, 7), (40, 1), (1000, 20), (21_841, 50)])
def test_dkd(temperature: float, classes: int, k: int) -> None:
    """True classes kept and not; those not kept have a probability of their own."""
    teacher, student = flattened(3 * normal(8, 24, classes), k), normal(9, 24, classes)
    label = torch.randint(0, classes, (24, 2), generator=torch.Generator().manual_seed(1))
    label[:8, 0] = teacher.argmax(1)[:8]
    rows = torch.arange(24)
    outside = ~(teacher.topk(k, dim=1).indices == label[:, :1]).any(1)
    teacher[rows[outside], label[outside, 0]] = -1.2
    targets, y = sparse(teacher, k, labels=label), label[:, 0]

    def dense(s: Tensor) -> Tensor:
        p, q = (teacher / temperature).softmax(1), (s / temperature).softmax(1)
        two = [torch.stack([x[rows, y], 1 - x[rows, y]], 1) for x in (p, q)]
        target_class = (two[0] * (two[0] / two[1]).log()).sum(1)
        away = torch.zeros_like(s).scatter(1, y[:, None], -1000.0)
        p, q = ((x / temperature + away).log_softmax(1) for x in (teacher, s))
        rest = F.kl_div(q, p, log_target=True, reduction="none").sum(1)
        return (target_class + 2 * rest).mean() * temperature**2

    tolerance = 2e-5 * temperature if temperature == 1.7 else 1e-5 * temperature
    if temperature == 1.7:  # not declared: a flat tail at T = 1 has no other class of its own in it
        assert losses.dkd(student.float(), targets, 1.7).item() == pytest.approx(
            dense(student).item(), rel=2e-2
        )
        return
    same(dense, lambda s: losses.dkd(s, targets, temperature), student, tolerance)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("margin", [14, 18, 20, 60])
@pytest.mark.parametrize(("classes", "coded"), [(2, True), (10, True), (10, False), (1000, False)])
def test_dkd_of_a_sure_teacher(classes: int, coded: bool, margin: int, temperature: float) -> None:
    """All classes are kept, as codes or as mode=online has them; the original masks logits."""
    teacher, label = normal(21, 8, classes), torch.arange(8) % classes
    rows = torch.arange(8)
    teacher[rows, label] = teacher.max(1).values + margin
    p, student = teacher.softmax(1), 3 * normal(22, 8, classes)
    if coded:
        p = torch.round(127 * p**0.25).clamp(min=1) / 127
        p = p**4 / (p**4).sum(1, keepdim=True)
    index, none = torch.arange(classes).repeat(8, 1), torch.zeros(8, 2, dtype=torch.float64)

    def dense(s: Tensor) -> Tensor:
        a, b = p.log() / temperature, s / temperature
        mask = torch.zeros_like(s).scatter(1, label[:, None], -1e4)
        column = label[:, None]
        two = [torch.cat([x.gather(1, column), (x + mask).logsumexp(1, True)], 1) for x in (a, b)]
        pairs = (two, [a + mask, b + mask])
        kl = [
            F.kl_div(q.log_softmax(1), r.log_softmax(1), log_target=True, reduction="batchmean")
            for r, q in pairs
        ]
        return (kl[0] + 2 * kl[1]) * temperature**2

    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
        targets = SoftTargets(
            index=index,
            probability=p.to(dtype),
            tail=none.to(dtype),
            temperatures=(1.0, 2.0),
            num_classes=classes,
            label=label,
            partner_label=label,
            lam=torch.ones(8),
        )
        expected, found = (student.clone().to(t).requires_grad_() for t in (torch.float64, dtype))
        loss = losses.dkd(found, targets, temperature)
        wanted = dense(expected)
        loss.backward()
        wanted.backward()
        assert loss.item() == pytest.approx(wanted.item(), rel=tolerance)
        error = (found.grad.double() - expected.grad).norm() / expected.grad.norm()
        assert error < tolerance


def test_the_rest_of_a_sure_student_in_one_bucket() -> None:
    teacher, student = normal(23, 8, 40), normal(24, 8, 40)
    student[:, 3] += 40
    teacher[:, 3] += 6
    kept = teacher.topk(7, dim=1).indices

    def dense(s: Tensor) -> Tensor:
        mask = torch.zeros_like(s).scatter(1, kept, -1e4)
        a, b = (
            torch.cat([x.gather(1, kept), (x + mask).logsumexp(1, True)], 1) for x in (teacher, s)
        )
        a, b = a.log_softmax(1), b.log_softmax(1)
        return F.kl_div(b, a, log_target=True, reduction="batchmean")

    same(dense, lambda s: losses.kd(s, sparse(teacher, 7), 1.0, "bucket"), student, 4e-6)


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim))


@pytest.mark.parametrize(("classes", "k"), [(40, 7), (40, 40), (1000, 20), (21_841, 50)])
def test_dist_between_classes_is_exact(classes: int, k: int) -> None:
    """Any tail: the stored squares make the teacher's spread exact, the flat tail the product."""
    teacher, student = flattened(3 * normal(10, 16, classes), k), normal(11, 16, classes)
    same(
        lambda s: 1 - pearson(s.softmax(1), teacher.softmax(1), 1).mean(),
        lambda s: losses.dist(s, sparse(teacher, k), gamma=0.0),
        student,
    )


def test_dist_between_views_is_exact_where_every_class_is_kept() -> None:
    teacher, student = 2 * normal(12, 32, 12), normal(13, 32, 12)

    def dense(s: Tensor) -> Tensor:
        q, p = (s / 2).softmax(1), (teacher / 2).softmax(1)
        return 4 * (2 - pearson(q, p, 1).mean() - pearson(q, p, 0).mean())

    same(dense, lambda s: losses.dist(s, sparse(teacher, 12, (1.0, 2.0)), 2.0), student, 1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_on_mixed_labels(smoothing: float) -> None:
    logits = normal(14, 8, 5)
    own, other = torch.arange(8) % 5, (torch.arange(8) + 2) % 5
    other[3] = own[3]
    lam = torch.linspace(0, 1, 8, dtype=torch.float64)
    dense = lam[:, None] * F.one_hot(own, 5) + (1 - lam)[:, None] * F.one_hot(other, 5)
    smooth = dense * (1 - smoothing) + smoothing / 5
    labels = own, other, lam
    same(
        lambda s: F.cross_entropy(s, smooth),
        lambda s: losses.cross_entropy(s, *labels, smoothing),
        logits,
    )
    same(
        lambda s: BinaryCrossEntropy(smoothing=0.0)(s, smooth),
        lambda s: losses.binary_cross_entropy(s, *labels, smoothing),
        logits,
    )
    for threshold in (0.0, 0.01, 0.2, 0.5, 0.9):
        timms = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold)
        same(
            lambda s, timms=timms: timms(s, smooth),
            lambda s, t=threshold: losses.binary_cross_entropy(s, *labels, smoothing, t),
            logits,
        )


def test_half_precision_logits_are_widened_first() -> None:
    targets = sparse(3 * normal(15, 8, 1000), 20)
    half = normal(16, 8, 1000).bfloat16()
    assert losses.kd(half, targets).dtype == torch.float32
    assert torch.isclose(losses.kd(half, targets), losses.kd(half.float(), targets))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 1.7])
def test_dense_targets_are_those_of_the_losses(temperature: float) -> None:
    teacher = flattened(3 * normal(30, 16, 40), 7)
    dense = sparse(teacher, 7).dense(temperature)
    assert torch.allclose(dense.double(), (teacher / temperature).softmax(1), atol=1e-6)


def test_a_student_of_other_classes_is_refused() -> None:
    targets = sparse(normal(31, 4, 40), 7)
    for loss in (losses.kd, losses.bkd, losses.dkd, losses.dist):
        with pytest.raises(UsageError, match="predicts 39 classes, its targets are of 40"):
            loss(torch.zeros(4, 39), targets)


def test_an_unknown_tail_and_an_impossible_temperature_are_refused() -> None:
    targets, logits = sparse(normal(1, 6, 40), 7), normal(2, 6, 40).float()
    with pytest.raises(UsageError, match=r"tail='buckt' is not one of 'uniform', 'bucket', 'zero'"):
        losses.kd(logits, targets, tail="buckt")
    for temperature in (0.0, -1.0, float("nan")):
        for loss in (losses.kd, losses.dkd, losses.dist):
            with pytest.raises(UsageError, match=f"temperature={temperature} must be positive"):
                loss(logits, targets, temperature)
        with pytest.raises(UsageError, match="must be positive"):
            targets.dense(temperature)
