"""Batches that were made lately, within a budget of bytes; whoever asks for one that is being made waits for it.

So several trainers at one step pay for one decode, whichever of them comes first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What a cache keeps."""

    @property
    def num_bytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


@dataclass(frozen=True)
class CacheCounts:
    """What a cache was asked.

    Attributes:
        hits: items that were there.
        joined: items that were being made.
        made: items that nobody had asked for, or that were gone.
        evicted: items that were let go to make room.
        num_bytes: in the cache now.
        num_items: in the cache now.
    """

    hits: int
    joined: int
    made: int
    evicted: int
    num_bytes: int
    num_items: int

    @property
    def hit_rate(self) -> float:
        """Share of the requests that cost no decode, 0 to 1; 0 before the first."""
        asked = self.hits + self.joined + self.made
        return (self.hits + self.joined) / asked if asked else 0.0


class RecentItems(Generic[Item]):
    """Keeps the items used last, and makes each once at a time. For several threads.

    Args:
        max_bytes: of all items together; a larger item is handed out and not kept. What is being made is not counted.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._items: OrderedDict[Hashable, Item] = OrderedDict()
        self._pending: dict[Hashable, Future[Item]] = {}
        self._bytes = self._hits = self._joined = self._made = self._evicted = 0

    def ask(self, key: Hashable, make: Callable[[], Future[Item]]) -> Future[Item]:
        """An item, now or when it is made; an error is everybody's who waits, and is not kept.

        Args:
            key: of the item.
            make: begins to make it; called with a lock held, so that it must not wait.
        """
        with self._lock:
            if (item := self._items.get(key)) is not None:
                self._items.move_to_end(key)
                self._hits += 1
                found: Future[Item] = Future()
                found.set_result(item)
                return found
            if (pending := self._pending.get(key)) is not None:
                self._joined += 1
                return pending
            future = make()
            self._made += 1
            self._pending[key] = future
        future.add_done_callback(lambda done: self._settle(key, done))
        return future

    def _settle(self, key: Hashable, done: Future[Item]) -> None:
        gone = []  # let go without the lock: that may take a while
        with self._lock:
            self._pending.pop(key, None)
            if done.cancelled() or done.exception() is not None:
                return
            item = done.result()
            if item.num_bytes > self.max_bytes:
                return
            self._items[key] = item
            self._bytes += item.num_bytes
            while self._bytes > self.max_bytes:
                _, old = self._items.popitem(last=False)
                self._bytes -= old.num_bytes
                self._evicted += 1
                gone.append(old)

    def drop_oldest(self) -> bool:
        """Let the item go that was used least recently; False where there is none."""
        with self._lock:
            if not self._items:
                return False
            _, old = self._items.popitem(last=False)
            self._bytes -= old.num_bytes
            self._evicted += 1
        return True  # without the lock `old` goes

    def counts(self) -> CacheCounts:
        """What happened so far."""
        with self._lock:
            return CacheCounts(
                self._hits, self._joined, self._made, self._evicted, self._bytes, len(self._items)
            )

    def clear(self) -> None:
        """Let everything go."""
        with self._lock:
            self._items.clear()
            self._bytes = 0
