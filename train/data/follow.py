"""Training from a cache that is still being made: wait for the parts of an epoch.

A part that is committed never changes, and an epoch is a function of the views that it shows. So a
student that waits for the parts of each epoch is, bit for bit, the one that is trained from the
finished cache. Parts are looked for one by one, by their commit records: folders, object stores and
plain HTTP have these alike, and few requests find what is new. Digests, values and probe views are
checked when the parts are read. A cache that was replaced is refused at once; a damaged part, after
a while of waiting: the process that makes the cache may be mending it.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cache_tools.errors import CacheIncomplete, CacheMismatch, KdcacheError, UsageError
from cache_tools.runtime import progress
from cache_tools.runtime.signals import StopRequest
from cache_tools.runtime.text import counted
from cache_tools.storage.zip_folder import Zip
from cache_tools.store import info, manifest, presence
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.store.view_params import has_partner_params
from train.distributed import ALONE, World

log = logging.getLogger("kdcache")
AFTER_END, WITHOUT_PART = 10.0, 60.0
"""Minutes of waiting after the last process that made the cache, where that can be seen, and after
the last part."""
DAMAGED = 3.0
"""Minutes of waiting for a damaged part, where no process makes the cache: NFS may show the former
length of a file for one."""
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two looks; over a network twice as many each time that nothing is new."""
_SLICE = 0.2
"""Seconds after which a signal is noticed."""
_SHOWN = 8


@dataclass
class _Life:
    """Signs of life of a cache that is being made."""

    seen: float
    """Time of the last one."""
    counted: float
    """Time at which all parts were counted last."""
    missing: int
    """Parts that are waited for."""
    parts: int = -1
    """Parts of the whole cache at the last count."""
    damaged: dict[Part, float] = field(default_factory=dict)
    """Parts with a record that are not whole, with the time at which that was seen first."""


