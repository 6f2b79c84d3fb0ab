"""numba where its own folders cannot be written, and commands that do not import it."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
from numba.core import caching

from cache_tools.storage import compiled, disk_cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from tests.helpers import lab
from tests.helpers.paths import ROOT


def double(x: int) -> int:
    return 2 * x


def triple(x: int) -> int:
    return 3 * x


def quadruple(x: int) -> int:
    return 4 * x


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Neither the package nor the home folder can be written; the data folder is `tmp_path`."""
    for name in ("InTreeCacheLocator", "UserWideCacheLocator"):
        monkeypatch.setattr(getattr(caching, name), "from_function", lambda *_: None)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setenv(disk_cache.FOLDER, str(tmp_path / "data"))
    compiled._folder.cache_clear()
    yield tmp_path / "data"
    compiled._folder.cache_clear()


def test_code_is_kept_in_the_data_folder(nowhere: Path) -> None:
    assert compiled.njit(cache=True)(double)(4) == 8
    folder = nowhere / f"numba-{os.getuid()}"
    assert list(folder.rglob("*double*.nbc"))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_first_compilation_of_a_process_is_logged_unless_the_code_is_kept(
    nowhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="kdcache")
    for functions, count in (((double, triple), 1), ((double, triple), 0), ((quadruple,), 1)):
        compiled._log_compilation.cache_clear()
        caplog.clear()
        for function in functions:
            compiled.njit(cache=True)(function)(4)
        assert sum(line.startswith("compiling the code") for line in caplog.messages) == count


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["flip", "garbage", "swap", "empty"])
def test_damaged_code_is_compiled_again(nowhere: Path, kind: str, damage: str) -> None:
    for function in (double, triple):
        compiled.njit(cache=True)(function)(4)
    path, other = (next(nowhere.rglob(f"*{f.__name__}-*.{kind}")) for f in (double, triple))
    whole = path.read_bytes()
    path.write_bytes(
        {
            "flip": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
            "garbage": b"\x80\x05garbage" * 9,
            "swap": other.read_bytes(),
            "empty": b"",
        }[damage]
    )
    again = compiled.njit(cache=True)(double)
    assert again(4) == 8
    assert sum(again.stats.cache_misses.values()) == 1  # type: ignore[attr-defined]
    last = compiled.njit(cache=True)(double)
    assert last(4) == 8
    assert sum(last.stats.cache_hits.values()) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("imported", "used", "other"),
    [
        ("from inner import f", "f(x)", "inner"),
        ("from other import values", "values.FACTOR * x", "other/values"),
        ("from other.values import (\n    FACTOR as by,\n)", "by * x", "other/values"),
        ("from middle import through", "through.values.FACTOR * x", "other/values"),
    ],
)
def test_a_change_in_another_file_is_compiled(
    imported: str, used: str, other: str, tmp_path: Path
) -> None:
    """Of a function that is called, or of a constant that is frozen in compiled code."""
    for name in ("", "other", "middle"):
        (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name / "__init__.py").touch()
    files = {
        "inner": "from numba import njit\n@njit\ndef f(x):\n    return 2 * x\n",
        "other/values": "FACTOR = 2 * 1\n",
        "middle/through": "from own.other import values\n",
        "outer": "from cache_tools.storage.compiled import njit\n"
        f"{imported.replace('from ', 'from own.')}\n"
        f"@njit(cache=True)\ndef g(x):\n    return {used}\n",
    }
    for name, text in files.items():
        (tmp_path / f"own/{name}.py").write_text(text)
    program = "from own import outer; print(outer.g(4), *outer.g.stats.cache_hits.values())"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def printed() -> str:
        return subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert [printed(), printed()] == ["8\n", "8 1\n"]
    (tmp_path / "own/.#inner.py").symlink_to("user@host.1")  # an editor's lock
    (tmp_path / f"own/{other}.py").write_text(files[other].replace("2 *", "30 *"))
    assert printed() == "120\n"


def test_kernels_depend_on_the_constants_of_the_views() -> None:
    names = {name for name, *_ in compiled._stamp(ROOT / "cache_tools/render")}
    assert names >= {
        f"cache_tools/{name}.py" for name in ("render/batch", "views/draw", "views/ops")
    }
    assert not any(name.startswith("cache_tools/cli") for name in names)


def test_code_in_a_folder_of_others_is_not_loaded(nowhere: Path) -> None:
    (nowhere / f"numba-{os.getuid()}").mkdir(parents=True)
    (nowhere / f"numba-{os.getuid()}").chmod(0o777)
    assert compiled.njit(cache=True)(double)(4) == 8
    assert not list(nowhere.rglob("*.nbc"))


def test_without_any_folder_code_is_compiled(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert compiled.njit(cache=True)(double)(4) == 8


def test_a_full_disk_does_not_stop_compiled_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compiled.njit(cache=True)(double)(4) == 8


def test_every_kernel_is_compiled_by_this_decorator() -> None:
    files = [path for part in ("cache_tools", "train") for path in (ROOT / part).rglob("*.py")]
    plain = [path.name for path in files if "from numba import njit" in path.read_text("utf-8")]
    assert plain == []


@pytest.mark.parametrize("words", [("info",), ("status",), ("verify",), ("plan", "digits")])
def test_commands_that_render_nothing_do_not_import_numba(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    program = (
        "import sys; from cache_tools.cli import main\n"
        "try: main.main()\n"
        "finally: assert 'numba' not in sys.modules"
    )
    where = [lab.build(tmp_path / "c", lab.keys(8), range(1)).path] if len(words) == 1 else []
    done = subprocess.run([sys.executable, "-c", program, *words, *where], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_highest_class_is_checked(tmp_path: Path) -> None:
    store = lab.build(tmp_path / "cache", lab.keys(8), range(1))
    stored, _ = store.read(Part(0, 0))
    highest = int(codec.decode(stored, store.spec.targets).index_BK.max())
    assert codec.check(stored, store.spec.targets, highest + 1) is None
    assert "beyond" in (codec.check(stored, store.spec.targets, highest) or "")
