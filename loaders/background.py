"""Makes items ahead of need: a thread, and a short queue between it and the loop that takes them."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ..shards.errors import UsageError
from .loader_stats import LoopClock

Item = TypeVar("Item")

_LOOK_S = 1.0
_EXIT_PATIENCE_S = 10.0
_STOP_PATIENCE_S = 60.0  # a batch that is under way is finished first
_INTERRUPT_PATIENCE_S = 5.0  # whoever presses Ctrl-C waits for less

logger = logging.getLogger("softshard.loaders")


class Background(Generic[Item]):
    """Runs an iterator in a thread of its own, up to `ahead` items before they are asked for, from `start` on.

    Args:
        make: makes the iterator; called in the thread, and closed there.
        ahead: items that wait in the queue at most.
        watch: called about once a second while an item is waited for, with the seconds since that began; what it
            raises ends the wait, and the thread is left to itself.
        interrupt: ends whatever the iterator waits for; called from another thread.
        clock: is told how long each item waited for room in the queue.
    """

    def __init__(
        self,
        make: Callable[[], Iterator[Item]],
        ahead: int,
        watch: Callable[[float], None] | None = None,
        interrupt: Callable[[], object] = lambda: None,
        clock: LoopClock | None = None,
    ) -> None:
        self._interrupt, self._clock = interrupt, clock
        self._ready: queue.Queue[Item | BaseException | None] = queue.Queue(ahead)
        self._watch = watch
        self._stopped = self._abandoned = self._ended = False
        self._process = os.getpid()
        self._patience_s = _STOP_PATIENCE_S
        # A daemon, so that one that hangs in dead storage does not keep the process from ending. Any other is waited
        # for at exit: the process would abort if it were inside DALI or OpenCV while the interpreter goes down.
        self._thread = threading.Thread(target=self._work, args=(make,), name="softshard-loader", daemon=True)

    def start(self) -> None:
        """Begin; of one's own, so that whoever is to stop it knows it before: Ctrl-C may come anywhere."""
        self._thread.start()
        atexit.register(self._thread.join, _EXIT_PATIENCE_S)

    @property
    def stopped(self) -> bool:
        """Whether `stop` has been called: nothing more comes."""
        return self._stopped

    @property
    def is_lost(self) -> bool:
        """Whether the thread was given up and still hangs somewhere: whatever it uses is not free."""
        return self._abandoned and self._thread.is_alive()

    @property
    def is_of_another_process(self) -> bool:
        """Whether this is a copy, in a process that was forked: the thread stayed in the other one."""
        return os.getpid() != self._process

    def check_free(self) -> None:
        """Refuse to begin anew with what this thread uses.

        Raises:
            UsageError: it was given up and still hangs; or this is a copy in a forked process.
        """
        if self.is_lost:
            raise UsageError(
                "loader: expected a thread that has ended, found one that was given up and still hangs. Build a new loader"
            )
        if self.is_of_another_process:  # whose threads stayed there: locks may be held for ever
            raise UsageError(
                "loader: expected the process that iterated this loader, found one forked from it. Build a loader in the "
                "new process, or iterate after the fork only"
            )

    def check_running(self) -> None:
        """Refuse to go on with a loop that was ended elsewhere.

        Raises:
            UsageError: `stop` has been called.
        """
        if self.stopped:
            raise UsageError(
                "loader: expected one iteration at a time, found this one continued after another "
                "began, or after set_epoch, load_state_dict or close. Build a second loader for that"
            )

    @property
    def depth(self) -> int:
        """Items in the queue now."""
        return self._ready.qsize()

    def _work(self, make: Callable[[], Iterator[Item]]) -> None:
        try:
            items = iter(()) if self._stopped else make()  # it may have been stopped while it was started
            try:
                for item in items:
                    begun = time.monotonic()
                    if not self._put(item):
                        break
                    if self._clock is not None:
                        self._clock.queued(time.monotonic() - begun, self._ready.qsize())
            finally:
                # Here and now, in this thread: whatever the iterator holds is let go before `stop` returns.
                close = getattr(items, "close", None)
                if close is not None:
                    close()
            self._put(None)
        except BaseException as error:  # raised again where the item is asked for
            self._put(error)
        self._ended = True
        # Whoever stops it later sees that it has ended; who has done so may not have waited.
        if self._stopped:
            atexit.unregister(self._thread.join)

    def _put(self, item: Item | BaseException | None) -> bool:
        """Hand over an item; False once nobody wants any more."""
        # When a script ends in the middle of an epoch its main thread goes first, then waits for this one.
        while not self._stopped and threading.main_thread().is_alive():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def next(self) -> Item | None:
        """The next item, or None at the end.

        Raises:
            UsageError: in a forked process, or `stop` was called meanwhile, from another thread.
            Whatever the thread died of.
        """
        self.check_free()
        waited_s, looked = 0.0, time.monotonic()
        while True:
            try:
                item = self._ready.get(timeout=_LOOK_S)
                break
            except KeyboardInterrupt:
                self._patience_s = _INTERRUPT_PATIENCE_S
                raise
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    self.check_running()
                    raise RuntimeError(
                        "loader: the thread that makes batches has ended without a word"
                    ) from None
            # A longer time than the wait itself is one in which the process was stopped, and nothing could come.
            now = time.monotonic()
            waited_s, looked = waited_s + min(now - looked, 2 * _LOOK_S), now
            if self._watch is not None:
                try:
                    self._watch(waited_s)
                except BaseException:
                    self._abandon()
                    raise
        if isinstance(item, BaseException):
            try:
                raise item
            finally:
                del item  # its traceback holds this frame: a cycle, which would keep the shards open
        return item

    def stop(self, *, wait: bool = True) -> None:
        """End the thread; items that are ready are dropped.

        Args:
            wait: for it, unless it was given up or hangs, or this runs in it. Else it is only told to end.
        """
        self._stopped = True
        if self._abandoned or self.is_of_another_process:
            return
        if wait and self._thread is not threading.current_thread():
            self._wait()
        else:
            self._interrupt()
        # Not emptied: garbage may be collected here in the middle of a call that holds the queue's lock.
        self._ready = queue.Queue()
        if self._ended:
            atexit.unregister(self._thread.join)

    def _wait(self) -> None:
        """Wait for the thread's end, or give it up."""
        give_up = time.monotonic() + self._patience_s
        while self._thread.is_alive() and time.monotonic() < give_up:
            self._interrupt()  # again and again: it may only be about to wait
            self._thread.join(0.2)
        if self._thread.is_alive():
            logger.warning("the thread that makes batches hangs, and is left to itself")
            self._abandon()

    def _abandon(self) -> None:
        self._abandoned = True
        atexit.unregister(self._thread.join)
