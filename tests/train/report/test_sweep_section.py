"""A sweep in a report: its students' front and cost, and values of strangers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.outcome import Outcome
from tests.helpers.reports import Page, swept

Command = Callable[..., Outcome]


def test_a_sweep_has_its_front_and_its_cost(kdcache: Command, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    folder = swept(tmp_path / "sweep")
    assert kdcache("report", folder, "--out", out).code == 0
    page = Page(out.read_text())
    assert "5 finished, 1 diverged" in page.text
    assert "small,temperature=4" not in page.text  # the table has a column for each key
    labels = [one["aria-label"] or "" for one in page.having("svg")]
    assert "2 of 5 students are beaten by no other in both: 85.0 % at 100k; 90.0 % at 400k" in (
        next(label for label in labels if "against parameters" in label)
    )
    assert any("Means by temperature: 1: 85.0 %; 4: 76.3 %" in label for label in labels)
    assert "28,800" in page.text
    assert "14.4 ×" in page.text
    assert "<b>bad" in page.text


def test_a_sweep_of_strange_values_is_shown_as_it_is(kdcache: Command, tmp_path: Path) -> None:
    strange: dict[str, Any] = {
        "students": [
            {"name": "a", "accuracy": 50, "parameters": [1], "lr": {"x": 1}},
            {"name": ["b"], "accuracy": 51.5, "parameters": "many", "lr": [1, 2]},
        ],
        "swept": ["lr"],
        "ledger": None,
    }
    (tmp_path / "sweep.json").write_text(json.dumps(strange))
    out = tmp_path / "report.html"
    assert kdcache("report", tmp_path, "--out", out).code == 0
    assert "{'x': 1}" in Page(out.read_text()).text
    (tmp_path / "sweep.json").write_text('{"students": []}')
    assert kdcache("report", tmp_path, "--out", out).code == 0
