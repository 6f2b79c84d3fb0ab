"""The edge of the command: no OSError, UnicodeError or EOFError ends in a traceback."""

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from cache_tools.cli import guard
from cache_tools.cli.options import emit
from cache_tools.storage import system_errors
from pipeline.engines import process
from tests.helpers import lab
from tests.helpers.outcome import Outcome

FOLDER = Path(sys.executable).parent
Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab.build(tmp_path_factory.mktemp("lab") / "cache", lab.keys(8), range(1)).path


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A place for each thing that is none: a file, an empty folder, bytes that are no text."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage").write_bytes(bytes(range(128, 256)) * 9)
    for name in ("run/config.json", "data/_info.json", "teacher/config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(bytes(range(128, 256)))
    (tmp_path / "data/a.tar").touch()
    return tmp_path


WRONG = [
    "info {}/file",
    "info {}/empty",
    "info {}/missing",
    "info {}/garbage",
    "info {}",
    "status {}/file",
    "verify {}/garbage",
    "verify {cache} --data {}/file",
    "verify {cache} --data {}/garbage",
    "verify {cache} --data {}/data",
    "plan {}/garbage",
    "plan {}/empty",
    "plan photos --data {}/data",
    "plan photos --data {}/empty",
    "views photos --data {}/garbage --out {}/x.png",
    "views {cache} --data {}/empty --out {}/x.png",
    "cache {}/garbage --data {}/data --out {}/c --teacher {}/teacher",
    "cache photos --data {}/file --out {}/c --teacher {}/teacher",
    "shard {}/file {}/out",
    "shard {}/empty {}/out",
    "shard {}/data {}/file",
    "shard {}/garbage {}/out",
    "beton {}/garbage {}/x.beton",
    "beton {}/empty {}/x.beton",
    "import logits {}/garbage {}/c",
    "convert {cache} {}/file --to parquet",
    "convert {}/garbage {}/o --to parquet",
    "ensemble {cache} {}/garbage --out {}/o",
    "pull {}/missing {}/o",
    "pull {cache} {}/file",
    "push {cache} {}/file",
    "card {}/garbage",
    "select {cache} {}/file --views 0",
    "select {cache} {}/o --samples {}/garbage",
    "merge {cache} {}/garbage --out {}/o",
    "diff {cache} {}/garbage",
    "train {}/garbage --cache {cache} --out {}/o",
    "train photos --cache {cache} --data {}/garbage --out {}/o",
    "train photos --cache {cache} --data {}/empty --out {}/file",
    "sweep {}/garbage --cache {cache} --out {}/o",
    "sweep digits --cache {cache} --data {}/empty --out {}/file",
    "eval {}/run",
    "eval {}/file",
    "eval {}/empty",
    "export {}/run --out {}/o",
    "export {}/file --out {}/o",
    "report {}/garbage --out {}/o.html",
    "report {cache} --out {}/missing/o.html --data {}/garbage",
    "bench loader --cache {}/garbage",
    "demo {}/file",
]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_one_paragraph(
    line: str, cache: Path, strange: Path, kdcache: Command
) -> None:
    done = kdcache(*(word.format(strange, cache=cache) for word in line.split()))
    assert done.code in (1, 2)
    assert "Traceback" not in done.err
    assert "fault of kdcache" not in done.err


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    named = {"stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.run([FOLDER / "kdcache", *map(str, words)], **named)  # type: ignore[call-overload,no-any-return]


def test_a_full_standard_output_is_one_paragraph(cache: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run("info", cache, stdout=full)
    assert done.returncode == 1
    assert "the disk is full: a file or standard output was not written" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_streams_are_no_error(cache: Path) -> None:
    shell = f"{FOLDER}/kdcache info {cache} --json <&- >&- 2>&-"
    assert subprocess.run(shell, shell=True).returncode == 0


def test_a_narrow_encoding_changes_no_exit_code(cache: Path) -> None:
    for encoding in ("latin-1", "ascii"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = run("verify", cache, env=environment, stdout=subprocess.PIPE, encoding=encoding)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("ok: 1 part ")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/data/x"), "write /data/x: Permission denied"),
        (OSError(28, "No space left on device", "/data/x"), "the disk is full: /data/x"),
        (OSError(28, "Full", "/data/x.0123456789ab.partial/y"), "the disk is full: /data/x/y was"),
        (OSError(5, "Bad", "/data/x/x.0123456789ab.partial/y"), "read or write /data/x/y: Bad"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8"),
        (EOFError(), "ends too early"),
        (RuntimeError("[enforce fail] No space left on device (os error 28)"), "the disk is full"),
        (OSError(122, "Disk quota exceeded"), "the disk is full"),
        (OSError(116, "Stale file handle", "/data/x"), "write /data/x: Stale file handle"),
        (
            OSError(24, "Too many open files", "/data/x"),
            "open files. Raise the limit of open files",
        ),
        (SafetensorError("I/O error: File too large (os error 27)"), "file's size (ulimit -f)"),
        (OSError(36, "File name too long", "/data/x"), "too long. Choose a shorter name"),
        (MemoryError("Unable to allocate 3 TiB"), "not enough memory: Unable to allocate 3 TiB"),
        (MemoryError(), "not enough memory: MemoryError. Pass"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory: Default"),
    ],
)
def test_errors_of_the_system_have_the_next_step(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, guard.edge():
        raise error
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert message in said
    assert "run the same command again" in said
    assert said.count("\n") == 1


def test_an_error_without_a_file_names_the_open_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), guard.edge(), (tmp_path / "link").open("wb") as file:
        file.flush()
        raise OSError(28, "No space left on device")
    assert f"the disk is full: {tmp_path / 'link'} was not written" in capsys.readouterr().err


def test_a_worker_process_reports_an_error_of_the_system(
    own_log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/x.tar")

    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(process, "_serve", unreadable)
    for name in ("pthread_sigmask", "signal"):
        monkeypatch.setattr(f"pipeline.engines.process.signal.{name}", lambda *_: None)
    monkeypatch.setattr(process, "_end_with_parent", lambda: None)
    monkeypatch.setattr(process.signals, "raise_dropped_again", lambda: None)
    monkeypatch.setattr(process.threads, "limit", lambda _: None)
    monkeypatch.setattr(process.progress, "bars", True)
    process.main(1, theirs)
    theirs.close()  # without a message, receiving ends
    message = ours.recv()
    assert isinstance(message, process.Error)
    assert "cannot read or write /data/x.tar: Permission denied" in str(message.error)


def test_a_file_that_is_no_text_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xff")
    with pytest.raises(SystemExit), guard.edge():
        path.read_text(encoding="utf-8")
    assert str(path) in capsys.readouterr().err


_NO_MEMORY = """
import resource
from cache_tools.cli import guard
with guard.edge():
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**26, taken + 2**26))
    kept = []
    while True:
        kept.append(bytearray(64))
"""


def test_there_is_memory_left_for_the_message_that_there_is_none() -> None:
    command = [sys.executable, "-c", _NO_MEMORY]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("KdcacheError: there is not enough memory"), ended.stderr


def test_a_library_that_does_not_fit_is_no_fault_of_ours() -> None:
    error = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert "not enough memory" in str(system_errors.explained(error))


def test_a_current_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    leave = "mkdir gone && cd gone && rmdir ../gone && exec"
    command = ["sh", "-c", f"{leave} {FOLDER / 'kdcache'} info /nowhere"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "the current folder was removed. Change to one that exists" in ended.stderr


def test_a_fault_of_ours_is_a_traceback_to_report(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, guard.edge():
        raise ZeroDivisionError("ours")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "Report it" in said


def test_a_tilde_in_an_option_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdcache: Command
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lab.build(tmp_path / "cache", lab.keys(8), range(1))
    assert kdcache("info", "~/cache").code == 0
    assert kdcache("select", "~/cache", "~/cut", "--views=0").code == 0
    assert (tmp_path / "cut/zarr.json").is_file()


@pytest.mark.parametrize("debug", ["", "1"])
def test_no_secret_leaves_in_any_text(
    debug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDCACHE_DEBUG", debug)
    guard.open_streams()
    url = "https://user:s3cr3t@host/c.zarr?X-Amz-Signature=s3cr3t#s3cr3t"
    with pytest.raises(SystemExit), guard.edge():
        print(f"reading {url}")
        logging.StreamHandler(sys.stderr).emit(logging.makeLogRecord({"msg": f"retry {url}"}))
        emit({"source": url, "token": "s3cr3t"})
        raise OSError(5, f"GET {url} failed", url)
    said = capsys.readouterr()
    assert "s3cr3t" not in said.out + said.err
    assert "https://host/c.zarr" in said.out
    assert "https://host/c.zarr" in said.err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("KDCACHE_CACHE_LIMIT", "abc", "KDCACHE_CACHE_LIMIT=abc is no size. Write it as 200GB"),
        ("KDCACHE_CACHE", __file__, f"KDCACHE_CACHE={__file__} is no folder"),
    ],
)
def test_a_variable_of_a_wrong_value_is_named_where_it_is_not_used(
    name: str,
    value: str,
    message: str,
    cache: Path,
    kdcache: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    done = kdcache("info", cache)
    assert done.code == 2
    assert message in done.err
    assert kdcache("--help").code == kdcache("info", "--help").code == 0
