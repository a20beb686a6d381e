"""Makes a run of batches, each begun a step ahead: its images are decoded while the batch before is finished.

Samples that cannot be read are found here, left out, and their steps begun again without them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..shards.errors import DataError, StorageError
from .batch import Batch
from .cache import DiskFullError
from .decode import Decoder
from .faults import MAX_OCCURRENCES, BadSample, Quarantine, next_good
from .make_batch import BatchMaker, BegunBatch, Blamed
from .order import Draws, Order, rank_slots


@dataclass(frozen=True)
class Step:
    """What one step serves on one rank.

    Attributes:
        number: of the step in its epoch.
        epoch: of the crops and flips.
        draws: of N slots.
        lane_part: of a slot: the draws of its lane's part of the global batch (G / K of them), and its place there.
    """

    number: int
    epoch: int
    draws: Draws
    lane_part: Callable[[int], tuple[Draws, int]]

    @classmethod
    def of(
        cls,
        order: Order,
        global_batch: int,
        taken: int,
        rank: int,
        world_size: int,
        *,
        number: int,
        epoch: int,
    ) -> Step:
        """The step that follows after `taken` draws of every lane."""
        per_lane, first = global_batch // order.num_lanes, rank * global_batch // world_size

        def lane_part(slot: int) -> tuple[Draws, int]:
            lane, place = divmod(first + slot, per_lane)
            return order.lane_draws(lane, taken, taken + per_lane), place

        return cls(number, epoch, rank_slots(order, global_batch, taken, rank, world_size), lane_part)

    def without(self, quarantine: Quarantine) -> tuple[Draws, np.ndarray]:
        """The draws with those of bad samples replaced, and bool [N], which slots have their own sample."""
        samples, occurrences = self.draws.samples.copy(), self.draws.occurrences.copy()
        valid = samples >= 0
        for slot in np.flatnonzero(valid) if quarantine else ():
            if int(samples[slot]) not in quarantine:
                continue
            valid[slot] = False
            part, place = self.lane_part(int(slot))
            distance = next_good(part.samples, place, quarantine.__contains__)
            if distance is None:
                samples[slot] = -1
                continue
            taken_from = (place + distance) % len(part.samples)
            samples[slot] = part.samples[taken_from]
            occurrences[slot] = (part.occurrences[taken_from] + distance) % MAX_OCCURRENCES
        return Draws(samples, occurrences), valid


class BatchRun:
    """The batches of some steps, in turn.

    Args:
        maker: of the loader. After an error of a decoder that it built another one is built, since DALI may give it up.
        quarantine: takes the bad samples.
    """

    def __init__(self, maker: BatchMaker, quarantine: Quarantine) -> None:
        self._maker, self._quarantine = maker, quarantine
        self._decoder: Decoder | None = None
        self._begun: deque[tuple[Step, BegunBatch]] = deque()
        self._problem: DataError | None = None  # of the step behind those that are begun: raised in its turn

    @property
    def num_begun(self) -> int:
        """Batches that were begun and are not finished."""
        return len(self._begun)

    def batches(self, steps: Iterable[Step]) -> Iterator[Batch]:
        """Every step's batch.

        Raises:
            DataError: of the first step that cannot be made, after the batches before it: a shard that cannot be had,
                or more bad samples than are allowed.
        """
        try:
            num_ahead = 1
            for i, step in enumerate(steps):
                while not self._begin_next(i, step):
                    num_ahead = 0
                    yield self._finish()
                if self._problem is None and len(self._begun) > num_ahead:
                    yield self._finish()
                if self._problem is not None:
                    break
            while self._begun:
                yield self._finish()
            if self._problem is not None:
                raise self._problem
        except GeneratorExit:
            self.drop()
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self._problem = None  # its traceback holds this frame: a cycle, which would keep the shards open

    def _begin_next(self, i: int, step: Step) -> bool:
        """Begin a step, or keep its problem; False where the disk is full of the step before's shards, until it is done."""
        try:
            self._maker.reader.shards.reached(i)
            self._begun.append((step, self._begin(step)))
        except DataError as error:
            if isinstance(error, DiskFullError) and self._begun:
                return False
            self._problem = error
        return True

    def _begin(self, step: Step) -> BegunBatch:
        while True:
            draws, valid = step.without(self._quarantine)
            try:
                return self._maker.begin(draws, valid, step.epoch, self._open())
            except StorageError:
                raise  # not the samples' doing, and asking again would wait for the storage once more
            except DataError:
                if not self._isolate(step, draws, self._maker.find_unreadable(draws)):
                    raise

    def _finish(self) -> Batch:
        while True:
            step, begun = self._begun[0]
            try:
                batch = self._maker.finish(begun, self._open())
            except (DataError, RuntimeError):
                # Whatever was submitted is lost with the decoder; all of it is begun again.
                self.close(forget=False)
                found = self._maker.find_undecodable(begun)
                if not self._isolate(step, begun.draws, found):
                    raise
                self._begin_again()
                continue
            self._begun.popleft()
            return batch

    def _begin_again(self) -> None:
        """Begin the same steps with another decoder; one that fails now does not take those before it along."""
        steps = [step for step, _ in self._begun]
        self._begun.clear()
        for step in steps:
            try:
                self._begun.append((step, self._begin(step)))
            except DataError as error:
                if not self._begun:
                    raise
                self._problem = error
                return

    def _isolate(self, step: Step, draws: Draws, found: Blamed) -> bool:
        """Put bad samples into the quarantine; whether there were any."""
        any_bad = bool(found)
        error = None
        try:
            for slot, ((shard, place), error) in found.items():
                if self._quarantine.strict:
                    raise error
                sample = int(draws.samples[slot])
                self._quarantine.add(
                    BadSample(sample, shard.path.name, shard.index.keys[place], str(error)),
                    own=sample == int(step.draws.samples[slot]),
                    epoch=step.epoch,
                    step=step.number,
                )
        finally:
            # An error's traceback holds this frame: a cycle, which would keep the shards open.
            found.clear()
            error = shard = None
        return any_bad

    def _open(self) -> Decoder:
        if self._decoder is None:
            self._decoder = self._maker.make_decoder()
        return self._decoder

    def drop(self) -> None:
        """Let go what was begun; the decoder stays for the next run."""
        self._begun.clear()
        if self._decoder is not None:
            self._decoder.drop()

    def close(self, *, forget: bool = True) -> None:
        """Stop the decoder; with `forget`, let go what was begun."""
        if forget:
            self._begun.clear()
        if self._decoder is not None:
            decoder, self._decoder = self._decoder, None
            decoder.close()
