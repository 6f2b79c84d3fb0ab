"""Files of torch.save and joblib are read as data; what else they are is refused, not run."""

import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_tools.errors import DataError
from cache_tools.importers import safe_pickle, torch_file

VALUES = [
    (3, [{"params": [None, (1, 2, 3, 4), True, [(5, -0.5)]], "prob": ([0.5, 1e-9], [7, -2])}]),
    [np.arange(6, dtype="f4").reshape(2, 3), np.array([True, False]), np.ones((1, 4), "f2")],
    {"a": [1, 2**40, -(2**62), 0.1, "ü", b"\x80\n", ""], 5: {}},
    [np.asfortranarray(np.arange(6, dtype="i8").reshape(2, 3)), np.float64(0.25), np.int64(-3)],
]


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b if not isinstance(a, np.generic) else a == b


@pytest.mark.parametrize("value", VALUES, ids=["ml-dr", "arrays", "plain", "odd arrays"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_data_comes_back(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found, end = safe_pickle.loads(data + b"more", "here")
    assert same(value, found)
    assert end == len(data)


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_files_of_torch(how: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    torch.save(VALUES[1], path, _use_new_zipfile_serialization=how == "zip")
    assert same(VALUES[1], torch_file.load(path))


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_commands_are_not_run(protocol: int, nested: bool, tmp_path: Path) -> None:
    value: object = Evil(tmp_path / "touched")
    for _ in range(50 * nested):
        value = {"x": [value]}
    path = tmp_path / "a.pth.tar"
    torch.save(value, path, pickle_protocol=protocol) if protocol > 1 else path.write_bytes(
        b"\x80" + bytes([2]) + pickle.dumps(value, protocol)
    )
    with pytest.raises(DataError, match=r"a\.pth\.tar is refused: it "):
        torch_file.load(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "value",
    [OrderedDict(a=1), np.array([object()]), np.dtype("O"), torch.zeros(2), {1, 2}, bytearray(3)],
    ids=["class", "objects", "dtype", "tensor", "set", "bytearray"],
)
def test_what_is_no_data_is_named(value: object, tmp_path: Path) -> None:
    torch.save([value], tmp_path / "a.tar", pickle_protocol=4)
    with pytest.raises(DataError, match="is refused"):
        torch_file.load(tmp_path / "a.tar")


def array(shape: tuple[int, ...], data: bytes) -> bytes:
    """A pickle of an array that says it has this shape."""
    inner = pickle.dumps((1, shape, np.dtype("f4"), False, data), 4)[2:]
    begin = b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x0c_reconstruct\x93"
    begin += b"\x8c\x05numpy\x8c\x07ndarray\x93K\x00\x85C\x01b\x87R"
    return begin + inner[9:-1] + b"b."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array((2**40,), bytes(12)), "has the shape"),
        (array((2**26, 2**26, 2**26), bytes(12)), "not"),
        (array((4,), bytes(12)), "12 bytes, not 16"),
        (b"\x80\x04B\xff\xff\xff\xff1234.", "cut short"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".", "cut short"),
        (b"\x80\x04Nr\xff\xff\xff\xff.", ""),
        (b"\x80\x04\x8a\xff" + bytes(255) + b".", "integer of 255 bytes"),
        (b"\x80\x04h\x05.", "no whole pickle"),
        (b"\x80\x04]", "no whole pickle"),
        (b"\x80\x04(]", "no whole pickle"),
        (b"\x80\x04}]Ns.", "neither text nor a number"),
        (b"\x80\x04" + b"]" * (2**20 + 9) + b".", "opcodes"),
        (b"\x80\x04\x85.", "too few values"),
        (b"\x80\x04c_codecs\nencode\n.", "middle of a value"),
        (b"\x80\x04NPa.", "opcode 0x50"),
        (b"\x80\x09.", "protocol is 9"),
    ],
)
def test_forged_numbers_take_no_memory(data: bytes, message: str) -> None:
    if not message:  # a memo is a dictionary: a far place costs what a near one does
        assert safe_pickle.loads(data, "here")[0] is None
        return
    with pytest.raises(DataError, match=message):
        safe_pickle.loads(data, "here")


def test_text_does_not_multiply() -> None:
    """A long text, named once and encoded a thousand times, is a gigabyte."""
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x01"
    codec = b"X\x06\x00\x00\x00latin1q\x02"
    again = b"c_codecs\nencode\nh\x01h\x02\x86R"
    with pytest.raises(DataError, match="expands to more than"):
        safe_pickle.loads(b"\x80\x02(" + text + codec + again * 1000 + b"t.", "here")


def test_bombs_of_zip_and_zlib(tmp_path: Path) -> None:
    bomb = bytes(safe_pickle.MAX_BYTES + 1)
    with zipfile.ZipFile(tmp_path / "a.tar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bomb)
    (tmp_path / "b.tar").write_bytes(zlib.compress(bomb))
    for name in ("a.tar", "b.tar"):
        assert (tmp_path / name).stat().st_size < 2**17
        with pytest.raises(DataError, match="is refused"):
            torch_file.load(tmp_path / name)


def test_a_zip_of_a_million_names_is_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.tar", "w") as archive:
        for i in range(2000):
            archive.writestr(f"{i}", b"")
    with pytest.raises(DataError, match="2,000 members"):
        torch_file.load(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no file of torch.save"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
        (b"BZh9", "compressed by bzip2"),
        (b"PK\x03\x04", "damaged zip"),
        (b"\x78\x9c\x00", "damaged zlib|cut short"),
        (b"hello", "no file of torch.save"),
    ],
)
def test_other_files_are_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=message):
        torch_file.load(tmp_path / "a.tar")


def test_no_file_is_no_traceback(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tar", tmp_path):
        with pytest.raises(DataError, match="missing, or no plain file"):
            torch_file.load(path)


def test_a_tensor_in_a_damaged_zip_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tensors.tar"
    torch.save([torch.arange(6)], path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"tensors/data/0", b"tensors/data/1", 1))  # not in the directory
    with pytest.raises(DataError, match=r"tensors\.tar is a damaged zip and is refused: File name"):
        torch_file.load(path, tensors=True)
