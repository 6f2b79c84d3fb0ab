import numpy as np
import pytest

from cache_tools.numerics import rng

ONES = (1 << 64) - 1


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (0, 0, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (ONES, ONES, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    ],
)
def test_philox_gives_the_published_numbers(counter: int, key: int, expected: str) -> None:
    word = np.full(1, counter, dtype=np.uint64)
    words = rng.philox((word, word, word, word), (key, key))
    assert " ".join(f"{int(w[0]):016x}" for w in words) == expected


def test_philox_agrees_with_numpy_beyond_the_published_vectors() -> None:
    ids = np.random.default_rng(0).integers(0, 2**64, 50, dtype=np.uint64)
    for number in ids:
        counter = [0, 7, int(number), rng.STREAM_CROP]
        # numpy counts up before it draws
        value = sum(c << (64 * i) for i, c in enumerate(counter)) - 1
        theirs = np.random.Philox(counter=value % 2**256, key=[5, 0]).random_raw(4)
        ours = rng.bits(5, np.array([number]), 7, rng.STREAM_CROP, 4)[0]
        assert (ours == theirs).all()


def test_a_draw_depends_on_its_counter_alone() -> None:
    ids = np.arange(20, dtype=np.uint64)
    all_at_once = rng.bits(3, ids, 2, rng.STREAM_MIX, 9)
    alone = rng.bits(3, ids[13:14], 2, rng.STREAM_MIX, 6)
    assert (all_at_once[13, :6] == alone[0]).all()
    later = rng.bits(3, ids, 2, rng.STREAM_MIX, 5, 4)
    assert np.array_equal(later, all_at_once[:, 4:])
    assert (rng.bits(3, ids, 2, rng.STREAM_FLIP, 9) != all_at_once).all()
    assert (rng.bits(3, ids, 3, rng.STREAM_MIX, 9) != all_at_once).all()


def test_uniforms_fill_the_unit_interval() -> None:
    u = rng.uniform(rng.bits(0, np.arange(5000, dtype=np.uint64), 0, 1, 4))
    assert 0 <= u.min() < 1e-3
    assert 0.999 < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01


def test_the_first_draws_are_made_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "_PIECE", 7)
    ids = np.random.default_rng(0).integers(0, 2**64, 50, dtype=np.uint64)
    found = rng.first_bits(3, ids, 2, rng.STREAM_ORDER)
    assert np.array_equal(found, rng.bits(3, ids, 2, rng.STREAM_ORDER, 1)[:, 0])
