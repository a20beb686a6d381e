"""Gives one damaged file to one parser, and says what is wrong with what came of it."""

from __future__ import annotations

import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softshard.shards.errors import DataError, UsageError

from .mutate import mutated

MOST_BYTES = 1 << 30  # of new memory that a damaged file of some kilobytes may take
MOST_S = 10  # of the processor's time: others may work on the machine, too


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: of the target.
        parse: called with the bytes and an empty folder to write them to.
        seeds: whole files, which it reads without an error.
        kind: how they are damaged, one of `mutate`'s.
        where: what its errors must name; empty where the caller of the parser does.
    """

    name: str
    parse: Callable[[bytes, Path], Any]
    seeds: tuple[bytes, ...]
    kind: str
    where: str = ""

    def example(self, number: int) -> bytes:
        """Damaged file number so and so."""
        return mutated(self.seeds[number % len(self.seeds)], self.kind, number, self.seeds)


class TooSlow(BaseException):
    """A parser took longer than MOST_S."""


def judge(target: Target, data: bytes, folder: Path) -> str:
    """Empty where the parser reads the data or refuses it as documented; else what it did."""
    try:
        with bounds(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.parse(data, folder)
    except (DataError, UsageError) as error:
        text = str(error)
        if target.where and target.where not in text:
            return f"{type(error).__name__} that does not name {target.where!r}: {text[:200]}"
    except TooSlow:
        return f"more than {MOST_S} s"
    except Exception as error:
        return f"{_place(error)}: {type(error).__name__}: {str(error)[:200]}"
    return ""


def _place(error: BaseException) -> str:
    """The last line of softshard's own on the way to an error."""
    found, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if any(part in code.co_filename for part in ("shards/", "loaders/", "training/")):
            found = f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return found or "outside softshard"


@contextmanager
def bounds() -> Iterator[None]:
    """Limits memory and time of the block; MemoryError and TooSlow say so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_BYTES
    previous = signal.signal(signal.SIGPROF, _too_slow)
    resource.setrlimit(
        resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )
    signal.setitimer(signal.ITIMER_PROF, MOST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, previous)


def _too_slow(*_: object) -> None:
    raise TooSlow
