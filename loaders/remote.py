"""The shards of a remote data set: fetched whole into the cache, in parallel, ahead of need.

The order of an epoch is known before it begins, so that what the coming steps need is too:

    step        t      t+1     t+2    ...   horizon        each needs some shards
    shards    [3 7]   [3 7]   [7 1]         [1 5]     ->   kept open: 3 7 1 5, fetched in this order

The horizon reaches `ahead` shards beyond those of the step itself, within the cache's budget. A shard stays open, and so
pinned, while a step before the horizon needs it. Until the first step has its shards nothing else is fetched: a
batch that waits should not share the line with what comes later.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..shards.errors import DataError, UsageError
from ..shards.files import join_url, sha256_hex
from ..shards.index import build_index, format_index, index_name, scan_tar
from ..shards.manifest import Manifest
from ..shards.storage import is_remote, public_name
from .cache import Cache, CacheFolder, DiskFullError, NotWanted, Stopped
from .download import Downloads
from .fetch import OpenShard, ShardFiles, Shards, ShardUrl, checked_index
from .fetch_stats import FetchCounters, FetchStats

_MAX_STEPS = 4096  # that are looked ahead
_STEPS_A_CALL = 16  # looked at when a step begins
_MAX_INDEX_FIELD_BYTES = 160  # of a component, as in shard_files
_POLL_S = 0.2


class RemoteShards:
    """The shards of a data set behind a URL; see Shards.

    Args:
        url: of the data set.
        manifest: its manifest.
        cache: where shards are kept.
    """

    def __init__(self, url: str, manifest: Manifest, cache: Cache) -> None:
        self._url, self._manifest, self._cache = url, manifest, cache
        self.counters = FetchCounters()
        self._warned = False
        self._folder = CacheFolder(cache, self.counters)
        self._run: _Run | None = None

    def expect(self, steps: Iterator[Sequence[int]]) -> None:
        self.forget()
        self._run = _Run(self, self._url, steps, self._cache)

    def reached(self, step: int) -> None:
        if self._run is not None:
            self._run.reached(step)

    def __getitem__(self, number: int) -> OpenShard:
        if self._run is None:
            raise UsageError("loader: expected an iteration that fetches shards, found none")
        start = time.monotonic()
        try:
            return self._run.get(number)
        finally:
            self.counters.add(waited_s=time.monotonic() - start)

    def interrupt(self) -> None:
        if (run := self._run) is not None:
            run.interrupt()

    def forget(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None

    def stats(self) -> FetchStats:
        return self.counters.stats()

    def close(self) -> None:
        self.forget()

    def size(self, number: int) -> int:
        """Bytes of a shard."""
        return self._manifest.shards[number].bytes

    @property
    def max_bytes(self) -> int:
        """The cache's budget."""
        return self._folder.max_bytes

    def open(
        self, number: int, downloads: Downloads, *, urgent: Callable[[], bool], wanted: Callable[[], bool]
    ) -> tuple[OpenShard, bool]:
        """Have a shard in the cache, checked, and map it.

        Args:
            number: of the shard.
            downloads: fetch what is not there.
            urgent: whether a batch waits for it.
            wanted: whether one needs it at all.

        Returns:
            The shard, and whether it was downloaded for this.
        """
        record = self._manifest.shards[number]
        url = ShardUrl(public_name(join_url(self._url, record.name)))
        run = f"Run: softshard verify {url}"
        fetched = False

        def fill(descriptor: int) -> None:
            nonlocal fetched
            for attempt in (1, 2):
                found = downloads.whole(record.name, record.bytes, descriptor)
                if found == record.sha256:
                    fetched = True
                    return
                self.counters.add(damaged=1)
                if attempt == 2:
                    raise DataError(
                        f"{url}: expected SHA-256 {record.sha256[:12]}, found {found[:12]}, twice; the shard is not the "
                        f"manifest's, or damaged. {run}"
                    )

        try:
            descriptor = self._folder.fetch(
                f"{record.sha256}.tar",
                record.bytes,
                fill,
                urgent=urgent,
                wanted=wanted,
                stopped=downloads.stopped,
            )
        except FileNotFoundError:
            raise DataError(
                f"{url}: expected the shard, which the manifest names, found none. {run}"
            ) from None
        try:
            self.counters.add(**{"shards_fetched" if fetched else "cache_hits": 1})
            text = self._index(number, descriptor, downloads)
            index = checked_index(text, record, self._manifest.components, run)
            return OpenShard.map(url, descriptor, index), fetched
        finally:
            os.close(descriptor)

    def _index(self, number: int, descriptor: int, downloads: Downloads) -> bytes:
        """The text of a shard's index: from the cache, fetched, or made from the tar."""
        record = self._manifest.shards[number]
        name = f"{record.sha256}.idx"
        if (text := self._folder.read(name)) is not None and sha256_hex(text) == record.index_sha256:
            return text
        limit = 32 + record.samples * len(self._manifest.components) * _MAX_INDEX_FIELD_BYTES
        try:
            text = downloads.small(index_name(record.name), limit)
        except FileNotFoundError:
            path = self._folder.folder / f"{record.sha256}.tar"
            text = format_index(build_index(scan_tar(path), record.name)).encode("ascii")
        if sha256_hex(text) == record.index_sha256:
            self._folder.write(name, text)
        return text

    def fetched_again(self) -> None:
        """Count a shard that an iteration fetches for the second time, and warn of the first one."""
        self.counters.add(fetched_again=1)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"cache: shards of {public_name(self._url)} are fetched again in the same epoch; {self._folder.folder} "
                f"with {self.max_bytes:,} bytes is too small for the shuffle window, or for all runs that share it. "
                "Use a larger Cache(max_bytes=...), or a smaller window",
                stacklevel=2,
            )

    def used(self, number: int) -> None:
        """Say that a shard was in use until now."""
        self._folder.used(f"{self._manifest.shards[number].sha256}.tar")


