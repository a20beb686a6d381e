"""Where the time of a batch goes, and which stage has hung: a clock that every stage of the loader reports to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

from ..shards.errors import StallError

T = TypeVar("T")
logger = logging.getLogger("softshard.loaders")


@dataclass(frozen=True)
class StageTime:
    """What one stage has taken so far.

    Attributes:
        seconds: in it, by the wall clock, over all its calls.
        calls: how often it ran to its end.
    """

    seconds: float = 0.0
    calls: int = 0


class Stages:
    """Times stages, and knows which one runs right now. One thread reports, others may look.

    Stages may be nested: the outer one's time includes the inner one's, and what runs is the inner one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[str, StageTime] = {}
        self._running: list[tuple[str, str, float]] = []

    @contextmanager
    def __call__(self, name: str, what: str = "") -> Iterator[None]:
        """Time the body as stage `name`; `what` says what it works on, for messages about a stall."""
        begun = time.monotonic()
        entry = (name, what, begun)
        with self._lock:
            self._running.append(entry)
        try:
            yield
        finally:
            spent = time.monotonic() - begun
            with self._lock:
                self._running.remove(entry)
                before = self._times.get(name, StageTime())
                self._times[name] = StageTime(before.seconds + spent, before.calls + 1)

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; what it takes to come by each is a call of stage `name`."""
        iterator, end = iter(items), object()
        while True:
            with self(name):
                item = next(iterator, end)
            if item is end:
                return
            yield cast(T, item)

    def times(self) -> dict[str, StageTime]:
        """Every stage that has run, in the order in which they first ended."""
        with self._lock:
            return dict(self._times)

    def running(self) -> tuple[str, str, float] | None:
        """(stage, what it works on, seconds since it began) of the innermost stage that runs; None between stages."""
        with self._lock:
            if not self._running:
                return None
            name, what, begun = self._running[-1]
        return name, what, time.monotonic() - begun

    def describe(self) -> str:
        """What runs, in words: `in 'read' of train-000003.tar for 61 s`."""
        running = self.running()
        if running is None:
            return "between two stages"
        name, what, seconds = running
        return f"in {name!r}{f' of {what}' if what else ''} for {seconds:.0f} s"


class Watchdog:
    """Says which stage stalls, and since when; in the end gives up.

    Args:
        stages: of the thread that makes batches.
        stall_s: seconds without a batch before the first warning; the next come after twice the time each.
        give_up_s: seconds without a batch that are an error; None for never.
    """

    def __init__(self, stages: Stages, stall_s: float, give_up_s: float | None) -> None:
        self._stages, self._stall_s, self._give_up_s = stages, stall_s, give_up_s
        self._next_s = stall_s

    def __call__(self, waited_s: float) -> None:
        """Called now and then while a batch is waited for.

        Raises:
            StallError: nothing came for `give_up_s`.
        """
        if self._give_up_s is not None and waited_s >= self._give_up_s:
            raise StallError(
                f"loader: expected a batch within {self._give_up_s:.0f} s, found none: {self._stages.describe()}. Is the "
                "storage away, or the machine overloaded? Faults(give_up_s=...) waits longer"
            )
        if waited_s < self._stall_s:
            self._next_s = self._stall_s  # another batch than the one of the last warning
        elif waited_s >= self._next_s:
            self._next_s = 2 * waited_s
            logger.warning("no batch for %.0f s: %s", waited_s, self._stages.describe())
