"""The comparison with labels: its runs, its table and its picture."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from cache_tools.runtime import progress
from tests.helpers.outcome import Outcome
from tests.helpers.training import FAST
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


Command = Callable[..., Outcome]


def test_comparison_of_both_arms(
    kdcache: Command, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    bar = progress.bar

    def recorded(label: str, *more: Any, **options: Any) -> AbstractContextManager[progress.Bar]:
        labels.append(label)
        return bar(label, *more, **options)

    monkeypatch.setattr(progress, "bar", recorded)
    out = tmp_path / "both"
    arguments = ("train", "digits", "--cache", digits_cache, "--out", out, "--seeds", 2, *FAST)
    outcome = kdcache(*arguments, "--against", "labels")
    assert outcome.code == 0, outcome.err
    assert [label for label in labels if "seed" in label] == [
        "kd seed 0 (1 of 4)",
        "labels seed 0 (2 of 4)",
        "kd seed 1 (3 of 4)",
        "labels seed 1 (4 of 4)",
    ]
    result = json.loads((out / "comparison.json").read_text())
    for i, seed in enumerate((0, 1)):
        pair = [
            json.loads((out / f"{mode}-seed{seed}" / "result.json").read_text())["top1"]
            for mode in ("kd", "labels")
        ]
        assert result["gain"]["each"][i] == pytest.approx(pair[0] - pair[1])
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert "gain" in outcome.out
    assert f"{result['kd']['mean']:.1f}" in outcome.out
