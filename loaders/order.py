"""Which samples, in which order: pure functions of (counts, kept samples, seed, epoch, G, K, window).

An epoch permutes the shards and lays their kept samples end to end, positions 0..N-1. K *lanes* own contiguous
ranges; each lane shuffles inside windows of W positions. Step t takes the next G/K samples of every lane:

    positions   0 .......................... N-1
    lanes       |   lane 0   |   lane 1   |         (K = 2)
    step t      |   [==]     |   [==]     |         G/K slots of each = the global batch of G slots
    ranks            \\__ rank 0 __/\\__ rank 1 __/     R = 2: rank r serves slots rG/R to (r+1)G/R

The order knows nothing of ranks, so every world size that divides G sees the same global batches.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from ..shards.errors import UsageError
from ..shards.philox import PURPOSE_SHARD_ORDER, PURPOSE_SHUFFLE, permutation

LAST_BATCHES = ("drop", "pad")
DEFAULT_WINDOW = 32_768
_WINDOWS_KEPT = 4  # permuted windows that stay in memory; a step touches two of a lane at most


class Draws(NamedTuple):
    """Samples in the order in which they are served."""

    samples: np.ndarray  # int64 [N], indices in the manifest's order; -1 in slots past a lane's end
    occurrences: np.ndarray  # int64 [N], which draw of that sample in this epoch, from 0


class Order(Protocol):
    """What an epoch serves: of one data set (EpochOrder), or of several (MixedOrder)."""

    @property
    def num_lanes(self) -> int: ...

    @property
    def num_samples(self) -> int: ...

    def lane_draws(self, lane: int, start: int, stop: int) -> Draws: ...

    def again(self) -> Order: ...


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    Attributes:
        counts: int64 [S], draws of each shard's samples, in the manifest's order; see `count_kept` and `count_drawn`.
        seed: of the shuffle.
        epoch: number of the epoch.
        num_lanes: K.
        window: W, positions that are shuffled among each other.
        shuffle: False keeps the manifest's order.
        kept: int64 [N], the samples that are served, ascending, as indices in the manifest's order; None for all.
        turn: which pass over the samples in this epoch, 0 to 65,535; each is shuffled anew.
        first_shard: counter of the first shard's draw; the data sets of a mixture have shuffles of their own.
        first_position: the same of the first position.
        ends: int64 [N], how often the served samples are drawn, summed up to each one; None where each is drawn once.
    """

    counts: np.ndarray
    seed: int
    epoch: int
    num_lanes: int = 1
    window: int = 1
    shuffle: bool = True
    kept: np.ndarray | None = None
    turn: int = 0
    first_shard: int = 0
    first_position: int = 0
    ends: np.ndarray | None = None
    _shards: np.ndarray = field(init=False, repr=False)
    _position_starts: np.ndarray = field(init=False, repr=False)
    _sample_starts: np.ndarray = field(init=False, repr=False)
    _windows: OrderedDict[tuple[int, int], np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_lanes < 1 or self.window < 1:
            raise UsageError(
                f"order: expected lanes and window from 1, found {self.num_lanes} and {self.window}"
            )
        counts = np.asarray(self.counts, np.int64)
        expected = None if self.kept is None else len(self.kept)
        if self.ends is not None:
            expected = int(self.ends[-1]) if len(self.ends) else 0
        if expected is not None and expected != counts.sum():
            raise UsageError(
                f"order: expected counts of the {expected} draws of kept samples, found {counts.sum()} in all"
            )
        shards = np.arange(len(counts))
        if self.shuffle:
            shards = permutation(
                self.seed, PURPOSE_SHARD_ORDER, self.epoch, self.first_shard, len(counts), self.turn
            )
        set_field = object.__setattr__
        set_field(self, "counts", counts)
        set_field(self, "_shards", shards)
        set_field(self, "_position_starts", np.concatenate([[0], np.cumsum(counts[shards])]))
        set_field(self, "_sample_starts", np.concatenate([[0], np.cumsum(counts)]))
        set_field(self, "_windows", OrderedDict())

    @property
    def num_samples(self) -> int:
        return int(self._position_starts[-1])

    def lane_bounds(self, lane: int) -> tuple[int, int]:
        """First position of a lane, and the first one after it."""
        return lane_bounds(self.num_samples, self.num_lanes, lane)

    def lane_draws(self, lane: int, start: int, stop: int) -> Draws:
        """Draws `start` to `stop` of a lane, counted in the order in which it gives them; fewer where it ends."""
        first, last = self.lane_bounds(lane)
        stop = min(stop, last - first)
        if start >= stop:
            return Draws(np.empty(0, np.int64), np.empty(0, np.int64))
        if not self.shuffle:
            return self._to_draws(self._laid(first + start, first + stop))
        parts = []
        for window in range(start // self.window, (stop - 1) // self.window + 1):
            begin = window * self.window
            laid = self._shuffled(lane, window, first + begin, min(first + begin + self.window, last))
            parts.append(laid[max(start - begin, 0) : stop - begin])
        return self._to_draws(np.concatenate(parts))

    def again(self) -> EpochOrder:
        """The same order for another place in it: it keeps the windows that it is at."""
        return replace(self)

    def _shuffled(self, lane: int, window: int, first: int, last: int) -> np.ndarray:
        """What lies at the positions of a window, shuffled; kept, since the next steps take more of it."""
        shuffled = self._windows.get((lane, window))
        if shuffled is None:
            begin = self.first_position + first
            order = permutation(self.seed, PURPOSE_SHUFFLE, self.epoch, begin, last - first, self.turn)
            shuffled = self._windows[lane, window] = self._laid(first, last)[order]
            while len(self._windows) > _WINDOWS_KEPT * self.num_lanes:
                self._windows.popitem(last=False)
        return shuffled

    def _laid(self, first: int, last: int) -> np.ndarray:
        """int64 [last - first], what lies at these positions before the shuffle: indices of draws."""
        begin = int(np.searchsorted(self._position_starts, first, side="right")) - 1
        end = int(np.searchsorted(self._position_starts, last, side="left"))
        starts = self._position_starts[begin:end]
        moved = self._sample_starts[self._shards[begin:end]] - starts
        lengths = np.diff(np.concatenate([np.maximum(starts, first), [last]]))
        return np.arange(first, last) + np.repeat(moved, lengths)

    def _to_draws(self, indices: np.ndarray) -> Draws:
        places, occurrences = indices, np.zeros(len(indices), np.int64)
        if self.ends is not None:
            places = np.searchsorted(self.ends, indices, side="right")
            occurrences = indices - np.where(places > 0, self.ends[places - 1], 0)
        return Draws(places if self.kept is None else self.kept[places], occurrences)


def lane_bounds(num_samples: int, num_lanes: int, lane: int) -> tuple[int, int]:
    """First position of a lane, and the first one after it."""
    return lane * num_samples // num_lanes, (lane + 1) * num_samples // num_lanes


def count_kept(kept: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many samples of each shard are kept.

    Args:
        kept: int64 [N], ascending sample indices in the manifest's order.
        counts: int64 [S], samples of each shard.

    Returns:
        int64 [S].
    """
    borders = np.concatenate([[0], np.cumsum(counts)])
    return np.diff(np.searchsorted(kept, borders))


def count_drawn(ends: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many draws there are of each shard's samples.

    Args:
        ends: int64 [N], draws of the kept samples, summed up to each one.
        counts: int64 [S], kept samples of each shard.

    Returns:
        int64 [S].
    """
    borders = np.cumsum(counts)
    return np.diff(np.where(borders > 0, ends[borders - 1], 0), prepend=0)


def check_geometry(global_batch: int, num_lanes: int, rank: int, world_size: int) -> None:
    """Refuse a batch that cannot be shared evenly.

    Raises:
        UsageError: K does not divide G, R does not divide G, or the rank is not in the world.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(
            f"loader: expected a rank from 0 to {world_size - 1}, found {rank} of world size {world_size}"
        )
    if global_batch < 1 or global_batch % world_size:
        raise UsageError(
            f"loader: expected a global batch that world size {world_size} divides, found {global_batch}"
        )
    if num_lanes < 1 or global_batch % num_lanes:
        raise UsageError(
            f"loader: expected lanes that divide the global batch {global_batch} (batch size x world size), "
            f"found {num_lanes}"
        )


def num_steps(num_samples: int, num_lanes: int, global_batch: int, taken: int, last_batch: str) -> int:
    """Steps left in an epoch of which every lane has given `taken` samples; the same on every rank.

    Args:
        last_batch: `drop` ends with the last full step, `pad` serves every sample and adds empty slots.
    """
    if last_batch not in LAST_BATCHES:
        raise UsageError(f"loader: expected last_batch of {', '.join(LAST_BATCHES)}, found {last_batch!r}")
    per_lane = global_batch // num_lanes
    if last_batch == "drop":
        return max(0, num_samples // num_lanes - taken) // per_lane
    return -(-max(0, -(-num_samples // num_lanes) - taken) // per_lane)


def rank_slots(order: Order, global_batch: int, taken: int, rank: int, world_size: int) -> Draws:
    """One rank's part of a global batch.

    Args:
        global_batch: G, slots of all ranks together.
        taken: draws that every lane has given before.

    Returns:
        Draws of G / R slots.
    """
    per_lane = global_batch // order.num_lanes
    start, stop = rank * global_batch // world_size, (rank + 1) * global_batch // world_size
    samples, occurrences = np.full(stop - start, -1, np.int64), np.zeros(stop - start, np.int64)
    for lane in range(start // per_lane, -(-stop // per_lane)):
        low, high = max(start, lane * per_lane), min(stop, (lane + 1) * per_lane)
        draws = order.lane_draws(lane, taken + low - lane * per_lane, taken + high - lane * per_lane)
        span = slice(low - start, low - start + len(draws.samples))
        samples[span], occurrences[span] = draws
    return Draws(samples, occurrences)
