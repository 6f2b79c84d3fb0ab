"""Targets of each loss against the dense rows of `cache.targets(…).dense(T)`, for any codec."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cache_tools.reader import SparseTargets
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec, dense
from cache_tools.views.draw import LAMBDA_SCALE
from train.data.device_batch import DeviceBatch
from train.data.loader import Batch
from train.loss import losses
from train.loss.targets import SoftTargets

VIEWS = 6


def both(
    seed: int, classes: int, scale: float, spec: TargetSpec
) -> tuple[SparseTargets, SoftTargets]:
    """The targets of some logits by the reader, and as the trainer has them on the device."""
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((VIEWS, classes)) * scale).astype("f4")
    label = random.integers(0, classes, (VIEWS, 2))
    there = codec.encode(dense.sparsify(logits, spec, label), spec, classes)
    decoded = codec.decode(there, spec)
    index = np.where(decoded.probability_BK > 0, decoded.index_BK, -1)
    tail = decoded.tail_BT[:, 0]
    read = SparseTargets(index, decoded.probability_BK, tail, decoded, spec, classes)
    lam = np.full(VIEWS, LAMBDA_SCALE, dtype=np.float32)
    pictures = np.zeros((VIEWS, 2, 2, 3), dtype=np.uint8)
    cut = np.zeros((VIEWS, 4), dtype=np.int32)
    labels = label[:, 0], label[:, 1]
    batch = Batch(pictures, None, lam, cut, decoded, *labels, spec.temperatures, classes)
    return read, DeviceBatch.of(batch, torch.device("cpu")).targets


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - p * q).sum(1)


def dense_dkd(p: Tensor, student: Tensor, label: Tensor, t: float) -> float:
    """Zhao et al., on dense rows."""
    hit = F.one_hot(label, p.shape[1]).bool()
    p_y, q_y = p[hit], (student / t).log_softmax(1)[hit]
    rest_q = (student / t).masked_fill(hit, float("-inf")).logsumexp(1)
    log_rest = rest_q - (student / t).logsumexp(1)
    pair = torch.stack([p_y, p.masked_fill(hit, 0).sum(1)], 1)
    rest = p.masked_fill(hit, 0) / pair[:, 1:].clamp(min=1e-30)
    log_q = (student / t - rest_q[:, None]).masked_fill(hit, 0)
    target_class = kl(pair, torch.stack([q_y, log_rest], 1))
    return float((target_class + 2.0 * kl(rest, log_q)).mean() * t**2)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    classes=st.one_of(st.integers(3, 40), st.integers(3, 500)),
    scale=st.floats(0.1, 8),
    k=st.integers(1, 60),
    tau=st.sampled_from([0.0, 1e-4, 0.01, 0.3]),
    levels=st.sampled_from([15, 63, 127, 254]),
    declared=st.lists(st.sampled_from([0.5, 2.0, 4.0, 8.0]), unique=True, max_size=2),
    needs=st.tuples(st.booleans(), st.booleans()),
    temperature=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0]),
)
def test_dense_rows_are_what_the_losses_learn_from(
    seed: int,
    classes: int,
    scale: float,
    k: int,
    tau: float,
    levels: int,
    declared: list[float],
    needs: tuple[bool, bool],
    temperature: float,
) -> None:
    """At declared temperatures and others, with and without what dkd and dist store beside."""
    k, stored = min(k, classes), (1.0, *declared)
    spec = TargetSpec(k, tau, min(2, k), levels, stored, true_class=needs[0], tail_square=needs[1])
    read, soft = both(seed, classes, scale, spec)
    rows = read.dense(temperature)
    assert rows.sum(1) == pytest.approx(np.ones(VIEWS), abs=1e-5)
    assert soft.dense(temperature).numpy() == pytest.approx(rows, rel=1e-4, abs=1e-7)

    p, at_one = torch.from_numpy(rows).double(), torch.from_numpy(read.dense()).double()
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(VIEWS, classes, generator=generator, dtype=torch.float64)
    close = {"rel": 1e-4, "abs": 2e-5 * temperature**2}
    log_q = (student / temperature).log_softmax(1)
    expected = float(kl(p, log_q).mean() * temperature**2)
    assert losses.kd(student, soft, temperature).item() == pytest.approx(expected, **close)
    expected = float(F.binary_cross_entropy_with_logits(student, at_one))
    assert losses.bkd(student, soft).item() == pytest.approx(expected, **close)
    if soft.true is None:
        expected = dense_dkd(p, student, soft.label, temperature)
        found = losses.dkd(student, soft, temperature).item()
        assert found == pytest.approx(expected, **close)
    if soft.square is None or temperature != 1.0:
        pair = torch.stack([p - p.mean(1, True), log_q.exp() - 1 / classes])
        norms = pair.norm(dim=2).prod(0)
        if norms.min() > 1e-3:  # else a correlation has no digits
            expected = float((1 - pair.prod(0).sum(1) / norms).mean() * temperature**2)
            found = losses.dist(student, soft, temperature, gamma=0.0).item()
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-3 * temperature**2)
