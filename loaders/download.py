"""Downloads: a shard in ranges, each asked for until it comes, hashed on the way.

A connection that breaks costs the range that it carried; what came before it stays. A request that hangs is given up
and asked again, for a smaller range.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import threading
import time
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotYet
from typing import Any

from ..shards.errors import DataError
from ..shards.retries import http_status, patiently
from ..shards.schema import MIB
from ..shards.storage import RemoteStorage
from .cache import Stopped
from .fetch_stats import FetchCounters
from .stop_flag import StopFlag

RANGE_BYTES = 8 * MIB  # of a request: enough that waiting for an answer costs little
_LEAST_RANGE_BYTES = MIB // 4
_TRIES_BEFORE_DEADLINE = 4  # of a request that hangs
_POLL_S = 0.1


class Downloads:
    """Fetches files of one remote folder; for several threads.

    Args:
        url: of the folder.
        deadline_s: seconds without progress after which a file cannot be had.
        stopped: ends everything that is under way.
        counters: of requests, retries and bytes.
    """

    def __init__(self, url: str, *, deadline_s: float, stopped: StopFlag, counters: FetchCounters) -> None:
        self._storage = RemoteStorage(url)
        self._deadline_s, self._counters = deadline_s, counters
        self.stopped = stopped

    def small(self, name: str, limit: int) -> bytes:
        """A small file, whole.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it has more than `limit` bytes.
            StorageError: its server is away.
        """
        data = self._range(name, 0, limit + 1)
        if len(data) > limit:
            raise DataError(f"{self._storage.where(name)}: expected at most {limit} bytes, found more")
        return data

    def whole(self, name: str, num_bytes: int, descriptor: int) -> str:
        """Write a file of `num_bytes` through a descriptor.

        Returns:
            The SHA-256 of its bytes, hex.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it is shorter or longer.
            StorageError: its server is away.
        """
        digest, at = hashlib.sha256(), 0
        while at < num_bytes:
            # The byte after the last is asked for with the last range: one of its own may not begin at the end.
            left = num_bytes + 1 - at
            data = self._range(name, at, left if left <= RANGE_BYTES + 1 else RANGE_BYTES)
            if not data:
                raise self._wrong_length(name, num_bytes, at, "the shard is cut short")
            if at + len(data) > num_bytes:
                raise self._wrong_length(name, num_bytes, at + len(data), "it is another shard")
            view = memoryview(data)
            digest.update(view)
            while view:
                written = os.pwrite(descriptor, view, at)
                at, view = at + written, view[written:]
        return digest.hexdigest()

    def _wrong_length(self, name: str, expected: int, found: int, cause: str) -> DataError:
        more = " or more" if found > expected else ""
        return DataError(
            f"{self._storage.where(name)}: expected {expected} bytes, found {found}{more}; {cause}. Run: softshard verify "
            f"{self._storage.name}"
        )

    def _range(self, name: str, at: int, size: int) -> bytes:
        """Up to `size` bytes from `at`; none at the file's end. Retried until they come."""
        tries = 0

        def ask() -> bytes:
            nonlocal tries, size
            self.check_stopped()
            self._counters.add(requests=1, retries=min(tries, 1))
            tries += 1
            try:
                return self._ask(self._storage.at(name), at, at + size)
            except TimeoutError:
                size = max(min(size, _LEAST_RANGE_BYTES), size // 2)
                raise
            except Exception as error:
                if http_status(error) == 416:  # nothing lies there
                    return b""
                raise

        data = patiently(ask, self._storage.where(name), patience_s=self._deadline_s, sleep=self.stopped.wait)
        self._counters.add(bytes_fetched=len(data))
        if len(data) > size and at == 0:
            return data  # a server without ranges gives the whole file
        if len(data) > size:
            raise DataError(
                f"{self._storage.where(name)}: expected {size} bytes of a range, found {len(data)}; the server does not "
                "answer range requests"
            )
        return data

    def _ask(self, path: str, start: int, end: int) -> bytes:
        """Ask once; an asynchronous file system's request is cancelled when it hangs, or is not wanted any more."""
        filesystem: Any = self._storage.filesystem
        fetch = getattr(filesystem, "_cat_file", None)
        if not inspect.iscoroutinefunction(fetch):
            return filesystem.cat_file(path, start=start, end=end)
        future = asyncio.run_coroutine_threadsafe(fetch(path, start=start, end=end), filesystem.loop)
        give_up = time.monotonic() + self._deadline_s / _TRIES_BEFORE_DEADLINE
        while True:
            try:
                return future.result(_POLL_S)
            except CancelledError:
                raise ConnectionError("the request was cancelled") from None
            except NotYet:
                if future.done():  # just now, or with a time-out of its own
                    return future.result()
                if self.stopped.is_set():
                    future.cancel()
                    raise Stopped from None
                if time.monotonic() > give_up:
                    future.cancel()
                    raise TimeoutError(
                        f"no answer in {self._deadline_s / _TRIES_BEFORE_DEADLINE:.0f} s"
                    ) from None

    def check_stopped(self) -> None:
        """Raise Stopped once everything is to end."""
        if self.stopped.is_set() or not threading.main_thread().is_alive():
            raise Stopped
