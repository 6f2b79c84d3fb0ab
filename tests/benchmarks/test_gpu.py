"""`benchmarks.gpu`: the division of its minutes, and its short form on the CPU."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import cuda_tests, sections, teachers
from benchmarks.gpu.budget import Allowance, Budget
from benchmarks.stage1 import Case, Cost


@dataclass
class Time:
    """A clock that is set by hand."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Demand:
    share: float
    least: float


def test_a_section_has_its_share_and_what_those_before_it_left_over() -> None:
    time = Time()
    a, b, c = Demand(10, 5), Demand(20, 5), Demand(30, 5)
    budget = Budget(120, (a, b, c), time)  # twice the shares
    assert budget.allowed(a, (b, c)) == 20
    time.now += 8
    assert budget.allowed(b, (c,)) == 52
    time.now += 52
    assert budget.allowed(c, ()) == 60


def test_a_section_that_takes_too_long_is_at_the_expense_of_the_last_ones() -> None:
    time = Time()
    a, b, c = Demand(10, 5), Demand(20, 15), Demand(30, 25)
    budget = Budget(60, (a, b, c), time)
    time.now += 25
    assert budget.allowed(b, (c,)) == 15
    time.now += 15
    assert budget.allowed(c, ()) is None
    time.now += 50
    assert budget.allowed(a, ()) is None


@pytest.mark.parametrize(
    ("length", "rounds"),
    [([2.0] * 9, 5), ([2.0, 4.0, 4.0, 4.0], 3), ([30.0] * 9, 2), ([0.1] * 9, 7)],
)
def test_a_round_begins_while_one_like_the_longest_fits(length: list[float], rounds: int) -> None:
    time = Time()
    begun = 0
    for number in Allowance(11.0, time).rounds(7):
        time.now += length[number]
        begun += 1
    assert begun == rounds


def test_every_round_begins_with_another_contestant() -> None:
    order: list[str] = []

    def turn(name: str) -> int:
        order.append(name)
        return len(order)

    field = {name: lambda name=name: turn(name) for name in "abc"}
    found = Allowance(1e9).turns(field, 2)
    assert "".join(order) == "abcbca"
    assert found == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}


def test_the_shares_of_all_sections_fit_into_nine_minutes() -> None:
    assert sum(section.share for section in sections.FULL) <= 9 * 60 - command.CLOSING
    assert all(0 < section.least <= section.share for section in sections.FULL)
    assert len({section.name for section in sections.FULL}) == len(sections.FULL)


OUTPUT = """
tests/a/test_x.py::test_one PASSED                      [ 20%]
tests/a/test_x.py::test_two[lamb and more] FAILED       [ 40%]
tests/a/test_x.py::test_three ERROR                     [ 60%]
tests/b/test_y.py::test_four SKIPPED (takes a GPU)      [100%]
FAILED tests/a/test_x.py::test_two[lamb and more] - assert 1 == 2
SKIPPED [1] tests/b/test_y.py:1: takes a GPU
"""


def test_outcomes_of_cuda_tests_are_counted() -> None:
    found = cuda_tests.figures(OUTPUT, 1, on_gpu=True)
    assert {k: found[k] for k in ("passed", "failed", "error", "skipped")} == {
        "passed": 1, "failed": 1, "error": 1, "skipped": 1,
    }  # fmt: skip
    assert found["run"] == "pytest ended with 1"
    assert found["bars"] == {"every CUDA test passes": False}
    assert "assert 1 == 2" in found["output"]
    assert "  failed  tests/a/test_x.py::test_two[lamb and more]" in cuda_tests.lines("t", found)


@pytest.mark.parametrize(
    ("output", "code", "met"),
    [
        ("tests/x.py::a PASSED [50%]\ntests/x.py::b PASSED [100%]", 0, True),
        ("tests/x.py::a PASSED [50%]\ntests/x.py::b SKIPPED (no) [100%]", 0, False),
        ("tests/x.py::a PASSED [50%]\ntests/x.py::b ", -signal.SIGKILL, False),
        ("", 0, False),
    ],
)
def test_a_skipped_or_unfinished_cuda_test_misses_the_goal(
    output: str, code: int, met: bool
) -> None:
    assert cuda_tests.figures(output, code, on_gpu=True)["bars"] == {"every CUDA test passes": met}


def test_the_files_of_cuda_tests_are_found() -> None:
    found = cuda_tests.files()
    assert "tests/pipeline/worker/test_predict.py" in found
    assert "tests/cache_tools/views/test_draw.py" not in found


def test_the_length_of_a_turn_goes_by_the_teachers_speed() -> None:
    case = Case("resnet50", 224, 256, 2048, 32)
    assert teachers.turn_length(100.0, case) == 4
    assert teachers.turn_length(5000.0, case) == 8
    assert teachers.turn_length(1e6, case) == 32
    fast, slow = [Cost(1.0, 1.0)], [Cost(2.0, 1.0)]
    assert teachers.bound_by_teacher({"bare": slow, "render 4": fast})
    assert not teachers.bound_by_teacher({"bare": fast, "render 4": slow})


def test_without_a_gpu_only_the_short_form_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments, message in ([], "there is no GPU here"), (["--short", "--only=x"], "no section"):
        with pytest.raises(SystemExit) as exit_:
            command.main(arguments)
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


def test_sections_without_figures_are_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is ended when the time is over; for the others nothing is left."""
    path = tmp_path / "found.json"
    moment = str((command.CLOSING + 0.05) / 60)
    assert command.main(["--short", "--minutes", moment, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    first, *others = found["without figures"].values()
    assert first.startswith("stopped: it had not ended after 0 s")
    assert others == ["left out: it takes 0 s or more, and 0 s were left"] * len(others)
    assert len(others) == len(sections.SHORT) - 1
    assert capsys.readouterr().out.count("NOT MEASURED") == len(sections.SHORT)


def test_a_section_that_fails_is_named_and_the_next_one_has_a_process_of_its_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "found.json"
    arguments = ["--short", "--only=re", "--pictures", str(tmp_path), "--json", str(path)]
    assert command.main(arguments) == 1
    found = json.loads(path.read_text())
    reason = f"failed: ValueError: {tmp_path} has no file *.jpg or *.jpeg"
    names = "teacher test_resnet, not compiled", "regions"
    assert found["without figures"] == dict.fromkeys(names, reason)


@pytest.mark.slow
def test_the_short_form_measures_every_section(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    assert command.main(["--short", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["without figures"] == {}
    parts = found["sections"]
    assert list(parts) == [section.name for section in sections.SHORT]
    assert parts["CUDA tests"]["run"] == "complete"
    assert parts["CUDA tests"]["skipped"] == len(parts["CUDA tests"]["tests"]) > 10
    assert parts["teacher test_resnet, not compiled"]["4 views per decode"]["of bare, cpu"]["least"]
    student = parts["student test_efficientnet"]
    assert {*student["images per second"]} == {"labels", "cached", "online"}
    assert [*student["cached by renderer threads"]] == ["1", "2"]
    assert student["limit of cached / online"] > 1
    targets = parts["targets"]["of the CPU in fp32"]
    assert targets["cpu fp32"]["kl_t1_mean"] == 0
    assert 0 < targets["cpu bf16"]["kl_t1_mean"] < 0.1
    assert targets["cpu bf16"]["top1_agreement"] > 60
    assert parts["regions"]["loader, 1 threads"]["regions / whole"]["median"] > 0
    assert parts["cohort"]["cohort / one"]["median"] > 0
    printed = capsys.readouterr().out
    assert "| renderer threads | cached images/s | data wait |" in printed
