"""FFCV gives the batches of the native loader bit for bit, and none of its traps is left open."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numba
import numpy as np
import pytest
import torch
from numba.core import event
from PIL import Image
from skimage.data import astronaut, chelsea

from cache_tools.data import match, shard_writer
from cache_tools.data.beton import reader, records, writer
from cache_tools.data.open import open_images
from cache_tools.errors import CacheMismatch, DataError, UsageError
from cache_tools.render import jpeg, view
from cache_tools.storage import atomic
from cache_tools.store.cache import Cache
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers.range_server import serve
from train import recipe as train_recipes
from train.data import create_loader
from train.data.loader import Batch, Loader
from train.data.schedule import Schedule

A2 = ["views.auto_augment=rand-m7-mstd0.5", "views.re_prob=0.5", "views.cutmix=1.0"]
PLAIN = ["views.mixup=0.0"]
AREA = [*PLAIN, "views.interpolation=area", "views.size=96"]
DETAILS = {"a2": A2, "plain": PLAIN, "area": AREA, "scaled": ["views.scaled_decode=true"]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen photographs of all kinds: JPEG of several sorts, grey, CMYK, PNG."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(18):
        source = (astronaut, chelsea)[i % 2]()
        picture = Image.fromarray(cv2.resize(source, (230 - 5 * i, 160 + 3 * i)))
        where = folder / f"class{i % 3}"
        where.mkdir(exist_ok=True)
        options: dict[str, Any] = {"quality": 90, "progressive": i == 3}
        mode, kind = {1: ("L", "jpg"), 2: ("CMYK", "jpg"), 4: ("RGB", "png")}.get(i, ("RGB", "jpg"))
        picture.convert(mode).save(where / f"p{i}.{kind}", **options if kind == "jpg" else {})
    return folder


@pytest.fixture(scope="module")
def stores(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, teacher: Path
) -> dict[str, Cache]:
    found = {}
    for name, own in DETAILS.items():
        out = tmp_path_factory.mktemp(name) / "cache.zarr"
        size = ["views.size=64", "num_views=3", *own]
        run(recipes.load("photos", size), str(photos), str(teacher), out, "cpu")
        found[name] = Cache.open(out)
        if name == "area":
            old, spec = tmp_path_factory.mktemp("old") / "cache.zarr", found[name].spec
            Cache.create(old, replace(spec, renderer="kernels-1"), found[name].table, 3)
            run(recipes.load("photos", size), str(photos), str(teacher), old, "cpu")
            found["kernels-1"] = Cache.open(old)
    return found


def container(photos: Path, out: Path, raw: bool = False) -> Path:
    writer.write(open_images(str(photos), "train"), out, raw, 2, lambda _: None)
    return out


def opened(store: Cache, source: Path) -> Any:
    images = open_images(str(source), "train")
    return match.match(store.table, store.spec.dataset, images)


def left_running() -> list[str]:
    """Threads of a loader that should have ended; "views" waits for none and ends by itself."""
    mine = ("batch", "check", "render", "Epoch")
    names = [f"{type(t).__name__} {t.name}" for t in threading.enumerate()]
    return [name for name in names if any(part in name for part in mine)]


def equal(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch)]
    targets = [(getattr(a.targets, f.name), getattr(b.targets, f.name)) for f in fields(a.targets)]
    both = [(x, y) for x, y in pairs + targets if isinstance(x, np.ndarray)]
    return (a.partner is None) == (b.partner is None) and all(np.array_equal(x, y) for x, y in both)


def test_a_container_holds_the_images_as_they_were(photos: Path, tmp_path: Path) -> None:
    source = open_images(str(photos), "train")
    there = open_images(str(container(photos, tmp_path / "x.beton")), "train")
    assert isinstance(there, reader.Beton)
    assert there.names == source.names
    assert there.class_names == source.class_names
    assert (there.label_N == source.label_N).all()
    assert [there.read(i) for i in range(18)] == [source.read(i) for i in range(18)]
    assert (there.rows_N["mode"] == records.RAW).sum() == 2  # CMYK and PNG


def test_a_broken_image_is_named_and_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    data = (photos / "class0/p0.jpg").read_bytes()
    (tmp_path / "src/good.jpg").write_bytes(data)
    (tmp_path / "src/bad.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="bad"):
        container(tmp_path / "src", tmp_path / "x.beton")
    assert not list(tmp_path.glob("x.beton*"))
    assert not list(tmp_path.glob(f"*{atomic.PARTIAL}"))


def test_a_damaged_container_is_refused(
    photos: Path, stores: dict[str, Cache], tmp_path: Path
) -> None:
    out = container(photos, tmp_path / "x.beton")
    images, store = opened(stores["plain"], out), stores["plain"]
    data = bytearray(out.read_bytes())
    data[int(images.rows_N["ptr"][0]) + 400] ^= 255
    out.write_bytes(data)
    with pytest.raises((DataError, ValueError), match="digest differs"):
        [*create_loader.native(store, opened(store, out), Schedule(store, 1, 6, 0), 1).epoch(0)]
    out.write_bytes(data[:5000])
    with pytest.raises(DataError, match=r"cannot be read|damaged"):
        open_images(str(out), "train")
    out.write_bytes(b"nothing of ours, but long enough to have a header" * 50)
    with pytest.raises(DataError, match="not written by kdcache"):
        open_images(str(out), "train")


@pytest.mark.parametrize("raw", [False, True])
def test_a_container_of_other_images_is_refused(
    raw: bool, photos: Path, stores: dict[str, Cache], tmp_path: Path
) -> None:
    """Images of the same names, labels and encoded lengths, of which one has other bytes."""
    other, store = tmp_path / "photos", stores["plain"]
    shutil.copytree(photos, other)
    data = bytearray((other / "class0/p0.jpg").read_bytes())
    data[-300] ^= 1  # a coefficient
    (other / "class0/p0.jpg").write_bytes(data)
    out = container(other, tmp_path / "x.beton", raw)
    with pytest.raises(CacheMismatch, match=r"1 of 18 images .* \(first: 'p0', \d+ as digest ag"):
        opened(store, out)


@pytest.mark.parametrize("seen", [True, False])
def test_a_changed_height_in_a_container_is_refused_before_it_is_decoded(
    seen: bool,
    photos: Path,
    stores: dict[str, Cache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One bit of the header makes a picture higher than the memory for it.

    Where the file changes after its digests were compared, the picture is left, and refused then.
    """
    loader = pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    store, out = stores["plain"], container(photos, tmp_path / "x.beton")
    images = opened(store, out)
    row = next(i for i in range(18) if images.names[i].endswith("p0"))
    begin, data = int(images.rows_N["ptr"][row]), bytearray(out.read_bytes())
    at = begin + int(jpeg.height_at(np.frombuffer(images.read(row), np.uint8), 1))
    data[at] ^= 2
    out.write_bytes(data)
    decoded: list[int] = []
    real = loader.FfcvEpoch.run_pipeline

    def spy(self: Any, step: int, view_B: Any, *rest: Any) -> Any:
        decoded.extend((view_B % 18).tolist())
        return real(self, step, view_B, *rest)

    monkeypatch.setattr(loader.FfcvEpoch, "run_pipeline", spy)
    if not seen:
        monkeypatch.setattr(reader.Beton, "check", lambda *_: None)
    images = opened(store, out)
    with pytest.raises((DataError, CacheMismatch), match="p0"):
        replay = create_loader.ffcv(store, images, Schedule(store, 1, 6, 0), 2)
        decoded.clear()  # a few views, which were compared
        list(replay.epoch(0))
    assert (row in decoded) is not seen


