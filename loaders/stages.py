"""Where the time of a batch goes, and which stage has hung: a clock that every stage of the loader reports to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


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
