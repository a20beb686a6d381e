"""Work spread over threads or processes of this machine, with results in the order of the work."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from .errors import SoftshardError, UsageError

S = TypeVar("S")
T = TypeVar("T")


def num_workers(workers: int | None) -> int:
    """The workers asked for; by default one a core that this process may use.

    Raises:
        UsageError: fewer than one.
    """
    if workers is None:
        return len(os.sched_getaffinity(0))
    if workers < 1:
        raise UsageError(f"workers: expected 1 or more, found {workers}")
    return workers


def in_threads(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """`map` with threads, for work that releases the GIL or waits; an error ends it once running calls have ended.

    At most two items a worker are waiting or done at a time, so that results do not pile up.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from _in_order(pool, function, items, 2 * workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_processes(
    function: Callable[[Any, S], T], shared: Any, items: Iterable[S], workers: int
) -> Iterator[T]:
    """`function(shared, item)` for every item, in processes; one worker is this process.

    Args:
        function: of a module, so that another process can import it.
        shared: sent to each process once.
        items: looked at a few at a time.
        workers: processes.

    Raises:
        SoftshardError: a process died.
    """
    if workers <= 1:
        for item in items:
            yield function(shared, item)
        return
    # Spawned, not forked: a fork of a process with threads (fsspec's, a notebook's) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_process, initargs=(function, shared)
    )
    try:
        yield from _in_order(pool, _call_in_process, items, 2 * workers)
    except BrokenProcessPool as error:
        raise SoftshardError(
            "expected worker processes to live, found one that died (killed, out of memory, or started by a "
            "script outside of `if __name__ == '__main__':`). Run it again, with fewer workers if memory was short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: Executor, function: Callable[[S], T], items: Iterable[S], most_waiting: int
) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_call: Callable[[Any], Any]


def _start_process(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _call
    threading.Thread(target=end_with_parent, daemon=True).start()
    _call = lambda item: function(shared, item)  # noqa: E731


def end_with_parent() -> None:
    """End this process with its parent: one whose parent was killed would wait for ever, and write beside the run that
    continues.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call_in_process(item: Any) -> Any:
    return _call(item)