@pytest.mark.parametrize("raw", [False, True])
def test_libraries_of_ffcv_with_other_pixels_are_refused_by_name(
    raw: bool,
    photos: Path,
    stores: dict[str, Cache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader = pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    real = loader.FfcvEpoch.run_pipeline

    def other(*arguments: Any) -> Any:
        [pixels] = made = real(*arguments)
        pixels[:, -1, -1, -1] ^= 1
        return made

    monkeypatch.setattr(loader.FfcvEpoch, "run_pipeline", other)
    images = opened(stores["area"], container(photos, tmp_path / "x.beton", raw))
    with pytest.raises(CacheMismatch, match=r"view 0 of .*turbojpeg.*OpenCV.*loader=native"):
        create_loader.ffcv(stores["area"], images, Schedule(stores["area"], 1, 6, 0), 1)
    assert not left_running()


def test_the_choice_of_a_loader_is_logged_with_its_reason(
    photos: Path, stores: dict[str, Cache], tmp_path: Path
) -> None:
    spec = stores["plain"].spec
    auto, forced = (train_recipes.load("digits", [f"loader={n}"]) for n in ("auto", "ffcv"))
    folder = open_images(str(photos), "train")
    assert create_loader.choose(auto, folder, spec, 10**9)[0] == "native"
    assert "kdcache beton" in create_loader.choose(auto, folder, spec, 10**9)[1]
    with pytest.raises(UsageError, match="kdcache beton"):
        create_loader.choose(forced, folder, spec, 1)


def shown(replay: Loader) -> list[str]:
    """A hash of each view of two epochs and of its partner, in their order."""
    pictures: list[np.ndarray] = []
    for batch in (batch for epoch in range(2) for batch in replay.epoch(epoch)):
        pictures += [*batch.pixels, *([] if batch.partner is None else batch.partner)]
    return [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]


@pytest.fixture
def sources(photos: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The photographs in every form that can be trained from."""
    images = open_images(str(photos), "train")
    shard_writer.write(images, tmp_path / "tars", shard_writer.Options("train", shard_size=5))
    jpeg, raw = (container(photos, tmp_path / f"{raw}.beton", raw) for raw in (False, True))
    with serve(tmp_path / "tars") as server:
        yield {"folder": photos, "tars": tmp_path / "tars", "url": server.url} | {
            "jpeg": jpeg,
            "raw": raw,
        }


@pytest.mark.parametrize(("name", "size"), [("plain", 0), ("a2", 0), ("a2", 40)])
def test_every_form_of_the_images_and_any_threads_give_the_same_views(
    name: str, size: int, stores: dict[str, Cache], sources: dict[str, Any]
) -> None:
    store, schedule = stores[name], Schedule(stores[name], 1, 6, 0, size=size)
    wanted = shown(create_loader.native(store, opened(store, sources["folder"]), schedule, 1))
    assert len(set(wanted)) == 36  # two views of 18 pictures
    for form, threads in [("folder", 8), ("tars", 1), ("tars", 2), ("tars", 8), ("url", 2)]:
        assert (
            shown(create_loader.native(store, opened(store, sources[form]), schedule, threads))
            == wanted
        )
    for form in ("jpeg", "raw"):
        images = opened(store, sources[form])
        assert shown(create_loader.native(store, images, schedule, 2)) == wanted


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [*DETAILS, "kernels-1"])
def test_ffcv_gives_the_native_batches(
    name: str, threads: int, photos: Path, stores: dict[str, Cache], tmp_path: Path
) -> None:
    pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    before = torch.get_num_threads(), numba.get_num_threads()
    store = stores[name]
    schedules = [Schedule(store, 2, 4, 0), Schedule(store, 1, 4, 0, aug_repeats=3)]
    schedules.append(Schedule(store, 1, 4, 0, size=40))
    kinds = [False] if name == "scaled" else [False, True]
    for raw in kinds:
        images = opened(store, container(photos, tmp_path / f"{raw}.beton", raw))
        for schedule in schedules:
            ours = create_loader.native(store, opened(store, photos), schedule, 2)
            theirs = create_loader.ffcv(store, images, schedule, threads)
            for epoch in range(3):
                with event.install_recorder("numba:compile") as compiled:
                    got = list(theirs.epoch(epoch, first_step=epoch % 2))
                wanted = list(ours.epoch(epoch, first_step=epoch % 2))
                assert len(got) == len(wanted)
                assert all(equal(a, b) for a, b in zip(got, wanted, strict=True))
                assert epoch == 0 or not compiled.buffer
    assert (torch.get_num_threads(), numba.get_num_threads()) == before
    assert not left_running()


def test_what_the_compiled_code_cannot_make_is_made_or_refused(
    photos: Path, stores: dict[str, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    store = stores["plain"]
    out = container(photos, tmp_path / "x.beton")
    schedule = Schedule(store, 1, 6, 0)
    wanted = list(create_loader.native(store, opened(store, photos), schedule, 1).epoch(0))
    real = loader.FfcvRenderer._tables

    def beyond(self: Any, loaded: Any) -> Any:  # OpenCV would abort the process
        tables = real(self, loaded)
        return tables._replace(box_V4=tables.box_V4 + np.int32(1000))

    monkeypatch.setattr(loader.FfcvRenderer, "_tables", beyond)
    got = list(create_loader.ffcv(store, opened(store, out), schedule, 2).epoch(0))
    assert all(equal(a, b) for a, b in zip(got, wanted, strict=True))
    monkeypatch.undo()
    images = opened(store, out)
    data = bytearray(out.read_bytes())
    at = int(images.rows_N["ptr"][3]) + 300
    data[at : at + 4] = b"\xff\xd9\xff\xd9"
    out.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        list(create_loader.ffcv(store, opened(store, out), schedule, 2).epoch(0))


def test_an_error_in_ffcvs_thread_arrives_and_leaving_early_stops_it(
    photos: Path, stores: dict[str, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    store = stores["plain"]
    images = opened(store, container(photos, tmp_path / "x.beton"))
    replay = create_loader.ffcv(store, images, Schedule(store, 1, 2, 0), 1)
    for _ in range(20):
        early = replay.epoch(0)
        next(early)
        early.close()
    assert not left_running()

    def fails(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(loader.FfcvEpoch, "run_pipeline", fails)
    with pytest.raises(MemoryError, match="no room"):
        list(replay.epoch(0))
    assert not left_running()


def test_other_caches_need_no_compiling(
    photos: Path, stores: dict[str, Cache], tmp_path: Path
) -> None:
    pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    out = container(photos, tmp_path / "x.beton")

    def run(name: str) -> None:
        store = stores[name]
        replay = create_loader.ffcv(store, opened(store, out), Schedule(store, 1, 4, 0), 2)
        ours = create_loader.native(store, opened(store, photos), Schedule(store, 1, 4, 0), 2)
        assert shown(replay) == shown(ours)

    run("plain")
    with event.install_recorder("numba:compile") as compiled:
        for name in ("a2", "scaled", "plain"):
            run(name)
    assert not compiled.buffer


def test_two_at_once_more_threads_than_cores_and_no_scratch_memory(
    photos: Path, stores: dict[str, Cache], tmp_path: Path
) -> None:
    pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    store, out = stores["plain"], container(photos, tmp_path / "x.beton")
    schedule = Schedule(store, 1, 4, 0)
    both = [create_loader.ffcv(store, opened(store, out), schedule, 64) for _ in range(2)]
    pairs = list(zip(*(replay.epoch(0) for replay in both), strict=True))
    assert len(pairs) == schedule.steps
    assert all(equal(a, b) for a, b in pairs)
    of_ffcv = both[
        0
    ]._renderer._loader  # its buffers hold views, whatever the sizes of the pictures
    buffers = of_ffcv.graph.allocate_memory(of_ffcv.batch_size, 1)
    views = [memory for memory in buffers["operation"].values() if memory is not None]
    assert [memory.nbytes for memory in views] == [of_ffcv.batch_size * 64 * 64 * 3]


def test_an_image_larger_than_a_page(teacher: Path, tmp_path: Path) -> None:
    """FFCV's writer waits for ever when a sample has more bytes than a page of 8 MiB."""
    pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
    (tmp_path / "src").mkdir()
    for i, size in enumerate(((2000, 1500), (80, 60), (2000, 1500), (90, 70))):
        Image.fromarray(cv2.resize(chelsea(), size)).save(tmp_path / f"src/p{i}.jpg")
    recipe = recipes.load("photos", ["views.size=64", "num_views=1"])
    store = run(recipe, str(tmp_path / "src"), str(teacher), tmp_path / "c.zarr", "cpu")
    out, schedule = (
        container(tmp_path / "src", tmp_path / "x.beton", raw=True),
        Schedule(store, 1, 4, 0),
    )
    ours = create_loader.native(store, opened(store, tmp_path / "src"), schedule, 1)
    assert shown(create_loader.ffcv(store, opened(store, out), schedule, 2)) == shown(ours)


@pytest.mark.parametrize("kind", ["native", "ffcv"])
def test_a_thread_that_fails_ends_all_of_them(
    kind: str,
    photos: Path,
    stores: dict[str, Cache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = stores["plain"]
    images, create = opened(store, photos), create_loader.native
    if kind == "ffcv":
        loader = pytest.importorskip("train.data.ffcv_renderer", exc_type=ImportError)
        images = opened(store, container(photos, tmp_path / "x.beton"))
        create = create_loader.ffcv
        monkeypatch.setattr(loader.FfcvEpoch, "run", lambda _: None)
    else:

        def fails(*_: Any, **__: Any) -> None:
            raise RuntimeError("this thread ended without a word")

        monkeypatch.setattr(view, "render_views", fails)
    with pytest.raises(RuntimeError, match="ended without a word"):
        list(create(store, images, Schedule(store, 1, 2, 0), 2).epoch(0))
    assert not left_running()
