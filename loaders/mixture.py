"""Several data sets read as one: which of them every draw comes from. Pure; no torch in here.

Draw j of source i, which has the share p_i, has the time (j + 1/2) / p_i; draws are served in the order of their
times. This is Webster's (Sainte-Lague's) apportionment: what a source has been given is never taken back, as it would
be by largest remainders, whose shares of a longer epoch can be smaller (the Alabama paradox; Balinski and Young 1982,
"Fair Representation"). Among any first m draws source i has m p_i, give or take 1/2 + p_i (S - 2) / 2: half a draw
with two sources, less than one with three. And which source draw number m comes from takes the same few
microseconds whatever m is.

Each of K lanes runs through this sequence by itself, so that an epoch continues with any global batch that the lanes
divide; all lanes together are within K times that bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shards.errors import UsageError
from .balance import MAX_DRAWS
from .order import Draws, EpochOrder, lane_bounds


@dataclass(frozen=True)
class Mixture:
    """Data sets to read as one, and the share of each. They have the same classes, or are read with the same `labels`.

    A source that is shorter than its share of an epoch begins again, in another order and with other crops; of a
    longer one each epoch serves another part.

    Attributes:
        weights: folder of a data set -> its share, above 0; shares are divided by their sum.
        epoch_samples: draws of an epoch; None for as many as the data sets have samples.
    """

    weights: Mapping[str | Path, float]
    epoch_samples: int | None = None

    def __post_init__(self) -> None:
        shares = list(self.weights.values())
        if not shares or not all(isinstance(w, int | float) and 0 < w < math.inf for w in shares):
            raise UsageError(
                f"mixture: expected folders with a weight above 0 each, found {dict(self.weights)!r}"
            )
        if self.epoch_samples is not None and self.epoch_samples < 1:
            raise UsageError(f"mixture: expected epoch_samples from 1, found {self.epoch_samples}")

    @property
    def shares(self) -> tuple[float, ...]:
        """p_i, in the order of the weights; their sum is 1."""
        total = math.fsum(self.weights.values())
        return tuple(weight / total for weight in self.weights.values())


def interleave(shares: Sequence[float], start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `start` to `stop` of a sequence that gives every source its share.

    Args:
        shares: p_i of S sources, each above 0.
        start: first draw.
        stop: the first one after them.

    Returns:
        (sources, numbers): int64 [stop - start] each, the source of each draw, and how many that source gave before.
    """
    times, sources, numbers = [], [], []
    skipped = start
    for i, share in enumerate(shares):
        # A source is never further from its exact share than half the number of sources.
        first = max(0, math.floor(start * share) - len(shares))
        draws = np.arange(first, math.ceil(stop * share) + len(shares))
        times.append((draws + 0.5) / share)
        sources.append(np.full(len(draws), i))
        numbers.append(draws)
        skipped -= first
    by_time = np.argsort(
        np.concatenate(times), kind="stable"
    )  # at the same time the first source comes first
    chosen = by_time[skipped : skipped + stop - start]
    return np.concatenate(sources)[chosen], np.concatenate(numbers)[chosen]


def check_passes(
    shares: Mapping[str, float],
    sizes: Sequence[int],
    most_draws: Sequence[int],
    num_samples: int,
    num_lanes: int,
) -> None:
    """Refuse a mixture in which a source has too few samples.

    Args:
        shares: p_i of each source by name.
        sizes: samples of each.
        most_draws: how often one pass over each draws a sample at most.
        num_samples: draws of an epoch.
        num_lanes: K.

    Raises:
        UsageError: a source has fewer samples than lanes, or its samples come too often in an epoch.
    """
    for (name, share), size, most in zip(shares.items(), sizes, most_draws, strict=True):
        per_lane = size // num_lanes
        if per_lane < 1:
            raise UsageError(
                f"{name}: expected at least a sample for each of {num_lanes} lanes, found {size}. Use fewer lanes"
            )
        passes = math.ceil((num_samples / num_lanes * share + len(sizes)) / per_lane)
        if passes * most > MAX_DRAWS:
            raise UsageError(
                f"{name}: expected each of its {size:,} samples at most {MAX_DRAWS:,} times in an epoch, found the share "
                f"{share:.4g} of {num_samples:,} draws. Give it a smaller weight, or the epoch fewer samples"
            )


@dataclass(frozen=True)
class MixedPart:
    """What the order of a mixture knows of one source.

    Attributes:
        share: p_i.
        first_sample: index of its first sample among those of all sources.
        most_draws: how often one pass draws a sample at most.
        make_order: the order of one pass over it, with the mixture's lanes; all passes are of the same length.
    """

    share: float
    first_sample: int
    most_draws: int
    make_order: Callable[[int], EpochOrder]


class MixedOrder:
    """The order of one epoch of a mixture.

    Args:
        parts: what is mixed; see `check_passes`.
        num_samples: draws of the epoch.
        num_lanes: K; a lane serves the same lane of each source.
    """

    def __init__(self, parts: Sequence[MixedPart], num_samples: int, num_lanes: int) -> None:
        self.num_samples, self.num_lanes = num_samples, num_lanes
        self._parts = parts
        self._orders: dict[tuple[int, int], EpochOrder] = {}

    def lane_draws(self, lane: int, start: int, stop: int) -> Draws:
        """Draws `start` to `stop` of a lane, counted in the order in which it gives them; fewer where it ends.

        Samples are counted through all sources, one after the other; `occurrences` through the passes over them.
        """
        first, last = lane_bounds(self.num_samples, self.num_lanes, lane)
        stop = min(stop, last - first)
        if start >= stop:
            return Draws(np.empty(0, np.int64), np.empty(0, np.int64))
        sources, numbers = interleave([part.share for part in self._parts], start, stop)
        samples, occurrences = np.empty_like(numbers), np.empty_like(numbers)
        for i, part in enumerate(self._parts):
            places = np.flatnonzero(sources == i)
            if not len(places):
                continue
            begin, end = int(numbers[places[0]]), int(numbers[places[-1]]) + 1  # all of these, each once
            low, high = self._order(i, 0).lane_bounds(lane)
            per_pass = high - low
            for turn in range(begin // per_pass, (end - 1) // per_pass + 1):
                span = slice(max(begin, turn * per_pass) - begin, min(end, (turn + 1) * per_pass) - begin)
                at = begin + span.start - turn * per_pass
                draws = self._order(i, turn).lane_draws(lane, at, at + span.stop - span.start)
                samples[places[span]] = draws.samples + part.first_sample
                occurrences[places[span]] = draws.occurrences + turn * part.most_draws
        return Draws(samples, occurrences)

    def again(self) -> MixedOrder:
        """The same order for another place in it, with windows of its own."""
        return MixedOrder(self._parts, self.num_samples, self.num_lanes)

    def _order(self, source: int, turn: int) -> EpochOrder:
        """Of a pass; the first one is kept, and the latest."""
        if (source, turn) not in self._orders:
            for known in [known for known in self._orders if known[0] == source and 0 < known[1] < turn - 1]:
                del self._orders[known]
            self._orders[source, turn] = self._parts[source].make_order(turn)
        return self._orders[source, turn]
