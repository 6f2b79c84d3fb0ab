"""Tables that are damaged, incomplete or hostile: an error within bounded memory."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_tools.columnar import parquet
from cache_tools.columnar.thrift import MAX_STRUCTS, Compact
from cache_tools.data import unpacked
from cache_tools.data.open import open_images
from cache_tools.errors import DataError, KdcacheError
from tests.helpers import tables
from tests.helpers.outcome import Outcome
from tests.helpers.tables import NAMES, ROWS, plain

Command = Callable[..., Outcome]


def _cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _other_classes(source: Path) -> None:
    for path in tables.parquet(source / "b", "train", ROWS, (*NAMES, "new"), 2)[1:]:
        path.rename(source / "data" / "train-00001-of-00003.parquet")
    (source / "b" / "train-00000-of-00002.parquet").unlink()


def _flip(path: Path) -> None:
    pq.write_table(tables.table(ROWS, NAMES), path, write_page_checksum=True, compression=None)
    data = bytearray(path.read_bytes())
    data[data.index(ROWS[5][0] or b"") + 40] ^= 1
    path.write_bytes(data)


def _rewrite(content: Sequence[tables.Row], **options: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(tables.table(content, NAMES), path, **options)


FIRST = "data/train-00000-of-00003.parquet"


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda s: _cut(s / FIRST), 1, "it has no footer, so it is cut short or no Parquet file"),
        (lambda s: (s / FIRST).write_bytes(b""), 1, "it has no footer"),
        (lambda s: (s / FIRST).write_text("version https://git-lfs.github.com/spec/v1\n"), 1,
         "it is a git-lfs pointer in place of the file: run git lfs pull"),
        (lambda s: (s / FIRST).unlink(), 2, "2 of the 3 files data/train-…-of-3"),
        (lambda s: _flip(s / FIRST), 1, "could not verify page integrity, CRC checksum"),
        (_other_classes, 1, "other columns or classes than the first file"),
        (lambda s: _rewrite([(d, p, 3) for d, p, _ in ROWS])(s / FIRST), 1,
         "the class 3 in row 0, expected 0 to 2, or -1 of none"),
        (lambda s: _rewrite([(None, p, n) for _, p, n in ROWS])(s / FIRST), 1,
         "has paths of pictures and not their bytes"),
        (lambda s: _rewrite([(None, *ROWS[0][1:]), *ROWS[1:8]])(s / FIRST), 1,
         "1 of 24 images in"),
        (lambda s: tables.parquet(s / "other", "train", ROWS, NAMES, 1), 2,
         "files of rows in several folders: data, other"),
        (lambda s: tables.arrow(s / "data/indices.arrow", pa.table({"i": [1]})), 2,
         "flatten_indices().save_to_disk"),
    ],
    ids=["cut", "empty", "lfs", "missing", "flipped", "other classes", "class", "paths alone",
         "one path alone", "folders", "indices"],
)  # fmt: skip
def test_a_table_that_cannot_be_read(
    damage: Callable[[Path], None], code: int, message: str, tmp_path: Path, kdcache: Command
) -> None:
    source = tables.hub(tmp_path / "source")
    damage(source)
    said = kdcache("shard", source, tmp_path / "a", "--shard-size", 4)
    assert (said.code, message in said.err) == (code, True), said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("stream", [True, False])
def test_an_arrow_file_that_is_cut_or_compressed(tmp_path: Path, stream: bool) -> None:
    path = tables.arrow(tmp_path / "x.arrow", tables.table(ROWS, NAMES), stream)
    whole = path.read_bytes()
    ends = {0, 4, 100, len(whole) // 3, len(whole) // 2}
    for end in ends if not stream else ends | {len(whole) - 8, len(whole) - 1}:
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="cannot read"):
            open_images(str(path), "train")
    tables.arrow(path, tables.table(ROWS, NAMES), stream, compression="zstd")
    with pytest.raises(DataError, match="its buffers are compressed"):
        open_images(str(path), "train")


def bomb(path: Path, codec: str) -> None:
    """A page of 96 MiB of zeros in a few KB."""
    content = plain([(bytes(96 * 2**20), "a.jpg", 0)])
    pq.write_table(content, path, compression=codec, use_dictionary=False)


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_a_page_of_zeros_is_not_unpacked(codec: str, tmp_path: Path) -> None:
    bomb(tmp_path / "a.parquet", codec)
    with pytest.raises(DataError, match=r"bytes that unpack to 100,663,3.*at most 67,108,864"):
        open_images(str(tmp_path / "a.parquet"), "train")


def test_a_picture_repeated_without_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary repeats 100 kB for each bit of its indices."""
    monkeypatch.setattr(unpacked, "_SMALL", 2**20)
    pq.write_table(plain([(bytes(100_000), "a.jpg", 0)] * 500), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        open_images(str(tmp_path / "a.parquet"), "train")


def test_a_footer_is_bounded_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def footer(data: bytes, length: int | None = None) -> Callable[[int, int], bytes]:
        file = parquet.MAGIC + data + (length or len(data)).to_bytes(4, "little") + parquet.MAGIC
        return lambda begin, end: file[begin:end]

    out = io.BytesIO()
    pq.write_table(plain(ROWS), out)
    honest = out.getvalue()
    assert parquet.schema(lambda a, b: honest[a:b], len(honest)).names[0] == "file_name"
    many = b"\x49\xfc\xff\xff\x7f" + b"\0" * (MAX_STRUCTS + 1)  # a list of empty structs
    for data, length, message in (
        (b"", 2**31, "cut short"),
        (b"\x19\xfc\xff\xff\xff\x0f" + b"\0" * 100, None, "cut short"),
        (many, None, "more than 262,144 structures"),
        (b"\x1c" * 100, None, "too deep"),
        (b"\x15" + b"\xff" * 30, None, "64 bits"),
        (b"\x1b", None, "kind 11"),
    ):
        with pytest.raises(ValueError, match=message):
            parquet.schema(footer(data, length), len(data) + 12)
    count = MAX_STRUCTS + 1
    size = bytes([count & 127 | 128, count >> 7 & 127 | 128, count >> 14])
    data = b"\x19\xfc" + size + b"\0" * (count + 1)
    with pytest.raises(ValueError, match="more than 262,144 structures"):
        parquet.schema(footer(data), len(data) + 12)


def test_thrift_values() -> None:
    # 1: i32 -3; 2: true; 3: binary; 20: struct of an i32 and an i64; 21: list of two structs
    data = bytes([0x15, 5, 0x11, 0x18, 2, 65, 66, 0x0C, 40, 0x15, 0x80, 1, 0x16, 2, 0])
    data += bytes([0x19, 0x2C, 0x15, 14, 0, 0, 0])
    value = Compact(data)
    assert value.struct() == {1: -3, 2: None, 3: None, 20: {1: 64, 2: None}, 21: [{1: 7}, {}]}
    assert (value.at, value.structs) == (len(data), 4)


def test_errors_are_ours(tmp_path: Path) -> None:
    """A table with any byte changed gives its rows, or a KdcacheError.

    Pages have checksums; a changed footer may call the columns of paths and labels otherwise.
    """
    path = tmp_path / "a.parquet"
    pq.write_table(plain(ROWS[:3]), path, write_page_checksum=True)
    whole, outcomes = path.read_bytes(), Counter[str]()
    for at in range(0, len(whole), 17):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            found = open_images(str(path), "train")
        except KdcacheError as error:
            assert "a.parquet" in str(error)
            outcomes["error"] += 1
            continue
        assert [found.read(i) for i in range(len(found))] == [row[0] for row in ROWS[:3]]
        assert list(found.names) in (
            ["img_0", "img_1", "img_2"],
            ["00000000", "00000001", "00000002"],
        )
        assert found.label_N.tolist() in ([0, 1, 2], [-1, -1, -1])
        outcomes["rows"] += 1
    assert min(outcomes["error"], outcomes["rows"]) > 50
