"""A student is trained while its cache is being made; what is not there is waited for."""

import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_tools.errors import CacheDamaged, CacheIncomplete, CacheMismatch, UsageError
from cache_tools.store import presence
from cache_tools.store.aligned import CacheEnsemble, open_ensemble
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.views import draw
from tests.helpers import range_server
from tests.helpers.outcome import Outcome
from train import api
from train.data import follow
from train.data.batches import Batches
from train.data.follow import AFTER_END, DAMAGED, WITHOUT_PART, Follower
from train.distributed import World

SMALL = {"epochs": 3, "views_per_epoch": 1, "batch_size": 50}
VIEWS = 4
LOOK, MINUTE = 5, 5 * 60
"""Sleeps between two looks at parts, and in a minute."""
Command = Callable[..., Outcome]


class Clock:
    """Time that passes while somebody sleeps, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[Callable[[], object]] = []
        """Events of the test, one for each sleep."""

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.events:
            self.events.pop(0)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(follow, "time", clock)
    return clock


class Growing:
    """A cache whose parts come when a test says so: their commit records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = {view: (path / Part(view, 0).record).read_bytes() for view in range(VIEWS)}
        for view in self.records:
            (path / Part(view, 0).record).unlink()

    def commit(self, *views: int) -> None:
        for view in views:
            (self.path / Part(view, 0).record).write_bytes(self.records[view])


@pytest.fixture
def growing(mutable_cache: Path) -> Growing:
    return Growing(mutable_cache)


def opened(cache: Path | str) -> CacheEnsemble:
    return open_ensemble([cache])


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def fit(cache: Path | str, out: Path, digits: Path, **values: Any) -> dict[str, Any]:
    keys = SMALL | values
    return api.fit("digits", cache=cache, data=digits, out=out, values=keys, progress=False).facts


