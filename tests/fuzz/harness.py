"""One example: honest files in a folder of their own, one of them edited, all of them read."""

import functools
import shutil
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.bounds import bounded
from tests.fuzz.edits import edited
from tests.fuzz.readers import READERS
from tests.fuzz.seeds import SEEDS

KEPT, LAST = Path("build/fuzz"), "last"
"""Folder of what was found: READER/TIME/PATH is the edited file; `last` is being read."""
CORPUS = Path(__file__).parent / "corpus"
"""Folder of what was found and is mended: READER/NUMBER/PATH."""


@functools.cache
def honest(name: str) -> dict[str, bytes]:
    """Files of a reader, by path."""
    with tempfile.TemporaryDirectory() as folder:
        READERS[name].make(Path(folder))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@functools.cache
def _edited_names(name: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), honest(name))
        found = Path(folder).glob(READERS[name].edited)
        return sorted(p.relative_to(folder).as_posix() for p in found if p.is_file())


@functools.cache
def found() -> dict[str, dict[str, list[bytes]]]:
    """Files of the corpus: reader → file → contents, as `SEEDS`."""
    files: dict[str, dict[str, list[bytes]]] = {}
    for file in sorted(path for path in CORPUS.rglob("*") if path.is_file()):
        name, _, *inner = file.relative_to(CORPUS).parts
        files.setdefault(name, {}).setdefault("/".join(inner), []).append(file.read_bytes())
    return files


def example(name: str, draw: st.DataObject) -> None:
    """Draw an edit of a reader's files, and read them."""
    path = draw.draw(st.sampled_from(_edited_names(name)), label="file")
    begin = draw.draw(st.sampled_from([honest(name)[path], *SEEDS.get(name, {}).get(path, ())]))
    check(name, path, draw.draw(edited(begin), label="bytes"))


def check(name: str, path: str, data: bytes) -> None:
    """Read the files of a reader, of which one has other bytes, within the bounds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write(folder, honest(name) | {path: data})
        READERS[name].seal(folder)
        last = KEPT / name / LAST
        shutil.rmtree(last, ignore_errors=True)
        _write(last, {path: data})  # of a crash, too
        with bounded():
            READERS[name].read(folder)
        shutil.rmtree(last, ignore_errors=True)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
