"""The harness of faults reports what is silent, names what is refused, and finds nothing else."""

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.faults import bombs, damages, facts, hostile, process, signals
from benchmarks.faults.damages import Reader, Subject
from benchmarks.faults.kills import Command
from benchmarks.faults.outcome import Figures, table
from benchmarks.faults.process import Ending, Moment
from cache_tools.store import commits
from tests.helpers.outcome import Outcome

Commands = Callable[..., Outcome]


@pytest.fixture
def in_process(kdcache: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands here, not in forked processes."""

    def run(arguments: Sequence[str], folder: Path, *_: object, **__: object) -> Ending:
        monkeypatch.chdir(folder)
        said = kdcache(*arguments)
        return Ending(said.code, said.out, said.err, 0.0, 0)

    monkeypatch.setattr(process, "run", run)


@pytest.fixture
def subject(in_process: None, mutable_cache: Path, tmp_path: Path) -> Subject:
    """A cache whose commit records are damaged, read by `kdcache info`."""
    subject = Subject("cache", (mutable_cache,), (Reader(("info", "cache.zarr", "--json")),))
    subject.measure(tmp_path / "work")
    return subject


def attempts(subject: Subject, work: Path, monkeypatch: pytest.MonkeyPatch) -> Figures:
    """Figures of 40 flipped bits in one commit record."""
    monkeypatch.setattr(damages, "KINDS", ("flip",))
    monkeypatch.setattr(Subject, "damaged_files", lambda _: ["cache.zarr/commits/v0000/b0000.json"])
    figures = Figures()
    for number in range(40):
        figures.add("cache", damages.attempt(subject, f"1-{number}", work), 0)
    return figures


def test_a_damaged_record_is_never_silent(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = attempts(subject, tmp_path / "work", monkeypatch)
    assert figures.facts()["outcomes"] == {"refused": 40}
    assert not figures.faults


def test_a_reader_that_compares_no_digest_is_reported_as_silent(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Anything(str):
        __hash__ = str.__hash__
        __eq__ = lambda self, other: True  # noqa: E731
        __ne__ = lambda self, other: False  # noqa: E731

    monkeypatch.setattr(commits, "sha256", lambda data: Anything())
    figures = attempts(subject, tmp_path / "work", monkeypatch)
    silent = figures.facts()["silent"]
    assert silent
    told = [line for line in table({"damages": figures}).splitlines() if "silent: " in line]
    assert len(told) == silent
    assert "flip bit" in told[0]
    assert "kdcache info cache.zarr --json: other stdout.json:" in told[0]


def test_a_kill_at_a_change_of_the_file_system_leaves_what_the_rerun_mends(
    digits_cache: Path, tmp_path: Path
) -> None:
    """In a forked process, as the benchmark has it."""
    arguments = ("card", str(digits_cache), "--license", "mit", "--out", "card.md")
    killed = process.run(arguments, tmp_path, Moment(change=1))
    assert killed.code == -signal.SIGKILL
    assert not (tmp_path / "card.md").exists()
    assert process.run(arguments, tmp_path).code == 0
    assert (tmp_path / "card.md").exists()


def test_a_signal_ends_a_command_as_an_interrupt_and_the_rerun_mends(
    digits_cache: Path, tmp_path: Path
) -> None:
    arguments = ("card", str(digits_cache), "--license", "mit", "--out", "card.md")
    command, work = Command("card", arguments), tmp_path / "work"
    command.measure(work)
    kinds = {signals.attempt(command, str(seed), work).kind for seed in range(8)}
    assert kinds == {"mended", "without effect"}
    command.undisturbed["card.md"] = "other"
    assert signals.attempt(command, "0", work).kind == "silent"


def test_a_signal_before_a_command_has_handlers_waits_for_them(
    digits_cache: Path, tmp_path: Path
) -> None:
    """A forked process of a busy machine is late; the interpreter's start is not the command's."""
    arguments = ("card", str(digits_cache), "--license", "mit", "--out", "card.md")
    for number in signals.SIGNALS:
        late = Moment(seconds=0.2, signal=number)
        ending = process.run(arguments, tmp_path, late, prepare=lambda: time.sleep(1.0))
        assert (ending.code, ending.traceback) == (130, False), ending.text


def test_a_signal_that_ends_a_command_at_once_is_reported(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        monkeypatch.setattr(signal, "signal", lambda *_: None)

    arguments = ("card", str(digits_cache), "--license", "mit", "--out", "card.md")
    command = Command("card", arguments, prepare=deaf)
    command.measure(tmp_path / "work")
    monkeypatch.setattr(signals, "SIGNALS", (signal.SIGINT,))
    kinds = [signals.attempt(command, str(seed), tmp_path / "work").kind for seed in range(8)]
    assert "traceback" in kinds


def test_a_hostile_input_has_a_kind(in_process: None, tmp_path: Path) -> None:
    def write(work: Path) -> None:
        (work / "c.zip").write_bytes(bombs.zipped([("zarr.json", b"[" * 100_000)]))

    case = hostile.Case("zip: deep", write, ("info", "c.zip"), "c.zip")
    outcome, grown = hostile.attempt(case, tmp_path / "work", idle=0)
    assert (outcome.kind, grown) == ("refused", 0)
    case = hostile.Case("zip: deep", write, ("info", "c.zip"), "another")
    assert hostile.attempt(case, tmp_path / "work", idle=0)[0].kind == "unnamed"


def test_facts_that_two_undisturbed_runs_share_have_no_times(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"top1": 3.5, "seconds": 1.2, "rows": [1, 2]}')
    found = facts.of(tmp_path)
    assert found == {"result.json:top1": 3.5, "result.json:rows:0": 1, "result.json:rows:1": 2}
    other = {**found, "result.json:rows:1": 3}
    assert facts.differences(facts.common(found, found), other) == ["result.json:rows:1"]
