"""A small real data set, a quick teacher and a cache of it, made once for all tests."""

import copy
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import timm
import torch
from timm.models import save_for_hf

from cache_tools.cli import main
from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.store.cache import Cache
from pipeline import demo
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers import fake_gpu
from tests.helpers.outcome import Outcome

torch.set_num_threads(1)
# a process's first product on a GPU decides for all of them, and most tests are not deterministic
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# hypothesis would call an example that takes 0.2 s a failure, on a busy machine any; and it draws
# the same examples every time, so that a change is judged and not the dice. Others are drawn by
# pytest --hypothesis-profile=dice
for name, fixed in (("dice", False), ("fixed", True)):
    hypothesis.settings.register_profile(
        name,
        deadline=None,
        derandomize=fixed,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that take a GPU where there is none."""
    for item in items if not torch.cuda.is_available() else ():
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="takes a GPU"))


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is kept between runs stays within the tests, also of the processes they start."""
    folder = tmp_path_factory.mktemp("kept")
    os.environ["KDCACHE_CACHE"] = str(folder)
    yield folder
    del os.environ["KDCACHE_CACHE"]


@pytest.fixture
def patience() -> Iterator[None]:
    """TimeoutError after 20 seconds, where a faulty reader waits for a pipe for ever."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set: 100 transfer images, 1,000 for the teacher, 797 for validation."""
    folder = tmp_path_factory.mktemp("digits")
    demo.write_shards(folder)
    return folder


def saved(folder: Path, architecture: str, num_classes: int, seed: int) -> Path:
    """A network that knows nothing but is deterministic, saved as timm saves networks."""
    torch.manual_seed(seed)
    model = timm.create_model(architecture, num_classes=num_classes)
    with torch.no_grad():
        model.get_classifier().weight.mul_(8.0)  # opinions worth storing
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of ten classes."""
    return saved(tmp_path_factory.mktemp("teacher") / "model", "test_resnet", 10, seed=3)


@pytest.fixture(scope="session")
def second_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture with another mean."""
    return saved(tmp_path_factory.mktemp("second") / "model", "test_efficientnet", 10, seed=5)


@pytest.fixture(scope="session")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of 25 classes."""
    return saved(tmp_path_factory.mktemp("wide") / "model", "test_resnet", 25, seed=5)


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory, digits: Path, teacher: Path) -> Path:
    """A whole cache with mixup, 4 views of 100 digits in 2 blocks; tests copy it before writing."""
    out = tmp_path_factory.mktemp("cache") / "cache.zarr"
    small = ["num_views=4", "views.mixup=0.5"]
    run(recipes.load("digits", small), str(digits), str(teacher), out, "cpu")
    return out


@pytest.fixture(scope="session")
def digits_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The cache of `make cache`, and its images."""
    folder = tmp_path_factory.mktemp("demo")
    demo.write_shards(folder / "digits")
    demo.train_teacher(folder / "digits", folder / "digits" / "teacher-model")
    cache, teacher = folder / "cache.zarr", folder / "digits" / "teacher-model"
    run(recipes.load("digits"), str(folder / "digits"), str(teacher), cache, "cpu")
    return cache, folder / "digits"


@pytest.fixture(scope="session")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return saved(tmp_path_factory.mktemp("other") / "model", "test_resnet", 10, seed=4)


@pytest.fixture(scope="session")
def sibling_cache(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, other_teacher: Path
) -> Path:
    """The views of `digits_cache`, by another teacher that keeps less."""
    out = tmp_path_factory.mktemp("cache") / "sibling.zarr"
    small = ["num_views=4", "views.mixup=0.5"]
    small += ["targets.k_max=6", "targets.k_min=2", "targets.tau=0.01"]
    run(recipes.load("digits", small), str(digits), str(other_teacher), out, "cpu")
    return out


@pytest.fixture
def mutable_cache(digits_cache: Path, tmp_path: Path) -> Path:
    """A copy of the cache that a test may damage."""
    copy = tmp_path / "cache.zarr"
    shutil.copytree(digits_cache, copy)
    shutil.copy(f"{digits_cache}.source", f"{copy}.source")
    return copy


@pytest.fixture
def images(digits_cache: Path, digits: Path) -> ImageDataset:
    """The transfer images in the order of the cache's table."""
    store = Cache.open(digits_cache)
    opened = open_images(str(digits), "train")
    return match.match(store.table, store.spec.dataset, opened)


@pytest.fixture
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker process does to its log is undone after the test."""
    log = logging.getLogger("kdcache")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(log, name, copy.copy(getattr(log, name)))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> fake_gpu.FakeGpu:
    """A GPU whose memory is the host's."""
    return fake_gpu.install(monkeypatch)


@pytest.fixture
def kdcache(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command as its users do, in this process; its exit code and what it printed."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["kdcache", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main.main()
            raise SystemExit(0)
        code = exit_.value.code
        return Outcome(code if isinstance(code, int) else 1, *capfd.readouterr())

    return call
