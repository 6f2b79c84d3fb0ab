"""The mixture of several teachers against dense arithmetic."""

from dataclasses import replace

import numpy as np
import pytest

from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec, dense, mixture
from cache_tools.targets.codec import DecodedTargets
from cache_tools.targets.mixture import Mixture
from tests.helpers.mixtures import WEIGHTS, B, C, logits, mean


def exact(
    values: np.ndarray, targets: TargetSpec, label_BP: np.ndarray | None = None
) -> DecodedTargets:
    """What is kept of logits, unrounded."""
    kept = dense.sparsify(values, targets, label_BP)
    order = np.argsort(np.where(kept.index_BK < 0, C + 1, kept.index_BK), axis=1)
    index, p = (np.take_along_axis(x, order, 1) for x in (kept.index_BK, kept.probability_BK))
    single = (x.astype("f4") for x in (p, kept.tail_BT, kept.true_BP, kept.square_BQ))
    return DecodedTargets(np.maximum(index, 0).astype("i4"), *single)


def mixed(
    *values: np.ndarray, weights: tuple[float, ...] = WEIGHTS, **kept: object
) -> DecodedTargets:
    targets = TargetSpec(**kept)  # type: ignore[arg-type]
    mix = Mixture(weights, [targets] * len(values), values[0].shape[1])
    return mix([exact(v, targets) for v in values])


def tempered(q: np.ndarray, temperature: float) -> np.ndarray:
    powers = q ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.0])
def test_of_all_classes_the_mixture_is_that_of_the_dense(temperature: float) -> None:
    a, b = logits(1), logits(2)
    kept = TargetSpec(k_max=C, k_min=C, temperatures=(1.0, 4.0, 2.0))
    found = mixed(a, b, k_max=C, k_min=C, temperatures=(1.0, 4.0, 2.0))
    truth = tempered(mean(dense.softmax(a), dense.softmax(b)), temperature)
    assert np.abs(dense.densify(found, kept, C, temperature) - truth).max() < 1e-6


@pytest.mark.parametrize("flat_from", [None, 4])
def test_of_kept_classes_it_is_the_mean_of_what_each_restores(flat_from: int | None) -> None:
    """Also where one keeps a class and the other does not: that one's flat share enters."""
    a, b = logits(1, flat_from=flat_from), logits(2, flat_from=flat_from)
    kept = TargetSpec(k_max=4, tau=0.0)
    found = mixed(a, b, k_max=4, tau=0.0)
    truth = mean(*(dense.densify(exact(v, kept), kept, C) for v in (a, b)))
    assert np.abs(dense.densify(found, kept, C) - truth).max() < 1e-7
    assert np.allclose(found.probability_BK.sum(1) + found.tail_BT[:, 0], 1, atol=1e-6)
    assert (np.diff(np.where(found.probability_BK > 0, found.index_BK, C + 1), axis=1) >= 0).all()
    if flat_from is not None:  # then nothing is lost of the teachers either
        teachers = mean(dense.softmax(a), dense.softmax(b))
        assert np.abs(dense.densify(found, kept, C) - teachers).max() < 1e-6
        for t in (2.0, 5.0):  # declared or not: a flat tail stays flat
            q = dense.densify(found, kept, C, t)
            assert np.abs(q - tempered(teachers, t)).max() < 1e-5


def test_the_error_of_a_sparse_mixture_is_bounded_by_the_tails() -> None:
    a, b = logits(1), logits(2)
    kept = TargetSpec(k_max=10, tau=0.001)
    found = dense.densify(mixed(a, b, k_max=10, tau=0.001), kept, C)
    truth = mean(dense.softmax(a), dense.softmax(b))
    tails = mean(*(exact(v, kept).tail_BT[:, :1] for v in (a, b)))[:, 0]
    distance = np.abs(found - truth).sum(axis=1)
    assert (distance <= 2 * tails + 1e-6).all()
    assert 0 < distance.mean() < 0.2


@pytest.mark.parametrize(("shared", "share"), [(0.0, 0.7), (0.7, 0.2)])
@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_masses_at_a_temperature_are_better_than_flat(
    temperature: float, shared: float, share: float
) -> None:
    """Teachers that have nothing in common, and some that agree as real ones do."""
    both = [shared**0.5 * logits(9, 1000) + (1 - shared) ** 0.5 * logits(i, 1000) for i in (1, 2)]
    a, b = (v.astype("f4") for v in both)
    found = mixed(a, b, k_max=20, tau=0.0, temperatures=(1.0, temperature))
    q = tempered(mean(dense.softmax(a), dense.softmax(b)), temperature)
    used, others = found.probability_BK > 0, 1000 - (found.probability_BK > 0).sum(1)
    truth = 1 - np.where(used, q[np.arange(B)[:, None], found.index_BK], 0).sum(1)
    flat = others * (found.tail_BT[:, 0] / others) ** (1 / temperature)
    powers = np.where(used, found.probability_BK.astype("f8"), 0) ** (1 / temperature)
    errors = [
        np.abs(m - truth).mean() for m in (found.tail_BT[:, 1], flat / (flat + powers.sum(1)))
    ]
    assert 0 < errors[0] < share * errors[1]
    assert errors[0] < 0.05


