"""Errors and cosines of `kdcache advise` against autograd over full logits, by dense formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec, dense
from train import recipe as recipes
from train.advise import gradients
from train.advise.gradients import Gradients
from train.advise.sample import Sample

B, C, K = 60, 40, 7


def sample(seed: int = 0) -> Sample:
    logits = 3 * np.random.default_rng(seed).standard_normal((B, C)).astype("f4")
    label = logits.argmax(axis=1)[:, None]
    return Sample(logits, np.arange(B), label, np.ones(B), B)


def dense_loss(loss: str, s: Tensor, p: Tensor, label: Tensor, t: float) -> Tensor:
    """Sum over views, of a teacher's distributions p at T: the papers' formulas."""
    log_q, log_p = (s / t).log_softmax(1), p.log()
    if loss == "kd":
        return t**2 * F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    if loss == "bkd":
        return F.binary_cross_entropy_with_logits(s, p, reduction="sum") / C
    if loss == "dist":
        a, b = log_q.exp() - 1 / C, p - 1 / C
        return t**2 * (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).sum()
    away = torch.zeros_like(s).scatter(1, label[:, None], -1e4)
    two = []
    for log in (log_p, log_q):
        own = log.gather(1, label[:, None]).exp()
        two.append(torch.cat([own, 1 - own], 1).log())
    rest_p, rest_q = ((x + away).log_softmax(1) for x in (log_p, log_q))
    pairs = (two[1], two[0]), (rest_q, rest_p)
    kl = [F.kl_div(q, x, log_target=True, reduction="sum") for q, x in pairs]
    return t**2 * (kl[0] + 2 * kl[1])


def gradient(loss: str, student: np.ndarray, p: np.ndarray, label: np.ndarray, t: float) -> Tensor:
    s = torch.from_numpy(student).requires_grad_()
    value = dense_loss(loss, s, torch.from_numpy(p), torch.from_numpy(label), t)
    return torch.autograd.grad(value, s)[0]


@pytest.mark.parametrize(
    ("loss", "t"), [("kd", 1.0), ("kd", 4.0), ("bkd", 1.0), ("dkd", 1.0), ("dkd", 3.0), ("dist", 2)]
)
def test_they_are_those_of_autograd_over_full_logits(loss: str, t: float) -> None:
    found, spec = sample(), TargetSpec(K, 0.0, K, temperatures=(1.0, *{t} - {1.0}))
    spec = replace(spec, true_class=loss == "dkd", tail_square=loss == "dist")
    values = {"student": "x", "epochs": 1, "batch_size": 25, "loss": loss, "temperature": float(t)}
    measured = Gradients(found, recipes.load(values | {"dist_gamma": 0.0}))
    stored = codec.encode(dense.sparsify(found.logits_BC, spec, found.label_BP), spec, C)
    students = measured.compare(stored, spec, "uniform")
    full = dense.softmax(found.logits_BC, t)
    restored = dense.densify(codec.decode(stored, spec), spec, C, t)
    noise = gradients.normal(0, B, C)
    untrained = 0.1 * noise if loss == "dist" else np.zeros((B, C))
    for name, student in (("untrained", untrained), ("late", found.logits_BC + noise)):
        exact, ours = (
            gradient(loss, student, p, found.label_BP[:, 0], t) for p in (full, restored)
        )
        error = (ours - exact).norm() / exact.norm()
        cosine = (ours * exact).sum() / (ours.norm() * exact.norm())
        assert students[name].error == pytest.approx(error.item(), rel=2e-3)
        assert students[name].cosine == pytest.approx(cosine.item(), rel=1e-4)


@pytest.mark.parametrize("tail", ["bucket", "zero"])
def test_other_tails_by_hand(tail: str) -> None:
    """dL/ds = T (q - p̂), where p̂ gives the dropped classes the student's share, or nothing."""
    found, t = sample(1), 2.0
    spec = TargetSpec(K, 0.0, K)
    measured = Gradients(
        found, recipes.load({"student": "x", "epochs": 1, "loss": "kd", "temperature": t})
    )
    stored = codec.encode(dense.sparsify(found.logits_BC, spec), spec, C)
    restored = dense.densify(codec.decode(stored, spec), spec, C, t)
    kept = dense.topk_mask(dense.softmax(found.logits_BC), K)
    late = found.logits_BC + gradients.normal(0, B, C)
    q, p = dense.softmax(late, t), dense.softmax(found.logits_BC, t)
    mass = np.where(kept, 0, restored).sum(axis=1, keepdims=True)
    share = mass * q / np.where(kept, 0, q).sum(axis=1, keepdims=True)
    ours = np.where(kept, restored, share if tail == "bucket" else 0.0)
    ours = ours / ours.sum(axis=1, keepdims=True)
    error = np.linalg.norm(ours - p) / np.linalg.norm(q - p)
    assert measured.compare(stored, spec, tail)["late"].error == pytest.approx(error, rel=2e-3)


def test_all_classes_kept_leave_the_rounding_alone_and_top_k_does_not() -> None:
    found, spec = sample(2), TargetSpec(C, 0.0, C, levels=254)
    stored = codec.encode(dense.sparsify(found.logits_BC, spec), spec, C)
    values = {"student": "x", "epochs": 1, "temperature": 2.0}
    errors = [
        Gradients(found, recipes.load(values | more)).compare(stored, spec, "uniform")["late"].error
        for more in ({}, {"top_k": K})
    ]
    few = replace(spec, k_max=K, k_min=K)
    cut = codec.encode(dense.sparsify(found.logits_BC, few), few, C)
    expected = Gradients(found, recipes.load(values)).compare(cut, few, "uniform")["late"].error
    assert errors[0] < 0.02 < errors[1]
    assert errors[1] == pytest.approx(expected, rel=0.02)


def test_the_highest_temperature_of_a_run_counts() -> None:
    values = {"student": "x", "epochs": 1, "temperature": 1.0, "temperature_end": 3.0}
    assert Gradients(sample(), recipes.load(values)).temperature == 3.0
    assert Gradients(sample(), recipes.load(values | {"loss": "bkd"})).temperature == 1.0


def test_noise_is_normal_and_the_same_every_time() -> None:
    noise = gradients.normal(0, 300, 101)
    assert (noise == gradients.normal(0, 300, 101)).all()
    assert (noise[:50] == gradients.normal(0, 50, 101)).all()
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs((np.abs(noise) < 1).mean() - 0.6827) < 0.01
    assert not (noise == gradients.normal(1, 300, 101)).any()
