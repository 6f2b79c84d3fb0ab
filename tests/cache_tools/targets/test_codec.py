from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec, dense
from pipeline.teacher.sparsify import sparsify

STEP = 18 / 253
"""Log-odds between two codes of a tail."""


def logits(seed: int, classes: int, scale: float, count: int = 32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, classes)) * scale).astype("f4")


def stored(
    values: np.ndarray, spec: TargetSpec, labels: np.ndarray | None = None
) -> codec.EncodedTargets:
    return codec.encode(dense.sparsify(values, spec, labels), spec, values.shape[1])


def log_odds(mass: np.ndarray) -> np.ndarray:
    return np.log(mass / (1 - mass))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    classes=st.one_of(st.integers(2, 40), st.integers(2, 22_000)),
    scale=st.floats(0.0, 30),
    k=st.integers(1, 200),
    tau=st.sampled_from([0.0, 1e-4, 0.002, 0.3]),
    levels=st.sampled_from([15, 63, 127, 254]),
)
def test_round_trip(seed: int, classes: int, scale: float, k: int, tau: float, levels: int) -> None:
    """Bounds of FORMAT.md, section 4.4, for any finite logits."""
    k = min(k, classes)
    spec = TargetSpec(k_max=k, k_min=min(2, k), tau=tau, levels=levels)
    values = logits(seed, classes, scale, 8)
    sparse = dense.sparsify(values, spec)
    there = codec.encode(sparse, spec, classes)
    assert codec.check(there, spec, classes) is None
    back = codec.decode(there, spec)
    kept = sparse.index_BK >= 0
    assert (np.where(kept, back.index_BK, -1) == sparse.index_BK).all()  # both ascending
    assert (np.diff(back.index_BK, axis=1)[kept[:, 1:]] > 0).all()
    total = back.probability_BK.sum(1, dtype=np.float64) + back.tail_BT[:, 0]
    assert np.allclose(total, 1, atol=1e-6)
    _check_tail(back, sparse, classes)
    _check_order(back, sparse)
    p = dense.softmax(values)
    restored = dense.densify(back, spec, classes)
    lost = dense.kl_divergence(p, restored)
    bound = 2 * k**0.5 / levels**2 + k / levels**4 + 0.002
    assert (lost <= dense.kl_divergence(p, _exact(p, sparse)) + bound).all()


def _exact(p_BC: np.ndarray, sparse: codec.SparseTargets) -> np.ndarray:
    """The kept classes as they are and the rest spread evenly: what no codec can better."""
    kept = np.zeros(p_BC.shape, dtype=bool)
    row, slot = np.nonzero(sparse.index_BK >= 0)
    kept[row, sparse.index_BK[row, slot]] = True
    rest = np.where(kept, 0.0, p_BC).sum(1) / np.maximum((~kept).sum(1), 1)
    return np.where(kept, p_BC, rest[:, None])


def _check_tail(back: codec.DecodedTargets, sparse: codec.SparseTargets, classes: int) -> None:
    """Half a step of log-odds, and clipped to its range; none when every class is kept."""
    whole = (sparse.index_BK >= 0).sum(1) == classes
    assert ((back.tail_BT == 0).all(1) == whole).all()
    mass = np.clip(sparse.tail_BT[~whole], 1e-30, 1 - 1e-9)
    error = log_odds(back.tail_BT[~whole].astype("f8")) - np.clip(log_odds(mass), -11, 7)
    assert np.abs(error).max(initial=0) <= STEP / 2 + 1e-4


def _check_order(back: codec.DecodedTargets, sparse: codec.SparseTargets) -> None:
    """A class that was more probable is not less probable now."""
    order = np.argsort(sparse.probability_BK, axis=1, kind="stable")
    restored = np.take_along_axis(back.probability_BK, order, axis=1)
    assert (np.diff(restored, axis=1) >= 0).all()


@pytest.mark.parametrize("k_max", [1, 5, 40])
def test_threshold_and_limits(k_max: int) -> None:
    values = logits(0, 40, 2.0, 500)
    spec = TargetSpec(k_max=k_max, k_min=1, tau=0.01)
    p = torch.from_numpy(values).softmax(1)
    kept = stored(values, spec).count_B
    assert (kept == (p > 0.01).sum(1).clamp(1, k_max).numpy()).all()


def test_equal_logits_keep_the_lower_ids() -> None:
    spec = TargetSpec(k_max=3, k_min=3, tau=0.0)
    assert dense.sparsify(np.zeros((1, 9), "f4"), spec).index_BK.tolist() == [[0, 1, 2]]


def test_keeping_all_classes_leaves_no_tail() -> None:
    spec = TargetSpec(k_max=10, k_min=10, tau=0.0, temperatures=(1.0, 4.0))
    back = codec.decode(stored(logits(1, 10, 9.0), spec), spec)
    assert (back.tail_BT == 0).all()


def test_a_confident_teachers_tail_is_not_lost() -> None:
    """1 - Σp in single precision would be 0 here; the mass is summed over the dropped classes."""
    values = np.zeros((1, 1000), "f4")
    values[0, 3] = 25.0
    spec = TargetSpec(k_max=4, tau=0.5)
    back = codec.decode(stored(values, spec), spec)
    assert back.tail_BT[0, 0] == pytest.approx(np.exp(-11) / (1 + np.exp(-11)), rel=1e-3)
    assert back.tail_BT[0, 1] == pytest.approx(999 * np.exp(-12.5), rel=0.05)


