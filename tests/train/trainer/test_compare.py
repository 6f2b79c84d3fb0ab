"""The comparison with labels, as it is printed."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from train.report import comparison
from train.trainer import compare


@pytest.mark.parametrize(
    ("kd", "gain"), [([91.2], "+4.2"), ([91.2, 90.2, 92.2], "+4.2 ± 0.6 (standard error)")]
)
def test_a_single_seed_has_no_spread(kd: list[float], gain: str) -> None:
    accuracies = {"kd": kd, "labels": [87.0] * len(kd)}
    table = compare.table(compare.compare(accuracies, range(len(kd)), {}))
    assert table.splitlines()[-1].endswith(gain)
    assert ("±" in table) == (len(kd) > 1)


@pytest.mark.parametrize("kd", [[91.2], [91.2, 90.2]])
def test_the_picture_names_its_error_bars_and_colors_as_in_reports(
    kd: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *args: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *args, **named)

    monkeypatch.setattr(Figure, "savefig", savefig)
    result = compare.compare({"kd": kd, "labels": [87.0] * len(kd)}, range(len(kd)), {})
    compare.draw(result, "test", tmp_path / "c.png")
    axes: Axes = figures[0].axes[0]
    several = len(kd) > 1
    assert ("standard deviation over seeds" in axes.get_ylabel()) == several
    assert ("(standard error)" in axes.get_title()) == several
    drawn = [to_hex(points.get_facecolor()[0][:3]) for points in axes.collections[::2]]
    assert drawn[0] == to_hex("C1")
    arms = [name.get_text() for name in axes.get_xticklabels()]
    assert (arms[0], comparison._arms(["labels-seed0", "kd-seed0"])) == (
        "labels only",
        ["kd", "labels"],
    )


def test_modes_have_their_colors_beside_other_runs() -> None:
    named = ["a-seed0", "run/labels-seed0", "run/kd-seed0", "run/kd-seed1"]
    assert comparison._arms(named) == ["run/kd", "run/labels", "a"]
