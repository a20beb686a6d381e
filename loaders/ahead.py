"""Fetches shards ahead of need: what the coming steps ask for is known before they begin.

    step        t      t+1     t+2    ...   horizon        each needs some shards
    shards    [3 7]   [3 7]   [7 1]         [1 5]     ->   kept open: 3 7 1 5, fetched in this order

The horizon reaches `ahead` shards beyond those of the step itself, within the cache's budget, and over the end of an
epoch into the next one. A shard stays open, and so pinned, while a step before the horizon needs it. Until the first
step has its shards nothing else is fetched: a batch that waits should not share the line with what comes later.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..shards.errors import StorageError, UsageError
from .cache import Cache, DiskFullError, NotWanted, Stopped
from .fetch import Following, OpenShard
from .stop_flag import StopFlag

if TYPE_CHECKING:
    from .remote import RemoteShards

_MAX_STEPS = 4096  # that are looked ahead
_MANY_STEPS = 2**62  # where nothing follows
_STEPS_A_CALL = 16  # looked at when a step begins
_POLL_S = 0.2
_JOIN_PATIENCE_S = 10.0
_FULL_DISK_S = 5.0  # that a batch waits for others to let go what fills the disk: a step's decoding, a cancelled download

logger = logging.getLogger("softshard.loaders")


class FetchAhead:
    """One iteration's fetching, and that of those that follow it: its horizon, its open shards, its threads.

    Args:
        source: opens shards, in several threads.
        steps: the shards that each step needs, distinct.
        cache: how far ahead, and how many at a time.
        following: what comes after these steps.
    """

    def __init__(
        self,
        source: RemoteShards,
        steps: Iterator[Sequence[int]],
        cache: Cache,
        following: Following | None = None,
    ) -> None:
        self._source, self._steps = source, steps
        self._ahead = self._most_ahead = cache.ahead
        self._stopped = StopFlag()
        self._downloads = source.downloads(self._stopped)
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
        self._failed_early: set[int] = set()  # of these, while no batch waited for them
        self._fetched: set[int] = set()  # in this iteration
        self._process = os.getpid()
        self._following = following
        self._start = 0  # the iteration's first step, counted as `_at` is
        self._num_looked = 0  # steps that were looked at
        self._later: set[int] = set()  # shards that only the following iteration needs
        self._fetched_later: set[int] = set()  # of these
        self._first: set[int] = set()  # what the first step needs and has not got
        self.reached(0)
        # Daemons that are waited for at exit, as in Background: one may hang in dead storage, any other has an unfinished
        # file to remove.
        self._threads: list[threading.Thread] = []
        self._at_exit = partial(_join, self._threads)
        atexit.register(self._at_exit)
        try:
            for i in range(cache.num_fetchers):
                thread = threading.Thread(target=self._work, name=f"softshard-fetch-{i}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:  # the system has no thread left: those that were started end
            self.close()
            raise

    def reached(self, step: int) -> None:
        """Let go what only steps before this one, of this iteration, needed, and look further ahead."""
        dropped = []
        with self._changed:
            step += self._start
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
            self._source.used(number)

    def _look_ahead(self) -> bool:
        """Add a step to the horizon; False where it ends."""
        if self._next is None and self._num_looked == self._end and self._next_steps is not None:
            self._steps = self._next_steps()  # drops those of this iteration, and what they hold
        if self._next is None and (after := next(self._steps, None)) is not None:
            self._next = after
            self._num_looked += 1
        if self._next is None or len(self._horizon) >= _MAX_STEPS:
            return False
        after = {*self._uses, *self._next}
        num_bytes = sum(map(self._source.size, after))
        if self._horizon:
            if num_bytes > self._source.max_bytes or len(after) > len(self._horizon[0]) + self._ahead:
                return False
        elif num_bytes > self._source.max_bytes:
            raise UsageError(
                f"cache: expected room for the {len(after)} shards of one batch, {num_bytes:,} bytes, found max_bytes "
                f"{self._source.max_bytes:,}. Use a larger cache, or a smaller window or batch"
            )
        elif not self._at:
            self._first = set(self._next)
        new = [number for number in self._next if number not in self._uses]
        if self._num_looked > self._end:
            self._later.update(new)
        self._waiting.extend(new)
        self._uses.update(self._next)
        self._horizon.append(self._next)
        self._next = None
        return True

    @property
    def _end(self) -> int:
        """The first step after this iteration, counted as `_at` is."""
        return self._start + (self._following.num_steps if self._following is not None else _MANY_STEPS)

    @property
    def _next_steps(self) -> Callable[[], Iterator[Sequence[int]]] | None:
        return None if self._following is None else self._following.next_steps

    @property
    def has_more(self) -> bool:
        """Whether something follows."""
        return self._next_steps is not None

    def continues_with(self, begins: tuple[int, int]) -> bool:
        """Whether what was fetched ahead is for an iteration that begins there, and fetching works."""
        return (
            self._following is not None
            and self._following.next_begins == begins
            and os.getpid() == self._process
            and not self._stopped.is_set()
        )

    def go_on(self, following: Following) -> None:
        """Begin the iteration that follows.

        Args:
            following: what comes after that one.
        """
        with self._changed:
            self._start, self._following = self._end, following
            self._ahead = self._most_ahead  # what filled the disk may be gone
            self._fetched, self._fetched_later = self._fetched_later, set()
            self._later.clear()
        self.reached(0)

    def opened(self, number: int) -> OpenShard | None:
        """A shard, if it is there."""
        return self._open.get(number)

    def get(self, number: int) -> OpenShard:
        """A shard of the step that was reached last; waits until it is there.

        A disk that is full is waited for as well, as long as something in the cache may be let go: for a few seconds.
        """
        give_up = None  # when a disk that only others can make room on has been full for too long
        with self._changed:
            while (shard := self._open.get(number)) is None:
                if self._stopped.is_set() or not threading.main_thread().is_alive():
                    raise Stopped
                if number in self._failed:
                    error = self._failed.pop(number)
                    early = number in self._failed_early
                    self._failed_early.discard(number)
                    # Storage that was away when the shard was fetched ahead may long be back.
                    again = early and isinstance(error, StorageError)
                    if isinstance(error, DiskFullError):
                        # What was fetched ahead, and what is being fetched, takes room on a full disk.
                        if again := self._shrink() or bool(self._busy):
                            give_up = None
                        elif error.may_pass:
                            give_up = give_up or time.monotonic() + _FULL_DISK_S
                            again = time.monotonic() < give_up
                        if again:
                            self._changed.wait_for(self._stopped.is_set, _POLL_S)
                    if not again:
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
        """Let go what was fetched ahead, and fetch ahead no more in this epoch; False where that is so already."""
        if not self._ahead:
            return False
        self._ahead = 0
        later = list(self._horizon)[1:] + ([] if self._next is None else [self._next])
        self._steps, self._next = itertools.chain(later, self._steps), None
        while len(self._horizon) > 1:
            self._horizon.pop()
        self._num_looked = self._at + len(self._horizon)
        for number in set(self._uses) - self._now:
            self._open.pop(number, None)
        self._uses = Counter(self._now)
        return True

    def _work(self) -> None:
        while (number := self._take()) is not None and self._fetch(number):
            pass

    def _fetch(self, number: int) -> bool:
        """Have a shard, or note why not; False where all is to end. A thread that waits for the next one holds none."""
        shard = error = None
        try:
            shard, fetched = self._source.open(
                number,
                self._downloads,
                urgent=lambda: number in self._now,
                wanted=lambda: number in self._uses,
            )
            with self._changed:
                known = self._fetched_later if number in self._later else self._fetched
                again = fetched and number in known
                if fetched:
                    known.add(number)
            if again:
                self._source.fetched_again()
        except Stopped:
            return False
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
                    if number not in self._now:
                        self._failed_early.add(number)
            self._changed.notify_all()
        del shard, error  # its traceback holds this frame: a cycle, which would keep the shard open
        return True

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
        """End all waiting, and with it the threads, soon: a process that ends before that waits for them."""
        if os.getpid() != self._process:  # the threads, and whoever holds the lock, are in the other one
            return
        self._stopped.set()
        # Else it is seen at the next look; this may be anywhere, see StopFlag.
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()

    def close(self) -> int:
        """End the threads, but those that hang in dead storage, and let the shards go.

        Returns:
            Shards that were fetched for an iteration that has not begun.
        """
        if os.getpid() != self._process:
            return 0
        self.interrupt()
        ended = _join(self._threads)
        atexit.unregister(self._at_exit)
        with self._changed:
            self._open.clear()
            self._failed.clear()
            busy, num_fetched_later = sorted(self._busy), len(self._fetched_later)
        if not ended:
            logger.warning(
                "threads that fetch shards hang, and are left to themselves: %s. Whoever else needs these from the same "
                "cache waits until their storage answers, or this process ends",
                ", ".join(map(self._source.name, busy)) or "none that is known",
            )
        return num_fetched_later


def _join(threads: Sequence[threading.Thread]) -> bool:
    """Wait a while for threads to end; whether all did."""
    give_up = time.monotonic() + _JOIN_PATIENCE_S
    # Garbage may be collected in one of them: a generator, say, in whose `with` block the loader is.
    others = [thread for thread in threads if thread is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, give_up - time.monotonic()))
    return not any(thread.is_alive() for thread in others)