@pytest.mark.parametrize("classes", [65_534, 65_535, 70_000])
def test_more_classes_take_wider_differences(classes: int) -> None:
    values = np.zeros((2, classes), "f4")
    values[0, -1], values[1, 0] = 20.0, 20.0
    spec = TargetSpec(k_max=4, tau=0.01)
    there = stored(values, spec)
    assert there.index_delta_E.dtype == ("u2" if classes == 65_534 else "u4")
    assert codec.decode(there, spec).index_BK[:, 0].tolist() == [classes - 1, 0]


def test_rows_are_decoded_in_any_order() -> None:
    spec = TargetSpec(k_max=30, tau=0.004, true_class=True, tail_square=True)
    labels = np.random.default_rng(0).integers(0, 1000, (200, 2))
    there = stored(logits(3, 1000, 2.0, 200), spec, labels)
    rows = np.random.default_rng(1).integers(0, 200, 500)
    whole, some = codec.decode(there, spec), codec.decode(there, spec, rows)
    halves = codec.concatenate([stored(logits(3, 1000, 2.0, 200)[s], spec, labels[s])
                                for s in (slice(0, 90), slice(90, 200))])  # fmt: skip
    for name in vars(whole):
        assert (getattr(whole, name)[rows] == getattr(some, name)).all()
        assert (getattr(codec.decode(halves, spec), name) == getattr(whole, name)).all()


def test_the_true_class_and_the_squares_are_stored_where_the_spec_has_them() -> None:
    values, labels = logits(4, 1000, 2.5, 300), np.full((300, 2), -1)
    labels[:, 0] = np.random.default_rng(0).integers(0, 1000, 300)
    spec = TargetSpec(k_max=20, tau=0.01, true_class=True, tail_square=True)
    back = codec.decode(stored(values, spec, labels), spec)
    p = dense.softmax(values)
    kept = dense.sparsify(values, spec).index_BK
    is_kept = (kept == labels[:, :1]).any(1)
    assert 0 < is_kept.sum() < 300
    true = np.take_along_axis(p, labels[:, :1], 1)[:, 0]
    assert (back.true_BP[is_kept, 0] == 0).all()
    assert np.allclose(back.true_BP[~is_kept, 0], true[~is_kept], rtol=0.05)
    assert (back.true_BP[:, 1] == 0).all()
    rest = p.copy()
    for row in range(300):
        rest[row, kept[row][kept[row] >= 0]] = 0
    assert np.allclose(back.square_BQ[:, 0], (rest**2).sum(1), rtol=0.12)
    plain = codec.decode(stored(values, TargetSpec(k_max=20)), TargetSpec(k_max=20))
    assert plain.true_BP.shape == plain.square_BQ.shape == (300, 0)


def test_the_device_chooses_like_the_reference() -> None:
    values, labels = logits(5, 1000, 2.5, 200), np.random.default_rng(2).integers(-1, 9, (200, 2))
    spec = TargetSpec(k_max=30, k_min=2, tau=0.003, true_class=True, tail_square=True)
    said = sparsify(torch.from_numpy(values), spec, torch.from_numpy(labels))
    ours = codec.encode(codec.SparseTargets(*(t.numpy() for t in said)), spec, 1000)
    reference = stored(values, spec, labels)
    assert (ours.index_delta_E == reference.index_delta_E).all()
    for name in ("code_E", "tail_TB", "true_PB", "square_QB"):
        a, b = (getattr(side, name).astype(int) for side in (ours, reference))
        assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize(
    ("field", "place", "value", "complaint"),
    [
        ("code_E", 2, 255, "outside 1..127"),
        ("code_E", 2, 0, "outside 1..127"),
        ("index_delta_E", 1, 0, "named twice"),
        ("index_delta_E", 0, 5000, "beyond 99"),
        ("count_B", 3, 7, "entries for"),
        ("count_B", 3, 9, "keeps 8 or 9"),
        ("tail_TB", (0, 1), 255, "fill value"),
        ("tail_TB", (1, 1), 0, "without a tail"),
    ],
)
def test_impossible_targets_are_noticed(
    field: str, place: tuple[int, ...] | int, value: int, complaint: str
) -> None:
    spec = TargetSpec(k_max=8, k_min=1, tau=0.0)
    there = stored(logits(2, 100, 1.0), spec)
    getattr(there, field)[place] = value
    assert complaint in str(codec.check(there, spec, 100))


def test_planned_bytes_grow_with_what_is_kept() -> None:
    sizes = [codec.expected_bytes(1000, k, TargetSpec()) for k in (5, 20, 100)]
    assert sizes == sorted(sizes)
    assert codec.expected_bytes(1000, 10.8, TargetSpec()) == pytest.approx(20.4, abs=1)
    assert codec.expected_bytes(1000, 24.3, TargetSpec()) == pytest.approx(37.5, abs=2)


def test_parts_are_collected_as_they_come() -> None:
    """Few entries in the first parts and many in the last: room grows."""
    spec = TargetSpec(k_max=20, tau=0.001, tail_square=True)
    parts = [
        stored(logits(seed, 300, scale, 12), spec)
        for seed, scale in enumerate((9.0, 9.0, 1.0, 0.1))
    ]
    parts.insert(2, codec.select_rows(parts[0], np.zeros(0, np.int64)))
    found, whole = codec.collect(iter(parts), 48), codec.concatenate(parts)
    for field in fields(codec.EncodedTargets):
        assert np.array_equal(getattr(found, field.name), getattr(whole, field.name))
        assert getattr(found, field.name).dtype == getattr(whole, field.name).dtype
