"""What a loader has done so far, where its time went, and what holds it up: `loader.stats()`.

A batch is made in one thread, stage after stage, and waits in a short queue for the loop that asks for it:

    order -> shard -> read -> pool -> decode -> augment -> copy     queue     the training loop
    \\________________ stages, seconds each _________________/   queue_full_s  data_wait_s  loop_s
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .counters import Counters, difference
from .fetch_stats import FetchStats
from .stages import StageTime

if TYPE_CHECKING:
    from .batch import Batch

WAITING_SHARE = 0.05  # of its time that a loop may wait for data and still be what bounds the rate

# What a person calls each stage.
STAGE_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "order": "the order of samples",
        "shard": "storage",
        "read": "reading labels",
        "pool": "label pooling",
        "decode": "decode",
        "augment": "augmentation",
        "copy": "the copy to the device",
        "service": "the data service",
        "normalise": "normalisation",
    }
)


@dataclass(frozen=True)
class LoopTimes:
    """The two ends of the queue of batches.

    Attributes:
        batches: that the loop was given.
        images: in them; padding is none.
        data_wait_s: seconds that the loop waited for a batch.
        loop_s: seconds that it spent on its batches, from one that it was given to when it asked for the next.
        queue_full_s: seconds that a batch waited for room in the queue; the loop is slower then.
        queue_most: batches that were in the queue at most.
    """

    batches: int = 0
    images: int = 0
    data_wait_s: float = 0.0
    loop_s: float = 0.0
    queue_full_s: float = 0.0
    queue_most: int = 0


class LoopClock:
    """LoopTimes that grow; the loop's thread and the one that makes batches report, any may look."""

    def __init__(self) -> None:
        self._times = Counters(LoopTimes())

    def timed(self, next_batch: Callable[[], Batch | None]) -> Iterator[Batch]:
        """The batches up to None, noting how long each is waited for, and how long the loop has it."""
        begun, loop_s = time.monotonic(), 0.0
        while (batch := next_batch()) is not None:
            now = time.monotonic()
            self.given(len(batch.keys) - batch.keys.count(""), now - begun, loop_s)
            yield batch
            begun = time.monotonic()
            loop_s = begun - now

    def given(self, images: int, waited_s: float, loop_s: float) -> None:
        """The loop was given a batch; `loop_s` is what it spent on the one before."""
        self._times.add(batches=1, images=images, data_wait_s=waited_s, loop_s=loop_s)

    def queued(self, waited_s: float, depth: int) -> None:
        """A batch waited for room in the queue, and is one of `depth` there now."""
        self._times.change(
            lambda old: {
                "queue_full_s": old.queue_full_s + waited_s,
                "queue_most": max(old.queue_most, depth),
            }
        )

    def times(self) -> LoopTimes:
        """The times up to now."""
        return self._times.stats()


@dataclass(frozen=True)
class LoaderStats:
    """What a loader has done since it was built, over all its epochs; `later - earlier` is what lies between two.

    Times are by the wall clock. Stages run one after the other in the thread that makes batches. `decode` is what it
    waits for DALI's threads, and resampling; from a local folder it includes the disk, which DALI's threads read
    (`softshard bench` measures the two apart).

    Attributes:
        dataset: its name, without passwords.
        rank: of the loader's process.
        loop: what the training loop was given, and who waited for whom. The first batch of an iteration has nothing
            before it, so that it is always waited for.
        stages: name to seconds and calls, in the order in which they first ended.
        queue_depth: batches in the queue now.
        queue_size: batches that it holds (the loader's `prefetch`).
        decoding: batches now whose images are being decoded, or wait for it.
        bad_samples: that could not be read.
        fetch: what came over the network.
    """

    dataset: str
    rank: int
    loop: LoopTimes = field(default_factory=LoopTimes)
    stages: Mapping[str, StageTime] = field(default_factory=dict)
    queue_depth: int = 0
    queue_size: int = 0
    decoding: int = 0
    bad_samples: int = 0
    fetch: FetchStats = field(default_factory=FetchStats)

    @property
    def data_wait_share(self) -> float:
        """Share of the loop's time that it waited for batches, 0 to 1; 0 before the first."""
        spent = self.loop.data_wait_s + self.loop.loop_s
        return self.loop.data_wait_s / spent if spent else 0.0

    @property
    def mean_stage_s(self) -> dict[str, float]:
        """Seconds of each stage for a batch that was given to the loop; empty before the first."""
        num = self.loop.batches
        return {name: stage.seconds / num for name, stage in self.stages.items()} if num else {}

    @property
    def bottleneck(self) -> str:
        """What bounds the rate, in words.

        The training loop, where it waits for batches less than 5 % of its time; otherwise the longest stage.
        """
        if not self.loop.batches or not self.stages:
            return "nothing yet: no batch was asked for"
        return "the training loop" if self.data_wait_share < WAITING_SHARE else self.longest_stage

    @property
    def longest_stage(self) -> str:
        """The stage that has taken the most seconds, in words; empty before any has ended."""
        longest = max(self.stages, key=lambda name: self.stages[name].seconds, default="")
        return STAGE_WORDS.get(longest, longest)

    def __sub__(self, earlier: LoaderStats) -> LoaderStats:
        """What lies between an earlier look and this one; depths, and the most in the queue, are this one's."""
        return replace(
            self,
            loop=replace(difference(self.loop, earlier.loop), queue_most=self.loop.queue_most),
            stages={
                name: difference(time, earlier.stages.get(name, StageTime()))
                for name, time in self.stages.items()
            },
            bad_samples=self.bad_samples - earlier.bad_samples,
            fetch=difference(self.fetch, earlier.fetch),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict: every field, and what follows from them."""
        return {
            "dataset": self.dataset,
            "rank": self.rank,
            "bottleneck": self.bottleneck,
            "data_wait_share": self.data_wait_share,
            **asdict(self.loop),
            "queue_depth": self.queue_depth,
            "queue_size": self.queue_size,
            "decoding": self.decoding,
            "bad_samples": self.bad_samples,
            "stages": {
                name: {**asdict(time), "mean_s": self.mean_stage_s.get(name)}
                for name, time in self.stages.items()
            },
            "fetch": asdict(self.fetch),
        }

    def to_prometheus(self) -> str:
        """The same as text that Prometheus reads; see prometheus.py for the names."""
        from .prometheus import exposition

        return exposition(self)
