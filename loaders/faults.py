"""Samples that cannot be read: isolated, written down, counted against a budget, replaced.

A bad sample's slot takes the next good sample of the same lane's part of the global batch, cyclically, with `valid`
False. Its occurrence is raised by the distance, so that it is cut differently from the slot it comes from. No other
slot changes, and what a slot gets depends on nothing but which samples are good: not on the number of ranks, and not
on when a bad sample was found.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..shards.errors import DataError, UsageError

ALWAYS_ALLOWED_BAD = 10
MAX_OCCURRENCES = 2**16  # that the generator of crops tells apart
_NAMED = 5  # bad samples that the error of a spent budget names
_LOGGED = 20  # bad samples that the log names, each; what comes after them floods nothing

logger = logging.getLogger("softshard.loaders")


@dataclass(frozen=True)
class Faults:
    """How much a loader puts up with before it stops.

    Attributes:
        max_bad: share of a rank's samples that may be bad in a run, in all its epochs, and in the processes that continue
            it (a loader's state says which were met); ten are always allowed. With 0 the first one is an error.
        quarantine: file that gets a JSON line for each bad sample (shard, key, reason, ...; see docs/json.md); ranks and
            runs may share it. None: they are only logged, by the logger `softshard.loaders`: the first twenty, then one each
            time that their number has doubled.
        stall_s: seconds without a batch after which a warning says which stage works on what, and since when.
        give_up_s: seconds without a batch after which that is an error; None waits for ever.
        check_images: decode every image in full the first time that it is served, to find damage inside of JPEGs, which
            decoders show as grey or wrong colours; see first_look.py. In the first epoch that takes 0.15 ms an
            image of 224 pixels and 0.71 ms one of 500 (benchmarks/first_look.py, on an AMD EPYC), in the one thread
            that makes batches, before it hands them to those that decode. Stray bytes before a marker, which cameras
            leave in some photographs, count as damage.
    """

    max_bad: float = 0.001
    quarantine: str | Path | None = None
    stall_s: float = 60.0
    give_up_s: float | None = 1800.0
    check_images: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"faults: expected a share max_bad from 0 to 1, found {self.max_bad}")
        if self.stall_s <= 0 or (self.give_up_s is not None and self.give_up_s <= 0):
            raise UsageError(
                f"faults: expected seconds above 0, found stall_s {self.stall_s} and give_up_s {self.give_up_s}"
            )


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be read.

    Attributes:
        sample: index in the manifest's order.
        shard: name of its tar.
        key: of the sample.
        reason: the error's message.
    """

    sample: int
    shard: str
    key: str
    reason: str


class Quarantine:
    """The bad samples that one loader has met.

    Args:
        faults: how many are allowed, and where they are written.
        num_samples: samples of an epoch on this rank, which the budget is a share of.
        rank: for the lines of the file.

    Raises:
        UsageError: the file cannot be written.
    """

    def __init__(self, faults: Faults, num_samples: int, rank: int) -> None:
        self._path = None if faults.quarantine is None else Path(faults.quarantine)
        self._rank = rank
        self._limit = max(ALWAYS_ALLOWED_BAD, int(faults.max_bad * num_samples)) if faults.max_bad else 0
        self._num_samples = num_samples
        self._bad: dict[int, BadSample] = {}
        self._counted: set[int] = set()
        self._is_incomplete = False
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a"):
                    pass
            except OSError as error:
                raise UsageError(
                    f"{self._path}: expected a file for bad samples that can be written, found: {error}"
                ) from error

    @property
    def num_bad(self) -> int:
        """Distinct bad samples among this rank's own."""
        return len(self._counted)

    @property
    def counted(self) -> list[int]:
        """These samples, ascending."""
        return sorted(self._counted)

    def restore(self, counted: Iterable[int]) -> None:
        """Go on with the samples that an earlier process counted: the budget is a run's. They are not logged again."""
        self._counted = set(counted)
        self._bad.clear()  # what this loader knows beyond that is found, and counted, once more

    def __bool__(self) -> bool:
        return bool(self._bad)

    def __contains__(self, sample: int) -> bool:
        return sample in self._bad

    def __getitem__(self, sample: int) -> BadSample:
        return self._bad[sample]

    @property
    def strict(self) -> bool:
        """Whether no bad sample is allowed at all."""
        return not self._limit

    def add(self, bad: BadSample, *, own: bool, epoch: int, step: int) -> None:
        """Remember a bad sample; write it down and count it if the slot is this rank's own.

        Raises:
            DataError: the budget is spent.
        """
        self._bad.setdefault(bad.sample, bad)
        if not own or bad.sample in self._counted:
            return
        self._counted.add(bad.sample)
        line: dict[str, Any] = {
            "shard": bad.shard,
            "key": bad.key,
            "reason": bad.reason,
            "sample": bad.sample,
            "epoch": epoch,
            "step": step,
            "rank": self._rank,
        }
        self._write_down(json.dumps(line) + "\n")
        if len(self._counted) > self._limit:
            raise self._spent()
        count = len(self._counted)
        if count <= _LOGGED:
            logger.warning("epoch %d, step %d: left out %s", epoch, step, bad.reason)
        elif not count & (count - 1):  # of thousands a line each time that they have doubled
            logger.warning(
                "epoch %d, step %d: left out %d samples so far, now %s", epoch, step, count, bad.reason
            )

    def _write_down(self, line: str) -> None:
        """Add a line to the file. One that cannot be written any more, on a full disk, ends no epoch."""
        if self._path is None:
            return
        try:
            # One write of a file opened for appending: lines of other ranks are never torn, but where the disk is full.
            handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(handle).st_size
                is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                data = ("\n" * is_torn + line).encode()
                if os.write(handle, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(handle)
        except OSError as error:
            if not self._is_incomplete:
                logger.warning(
                    "%s: not all bad samples are written down: %s. The run goes on, and counts them; make room there, or "
                    "bring the folder back, for those that come",
                    self._path,
                    error.strerror,
                )
            self._is_incomplete = True

    def _spent(self) -> DataError:
        met = [sample for sample in self.counted if sample in self._bad]  # not in an earlier process
        named = "; ".join(self._bad[sample].reason for sample in met[:_NAMED])
        written = f" All are in {self._path}." if self._path is not None and not self._is_incomplete else ""
        return DataError(
            f"loader: expected at most {self._limit} bad samples of this rank's {self._num_samples:,}, found "
            f"{len(self._counted)}, the first of them: {named}.{written} Mend the data set (softshard verify --decode), "
            "or allow more with Faults(max_bad=...)"
        )


def next_good(part: np.ndarray, slot: int, is_bad: Callable[[int], bool]) -> int | None:
    """Which slot a bad one takes its sample from.

    Args:
        part: int64 [G / K], the samples of one lane in one global batch, -1 in slots past the lane's end.
        slot: the bad one, an index into `part`.
        is_bad: whether a sample is known to be bad.

    Returns:
        The distance to it, from 1 to G / K - 1, going round; None where no sample of the part is good.
    """
    for distance in range(1, len(part)):
        sample = int(part[(slot + distance) % len(part)])
        if sample >= 0 and not is_bad(sample):
            return distance
    return None
