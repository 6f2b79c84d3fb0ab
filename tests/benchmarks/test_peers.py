"""The peers' records: sizes to the byte, what comes back, and where each of them goes wrong."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import codec, distillkit, peers
from benchmarks.distillkit import BINS, BUDGET, RECOMMENDED, DistillKit
from benchmarks.peers import FKD, MlDr, Peer, PlainZarr, TinyViT

CLASSES = 1000
ALL = [*codec.standard(8), replace(RECOMMENDED, missing="zero"), FKD(5, crops=8, tail="renorm")]
by_name = pytest.mark.parametrize("peer", ALL, ids=lambda peer: peer.name)


def teacher(views: int = 20, classes: int = CLASSES, scale: float = 2.5) -> peers.F8:
    """Logits with a few classes well above the others; the larger the scale, the surer."""
    return scale * np.random.default_rng(5).gumbel(size=(views, classes))


def kept(peer: Peer) -> int:
    return int(getattr(peer, "top_k"))  # noqa: B009 - every peer has it, the protocol need not


# what comes back


@by_name
def test_every_peer_gives_back_a_distribution_in_order(peer: Peer) -> None:
    logits_BC = teacher()
    restored_BC = peer.restore(peer.encode(logits_BC))
    assert restored_BC.shape == logits_BC.shape
    assert restored_BC.dtype == np.float64
    if peer is not BUDGET:  # its curve is tested below
        assert (restored_BC.argmax(1) == logits_BC.argmax(1)).all()
        np.testing.assert_allclose(restored_BC.sum(1), 1, atol=2e-2)


@by_name
def test_the_largest_classes_come_back_and_the_others_share(peer: Peer) -> None:
    logits_BC = teacher(scale=1.0)
    p_BC, restored_BC = peers.softmax(logits_BC), peer.restore(peer.encode(logits_BC))
    rank_BC = np.argsort(-p_BC, axis=1)
    rest = np.take_along_axis(restored_BC, rank_BC[:, kept(peer) :], 1)
    np.testing.assert_allclose(rest, rest[:, :1].repeat(rest.shape[1], 1))
    if "renorm" not in peer.name and "zero" not in peer.name:
        as_they_are = 16 if peer is RECOMMENDED else 1 if peer is BUDGET else kept(peer)
        top = rank_BC[:, :as_they_are]
        exact, back = (np.take_along_axis(q, top, 1) for q in (p_BC, restored_BC))
        np.testing.assert_allclose(back, exact, rtol=0.15 if peer is BINS else 0.03)


@by_name
def test_a_second_encoding_is_the_same(peer: Peer) -> None:
    assert peer.encode(teacher()) == peer.encode(teacher())


@pytest.mark.parametrize("peer", [TinyViT(10), FKD(10), MlDr(10)], ids=lambda peer: peer.name)
def test_uniform_tails_sum_to_one_even_in_float32(peer: Peer) -> None:
    restored_BC = peer.restore(peer.encode(teacher(scale=1.0)))
    np.testing.assert_allclose(restored_BC.sum(1), 1, atol=1e-5)


def test_dropping_the_tail_leaves_zeros() -> None:
    for peer in (FKD(5, tail="renorm"), replace(BINS, missing="zero")):
        restored_BC = peer.restore(peer.encode(teacher()))
        assert ((restored_BC > 0).sum(1) == peer.top_k).all()
        np.testing.assert_allclose(restored_BC.sum(1), 1, atol=1e-6)


# sizes


def test_tinyvit_is_four_bytes_and_four_per_class() -> None:
    for top_k in (10, 20, 50, 100):
        stored = TinyViT(top_k).encode(teacher(12))
        values = stored.files[f"logits_top{top_k}_epoch0/rank0-values.bin"]
        assert len(values) == 12 * (4 + 4 * top_k) == 12 * TinyViT(top_k).record_bytes(CLASSES)
        assert stored.files[f"logits_top{top_k}_epoch0/rank0-keys.txt"].split() == [
            str(view).encode() for view in range(12)
        ]
    assert TinyViT(10).record_bytes(CLASSES) == 44


def test_a_tinyvit_record_field_by_field() -> None:
    logits_BC = teacher(3)
    stored = TinyViT(2, epoch=7).encode(logits_BC)
    record = stored.files["logits_top2_epoch7/rank0-values.bin"][12:24]
    seed, first, second, p_first, p_second = struct.unpack("<ihhee", record)
    assert 0 <= seed < 2**31
    assert [first, second] == np.argsort(-logits_BC[1])[:2].tolist()
    p_C = peers.softmax(logits_BC)[1].astype(np.float16)
    assert [p_first, p_second] == [p_C[first], p_C[second]]


@pytest.mark.parametrize(
    ("peer", "size"),
    [
        (FKD(5, "float32"), 4 * 4 + 1 + 2 * 5 * 4),
        (FKD(5, "float16"), 2 * 4 + 1 + 2 * 5 * 2),
        (FKD(10, "float16"), 2 * 4 + 1 + 2 * 10 * 2),
        (RECOMMENDED, 16 * 2 + 6 * 4 + 128 * 10 // 8),
        (BUDGET, 1 * 2 + 3 * 4 + 63),
        (BINS, 4 + 2 + 19 + 25),
        (PlainZarr(20), 80),
        (MlDr(10), None),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_record_bytes(peer: Peer, size: int | None) -> None:
    assert peer.record_bytes(CLASSES) == size


def test_the_sizes_distillkit_states() -> None:
    """README: about 300 and 114 bytes; with the ceil(log2 d) bits of its code, 328 and 121."""
    assert RECOMMENDED.record_bytes(128_256) == 328
    assert BUDGET.record_bytes(128_256) == 121


@pytest.mark.parametrize("peer", [RECOMMENDED, BUDGET, BINS], ids=lambda peer: peer.name)
@pytest.mark.parametrize("classes", [300, CLASSES])
def test_distillkit_writes_records_and_nothing_else(peer: DistillKit, classes: int) -> None:
    stored = peer.encode(teacher(7, classes))
    assert stored.bytes_per_view == peer.record_bytes(classes)


def test_bits_are_packed_most_significant_first() -> None:
    index_BK = np.array([[1, 1023, 512]])
    packed = distillkit._pack(index_BK, 10)
    assert packed.tolist() == [[0b00000000, 0b01111111, 0b11111000, 0b00000000]]
    np.testing.assert_array_equal(distillkit._unpack(packed, 10, 3), index_BK)


def test_bfloat16_is_torchs() -> None:
    value = np.random.default_rng(0).normal(size=(50, 40)) * 10
    ours = distillkit._bfloat16(value).astype(np.int64)
    theirs = torch.tensor(value.astype(np.float32)).bfloat16().view(torch.int16).numpy()
    np.testing.assert_array_equal(ours, theirs.astype(np.int64) & 0xFFFF)


def test_fkd_files_cost_more_than_their_payload() -> None:
    few, many = (FKD(crops=crops).encode(teacher(500)).bytes_per_view for crops in (32, 500))
    assert FKD().record_bytes(CLASSES) == 57 < many < few
    assert many == pytest.approx(76.8, abs=2)  # pickle's protocol 2 spells bytes as UTF-8


def test_an_fkd_file_holds_what_its_trainer_expects() -> None:
    files = FKD(10, "float16", crops=8).encode(teacher(20)).files
    assert len(files) == 3
    assert all(path.endswith(".tar") and data[:2] == b"PK" for path, data in files.items())


def test_mldr_costs_several_times_its_information_and_gzip_helps() -> None:
    raw, packed = (MlDr(10, 400, gz).encode(teacher(800)).bytes_per_view for gz in (False, True))
    assert 150 < raw < 165
    assert 70 < packed < 85


def test_zarr_counts_every_file() -> None:
    stored = PlainZarr(20).encode(teacher(500))
    assert {"zarr.json", "index/zarr.json", "log_probability/zarr.json"} <= set(stored.files)
    assert stored.bytes_per_view * 500 == sum(map(len, stored.files.values()))
    assert stored.bytes_per_view < PlainZarr(20).record_bytes(CLASSES)


# reading TinyViT's records


def test_the_reader_reads_what_restore_decodes(tmp_path: Path) -> None:
    logits_BC = teacher(30)
    peer = TinyViT(20, epoch=3)
    stored = peer.encode(logits_BC)
    restored_BC = peer.restore(stored)
    folder = stored.write(tmp_path) / peer.folder
    with peers.TinyViTReader(folder, 20) as reader:
        for view in (29, 0, 7):
            _, index_K, value_K = reader.read(str(view))
            np.testing.assert_array_equal(restored_BC[view, index_K], value_K.astype(np.float64))
            assert index_K.flags.writeable
        with pytest.raises(KeyError):
            reader.read("30")


# where they go wrong


def test_tinyvits_tail_turns_negative_for_a_sure_teacher() -> None:
    logits_BC = teacher(200, scale=5.0)
    restored_BC = TinyViT(20).restore(TinyViT(20).encode(logits_BC))
    negative_B = (restored_BC < 0).any(1)
    assert 0.1 < negative_B.mean() < 0.9
    assert restored_BC.min() > -1e-3 / (CLASSES - 20)  # small, yet not a distribution
    assert np.isfinite(peers.divergence(logits_BC, restored_BC)).all()


def test_tinyvit_refuses_classes_that_int16_cannot_name() -> None:
    with pytest.raises(ValueError, match="40000 classes"):
        TinyViT(10).encode(np.zeros((1, 40_000)))


def test_fkd_in_float16_changes_classes_above_2048() -> None:
    logits_BC = teacher(50, classes=8192)
    exact_BC = FKD(5).restore(FKD(5).encode(logits_BC))
    half_BC = FKD(5, "float16").restore(FKD(5, "float16").encode(logits_BC))
    top_B = logits_BC.argmax(1)
    assert (exact_BC.argmax(1) == top_B).all()
    assert (half_BC.argmax(1) != top_B).mean() > 0.3
    below_B = top_B <= 2048
    assert (half_BC.argmax(1) == top_B)[below_B].all()


def test_mldr_takes_a_softmax_of_probabilities_where_they_exceed_one() -> None:
    logits_BC = teacher(2000, scale=10.0)
    restored_BC = MlDr(10).restore(MlDr(10).encode(logits_BC))
    softened_B = restored_BC.max(1) < np.e / (np.e + 9) + 1e-6  # what a probability of 1 becomes
    assert 0 < softened_B.mean() < 0.1
    assert ((restored_BC[softened_B] == 0).sum(1) == CLASSES - 10).all()
    assert peers.softmax(logits_BC).max(1)[softened_B].min() > 0.3
    assert peers.divergence(logits_BC, restored_BC)[softened_B].min() > 0.5


def test_distillkits_curve_can_exceed_one_and_blurs_the_head() -> None:
    logits_BC = teacher(200)
    budget_BC, bins_BC = (peer.restore(peer.encode(logits_BC)) for peer in (BUDGET, BINS))
    assert (budget_BC.sum(1) > 1.001).mean() > 0.2
    assert (budget_BC.argmax(1) != logits_BC.argmax(1)).any()  # a fitted rank above the exact one
    budget, bins = (peers.divergence(logits_BC, q).mean() for q in (budget_BC, bins_BC))
    assert budget > bins


def test_distillkit_gives_the_rest_at_least_a_millionth() -> None:
    logits_BC = teacher(20, scale=30.0)
    restored_BC = BINS.restore(BINS.encode(logits_BC))
    others = np.take_along_axis(restored_BC, np.argsort(-logits_BC, axis=1)[:, 20:], 1)
    assert others.min() >= distillkit.MISSING / (CLASSES - 20) * 0.999
    assert peers.softmax(logits_BC).min() < 1e-100


# the measure


def test_divergence_is_zero_for_the_teacher_itself_at_any_temperature() -> None:
    logits_BC = teacher(scale=1.0)
    for temperature in (1.0, 2.0, 4.0):
        kl_B = peers.divergence(logits_BC, peers.softmax(logits_BC), temperature)
        np.testing.assert_allclose(kl_B, 0, atol=1e-9)


def test_divergence_by_hand() -> None:
    logits_BC = np.log([[0.5, 0.25, 0.25]])
    restored_BC = np.array([[0.25, 0.25, 0.5]])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    np.testing.assert_allclose(peers.divergence(logits_BC, restored_BC), expected)
    root_C, other_C = np.sqrt([0.5, 0.25, 0.25]), np.sqrt([0.25, 0.25, 0.5])
    p_C, q_C = root_C / root_C.sum(), other_C / other_C.sum()
    at_two = (p_C * np.log(p_C / q_C)).sum()
    np.testing.assert_allclose(peers.divergence(logits_BC, restored_BC, 2.0), at_two)


def test_divergence_counts_what_is_missing_at_the_floor() -> None:
    logits_BC = np.log([[0.75, 0.25]])
    expected = 0.75 * np.log(0.75) + 0.25 * np.log(0.25 / peers.FLOOR)
    for missing in (0.0, -1e-4):
        kl_B = peers.divergence(logits_BC, np.array([[1.0, missing]]))
        np.testing.assert_allclose(kl_B, expected, rtol=1e-9)


def test_more_classes_are_nearer() -> None:
    logits_BC = teacher(50, scale=1.0)
    kl = [
        peers.divergence(logits_BC, TinyViT(k).restore(TinyViT(k).encode(logits_BC))).mean()
        for k in (10, 20, 50)
    ]
    assert kl[0] > kl[1] > kl[2] > 0
