"""How far long work is, on standard error: a bar on a terminal, elsewhere a line a minute for the log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm

_LINE_EVERY_S = 60.0
_LOOK_EVERY_S = 5.0  # whether a line is due while nothing is counted


class Progress(Protocol):
    """What work is counted on."""

    def update(self, n: float = 1, /) -> object: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...


def progress_bar(
    total: int | None, label: str, unit: str, initial: int = 0, *, leave: bool = True
) -> Progress:
    """Show how far work is, with its rate and the time left.

    Args:
        total: how many units there are, or None.
        label: what is being done.
        unit: what is counted, such as `img`.
        initial: units that an earlier run has done; they count as done, but not for the rate.
        leave: whether a bar stays on the terminal when the work is done.
    """
    if sys.stderr.isatty():
        return tqdm(
            total=total, desc=label, unit=unit, initial=initial, file=sys.stderr, unit_scale=True, leave=leave
        )
    return _Lines(total, label, unit, initial)


class _Lines:
    """A line a minute, also while nothing is counted; none of work that takes less than a minute."""

    def __init__(self, total: int | None, label: str, unit: str, initial: int) -> None:
        self._total, self._label, self._unit, self._initial = total, label, unit, initial
        self._done = float(initial)
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def update(self, n: float = 1, /) -> None:
        with self._lock:
            self._done += n
            self._say_if_due()

    def _say_if_due(self) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_S:
            self._last = now
            print(self._line(now - self._start), file=sys.stderr, flush=True)

    def _say_meanwhile(self) -> None:
        """A shard may take many minutes, and storage may hang: whoever reads the log wants to know that the run is there."""
        while not self._ended.wait(_LOOK_EVERY_S):
            with self._lock:
                self._say_if_due()

    def _line(self, elapsed_s: float) -> str:
        rate = (self._done - self._initial) / elapsed_s
        text = f"softshard: {self._label}: {self._done:,.0f}"
        if self._total is not None:
            text += f" of {self._total:,}"
        text += f" {self._unit}, {tqdm.format_interval(elapsed_s)}, {rate:,.1f} {self._unit}/s"
        if self._total is not None and rate > 0:
            text += f", {tqdm.format_interval(max(0.0, self._total - self._done) / rate)} left"
        return text

    def __enter__(self) -> Self:
        threading.Thread(target=self._say_meanwhile, name="softshard-progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._ended.set()
