"""Work spread over threads or processes of this machine."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.reduction import DupFd
from typing import IO, Any, TypeVar

from .cores import usable_cores
from .errors import SoftshardError, UsageError

ENGINES = ("local", "ray")  # what work may be spread by: processes of this machine, or Ray
_NO_SHARED_MEMORY = (errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOSPC)
S = TypeVar("S")
T = TypeVar("T")


def num_workers(workers: int | None) -> int:
    """The workers asked for; by default one a core that this process may use.

    Raises:
        UsageError: fewer than one.
    """
    if workers is None:
        return usable_cores()
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
    function: Callable[[Any, S], T],
    shared: Any,
    items: Iterable[S],
    workers: int,
    *,
    in_order: bool = True,
    prepare: Callable[[], object] | None = None,
) -> Generator[T, None, None]:
    """`function(shared, item)` for every item, in processes; one worker is this process.

    Ctrl-C, and whoever takes no more results, ends the calls that run, and those that wait for a process are not begun.

    Args:
        function: of a module, so that another process can import it.
        shared: sent to each process once.
        items: looked at a few at a time.
        workers: processes.
        in_order: False gives results as they come, so that no process waits for a slow one.
        prepare: called once in each process that is started; of a module too.

    Raises:
        SoftshardError: a process died.
        UsageError: none can be started.
    """
    if workers <= 1:
        for item in items:
            yield function(shared, item)
        return
    # Spawned, not forked: a fork of a process with threads (fsspec's, OpenCV's, a notebook's) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ExitStack() as until_the_end:
        try:
            asked_to_stop, ask_to_stop = map(until_the_end.enter_context, context.Pipe(duplex=False))
            sent = _Sent((function, shared, prepare))
            until_the_end.callback(sent.close)
            start = {"initializer": _start_process, "initargs": (sent, asked_to_stop)}
            pool = _Processes(workers, mp_context=context, **start)
        except OSError as error:
            raise _cannot_start(error) from error
        until_the_end.callback(pool.shutdown, wait=True, cancel_futures=True)
        give = _in_order if in_order else _as_they_come
        try:
            yield from give(pool, _call_in_process, items, 2 * workers)
        except BrokenProcessPool as error:
            raise SoftshardError(
                "expected worker processes to live, found one that died (killed, out of memory, or started by a script "
                "outside of `if __name__ == '__main__':`). What is finished is kept: run it again to continue, with fewer "
                "workers if memory was short"
            ) from error
        except (KeyboardInterrupt, GeneratorExit):
            ask_to_stop.send_bytes(b"stop")
            raise


class _Sent:
    """A value that processes start with, in a file without a name; to each of them it is the value itself.

    The pipe that starts a process would do for 64 KiB: of more, multiprocessing waits for ever for a process that dies
    before it reads it (killed, or of a script without a guard), since it holds the reading end open itself.
    """

    def __init__(self, value: object) -> None:
        self._file = _nameless_file()
        try:
            pickle.dump(value, self._file)
            self._file.flush()
        except OSError as error:
            raise UsageError(
                f"workers: expected memory for what processes start with, found: {error.strerror or error}. Free some, "
                "raise ulimit -f, or run with --workers 1"
            ) from error

    def __reduce__(self) -> Any:
        return _receive, (DupFd(self._file.fileno()),)

    def close(self) -> None:
        self._file.close()


def _nameless_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("softshard"), "wb")
    return tempfile.TemporaryFile()  # a Python that was built for an older system


def _receive(sent: Any) -> Any:
    # Mapped, not read: all processes share one position in it.
    with open(sent.detach(), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return pickle.loads(data)


class _Processes(ProcessPoolExecutor):
    """Processes that begin with SIGINT held back: Ctrl-C goes to all of a terminal's, and would end the imports of each
    with a traceback. `_start_process` lets it through.
    """

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        except OSError as error:
            for process in (self._processes or {}).values():  # nobody else would end those that were started
                process.terminate()
            raise _cannot_start(error) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cannot_start(error: OSError) -> UsageError:
    """Why there are no processes; the error names no file."""
    found = error.strerror or error
    if error.errno in _NO_SHARED_MEMORY:
        return UsageError(
            f"workers: expected to make semaphores, which are files of /dev/shm, found: {found}. Let /dev/shm be there and "
            "be written to, or run with --workers 1"
        )
    return UsageError(
        f"workers: expected to start processes, found: {found}. Raise ulimit -n (open files) or -u (processes), or run "
        "with --workers 1"
    )


def _in_order(
    pool: Executor, function: Callable[[S], T], items: Iterable[S], most_waiting: int
) -> Iterator[T]:
    return few_at_a_time(partial(pool.submit, function), Future.result, items, most_waiting)


def few_at_a_time(
    begin: Callable[[S], Any], end: Callable[[Any], T], items: Iterable[S], most: int
) -> Iterator[T]:
    """`end(begin(item))` for every item in their order; so many at most are begun and not ended."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(begin(item))
        if len(waiting) >= most:
            yield end(waiting.popleft())
    while waiting:
        yield end(waiting.popleft())


def _as_they_come(
    pool: Executor, function: Callable[[S], T], items: Iterable[S], most_waiting: int
) -> Iterator[T]:
    queue = iter(items)
    running: set[Future[T]] = set()
    while True:
        running |= {pool.submit(function, item) for item in islice(queue, most_waiting - len(running))}
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


# Of a process that was started.
_call: Callable[[Any], Any]
_is_calling = False
_is_stopping = False  # no call begins
_has_raised = False


def _start_process(
    sent: tuple[Callable[[Any, Any], Any], Any, Callable[[], object] | None], asked_to_stop: Connection
) -> None:
    global _call
    function, shared, prepare = sent
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # The pool ends its processes by it when one has died, and waits for them, also where the parent ignores it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(asked_to_stop,), daemon=True).start()
    if prepare is not None:
        prepare()
    _call = lambda item: function(shared, item)  # noqa: E731


def _stop(number: int, frame: object) -> None:
    """End the call that runs, once: it cleans up. A process that waits for one has nothing to say."""
    global _is_stopping, _has_raised
    _is_stopping = True
    if _is_calling and not _has_raised:
        _has_raised = True
        raise KeyboardInterrupt


def _end_with_parent(asked_to_stop: Connection) -> None:
    """Stop when the parent asks, and end with it: a process whose parent was killed would wait for ever, and write beside
    the run that continues. Where SIGINT is ignored, as in a shell's background, the call that runs is the last.
    """
    global _is_stopping
    parent = multiprocessing.parent_process()
    if parent is not None:
        if parent.sentinel not in wait_for([parent.sentinel, asked_to_stop]):
            _is_stopping = True
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        parent.join()
        os._exit(1)


def _call_in_process(item: Any) -> Any:
    global _is_calling
    _is_calling = True
    try:
        if _is_stopping:
            raise KeyboardInterrupt
        return _call(item)
    finally:
        _is_calling = False