@pytest.fixture(scope="module")
def afterwards(digits_cache: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student that is trained from the finished cache."""
    out = tmp_path_factory.mktemp("afterwards") / "run"
    assert "cache_content_id" not in fit(digits_cache, out, digits)
    return out


def test_the_student_is_the_one_of_the_finished_cache(
    growing: Growing,
    afterwards: Path,
    digits: Path,
    tmp_path: Path,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The last view, which it does not show, comes as well."""
    growing.commit(0)
    clock.events = [lambda: growing.commit(1), *[lambda: None] * LOOK, lambda: growing.commit(2, 3)]
    with caplog.at_level(logging.INFO, "kdcache"):
        result = fit(growing.path, tmp_path / "run", digits, follow=True)
    assert weights(tmp_path / "run") == weights(afterwards)
    assert result["cache_content_id"] == Cache.open(growing.path).content_id()
    assert result["cache_parts_missing"] == 0
    waits = [line for line in caplog.messages if line.startswith("wait for")]
    assert waits == [f"wait for view {v}: 1 of 1 part not there yet" for v in (1, 2)]


@pytest.mark.parametrize("size", [16, [[0.0, 16], [0.33, 24, 25], [0.66, 48]]])
def test_so_is_one_of_another_size(
    size: Any, growing: Growing, digits_cache: Path, digits: Path, tmp_path: Path, clock: Clock
) -> None:
    """A schedule waits at the epochs of each of its sizes."""
    fit(digits_cache, tmp_path / "afterwards", digits, size=size)
    growing.commit(0)
    clock.events = [lambda: growing.commit(1), *[lambda: None] * LOOK, lambda: growing.commit(2)]
    result = fit(growing.path, tmp_path / "run", digits, follow=True, size=size)
    assert not clock.events
    assert result["size"] == (16 if size == 16 else 48)
    assert weights(tmp_path / "run") == weights(tmp_path / "afterwards")


def test_a_cache_that_is_not_complete_at_the_end_is_recorded_as_such(
    growing: Growing, afterwards: Path, digits: Path, tmp_path: Path, clock: Clock
) -> None:
    growing.commit(0, 1, 2)
    result = fit(growing.path, tmp_path / "run", digits, follow=True)
    assert weights(tmp_path / "run") == weights(afterwards)
    assert (result["cache_content_id"], result["cache_parts_missing"]) == (None, 1)


def test_a_run_that_was_stopped_while_it_waited_goes_on(
    growing: Growing, afterwards: Path, digits: Path, tmp_path: Path, clock: Clock
) -> None:
    """And may end without `follow` when the cache is complete."""
    growing.commit(0)
    clock.events = [lambda: os.kill(os.getpid(), signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        fit(growing.path, tmp_path / "run", digits, follow=True)
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 1
    growing.commit(1)
    with pytest.raises(CacheIncomplete):
        fit(growing.path, tmp_path / "run", digits)
    clock.events = [lambda: growing.commit(2)]
    fit(growing.path, tmp_path / "run", digits, follow=True, follow_timeout=2.0)
    assert weights(tmp_path / "run") == weights(afterwards)


def test_waiting_ends_some_time_after_the_last_process_that_made_the_cache(
    growing: Growing, clock: Clock
) -> None:
    """Not while one is at work, however slow it is."""
    follower, store = Follower(opened(growing.path)), Cache.open(growing.path)
    growing.commit(1)
    maker = presence.announced(store)
    maker.__enter__()
    minutes = 4 * AFTER_END
    at_work = [lambda: None] * int(MINUTE * minutes)
    clock.events = [*at_work, lambda: maker.__exit__(None, None, None)]
    with pytest.raises(CacheIncomplete) as ended:
        follower.wait([0, 1, 2])
    assert not clock.events
    waited = clock.now / 60 - minutes
    assert AFTER_END <= waited <= 1.6 * AFTER_END
    text = str(ended.value)
    assert "(view 0, block 0; view 2, block 0)" in text
    assert f"no process has made parts of it for {AFTER_END:g} minutes" in text
    assert f"process {os.getpid()} on " in text
    assert "Run the command that makes it again, then this one" in text


@pytest.mark.parametrize("minutes", [0.0, 2.0])
def test_without_a_lock_waiting_ends_some_time_after_the_last_part(
    growing: Growing, clock: Clock, minutes: float
) -> None:
    """A part that is not waited for counts as well: stage 1 may make others first."""
    follower, limit = Follower(opened(growing.path), minutes), minutes or WITHOUT_PART
    seconds = [lambda: None] * int(MINUTE * 0.7 * limit)
    clock.events = [*seconds, lambda: growing.commit(3)]
    with pytest.raises(
        CacheIncomplete, match=rf"\(view 1, block 0\), and no part .* {limit:g} min"
    ):
        follower.wait([1])
    assert 1.7 * limit <= clock.now / 60 <= 2.5 * limit


def test_a_stage_1_that_starts_again_is_waited_for(growing: Growing, clock: Clock) -> None:
    follower, store = Follower(opened(growing.path)), Cache.open(growing.path)
    with presence.announced(store):
        pass
    most = [lambda: None] * int(MINUTE * 0.9 * AFTER_END)
    makers = [presence.announced(store) for _ in range(2)]
    for maker in makers:
        clock.events += [
            *most,
            maker.__enter__,
            *most,
            lambda m=maker: m.__exit__(None, None, None),
        ]
    clock.events += [*most, lambda: growing.commit(0)]
    follower.wait([0])
    assert not clock.events
    assert presence.is_made(store) is False


def test_a_cache_that_was_replaced_is_not_waited_for(
    growing: Growing, sibling_cache: Path, clock: Clock
) -> None:
    """As after a stage 1 that failed before its first part and began anew with another teacher."""
    follower, path = Follower(opened(growing.path)), growing.path
    clock.events = [lambda: shutil.rmtree(path), *[lambda: None] * LOOK]
    clock.events += [lambda: shutil.copytree(sibling_cache, path) and None]
    with presence.announced(Cache.open(path)), pytest.raises(CacheMismatch) as replaced:
        follower.wait([0])
    assert not clock.events
    assert clock.now < 4
    for cache in (sibling_cache, follower._caches[0]):
        store = Cache.open(cache) if isinstance(cache, Path) else cache
        assert store.spec.fingerprint in str(replaced.value)


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("at_work", [None, False, True])
@pytest.mark.parametrize("timeout", [0.0, 5.0])
def test_a_damaged_part_is_named(
    growing: Growing, clock: Clock, record: bool, at_work: bool | None, timeout: float
) -> None:
    """Not while it may be mended: a process that makes the cache has the time of an end."""
    growing.commit(0, 1)
    file = growing.path / (Part(1, 0).record if record else "targets/code/c/1/0")
    file.write_bytes(file.read_bytes()[:-7])
    follower, store = Follower(opened(growing.path), timeout), Cache.open(growing.path)
    if at_work is False:
        with presence.announced(store):
            pass
    making = presence.announced(store) if at_work else contextlib.nullcontext()
    with making, pytest.raises(CacheDamaged, match=str(file)):
        follower.wait([0, 1])
    minutes = timeout or (DAMAGED if at_work is False else AFTER_END)
    assert minutes <= clock.now / 60 < minutes + 0.1


def test_a_damaged_part_that_is_made_again_is_waited_for(growing: Growing, clock: Clock) -> None:
    growing.commit(0, 1)
    chunk = growing.path / "targets/code/c/1/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-7])
    follower = Follower(opened(growing.path))
    clock.events = [*[lambda: None] * int(2.5 * MINUTE), lambda: chunk.write_bytes(whole)]
    follower.wait([0, 1])
    assert not clock.events


def test_the_content_is_that_of_one_count(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that comes meanwhile is in both or in none, and no record is read twice."""
    growing.commit(0, 1, 2)
    follower, store = Follower(opened(growing.path)), Cache.open(growing.path)
    read, record = [], Cache.record

    def reading(cache: Cache, part: Part) -> dict[str, Any]:
        read.append(part)
        growing.commit(3)
        return record(cache, part)

    monkeypatch.setattr(Cache, "record", reading)
    assert follower.content() == {"cache_content_id": None, "cache_parts_missing": 1}
    assert len(read) == 3
    assert follower.content()["cache_content_id"] == store.content_id()
    assert len(read) == 3 + 4 + 4


def test_parts_are_checked_when_their_epoch_comes(
    growing: Growing, digits: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes, and the pixels of their probe views."""
    growing.commit(0, 1)
    chunk = growing.path / "targets/code/c/1/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[::-1])
    with pytest.raises(CacheDamaged, match="targets/code/c/1/0 of view 1, block 0 is damaged"):
        fit(growing.path, tmp_path / "run", digits, follow=True)
    chunk.write_bytes(whole)
    drawn = draw.draw

    def otherwise(spec: Any, *more: Any) -> Any:
        found = drawn(spec, *more)
        found.flip_B[:] ^= more[3] == 1
        return found

    monkeypatch.setattr(draw, "draw", otherwise)
    with pytest.raises(CacheMismatch, match=r"view 1 of .* has other pixels here"):
        fit(growing.path, tmp_path / "run", digits, follow=True)


def test_batches_wait_as_well(
    growing: Growing, digits_cache: Path, digits: Path, clock: Clock
) -> None:
    options: dict[str, Any] = {"data": digits, "batch_size": 50, "device": "cpu", "epochs": 2}
    batches = Batches(growing.path, follow=True, **options)
    expected = Batches(digits_cache, **options)
    for view in range(2):
        clock.events = [lambda view=view: growing.commit(view)]
        for (x, targets), (y, wanted) in zip(batches, expected, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(targets.probability, wanted.probability)


def test_looks_at_a_url_become_rarer(growing: Growing, clock: Clock, tmp_path: Path) -> None:
    """Each time nothing is new, twice as long after the last time; plain HTTP lists no files."""
    with range_server.serve(growing.path) as server:
        follower = Follower(opened(server.url))
        assert not follower.ready([0])
        before = len(server.asked)
        clock.events = [*[lambda: None] * 10 * MINUTE, lambda: growing.commit(0, 1)]
        follower.wait([0])
        asked = [name for name, _ in server.asked[before:]]
    assert asked.count(Part(0, 0).record) < 60  # HEAD and, since that is a 404, GET
    assert clock.now < 600 + 31 + 1
    assert follower.ready([0, 1])


@pytest.mark.slow
def test_a_sweep_follows_as_a_run_does(
    growing: Growing, afterwards: Path, digits: Path, tmp_path: Path, clock: Clock, kdcache: Command
) -> None:
    """Students of other sizes beside it, which share its pictures, change nothing."""
    growing.commit(0)
    clock.events = [lambda: growing.commit(1), lambda: growing.commit(2, 3)]
    grid = tmp_path / "grid.toml"
    keys = {"base": "digits", **SMALL, "follow": True}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    grid.write_text("\n".join([*lines, "[grid]", "lr = [4e-3, 2e-3]", "size = [0, 16]"]))
    words = ["--cache", growing.path, "--data", digits, "--out", tmp_path / "sweep"]
    outcome = kdcache("sweep", grid, *words, "--device=cpu")
    assert outcome.code == 0, outcome.err
    assert "cohort 1 of 1 (16, 32 px of one decode)" in outcome.err
    assert weights(tmp_path / "sweep/lr=0.004,size=0") == weights(afterwards)


def test_a_zip_is_refused_by_name(digits_cache: Path, tmp_path: Path) -> None:
    made = shutil.make_archive(str(tmp_path / "cache"), "zip", digits_cache)
    with pytest.raises(UsageError, match=r"cache\.zip is a zip\. Leave follow out"):
        Follower(opened(made))


def test_a_part_that_one_process_does_not_see_yet_is_waited_for_by_all(
    growing: Growing, clock: Clock
) -> None:
    """As on a network file system, whose machines see a new file one after the other."""
    late = [[(0, Part(0, 0))], [(0, Part(0, 0))], []]

    class Two(World):
        def all(self, value: Any) -> list[Any]:
            return [value, late.pop(0)]

    growing.commit(0)
    Follower(opened(growing.path), world=Two()).wait([0])
    assert late == []
