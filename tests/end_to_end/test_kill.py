"""kill -9 at a hundred random moments, at workers and parents; and runs that race on one cache.

Slow, and in few processes: a zygote has imported everything and forks the runs.
"""

import random
import re
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cache_tools.store.cache import Cache
from cache_tools.verify import verify
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers.stage1 import arguments, files, gone
from tests.helpers.zygote import Run, Zygote

KILLS, VIEWS, ROWS, WORKERS, TOGETHER = 100, 64, 100, 2, 2
"""Kills, views of the cache, rows of a part, workers, parts of a decode group."""
PACE, EVENTS = 0.06, 16
"""Seconds that a batch takes longer than it would; batches and commits between kills, at most."""
WHOM = ("parent", "worker", "worker")
"""Who is killed, by chance."""
IN_HAND = 4
"""Parts that a worker may have been asked about and not seen committed: one is being written, one
waits for that, one is asked about, and of one the kill came before it was written down. Runs of the
zygote let no more wait, so that a slow disk has no say in it."""
SIZE = [f"num_views={VIEWS}", f"views_per_decode={TOGETHER}", "batch_size=20"]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


@pytest.fixture(autouse=True)
def fresh_log(zygote: Zygote) -> None:
    zygote.log.write_text("")


@pytest.fixture(scope="module")
def undisturbed(
    digits: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "c.zarr"
    run(recipes.load("digits", ["views.mixup=0.5", *SIZE]), str(digits), str(teacher), out, "cpu")
    return arrays(out)


def arrays(out: Path) -> dict[str, bytes]:
    return {n: data for n, data in files(out).items() if not n.endswith(".partial")}


def records(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every commit record: what is committed again has others."""
    found = {p.name + p.parent.name: p.stat() for p in out.glob("commits/*/*.json")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def killed(victim: psutil.Process) -> bool:
    """Whether a process was there to be killed."""
    try:
        if victim.status() == psutil.STATUS_ZOMBIE:
            return False
        victim.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def wait(zygote: Zygote, now: Run, events: int) -> None:
    """Wait until so many more batches were asked about or parts committed, or the run has ended.

    A busy machine stretches the time but not this: kills hit whatever there is to hit.
    """
    end = zygote.count() + events
    while zygote.count() < end and now.alive():
        time.sleep(0.005)


def ended(run: Run, said: Path) -> int:
    """Its exit code; it ended well, by the dice's hand, or since they hit one part three times."""
    code, ending = run.wait(), said.read_text()[-2000:]
    lost = re.search("was lost 3 times in a row|3 workers were lost at it", ending)
    assert code in (0, -signal.SIGKILL) or lost, ending
    return code


@pytest.mark.slow
def test_a_hundred_kills_cost_no_more_than_what_was_in_hand(
    zygote: Zygote, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    """A cache that is whole before its time gets more views and goes on."""
    out, said, views = tmp_path / "c.zarr", tmp_path / "said", VIEWS
    told = [*arguments(digits, teacher, out, "--workers", WORKERS), *SIZE]
    dice, hits, now = random.Random(6), Counter[str](), zygote.run(told, said, pace=PACE)
    kept: dict[str, tuple[int, int]] = {}
    while sum(hits.values()) < KILLS or min(hits[who] for who in WHOM) < KILLS // 5:
        who = dice.choice(WHOM)
        wait(zygote, now, dice.randrange(EVENTS))
        time.sleep(dice.uniform(0.0, 2 * PACE))
        workers = now.workers()
        if who == "worker" and workers:
            hits[who] += killed(dice.choice(workers))
        elif who == "parent":
            hits[who] += killed(now.process)
            assert gone(workers)
        if not now.alive():
            if ended(now, said) == 0:
                views += VIEWS // 4
            now = zygote.run([*told, f"num_views={views}"], said, pace=PACE)
        found = records(out)
        assert found.items() >= kept.items()  # what was committed is as it was
        kept = found
    while ended(now, said) != 0:
        now = zygote.run([*told, f"num_views={views}"], said, pace=PACE)

    assert records(out).items() >= kept.items()
    assert verify.verify(Cache.open(out)).status == "ok"
    alone = zygote.run([*arguments(digits, teacher, tmp_path / "d.zarr"), *SIZE,
                        f"num_views={views}"], said)  # fmt: skip
    asked, committed = Counter[int](), defaultdict(list)
    assert alone.wait() == 0
    assert arrays(out) == arrays(tmp_path / "d.zarr")
    for pid, kind, fact in zygote.events():
        if pid == alone.process.pid:
            continue
        if kind == "asked":
            asked[pid] += fact
        else:
            committed[pid].append(tuple(fact))
    every = [part for parts in committed.values() for part in parts]
    assert len(set(every)) == len(every) <= views  # a kill may come before it is written down
    assert len(asked) > KILLS // 4  # the kills were not all over before there was work
    for pid, count in asked.items():
        assert count <= ROWS * (len(committed[pid]) + IN_HAND), pid
    print(f"{dict(hits)} kills, {views} parts, {len(asked)} processes asked for "
          f"{sum(asked.values()) / ROWS / views:.2f} times the views")  # fmt: skip


def of_which(part: dict[str, bytes], *whose: dict[str, bytes]) -> list[bool]:
    return [all(each[name] == data for name, data in part.items()) for each in whose]


@pytest.mark.slow
@pytest.mark.parametrize("locks", [True, False])
def test_no_part_is_of_both_of_two_runs_that_race(
    zygote: Zygote,
    digits: Path,
    teacher: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    locks: bool,
) -> None:
    """One's teacher differs in the last bits; with locks, and as on file systems without."""
    told = [*SIZE, "num_views=24"]
    other = tmp_path / "other.zarr"
    alone = zygote.run([*arguments(digits, teacher, other), *told], tmp_path / "o", perturbed=0.02)
    assert alone.wait() == 0, (tmp_path / "o").read_text()
    out = tmp_path / "c.zarr"
    both: list[Run] = [
        zygote.run(
            [*arguments(digits, teacher, out), *told], tmp_path / str(n),
            perturbed=perturbed, locks=locks, pace=0.005,
        )
        for n, perturbed in enumerate((0.0, 0.02))
    ]  # fmt: skip
    for n, racer in enumerate(both):
        assert racer.wait() == 0, (tmp_path / str(n)).read_text()
    store, raced, theirs = Cache.open(out), arrays(out), arrays(other)
    assert verify.verify(store).status == "ok"
    owners = Counter[str]()
    for part in store.parts():
        names = store.record(part)["chunks"]
        mine, yours = of_which({n: raced[n] for n in names}, undisturbed, theirs)
        assert mine != yours, part
        owners["mine" if mine else "yours"] += 1
    if locks:
        won = [tuple(fact) for _, kind, fact in zygote.events() if kind == "committed"]
        assert len(won) == 24 + 24  # each part once, and those of the one that ran alone
    assert sum(owners.values()) == 24


@pytest.mark.slow
def test_a_group_that_ends_every_worker_is_left_out_and_named(
    zygote: Zygote, digits: Path, teacher: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out, said = tmp_path / "c.zarr", tmp_path / "said"
    told = [*arguments(digits, teacher, out, "--workers=2"), *SIZE]
    poisoned = zygote.run(told, said, poison=[7, 0])
    assert poisoned.wait() == 1
    text = said.read_text()
    assert text.count("was killed by SIGSEGV with block 0, view") == 3
    assert "3 workers were lost at it" in text
    assert "1 part of" in text
    store = Cache.open(out)
    assert sorted(p.view for p in store.parts() if not store.present(p)) == [7]
    assert zygote.run(told, said).wait() == 0
    assert arrays(out) == undisturbed
    shutil.rmtree(out)
