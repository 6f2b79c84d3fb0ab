import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools import codec
from cache_tools.spec import TargetSpec
from pipeline.forward import sparsify


def logits(seed: int, classes: int, scale: float, count: int = 32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, classes)) * scale).astype("f4")


def stored(values: np.ndarray, spec: TargetSpec) -> codec.Stored:
    return codec.encode(*codec.sparsify(values, spec), values.shape[1])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 300), st.floats(0.1, 12), st.integers(1, 64))
def test_round_trip(seed: int, classes: int, scale: float, k: int) -> None:
    k = min(k, classes)
    spec = TargetSpec(k_max=k, k_min=min(2, k), tau=0.002)
    values = logits(seed, classes, scale)
    index, p, tail = codec.sparsify(values, spec)
    there = stored(values, spec)
    assert codec.check(there, classes) is None
    back = codec.decode(there)
    total = back.probability_BK.sum(1, dtype=np.float64) + back.tail_BT[:, 0]
    assert np.allclose(total, 1, atol=1e-6)
    dense, restored = np.zeros((2, *values.shape))
    for row in range(len(values)):
        keep = index[row] >= 0
        dense[row, index[row][keep]] = p[row][keep]
        kept = there.code_BK[row] > 0
        restored[row, back.index_BK[row][kept]] = back.probability_BK[row][kept]
    assert ((restored > 0) == (dense > 0)).all()
    assert np.abs(restored - dense).max() < 0.035
    assert np.abs(back.tail_BT[:, 0] - tail[:, 0]).max() < 0.02


@pytest.mark.parametrize("k_max", [1, 5, 40])
def test_threshold_and_limits(k_max: int) -> None:
    values = logits(0, 40, 2.0, 500)
    spec = TargetSpec(k_max=k_max, k_min=1, tau=0.01)
    p = torch.from_numpy(values).softmax(1)
    kept = (codec.decode(stored(values, spec)).probability_BK > 0).sum(1)
    assert (kept == (p > 0.01).sum(1).clamp(1, k_max).numpy()).all()


def test_keeping_all_classes_leaves_no_tail() -> None:
    spec = TargetSpec(k_max=10, k_min=10, tau=0.0, temperatures=(1.0, 4.0))
    back = codec.decode(stored(logits(1, 10, 9.0), spec))
    assert (back.tail_BT == 0).all()


def test_a_confident_teachers_tail_is_not_lost() -> None:
    """1 - Σp in single precision would be 0 here; the mass is summed over the dropped classes."""
    values = np.zeros((1, 1000), "f4")
    values[0, 3] = 25.0
    back = codec.decode(stored(values, TargetSpec(k_max=4, tau=0.5)))
    assert back.tail_BT[0, 0] == pytest.approx(np.exp(-11) / (1 + np.exp(-11)), rel=1e-3)
    assert back.tail_BT[0, 1] == pytest.approx(999 * np.exp(-12.5), rel=0.05)


def test_the_device_chooses_like_the_reference() -> None:
    values = logits(5, 1000, 2.5, 200)
    spec = TargetSpec(k_max=30, k_min=2, tau=0.003)
    ours = codec.encode(*(t.numpy() for t in sparsify(torch.from_numpy(values), spec)), 1000)
    reference = stored(values, spec)
    assert (ours.index_delta_BK == reference.index_delta_BK).all()
    assert np.abs(ours.code_BK.astype(int) - reference.code_BK).max() <= 1
    assert np.abs(ours.tail_BT.astype(int) - reference.tail_BT).max() <= 1


@pytest.mark.parametrize(
    ("field", "row", "slot", "value", "complaint"),
    [
        ("code_BK", 2, 0, 255, "above 127"),
        ("code_BK", 2, 1, 0, "without"),
        ("index_delta_BK", 0, 0, 5000, "beyond 99"),
        ("tail_BT", 1, 0, 255, "fill value"),
    ],
)
def test_impossible_targets_are_noticed(
    field: str, row: int, slot: int, value: int, complaint: str
) -> None:
    there = stored(logits(2, 100, 1.0), TargetSpec(k_max=8, tau=0.0))
    getattr(there, field)[row, slot] = value
    assert complaint in str(codec.check(there, 100))


def test_planned_bytes_grow_with_what_is_kept() -> None:
    sizes = [codec.expected_bytes(1000, k, 2) for k in (5, 20, 100)]
    assert sizes == sorted(sizes)
    assert sizes[1] == pytest.approx(33.7, abs=2.5)  # measured: 33.5-34 bytes on distinct photos
