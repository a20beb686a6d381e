"""Threads that keep torch's operations to themselves: threads of torch's own would fight those that decode."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch

_START_S = 60.0  # for threads that do nothing yet

_setting_threads = threading.Lock()


def _renew_lock() -> None:
    """In a forked process: whoever held the lock is not here to give it back."""
    global _setting_threads
    _setting_threads = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def one_thread_each(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads in each of which torch's operations run on that thread alone.

    Args:
        num_threads: all of them begin here and now: torch's setting is the process's own again when this returns.
        name: of the threads.

    Raises:
        RuntimeError: a thread cannot be started, or (threading.BrokenBarrierError) not within a minute; those that
            were started end, and torch's setting is what it was.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
    started = threading.Barrier(num_threads, timeout=_START_S)

    def begin() -> None:
        _use_one_thread()
        started.wait()  # so that no thread begins twice

    try:
        # The first that fails: the others wait for it.
        done, _ = wait([pool.submit(begin) for _ in range(num_threads)], return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    except BaseException:
        started.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return pool


class OneThreadEach:
    """A pool of `one_thread_each` for those who come one after another; its threads begin with the first.

    Args:
        num_threads: of the pool.
        name: of the threads.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads, self._name = num_threads, name
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0  # that has it: another one, forked from it, has none of its threads
        self._closed = False

    def pool(self) -> ThreadPoolExecutor:
        """The pool.

        Raises:
            RuntimeError: see `one_thread_each`; or `close` has been called.
        """
        if self._closed:
            raise RuntimeError(
                f"{self._name}: expected threads that run, found ones that were stopped for good"
            )
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = one_thread_each(self._num_threads, self._name), os.getpid()
        return self._pool

    def share_out(self, work: Callable[[int], object], num: int) -> None:
        """Do `num` pieces of work, and wait for all of them, also where one fails: what they work on is free then."""
        pool = self.pool()

        def some(first: int) -> None:
            for i in range(first, num, self._num_threads):
                work(i)

        futures = [pool.submit(some, first) for first in range(self._num_threads)]
        wait(futures)
        for future in futures:
            future.result()

    def close(self) -> None:
        """Stop the threads, which do not begin again."""
        self._closed = True
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown(wait=True)


def _use_one_thread() -> None:
    """Torch's setting is the calling thread's and, besides, what threads begin with later on.

    The second is given back, by a thread that ends.
    """
    with _setting_threads:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            restore = threading.Thread(target=torch.set_num_threads, args=(others,))
            restore.start()
            restore.join()
        except BaseException:
            torch.set_num_threads(others)
            raise
