"""Agreement of a teacher with labels: chance level is an error, with both numbers."""

import pytest

from cache_tools.errors import DataError
from cache_tools.targets.statistics import check_agreement


@pytest.mark.parametrize(
    ("hits", "count", "chance", "refused"),
    [
        (20, 200, 0.1, True),
        (36, 200, 0.1, True),  # 20 + 4 · √18 = 36.97
        (37, 200, 0.1, False),
        (0, 199, 0.1, False),  # too few to tell
        (2, 50_000, 0.001, True),
        (79, 50_000, 0.001, False),
        (100, 1000, 0.5, True),
    ],
)
def test_chance_level_is_an_error(hits: int, count: int, chance: float, refused: bool) -> None:
    if not refused:
        check_agreement(hits, count, chance, "part 0", "Compare.")
        return
    numbers = f"{100 * hits / count:.2f} % of the labels, no more than by chance"
    with pytest.raises(DataError, match=rf"part 0: .*{numbers} \({100 * chance:.2f} %\). Compare."):
        check_agreement(hits, count, chance, "part 0", "Compare.")