def test_one_teacher_or_twice_the_same_is_that_teacher() -> None:
    a, kept = logits(1, 1000), {"k_max": 20, "tau": 0.0, "temperatures": (1.0, 2.0, 4.0)}
    alone = exact(a, TargetSpec(**kept))  # type: ignore[arg-type]
    for same in (mixed(a, weights=(1.0,), **kept), mixed(a, a, **kept)):
        assert np.allclose(same.tail_BT, alone.tail_BT, rtol=1e-5)
        assert np.allclose(same.probability_BK[:, :20], alone.probability_BK, rtol=1e-5)
        assert not same.probability_BK[:, 20:].any()


def test_without_tails_each_member_is_renormalised() -> None:
    kept = TargetSpec(k_max=4, tau=0.0)
    said = [exact(logits(seed), kept) for seed in (1, 2)]
    found = Mixture(WEIGHTS, [kept, kept], C, "zero")(said)
    p = [np.zeros((B, C)) for _ in said]
    for full, one in zip(p, said, strict=True):
        share = one.probability_BK / one.probability_BK.sum(1, keepdims=True)
        np.put_along_axis(full, one.index_BK.astype(int), share, axis=1)
    assert not found.tail_BT.any()
    assert np.abs(dense.densify(found, kept, C) - mean(*p)).max() < 1e-6


def test_the_order_of_members_does_not_matter() -> None:
    ab = mixed(logits(1), logits(2), k_max=10, tau=0.001)
    ba = mixed(logits(2), logits(1), weights=WEIGHTS[::-1], k_max=10, tau=0.001)
    assert (ab.index_BK == ba.index_BK).all()
    assert np.allclose(ab.probability_BK, ba.probability_BK, rtol=1e-6)
    assert np.allclose(ab.tail_BT, ba.tail_BT, rtol=1e-6)


def test_members_may_keep_differently() -> None:
    """Another K, other temperatures, another threshold; what both declare is declared."""
    specs = [TargetSpec(k_max=C, k_min=C), TargetSpec(k_max=3, tau=0.01, temperatures=(1.0, 4.0))]
    said = [exact(logits(i), s) for i, s in enumerate(specs)]
    mix = Mixture(WEIGHTS, specs, C)
    truth = mean(*(dense.densify(t, s, C) for t, s in zip(said, specs, strict=True)))
    assert mix.temperatures == (1.0,)
    assert np.abs(dense.densify(mix(said), specs[0], C) - truth).max() < 1e-6
    specs[0] = replace(specs[0], temperatures=(1.0, 4.0, 2.0))
    assert Mixture(WEIGHTS, specs, C).temperatures == (1.0, 4.0)


def test_a_stored_true_class_is_exact_and_its_tail_the_rest() -> None:
    """Both labels of a mixed view, also when they are one class or there is none."""
    a, b = logits(1), logits(2)
    kept = TargetSpec(k_max=3, tau=0.0, true_class=True)
    labels = np.random.default_rng(0).integers(0, C, (B, 2))
    labels[:20, 1], labels[20:30] = labels[:20, 0], -1
    found = Mixture(WEIGHTS, [kept, kept], C)([exact(v, kept, labels) for v in (a, b)], labels)
    restored = dense.densify(found, kept, C)
    truth = mean(dense.softmax(a), dense.softmax(b))
    known = labels >= 0
    at = np.arange(B)[:, None]
    assert np.abs(restored - truth)[at, labels][known].max() < 1e-6
    assert np.allclose(restored.sum(1), 1, atol=1e-6)
    sparse = mixture.sparsify(found, replace(kept, k_max=2), labels)
    dropped = ~(sparse.index_BK[:, None, :] == labels[:, :, None]).any(2) & known
    assert dropped.sum() > B
    assert np.abs(sparse.true_BP - truth[at, labels])[dropped].max() < 1e-6
    assert not sparse.true_BP[~dropped].any()


def test_what_is_dropped_again_goes_to_the_tail() -> None:
    found = mixed(logits(1), logits(2), k_max=20, tau=0.0, temperatures=(1.0, 2.0))
    full = TargetSpec(k_max=40, temperatures=(1.0, 2.0))
    spec_ = TargetSpec(k_max=5, tau=0.02, k_min=2)
    sparse = mixture.sparsify(found, spec_)
    for t, temperature in enumerate((1.0, 2.0)):
        q = dense.densify(found, full, C, temperature)
        used = sparse.index_BK >= 0
        kept = np.where(used, q[np.arange(B)[:, None], np.maximum(sparse.index_BK, 0)], 0).sum(1)
        assert np.allclose(kept + sparse.tail_BT[:, t], 1, atol=1e-6)
    counts = (sparse.index_BK >= 0).sum(1)
    assert counts.min() >= 2
    assert counts.max() == 5
    stored = codec.encode(sparse, spec_, C)
    assert codec.check(stored, spec_, C) is None
