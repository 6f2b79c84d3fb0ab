"""Table and plot of a sweep: names of students, those that none beats, labels that fit."""

from pathlib import Path

from train.sweep import plot, table


def test_students_are_named_by_the_keys_that_differ() -> None:
    rows = [{"name": "net,lr=0.1", "student": "net", "lr": 0.1}, {"name": "net,lr=1", "lr": 1.0}]
    assert table.headers(rows, ["student", "lr"]) == ["student", "lr"]
    assert table.headers(rows, ["student", "lr", "opt"]) == ["student", "lr", "opt"]
    assert table.headers([{"name": "bold", "lr": 0.1}], ["lr"]) == ["name", "lr"]
    assert table.headers(rows, []) == ["name"]


def test_what_nothing_beats() -> None:
    rows = [
        {"name": str(i), "state": "finished", "cost": c, "accuracy": a}
        for i, (c, a) in enumerate([(1, 50.0), (2, 40.0), (3, 70.0), (3, 60.0), (4, 70.0)])
    ]
    assert [r["name"] for r in table.pareto_front(rows, "cost", more=False)] == ["0", "2"]
    assert [r["name"] for r in table.pareto_front(rows, "cost", more=True)] == ["4"]


def test_a_picture_of_many_students(tmp_path: Path) -> None:
    """What does not fit is left out: matplotlib would warn, which is an error here."""
    rows = [
        {
            "name": f"s{i}", "student": f"a_network_of_a_long_name_{i % 30}.a1_in1k",
            "lr": 1e-5 * 1.1**i, "bold": i % 2 == 0, "state": "finished",
            "accuracy": 50.0 + i % 7, "parameters": 10**5 * (i + 1),
            "images_per_second": 100.0 + i, "cost_seconds": 0.0,
        }
        for i in range(120)
    ]  # fmt: skip
    for count in (2, 3, 120):
        path = tmp_path / f"{count}.png"
        assert plot.draw(rows[:count], ["student", "lr", "bold"], r"$\frac$", path)
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert not plot.draw(rows[:1], ["lr"], "t", path)
