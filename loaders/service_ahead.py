"""Has a server fetch the shards of coming steps, where they are behind a URL, although it is only asked for single batches.

Trainers ask for the steps of an epoch in turn, so that what comes after a batch is known. Other trainers may be elsewhere,
and other servers take a part: whatever else is asked for is fetched when it is, and counts for nothing here.

    steps      t       t+1 ...            the slowest of those asked for lately, and on from there
    shards    [3 7]   [3 7] [7 1] [1 5]   fetched as far ahead as Cache.ahead and its budget allow
"""

from __future__ import annotations

from collections import deque
from functools import partial

from .epoch_plan import EpochPlan
from .mixed_shards import MixedShards
from .sample_reader import SampleReader

_RECENT = 8  # places whose slowest one counts
_FAR = 64  # steps beyond which a place is elsewhere
_MISSES = 3  # in a row, after which fetching begins anew there


class AskedShards(MixedShards):
    """Shards whose steps do not come in turn: a run of batches says nothing of the epoch's steps."""

    def reached(self, step: int) -> None:
        """Nothing: `come_to` says it."""

    def come_to(self, step: int) -> None:
        """Say that a step, counted from the first that was expected, is the slowest one now."""
        super().reached(step)


class EpochAhead:
    """Follows the places that are asked for through an epoch.

    Args:
        reader: of the samples; its shards become AskedShards.
        plan: of the epochs, all ranks together.
    """

    def __init__(self, reader: SampleReader, plan: EpochPlan) -> None:
        self._reader, self._plan = reader, plan
        self._shards = reader.shards = AskedShards(plan.source.parts)
        self._epoch = self._first = self._at = -1
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._misses = _MISSES  # nothing is expected yet
        self._num_steps = 0

    def asked(self, epoch: int, taken: int) -> None:
        """A batch is going to be made."""
        step = taken // self._plan.per_lane
        if epoch != self._epoch or not self._first <= step <= self._at + _FAR:
            self._misses += 1
            if self._misses > _MISSES:
                self._begin(epoch, taken)
            return
        self._recent.append(step)
        # Whatever comes after the last step is another epoch's.
        self._misses = _MISSES if step >= self._num_steps - 1 else 0
        self._at = max(self._at, min(self._recent))
        self._shards.come_to(self._at - self._first)

    def _begin(self, epoch: int, taken: int) -> None:
        order = self._plan.order(epoch)
        self._reader.expect(partial(self._plan.samples, order, epoch, taken))
        self._epoch, self._misses = epoch, 0
        self._first = self._at = taken // self._plan.per_lane
        self._num_steps = self._first + self._plan.num_steps(taken)
        self._recent.clear()
