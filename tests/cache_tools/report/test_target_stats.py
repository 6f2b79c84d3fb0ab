"""Bounds of what is lost of a teacher's distribution, against the distribution itself."""

import numpy as np
import pytest

from cache_tools.report import target_stats
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec, dense


@pytest.mark.parametrize(
    "spec",
    [
        TargetSpec(k_max=8, tau=1e-2),
        TargetSpec(k_max=8, tau=0.0, tail_square=True),
        TargetSpec(k_max=64, tau=1e-3, k_min=4, temperatures=(1.0,)),
        TargetSpec(k_max=100, k_min=100, tau=0.0),
    ],
)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_what_was_lost_is_within_its_bounds(spec: TargetSpec, scale: float) -> None:
    logits = scale * np.random.default_rng(5).normal(size=(400, 100)) ** 3
    p = dense.softmax(logits)
    sparse = dense.sparsify(logits, spec)
    targets = codec.decode(codec.encode(sparse, spec, 100), spec)
    found = target_stats.measure(targets, spec, 100)
    lost = dense.kl_divergence(p, dense.densify(targets, spec, 100))
    slack = 20 * found.rounded_B + 2e-3 + 0.02 * found.tail_BT[:, 0]  # the codes round, too
    assert (lost <= found.dropped_B + slack).all()
    entropy = float(-(p * np.log(np.maximum(p, 1e-300))).sum(1).mean())
    high = float(found.entropy_B.mean())
    assert high - float(found.dropped_B.mean()) - 0.01 < entropy < high + 0.01
    assert (found.first_B == p.argmax(1)).mean() > 0.97
    if spec.k_max < 100:
        assert found.dropped_B.mean() > 0.5 * lost.mean()
    else:
        assert (found.dropped_B == 0).all()
        assert found.rounded_B.mean() / 2 < lost.mean() < 2 * found.rounded_B.mean()


def test_the_bound_is_reached_by_the_least_even_tail() -> None:
    spec = TargetSpec(k_max=8, tau=0.01)
    p = np.full((1, 1000), 1e-9)
    p[0, 0], p[0, 1:11] = 0.901, 0.0099
    targets = codec.decode(codec.encode(dense.sparsify(np.log(p), spec), spec, 1000), spec)
    lost = dense.kl_divergence(p / p.sum(), dense.densify(targets, spec, 1000))[0]
    assert 0.95 * target_stats.measure(targets, spec, 1000).dropped_B[0] < lost
    assert lost < 1.05 * target_stats.measure(targets, spec, 1000).dropped_B[0]


def test_the_sum_of_squares_tightens_the_bound() -> None:
    spec = TargetSpec(k_max=4, tau=0.0, tail_square=True)
    logits = np.random.default_rng(1).normal(size=(50, 100))
    targets = codec.decode(codec.encode(dense.sparsify(logits, spec), spec, 100), spec)
    blind = codec.DecodedTargets(
        *(vars(targets) | {"square_BQ": targets.square_BQ[:, :0]}).values()
    )
    known, unknown = (target_stats.measure(t, spec, 100).dropped_B for t in (targets, blind))
    assert (known < 0.6 * unknown).all()
