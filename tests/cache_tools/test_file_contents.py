"""JSON and TOML from outside: within bounds, or an error of one line."""

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_tools import file_contents
from cache_tools.data.beton import reader
from cache_tools.errors import CacheDamaged, DataError
from cache_tools.storage import atomic
from cache_tools.targets import logits_file
from tests.helpers.paths import ROOT

HOSTILE = {
    "deep list": ('{"a":' + "[" * 100_000, "64 levels"),
    "deep list that ends": ('{"a":' + "[" * 65 + "]" * 65 + "}", "64 levels"),
    "digits": ('{"a":' + "9" * 5_000 + "}", "^it has a number of thousands of digits$"),
    "bits": ('{"a":' + "9" * 50 + "}", "bits"),
    "exponent": ('{"a":1e400}', "not finite"),
    "constant": ('{"a":-Infinity}', "not finite"),
    "repeated key": ('{"a":1,"a":2}', "twice"),
    "lone surrogate": ('{"\\ud800":1}', "surrogate"),
    "too long": (" " * (2**24 + 1), "16,777,216 are the limit"),
    "not JSON": ("{", "Expecting"),
}
HOSTILE_TOML = {
    "deep list": ("a=" + "[" * 50_000, "64 levels"),
    "deep key": ("a." * 2_000 + "a=1", "64 levels"),
    "digits": ("a=" + "9" * 5_000, "^it has a number of thousands of digits$"),
    "bits": ("a=" + "9" * 50, "bits"),
    "infinity": ("a=inf", "not finite"),
    "exponent": ("a=[1, -1e400]", "not finite"),
    "too long": ("#" * (2**16 + 1), "65,536 are the limit"),
}


@pytest.mark.parametrize(("text", "reason"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("encode", [str, str.encode])
def test_json_of_others_is_bounded(text: str, reason: str, encode: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        file_contents.parse_json(encode(text))
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(("text", "reason"), HOSTILE_TOML.values(), ids=HOSTILE_TOML)
def test_toml_of_others_is_bounded(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        file_contents.parse_toml(text)
    assert len(str(refused.value)) < 200


def test_values_within_the_bounds_come_through() -> None:
    value = {"a": [1, 2.5, None, True, {"é": "\udcff"}], "b": 2**64, "c": -(10**30)}
    assert file_contents.parse_json(json.dumps(value)) == value
    assert file_contents.parse_json(b"\xef\xbb\xbf[]") == []
    assert file_contents.parse_toml("[t]\na = 1e-3\nb = [1, 2]") == {"t": {"a": 1e-3, "b": [1, 2]}}


def test_no_more_of_a_file_is_read_than_it_may_have(tmp_path: Path) -> None:
    with (path := tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**33)
    for read in (file_contents.read, file_contents.read_text):
        with pytest.raises(ValueError, match="more than 16,777,216 bytes"):
            read(path)
    with pytest.raises(CacheDamaged, match=r"a.txt cannot be read: it has 1,048,577 bytes"):
        atomic.read_json(path)


def test_nothing_else_parses_json_or_toml() -> None:
    """But the program in a card, which is text here."""
    for package in ("cache_tools", "pipeline", "train"):
        for file in (ROOT / package).rglob("*.py"):
            found = re.search(r"\b(json|tomllib)\.loads?\(", file.read_text("utf-8"))
            assert found is None or file.name in ("file_contents.py", "model_card.py"), file


def test_a_pipe_is_not_waited_for(tmp_path: Path, patience: None) -> None:
    paths = [tmp_path / name for name in ("x.npy", "x.npz", "x.safetensors", "x.beton")]
    for path in paths:
        os.mkfifo(path)
    assert file_contents.read(paths[0]) == b""
    assert not file_contents.describe_file(paths[0])
    with pytest.raises(OSError, match="no plain file"):
        file_contents.check_safetensors(paths[2])
    for path in paths[:3]:
        with pytest.raises(DataError, match=f"{path.name} cannot be read.*no plain file"):
            logits_file.read(path)
    with pytest.raises(DataError, match=r"x.beton cannot be read.*no plain file"):
        reader.open_beton(paths[3])


def test_what_a_process_writes_to_a_pipe_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        for _ in range(20):
            os.write(writing, b"class\n" * 1000)
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    assert len(file_contents.read_text(Path(f"/dev/fd/{reading}"))) == 120_000
    thread.join()
    os.close(reading)