class _Run:
    """One iteration's fetching: its horizon, its open shards, its threads."""

    def __init__(self, shards: RemoteShards, url: str, steps: Iterator[Sequence[int]], cache: Cache) -> None:
        self._shards, self._steps, self._ahead = shards, steps, cache.ahead
        self._stopped = threading.Event()
        self._downloads = Downloads(
            url, deadline_s=cache.deadline_s, stopped=self._stopped, counters=shards.counters
        )
        self._changed = threading.Condition()
        # All below is guarded by it.
        self._next: Sequence[int] | None = None  # the step after the horizon, once it was looked at
        self._horizon: deque[Sequence[int]] = deque()  # of the steps from the one that was reached last
        self._at = 0  # that step
        self._uses: Counter[int] = Counter()  # shard -> steps of the horizon that need it
        self._waiting: deque[int] = deque()  # of these, not begun, in order of first need
        self._busy: set[int] = set()
        self._now: set[int] = set()  # what the step that was reached last needs
        self._open: dict[int, OpenShard] = {}
        self._failed: dict[int, BaseException] = {}
        self._fetched: set[int] = set()  # in this iteration
        self._first: set[int] = set()  # what the first step needs and has not got
        self.reached(0)
        self._threads = [
            # Not daemons: see Background.
            threading.Thread(target=self._work, name=f"softshard-fetch-{i}", daemon=False)
            for i in range(cache.num_fetchers)
        ]
        for thread in self._threads:
            thread.start()

    def reached(self, step: int) -> None:
        """Let go what only steps before this one needed, and look further ahead."""
        dropped = []
        with self._changed:
            while self._at < step and self._horizon:
                self._at += 1
                for number in self._horizon.popleft():
                    self._uses[number] -= 1
                    if not self._uses[number]:
                        del self._uses[number]
                        if self._open.pop(number, None) is not None:
                            dropped.append(number)
            for _ in range(_STEPS_A_CALL):
                if not self._look_ahead():
                    break
            self._now = set(self._horizon[0]) if self._horizon else set()
            self._changed.notify_all()
        for number in dropped:
            self._shards.used(number)

    def _look_ahead(self) -> bool:
        """Add a step to the horizon; False where it ends."""
        if self._next is None:
            self._next = next(self._steps, None)
        if self._next is None or len(self._horizon) >= _MAX_STEPS:
            return False
        after = {*self._uses, *self._next}
        num_bytes = sum(map(self._shards.size, after))
        if self._horizon:
            if num_bytes > self._shards.max_bytes or len(after) > len(self._horizon[0]) + self._ahead:
                return False
        elif num_bytes > self._shards.max_bytes:
            raise UsageError(
                f"cache: expected room for the {len(after)} shards of one batch, {num_bytes:,} bytes, found max_bytes "
                f"{self._shards.max_bytes:,}. Use a larger cache, or a smaller window or batch"
            )
        elif not self._at:
            self._first = set(self._next)
        self._waiting.extend(number for number in self._next if number not in self._uses)
        self._uses.update(self._next)
        self._horizon.append(self._next)
        self._next = None
        return True

    def get(self, number: int) -> OpenShard:
        """A shard of the step that was reached last; waits until it is there."""
        with self._changed:
            while (shard := self._open.get(number)) is None:
                if self._stopped.is_set() or not threading.main_thread().is_alive():
                    raise Stopped
                if number in self._failed:
                    error = self._failed.pop(number)
                    # What was fetched ahead, and what is being fetched, takes room on a full disk.
                    if not isinstance(error, DiskFullError) or not (self._shrink() or self._busy):
                        try:
                            raise error
                        finally:
                            del error  # its traceback holds this frame: a cycle, which would keep shards open
                if number not in self._now:  # nobody said so before
                    self._now.add(number)
                    self._uses[number] += 1
                    if self._horizon:
                        self._horizon[0] = [*self._horizon[0], number]
                if number not in self._busy and number not in self._waiting:
                    self._waiting.appendleft(number)
                    self._changed.notify_all()
                self._changed.wait(_POLL_S)
            return shard

    def _shrink(self) -> bool:
        """Let go what was fetched ahead, and fetch ahead no more; False where that is so already."""
        if not self._ahead:
            return False
        self._ahead = 0
        later = list(self._horizon)[1:] + ([] if self._next is None else [self._next])
        self._steps, self._next = itertools.chain(later, self._steps), None
        while len(self._horizon) > 1:
            self._horizon.pop()
        for number in set(self._uses) - self._now:
            self._open.pop(number, None)
        self._uses = Counter(self._now)
        return True

    def _work(self) -> None:
        while (number := self._take()) is not None:
            shard = error = None
            try:
                shard, fetched = self._shards.open(
                    number,
                    self._downloads,
                    urgent=lambda: number in self._now,
                    wanted=lambda: number in self._uses,
                )
                if fetched and number in self._fetched:
                    self._shards.fetched_again()
                if fetched:
                    self._fetched.add(number)
            except Stopped:
                return
            except NotWanted:
                pass
            except BaseException as caught:  # raised again where the shard is asked for
                error = caught
            with self._changed:
                self._busy.discard(number)
                self._first.discard(number)
                if number in self._uses:
                    if shard is not None:
                        self._open[number] = shard
                    elif error is not None:
                        self._failed[number] = error
                self._changed.notify_all()

    def _take(self) -> int | None:
        """The next shard to fetch; None at the end."""
        with self._changed:
            while not self._stopped.is_set() and threading.main_thread().is_alive():
                while self._waiting and self._waiting[0] not in self._uses:
                    self._waiting.popleft()  # its step has gone by
                if self._waiting:
                    number = self._waiting[0]
                    if not self._first or number in self._first or number in self._now:
                        self._waiting.popleft()
                        self._busy.add(number)
                        return number
                self._changed.wait(_POLL_S)
        return None

    def interrupt(self) -> None:
        """End all waiting."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, and let the shards go."""
        self.interrupt()
        for thread in self._threads:
            # A collection of garbage may run in one of them, and finalise an abandoned loop there.
            if thread is not threading.current_thread():
                thread.join()
        with self._changed:
            self._open.clear()
            self._failed.clear()


def open_shards(dataset: str | Path, manifest: Manifest, cache: Cache | None = None) -> Shards:
    """The shards of a data set: read in place where it is a folder, through the cache where it is behind a URL."""
    if is_remote(dataset):
        return RemoteShards(str(dataset), manifest, cache or Cache())
    return ShardFiles(dataset, manifest)
