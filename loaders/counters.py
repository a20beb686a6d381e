"""Frozen records of counts that grow while others read them: replaced under a lock, never changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

Counts = TypeVar("Counts")


class Counters(Generic[Counts]):
    """A record that grows; for several threads.

    Args:
        start: a frozen dataclass of numbers.
    """

    def __init__(self, start: Counts) -> None:
        self._lock = threading.Lock()
        self._counts = start

    def add(self, **more: float) -> None:
        """Add to counters, given by name."""
        self.change(lambda old: {name: getattr(old, name) + value for name, value in more.items()})

    def change(self, new: Callable[[Counts], dict[str, Any]]) -> None:
        """Replace counters by what `new` makes of the record as it is."""
        with self._lock:
            self._counts = replace(self._counts, **new(self._counts))  # pyright: ignore[reportArgumentType, reportCallIssue]

    def stats(self) -> Counts:
        """The record up to now."""
        return self._counts

    def __getstate__(self) -> Counts:  # a lock stays in its process
        return self._counts

    def __setstate__(self, counts: Counts) -> None:
        Counters.__init__(self, counts)


def difference(later: Counts, earlier: Counts) -> Counts:
    """What was counted between two records, field by field."""
    return type(later)(
        *(getattr(later, field.name) - getattr(earlier, field.name) for field in fields(later))  # pyright: ignore[reportArgumentType]
    )


def total(start: Counts, parts: Iterable[Counts]) -> Counts:
    """A record and others, added up field by field."""
    for part in parts:
        start = type(start)(
            *(getattr(start, field.name) + getattr(part, field.name) for field in fields(start))  # pyright: ignore[reportArgumentType]
        )
    return start
