"""A `.beton` of other pictures than a cache's, one that changes while it is read, false tables."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_tools.data import match, scan
from cache_tools.data.beton import reader, records, writer
from cache_tools.data.beton.reader import Beton
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheMismatch, DataError
from cache_tools.numerics.array_types import U1
from cache_tools.spec.dataset import DatasetSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw
from tests.helpers.jpegs import PHOTO
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]

COUNT = 4


def pictures(folder: Path, kind: str, changed: int = -1, step: int = 0) -> ImageDataset:
    """Photographs in a folder; one may show another part of the photograph, of the same size."""
    for i in range(COUNT):
        left = 20 * i + step * (i == changed)
        (folder / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(PHOTO[30 * i :, left:][:90, :120])
        picture.save(folder / f"c{i % 2}/p{i}.{kind}")
    return open_images(str(folder), "train")


def container(images: ImageDataset, out: Path, raw: bool = True) -> Beton:
    writer.write(images, out, raw, 2, lambda _: None)
    return reader.open_beton(out)


def described(images: ImageDataset) -> tuple[SampleTable, DatasetSpec]:
    kind, keys, ordered = scan.in_table_order(images, None)
    table = scan.scan(keys, ordered, True, 2, lambda _: None)
    return table, DatasetSpec(len(table), 2, True, kind, table.sha256)


@pytest.mark.parametrize("column", ["digest", "height", "width"])
def test_pixels_of_other_pictures_are_refused(tmp_path: Path, column: str) -> None:
    """A BMP of equal dimensions has equal length, whatever it shows: no byte of it is read."""
    table, dataset = described(pictures(tmp_path / "a", "bmp"))
    images = container(pictures(tmp_path / "b", "bmp", 2, 7), tmp_path / "b.beton")
    if column != "digest":  # another table of the same bytes
        images = container(open_images(str(tmp_path / "a"), "train"), tmp_path / "a.beton")
        sides_N = np.where(np.array(table.keys) == "p2", 1, 0) + getattr(table, f"{column}_N")
        table = replace(table, **{f"{column}_N": sides_N.astype(np.int32)})
    said = r"1 of 4 images in .*\.beton are not the teacher's \(first: 'p2', .* against "
    with pytest.raises(CacheMismatch, match=said):
        match.match(table, dataset, images)
    present_N = np.array(table.keys) != "p2"
    kept = [i for i, name in enumerate(images.names) if not name.endswith("p2")]
    _, covered = match.align(table, dataset, images.subset(np.array(kept)), partial=True)
    assert (covered.present_N == present_N).all()


class Rendered:
    """Views of stored pixels, as training makes them."""

    def __init__(self, folder: Path) -> None:
        table, dataset = described(pictures(folder / "a", "png"))
        self.images = container(open_images(str(folder / "a"), "train"), folder / "x.beton")
        self.images = match.match(table, dataset, self.images)
        spec = ViewSpec(size=32, interpolation="box")
        self._views = ViewRenderer(self.images, spec, table, True, decoded_before=True)
        self._params = draw.draw(spec, table.id_N, table.height_N, table.width_N, 0)

    def views(self) -> U1:
        """Views of all samples."""
        out = np.zeros((COUNT, 32, 32, 3), np.uint8)
        at_V = np.array([pixels.ctypes.data for pixels in out])
        rows = np.arange(COUNT)
        self._views.render_many(rows, np.arange(COUNT + 1), self._params, [*out], at_V)
        return out


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("raw", [False, True])
def test_a_file_that_is_complete_is_left_as_it_is(
    tmp_path: Path, kdcache: Command, kind: str, raw: bool
) -> None:
    """A kill just before the command ends leaves a complete file: the same command ends well."""
    pictures(tmp_path / "a", kind)
    out = tmp_path / "x.beton"
    command = ("beton", tmp_path / "a", out, *["--raw"][: int(raw)])
    assert kdcache(*command).code == 0
    before = out.read_bytes(), out.stat().st_mtime_ns
    assert kdcache(*command).code == 0
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before
    other = ("beton", tmp_path / "a", out, *["--raw"][int(raw) :])
    assert "--fresh" in kdcache(*other).err
    pictures(tmp_path / "b", kind, changed=2, step=1)
    assert "--fresh" in kdcache("beton", tmp_path / "b", *command[2:]).err
    with out.open("r+b") as file:
        file.seek(int(reader.open_beton(out).rows_N["ptr"][1]) + 9)
        file.write(b"?!")
    assert kdcache(*command).code == 2
    assert kdcache(*command, "--fresh").code == 0
    assert out.read_bytes() == before[0]


def test_pixels_that_change_between_epochs_are_refused(tmp_path: Path) -> None:
    lab = Rendered(tmp_path)
    first, path = lab.views(), tmp_path / "x.beton"
    assert (lab.views() == first).all()
    at = int(lab.images.rows_N["ptr"][1]) + 90 * 120
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))
    for _ in range(2):
        with pytest.raises(DataError, match=f"image '.*' in {path} is damaged"):
            lab.views()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(old)
    assert (lab.views() == first).all()
    with path.open("r+b") as file:
        file.truncate(at)
    with pytest.raises(DataError, match=r"has \d+ bytes, 32400 were there when the file was op"):
        lab.views()


TABLE = records.HEADER.itemsize + len(records.FIELDS) * records.DESCRIPTION.itemsize
Edit = Callable[[np.ndarray, np.ndarray], object]


def _wrapped_range(metadata: np.ndarray, allocated: np.ndarray) -> None:
    """Begin and size of an image whose sum is 16: modulo 2^64 it is in the file."""
    allocated["ptr"][1] = metadata["f0"]["ptr"][0] = 2**64 - 16
    allocated["size"][1] = 32


EDITS: dict[str, Edit] = {
    "image beyond 2^64": _wrapped_range,
    "name beyond 2^63": lambda m, _: m["f2"]["ptr"].__setitem__(0, 2**63),
    "name beyond 2^64": lambda m, _: m["f2"]["ptr"].__setitem__(-1, 2**64 - 1),
    "name of 2^63 bytes": lambda m, _: m["f2"]["size"].__setitem__(-1, 2**63),
    "length": lambda m, _: m["f4"].__setitem__(0, 99),
    "negative length": lambda m, _: m["f4"].__setitem__(0, -1),
    "source beyond 2^64": lambda m, _: m["f6"]["ptr"].__setitem__(0, 2**64 - 1),
    "source of another length": lambda m, _: m["f6"]["size"].__setitem__(0, 7),
    "label beyond 32 bits": lambda m, _: m["f1"].__setitem__(0, 2**40),
    "no image in the table": lambda _, a: a["ptr"].__setitem__(slice(None), 2**64 - 1),
}

_OF_PIXELS = ("source", "negative length")
"""Edits of what a JPEG has not, which is its own source."""


@pytest.mark.parametrize(
    ("edit", "kind"),
    [(e, k) for e in EDITS for k in ("jpg", "png") if k == "png" or not e.startswith(_OF_PIXELS)],
)
def test_tables_that_point_out_of_the_file_are_refused(
    tmp_path: Path, edit: str, kind: str
) -> None:
    out = tmp_path / "x.beton"
    container(pictures(tmp_path / "a", kind), out, raw=False)
    data = out.read_bytes()
    end = int(np.frombuffer(data, records.HEADER, 1)["table"][0])
    metadata = np.frombuffer(data[TABLE:], records.METADATA, COUNT).copy()
    allocated = np.frombuffer(data[end:], records.ALLOCATION).copy()
    EDITS[edit](metadata, allocated)
    between = data[TABLE + metadata.nbytes : end]
    out.write_bytes(data[:TABLE] + metadata.tobytes() + between + allocated.tobytes())
    with pytest.raises(DataError, match=rf"{out} (is damaged|cannot be read)"):
        reader.open_beton(out)


def test_a_container_that_ends_early_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.beton"
    container(pictures(tmp_path / "a", "jpg"), out)
    data = bytearray(out.read_bytes())
    table = int(np.frombuffer(data, records.HEADER, 1)["table"][0])
    out.write_bytes(data[:table])  # without its last table
    with pytest.raises(DataError, match="is damaged: row 0 cannot be"):
        reader.open_beton(out)
    short = data[: TABLE + 2 * records.METADATA.itemsize]
    short[16:24] = bytes(8)  # its last table is said to be here
    out.write_bytes(short)
    with pytest.raises(DataError, match="shorter than its header states"):
        reader.open_beton(out)


def test_a_container_that_is_gone_is_an_error_that_names_the_sample(tmp_path: Path) -> None:
    images = container(pictures(tmp_path / "a", "jpg"), tmp_path / "x.beton")
    images.path.unlink()
    for read in (images.pixels, images.check, images.stored):
        with pytest.raises(DataError, match=r"cannot read sample 'c0/p0' in .*x\.beton"):
            read(0)