class Follower:
    """Waits for the parts that a run shows next."""

    def __init__(self, members: CacheEnsemble, minutes: float = 0.0, world: World = ALONE) -> None:
        """Follow all of these caches; `minutes` as `TrainRecipe.follow_timeout`.

        Raises:
            UsageError: One of them cannot grow.
        """
        self._caches, self._minutes, self._world = members.caches, minutes, world
        self._seen = [set[Part]() for _ in self._caches]
        self._damaged = [set[Part]() for _ in self._caches]
        self._lives: dict[int, _Life] = {}
        for cache in self._caches:
            if isinstance(cache.storage, Zip) or has_partner_params(cache):
                what = "a zip" if isinstance(cache.storage, Zip) else "of imported views that mix"
                raise UsageError(
                    f"follow=true waits for a cache that is being made, and {cache.name} is "
                    f"{what}. Leave follow out, and train from it when it is complete."
                )

    def ready(self, views: Sequence[int]) -> bool:
        """Check that the parts of some views are there."""
        return not self._missing(views)

    def wait(self, views: Sequence[int], stop: StopRequest | None = None) -> None:
        """Wait until every process has found the parts of some views.

        Raises:
            CacheIncomplete: The cache is made no more; names the parts.
            CacheMismatch: It was replaced by another one.
            CacheDamaged: A part of it is damaged, and is not made again.
            KeyboardInterrupt: `stop` was requested.
        """
        if not (missing := self._missing_anywhere(views)):
            return
        total = len(self._caches) * len(set(views)) * self._caches[0].spec.num_blocks
        label = f"wait for view{'s' if len(set(views)) > 1 else ''} {_ranges(views)}"
        log.info("%s: %d of %s not there yet", label, len(missing), counted(total, "part"))
        self._lives.clear()
        pause = _PAUSE
        with progress.bar(label, total, "parts", total - len(missing)) as advance:
            while missing:
                self._world.on_main(partial(self._refuse, missing))
                end = time.monotonic() + pause
                while time.monotonic() < end and not (stop and stop.requested):
                    time.sleep(_SLICE)
                if self._world.any(bool(stop and stop.requested)):
                    raise KeyboardInterrupt
                left = self._missing_anywhere(views)
                remote = any(cache.is_remote for cache in self._caches)
                slower = remote and len(left) == len(missing)
                pause = min(2 * pause, _LONGEST_PAUSE) if slower else _PAUSE
                advance(len(missing) - len(left))
                missing = left

    def content(self) -> dict[str, Any]:
        """Facts for result.json: the content id of the cache, if it is complete by now."""
        facts: dict[str, Any] = self._world.on_main(self._content)
        return facts

    def _content(self) -> dict[str, Any]:
        found = {cache: cache.committed() for cache in self._caches}
        lacking = sum(len(list(cache.parts())) - len(found[cache]) for cache in found)
        facts: dict[str, Any] = {"cache_content_id": None, "cache_parts_missing": lacking}
        if lacking:
            parts = counted(lacking, "part")
            log.info("%s of the cache, of views not shown, not made yet", parts)
            return facts
        ids = {cache.spec.fingerprint: cache.content_id(of) for cache, of in found.items()}
        return {**facts, "cache_content_id": ids if len(ids) > 1 else next(iter(ids.values()))}

    def _missing_anywhere(self, views: Sequence[int]) -> list[tuple[int, Part]]:
        """Parts that some process does not find; equal in all."""
        return sorted(set().union(*self._world.all(self._missing(views))))

    def _missing(self, views: Sequence[int]) -> list[tuple[int, Part]]:
        """List the parts that are not there, each after the number of its cache."""
        lacking = []
        for number, cache in enumerate(self._caches):
            blocks = range(cache.spec.num_blocks)
            wanted = {Part(view, block) for view in views for block in blocks} - self._seen[number]
            recorded = cache.recorded(wanted)
            self._seen[number].update(filter(cache.present, recorded))
            self._damaged[number] = {*recorded} - self._seen[number]
            lacking += [(number, part) for part in wanted - self._seen[number]]
        return lacking

    def _refuse(self, missing: Sequence[tuple[int, Part]]) -> None:
        """Raise an error when a cache was replaced, is damaged, or shows no sign of life."""
        of_cache = defaultdict(list)
        for number, part in missing:
            of_cache[number].append(part)
        now = time.monotonic()
        for number, parts in of_cache.items():
            cache = self._caches[number]
            _refuse_replaced(cache)
            made = presence.is_made(cache)
            life = self._lives.setdefault(number, _Life(now, now, len(parts)))
            minutes = self._minutes or (AFTER_END if made is False else WITHOUT_PART)
            if made or life.missing != len(parts):
                life.seen = life.counted = now
            elif now - life.counted >= 15 * minutes:  # a quarter of the time
                life.counted = now
                count = len(cache.recorded(set(cache.parts()) - self._seen[number]))
                if count != life.parts:
                    life.seen, life.parts = now, count
            life.missing = len(parts)
            life.damaged = {p: life.damaged.get(p, now) for p in sorted(self._damaged[number])}
            longest = self._minutes or (DAMAGED if made is False else AFTER_END)
            for part, since in life.damaged.items():
                if now - since >= 60 * longest and (fault := cache.check_part(part)):
                    raise fault
            if now - life.seen >= 60 * minutes:
                raise CacheIncomplete(_ended(cache, parts, made, minutes))


def _refuse_replaced(cache: Cache) -> None:
    """Raise CacheMismatch where another cache is at the place of this one by now."""
    try:
        there = manifest.read(cache.storage).spec.fingerprint
    except (KdcacheError, OSError):  # not there for a moment, or unreachable: parts show that
        return
    if there != cache.spec.fingerprint:
        raise CacheMismatch(
            f"{cache.name} was replaced while its parts were waited for: it has the fingerprint "
            f"{there} now, in place of {cache.spec.fingerprint}. Train from the new cache in "
            "another --out (in Python out=), or make the first one again at another place."
        )


def _ranges(numbers: Sequence[int]) -> str:
    return info.ranges(sorted(set(numbers)))


def _ended(cache: Cache, parts: Sequence[Part], made: bool | None, minutes: float) -> str:
    """Message for the end of waiting."""
    blocks = defaultdict(list)
    for part in parts:
        blocks[part.view].append(part.block)
    named = [f"view {view}, block {_ranges(of_view)}" for view, of_view in blocks.items()]
    more = [f"{counted(len(named) - _SHOWN, 'view')} more"] if len(named) > _SHOWN else []
    why = f"no part has come for {minutes:g} minutes"
    if made is False:
        last = presence.last(cache) or "unnamed"
        why = f"no process has made parts of it for {minutes:g} minutes (the last one: {last})"
    return (
        f"{cache.name} lacks parts that this run shows next ({'; '.join(named[:_SHOWN] + more)}), "
        f"and {why}. Run the command that makes it again, then this one: both go on where they "
        "were. follow_timeout sets the minutes."
    )
