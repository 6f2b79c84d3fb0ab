"""`import kdcache`: quick, complete, and safe beside a user's own train.py."""

import doctest
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import kdcache
from tests.helpers.paths import ROOT


def python(folder: Path, code: str, name: str = "train.py") -> subprocess.CompletedProcess[str]:
    """Run code as a script of this name in a folder."""
    (folder / name).write_text(code)
    path = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, name], cwd=folder, capture_output=True, text=True, env=path, check=False
    )


def test_every_public_name_is_there() -> None:
    assert set(kdcache.__all__) >= set(kdcache._LAZY)
    assert kdcache.__all__ == dir(kdcache) == sorted(kdcache.__all__)
    for name in kdcache.__all__:
        assert getattr(kdcache, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'cached'"):
        _ = kdcache.cached  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("page", "written"),
    [
        ("README.md", set()),
        ("docs/guide/own-trainer.md", {"new.zarr", "new-run"}),
        ("docs/guide/teachers.md", {"ours.zarr"}),
    ],
)
def test_the_cells_of_a_page_run(
    page: str,
    written: set[str],
    digits_cache: Path,
    digits: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])  # a cell reads it; pytest's has options
    network = timm.create_model("test_resnet", num_classes=10).requires_grad_(False)
    found: dict[str, Any] = {"teacher": network.eval(), "folder": teacher}
    one, short = '{"base": "digits", "num_views": 1}', '{"epochs": 1, "views_per_epoch": 1}'
    found["student"] = timm.create_model("test_resnet", num_classes=10)
    for cell in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.S | re.M):
        mine = cell.replace('recipe="digits"', f"recipe={one}").replace('{"epochs": 1}', short)
        mine = mine.replace('make_cache("digits"', f"make_cache({one}")
        mine = mine.replace("build/digits-cache.zarr", str(digits_cache))
        mine = mine.replace("build/digits/teacher-model", str(teacher))
        mine = mine.replace("build/digits", str(digits)).replace("build/", f"{tmp_path}/")
        exec(mine, found)
    assert {path.name for path in tmp_path.iterdir()} >= written
    if "t" in found:
        assert found["t"].dense(2.0).shape == (8, 10)
        assert found["loss"].requires_grad


def test_reading_imports_no_torch(digits_cache: Path, tmp_path: Path) -> None:
    code = f"""
import sys
import kdcache
assert not {{"numpy", "zarr", "torch", "numba"}} & set(sys.modules)
rows = kdcache.open({str(digits_cache)!r}).targets(1, slice(0, 3)).dense()
assert rows.shape == (3, 10)
assert "torch" not in sys.modules
"""
    done = python(tmp_path, code, "read.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("own", ["train.py", "pipeline.py", "cache_tools.py"])
def test_files_of_a_users_own_with_our_names(tmp_path: Path, own: str, digits_cache: Path) -> None:
    """A script of this name, and a module of this name beside a script."""
    code = f"import kdcache\nkdcache.SoftTargets\nprint(len(kdcache.open({str(digits_cache)!r})))\n"
    done = python(tmp_path, code, own)
    assert (done.stdout, done.returncode) == ("100\n", 0), done.stderr
    beside = python(tmp_path, f"{code}", "script.py")
    assert (beside.stdout, beside.returncode) == ("100\n", 0), beside.stderr


def test_a_module_that_was_imported_before_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("")
    done = python(tmp_path, "import pipeline\nimport kdcache\n", "script.py")
    assert done.returncode == 1
    assert f"{tmp_path}/pipeline.py' was imported under that name before" in done.stderr
    assert "Import kdcache first, or rename that file." in done.stderr


def test_the_examples_of_docstrings_run(
    tmp_path: Path,
    digits: Path,
    digits_cache: Path,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one program, in this order; every function and class that is called has one."""
    names = ["open", "Cache", "SparseTargets", "Batches", "SoftTargets", "kd_loss", "bkd_loss"]
    names += ["dkd_loss", "dist_loss", "make_cache", "TeacherInfo", "create", "verify", "train"]
    names += ["evaluate"]
    shutil.copytree(digits, tmp_path / "digits")
    shutil.copytree(teacher, tmp_path / "digits/teacher-model")
    (tmp_path / "digits-cache.zarr").symlink_to(digits_cache)
    monkeypatch.chdir(tmp_path)
    student = timm.create_model("test_resnet", num_classes=10)
    model = timm.create_model("local-dir:digits/teacher-model", pretrained=True).eval()
    program: dict[str, Any] = {"kdcache": kdcache, "torch": torch, "np": np}
    program |= {"student": student, "model": model.requires_grad_(False)}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for name in names:
        text = getattr(kdcache, name).__doc__
        test = doctest.DocTestParser().get_doctest(text, program, name, None, None)
        assert test.examples, name
        report: list[str] = []
        runner.run(test, out=report.append, clear_globs=False)
        assert report == []
        program = test.globs
