"""The student's pixels are the teacher's, whatever the batch, threads, order or files."""

import hashlib
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheMismatch
from cache_tools.render import decode, kernels, mixing
from cache_tools.render import view as render
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.verify import probes, verify
from cache_tools.views import draw
from pipeline import recipe as recipes
from pipeline.run import run
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.stage1 import Stage1
from train.data import create_loader
from train.data.schedule import Schedule

Hashes = dict[tuple[int, int], str]
A2 = [
    "num_views=6",
    "views.size=48",
    'views.auto_augment="rand-m7-mstd0.5-inc1"',
    "views.re_prob=0.25",
    "views.mixup=0.1",
    "views.cutmix=1.0",
]


class Recorder(Forward):
    """A teacher that writes down what it was shown, after mixing, and what was kept of it."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.seen: list[str] = []

    def __call__(self, pixels, partner, mix, label=None):  # type: ignore[no-untyped-def]
        self.seen += hashes(pixels, partner, mix.lam_B.astype(np.float32), mix.cut_B4)
        return super().__call__(pixels, partner, mix, label)


def hashes(
    pixels: np.ndarray, partner: np.ndarray | None, lam: np.ndarray, cut: np.ndarray
) -> list[str]:
    """Hashes of the mixed pictures, computed as both stages do."""
    mixed = torch.as_tensor(pixels).permute(0, 3, 1, 2).float()
    if partner is not None:
        other = torch.as_tensor(partner).permute(0, 3, 1, 2).float()
        side = torch.arange(pixels.shape[1])
        mixed = mixing.mix(mixed, other, torch.from_numpy(lam), torch.from_numpy(cut), side)
    return [hashlib.sha256(m.contiguous().numpy().tobytes()).hexdigest() for m in mixed]


@pytest.fixture(scope="module")
def views_cache(digits: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the A2 augmentation, erasing and cutmix on top: 6 views of 100 digits."""
    out = tmp_path_factory.mktemp("a2") / "cache.zarr"
    run(recipes.load("digits", A2), str(digits), str(teacher), out, "cpu")
    return out


@pytest.fixture(scope="module")
def seen_by_teacher(views_cache: Path, digits: Path, teacher: Path) -> Hashes:
    """(view, row) → hash of the mixed picture the teacher was shown in stage 1."""
    store = Cache.open(views_cache)
    forward = Recorder(
        teachers.load(str(teacher), 48, "fp32"), store.spec.targets, torch.device("cpu")
    )
    worker = Stage1(store, opened(store, digits), forward, 32, 2)
    result = {}
    for view in range(6):
        forward.seen.clear()
        (store.path / Part(view, 0).record).unlink()
        worker.make([DecodeGroup(0, (view,))], lambda _: None)
        result |= {(view, row): seen for row, seen in enumerate(forward.seen)}
    worker.close()
    return result


def opened(store: Cache, source: Path) -> ImageDataset:
    images = open_images(str(source), "train")
    return match.match(store.table, store.spec.dataset, images)


def seen_by_student(
    store: Cache, images: ImageDataset, batch_size: int, threads: int, seed: int
) -> Hashes:
    """(view, row) → hash of the mixed picture, over one epoch of all views."""
    schedule = Schedule(store, 6, batch_size, seed)
    plan, shown = schedule.plan(0), []
    for batch in create_loader.native(store, images, schedule, threads).epoch(0):
        shown += hashes(batch.pixels, batch.partner, batch.lam_B, batch.cut_B4)
    assert len(shown) == schedule.steps * batch_size
    places = zip(plan.slot_M, plan.row_M, shown, strict=False)
    return {(plan.views[slot], int(row)): seen for slot, row, seen in places}


@pytest.mark.parametrize(
    ("batch_size", "threads", "seed"),
    [(7, 1, 0), (64, 2, 1), (512, 8, 2), (7, 8, 3), (64, 1, 4), (600, 2, 5)],
)
def test_an_epoch_shows_what_the_teacher_saw(
    views_cache: Path,
    digits: Path,
    seen_by_teacher: Hashes,
    batch_size: int,
    threads: int,
    seed: int,
) -> None:
    store = Cache.open(views_cache)
    shown = seen_by_student(store, opened(store, digits), batch_size, threads, seed)
    assert shown == {place: seen_by_teacher[place] for place in shown}
    assert len(shown) == 600 // batch_size * batch_size
    assert len(set(seen_by_teacher.values())) == 600


def test_a_mixed_view_is_erased_after_mixing(views_cache: Path, digits: Path) -> None:
    """As timm's; caches of an older renderer keep the erasing that each partner had of its own."""
    store, rows = Cache.open(views_cache), np.arange(100)
    renderer = ViewRenderer(opened(store, digits), store.spec.views, store.table)
    params, mix = view_params.parameters(store, 4, rows), view_params.mixing(store, 4)
    plain = replace(params, erase_BE8=np.zeros_like(params.erase_BE8))
    each = (
        np.stack([renderer.render_one(row, p, row) for row in rows]).transpose(0, 3, 1, 2)
        for p in (params, plain)
    )
    factors = mix.lam_B.astype("f4"), mix.cut_B4, np.arange(48)
    erased, mixed = (mixing.mix(x.astype("f4"), x[mix.partner_B], *factors) for x in each)
    assert (params.erase_BE8[:, 0, 2] > 0).sum() > 10
    for row, (top, left, height, width, mode, *color) in enumerate(params.erase_BE8[:, 0].tolist()):
        if height:
            patch = np.zeros((48, 48, 3), np.uint8)
            keys = params.noise_BE2[row, 0]
            kernels.erase(patch, top, left, height, width, mode, np.array(color, np.uint8), *keys)
            box = np.s_[:, top : top + height, left : left + width]
            mixed[row][box] = patch.transpose(2, 0, 1)[box]
    assert np.array_equal(erased, mixed)
    old = SimpleNamespace(spec=replace(store.spec, renderer="kernels-1"), table=store.table)
    table = store.table
    own = draw.draw(store.spec.views, table.id_N, table.height_N, table.width_N, 4)
    found = view_params.parameters(old, 4, rows)  # type: ignore[arg-type]
    assert np.array_equal(found.erase_BE8, own.erase_BE8)
    assert not np.array_equal(params.erase_BE8, own.erase_BE8)


