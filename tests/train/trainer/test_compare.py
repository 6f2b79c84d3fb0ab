"""The comparison with labels, as it is printed."""

import pytest

from train.trainer import compare


@pytest.mark.parametrize(
    ("kd", "gain"), [([91.2], "+4.2"), ([91.2, 90.2, 92.2], "+4.2 ± 0.6 (standard error)")]
)
def test_a_single_seed_has_no_spread(kd: list[float], gain: str) -> None:
    accuracies = {"kd": kd, "labels": [87.0] * len(kd)}
    table = compare.table(compare.compare(accuracies, range(len(kd)), {}))
    assert table.splitlines()[-1].endswith(gain)
    assert ("±" in table) == (len(kd) > 1)
