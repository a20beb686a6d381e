"""Which samples every step of every epoch serves on one rank; what a loader knows without reading a shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .mixed_source import MixedSource
from .order import Order, num_steps
from .pipeline import Step
from .source import Source


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The steps of a loader's epochs. It holds nothing of the loader itself: threads may keep it.

    Attributes:
        source: what is read.
        seed: of the order.
        num_lanes: K.
        window: W.
        shuffle: False keeps the data set's order.
        global_batch: G.
        rank: of this process.
        world_size: R.
        last_batch: as the loader's.
    """

    source: Source | MixedSource
    seed: int
    num_lanes: int
    window: int
    shuffle: bool
    global_batch: int
    rank: int
    world_size: int
    last_batch: str

    @property
    def per_lane(self) -> int:
        """Samples of every lane in a step."""
        return self.global_batch // self.num_lanes

    def num_steps(self, taken: int) -> int:
        """Steps left in an epoch of which every lane has given `taken` samples."""
        return num_steps(self.source.num_samples, self.num_lanes, self.global_batch, taken, self.last_batch)

    def order(self, epoch: int) -> Order:
        """The order of an epoch."""
        return self.source.order(
            self.seed, epoch, num_lanes=self.num_lanes, window=self.window, shuffle=self.shuffle
        )

    def steps(self, order: Order, epoch: int, taken: int) -> Iterator[Step]:
        """This rank's part of every step that is left."""
        first = -(-taken // self.per_lane)
        for step in range(self.num_steps(taken)):
            at = taken + step * self.per_lane
            yield Step.of(
                order, self.global_batch, at, self.rank, self.world_size, number=first + step, epoch=epoch
            )

    def samples(self, order: Order, epoch: int, taken: int) -> Iterator[np.ndarray]:
        """int64 [N] of each of these steps, -1 in empty slots."""
        # An order of its own keeps the windows that this is at.
        return (step.draws.samples for step in self.steps(order.again(), epoch, taken))

    def whole_epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """The same of a whole epoch, whose order is made when the first step is asked for."""
        yield from self.samples(self.order(epoch), epoch, 0)