@pytest.mark.parametrize("kind", ["folder", "recut"])
def test_other_files_of_the_same_images_give_the_same_views(
    views_cache: Path, digits: Path, seen_by_teacher: Hashes, tmp_path: Path, kind: str
) -> None:
    content = {}
    with tarfile.open(digits / "digits-train-0000.tar") as tar:
        for member in tar:
            content[member.name] = tar.extractfile(member).read()
    if kind == "folder":
        for name, data in content.items():
            if name.endswith(".png"):
                folder = tmp_path / f"digit{content[name[:-3] + 'cls'].decode()}"
                folder.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
    else:
        names = sorted(content, key=lambda n: hashlib.md5(n.rpartition(".")[0].encode()).digest())
        for first in range(0, len(names), 34):
            with tarfile.open(tmp_path / f"z{9 - first // 34}.tar", "w") as tar:
                for name in names[first : first + 34]:
                    info = tarfile.TarInfo(name)
                    info.size = len(content[name])
                    tar.addfile(info, BytesIO(content[name]))
    store = Cache.open(views_cache)
    assert seen_by_student(store, opened(store, tmp_path), 60, 2, 0) == seen_by_teacher


def test_reencoded_images_are_detected(teacher: Path, tmp_path: Path) -> None:
    """Quality 95 of the same pictures under the same names, refused by stage 1 and stage 2."""
    random = np.random.default_rng(0)
    for number in range(8):
        picture = Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8))
        for folder, quality in (("original", 90), ("again", 95)):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.save(tmp_path / folder / f"p{number}.jpg", quality=quality)
    recipe = recipes.load("digits", ["num_views=1", "dataset.labels=ignore"])
    store = run(recipe, str(tmp_path / "original"), str(teacher), tmp_path / "c.zarr", "cpu")
    with pytest.raises(CacheMismatch, match=r"8 of 8 images .* are not the teacher's"):
        opened(store, tmp_path / "again")
    with pytest.raises(CacheMismatch, match="re-encoded copy"):
        run(recipe, str(tmp_path / "again"), str(teacher), tmp_path / "c.zarr", "cpu")


def test_the_teacher_may_look_at_its_own_size(digits: Path, teacher: Path, tmp_path: Path) -> None:
    """Probes stay those of the student's size, and training replays it."""
    out = tmp_path / "c.zarr"
    own_size = ["num_views=2", "views.teacher_size=64", "views.cutmix=1.0"]
    store = run(recipes.load("digits", own_size), str(digits), str(teacher), out, "cpu")
    images = opened(store, digits)
    assert verify.verify(store, images).status == "ok"
    batch = next(iter(create_loader.native(store, images, Schedule(store, 1, 50, 0), 2).epoch(0)))
    assert batch.pixels.shape == (50, 32, 32, 3)


def test_repeated_augmentation_decodes_a_picture_once(
    digits: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partners that stay for three views: 99 views of 33 pictures, mixed, from 33 decodes or so."""
    recipe = recipes.load("digits", ["num_views=9", "views.cutmix=1.0", "views.pair_views=3"])
    store = run(recipe, str(digits), str(teacher), tmp_path / "c.zarr", "cpu")
    schedule, images = Schedule(store, 1, 24, 0, aug_repeats=3), opened(store, digits)
    plan = schedule.plan(1)
    assert len({row for e in range(3) for row in schedule.plan(e).row_M.tolist()}) == 99
    assert len(set(plan.partner_M.tolist()) - set(plan.row_M.tolist())) <= 1  # 33 is odd
    decoded, decode_one = [], decode.decoded
    monkeypatch.setattr(
        decode, "decoded", lambda d, k, *a: decoded.append(k) or decode_one(d, k, *a)
    )
    batches = list(create_loader.native(store, images, schedule, 2).epoch(1))
    assert 32 <= len(decoded) <= 33 + 2 * len(batches)
    monkeypatch.undo()
    for step, batch in enumerate(batches):
        for i, at in enumerate(range(24 * step, 24 * step + 24)):
            row, view = int(plan.row_M[at]), plan.views[plan.slot_M[at]]
            expected = probes.probe(store, images, row, view)
            assert render.fingerprint(batch.pixels[i]) == expected


def test_repeated_augmentation_shows_a_third_three_times(views_cache: Path) -> None:
    store = Cache.open(views_cache)
    schedule = Schedule(store, 1, 33, 0, aug_repeats=3)
    epochs = [schedule.plan(e) for e in range(3)]
    for plan in epochs:
        assert len(plan.row_M) == 99
        assert set(np.unique(plan.row_M, return_counts=True)[1]) == {3}
    rows = [set(plan.row_M.tolist()) for plan in epochs]
    assert len(set.union(*rows)) == 99
    assert [schedule.view_numbers(e) for e in range(7)] == [(0, 1, 2)] * 3 + [(3, 4, 5)] * 3 + [
        (0, 1, 2)
    ]
